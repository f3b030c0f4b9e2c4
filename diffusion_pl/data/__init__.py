"""Data sets: each a ``DataModule`` that says the shape of its examples and yields dictionaries of batches."""

from .base import DataModule
from .loader import TensorLoader
from .points import Datasaurus, Points, Table
from .toys import Checkerboard, Circles, EightGaussians, Moons, Pinwheel, SwissRoll, Toy

__all__ = [
    "Checkerboard",
    "Circles",
    "DataModule",
    "Datasaurus",
    "EightGaussians",
    "Moons",
    "Pinwheel",
    "Points",
    "SwissRoll",
    "Table",
    "TensorLoader",
    "Toy",
]
