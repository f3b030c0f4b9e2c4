"""Data sets, as LightningDataModules whose batches are ``{"x": …, **cond}``."""

from .base import DataModule
from .digits import Digits
from .images import Images
from .loader import Loader
from .points import Datasaurus, Points, Table
from .toys import Checkerboard, Circles, EightGaussians, Moons, Pinwheel, SwissRoll, Toy

__all__ = [
    "Checkerboard",
    "Circles",
    "DataModule",
    "Datasaurus",
    "Digits",
    "EightGaussians",
    "Images",
    "Loader",
    "Moons",
    "Pinwheel",
    "Points",
    "SwissRoll",
    "Table",
    "Toy",
]
