"""Data sets: each a ``DataModule`` that says the shape of its examples and yields dictionaries of batches."""

from .arrays import Arrays
from .base import DataModule
from .cifar import CIFAR10
from .digits import Digits
from .fields import Fields
from .folder import Folder
from .hdf5 import HDF5
from .hugging_face import HuggingFace
from .images import Images
from .latents import Latents
from .loader import Loader
from .mnist import MNIST, FashionMNIST
from .points import Datasaurus, Points, Table
from .single_image import Picture
from .toys import Checkerboard, Circles, EightGaussians, Moons, Pinwheel, SwissRoll, Toy
from .unknown import Unknown, not_given

__all__ = [
    "CIFAR10",
    "HDF5",
    "MNIST",
    "Arrays",
    "Checkerboard",
    "Circles",
    "DataModule",
    "Datasaurus",
    "Digits",
    "EightGaussians",
    "FashionMNIST",
    "Fields",
    "Folder",
    "HuggingFace",
    "Images",
    "Latents",
    "Loader",
    "Moons",
    "Picture",
    "Pinwheel",
    "Points",
    "SwissRoll",
    "Table",
    "Toy",
    "Unknown",
    "not_given",
]
