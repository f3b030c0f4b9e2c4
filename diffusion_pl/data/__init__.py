"""Data sets: each a ``DataModule`` that says the shape of its examples and yields dictionaries of batches."""

from diffusion_pl.data.base import DataModule
from diffusion_pl.data.loader import TensorLoader
from diffusion_pl.data.points import Datasaurus, Points, Table
from diffusion_pl.data.toys import Checkerboard, Circles, EightGaussians, Moons, Pinwheel, SwissRoll, Toy

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
