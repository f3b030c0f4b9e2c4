"""Options of the data modules, most of which are written in a base class: names, defaults and help of each."""

import inspect
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from diffusion_pl import data
from diffusion_pl.data import DataModule, Digits
from diffusion_pl.data.command_line import options_of
from diffusion_pl.runtime.upstream.jsonargparse import parameters

ANY: dict[str, Any] = {"val_fraction": 0.1, "repeats": None, "seed": 0}
POINTS = ANY | {"batch_size": 512}
TOY = POINTS | {"num_points": 10_000}
MADE = {"low": None, "low_noise": 0.0, "captions": None, "text_encoder": None, "tokens": 32}
MADE |= {"masked": False, "residual": None}  # conditions
IMAGES = ANY | MADE | {"batch_size": 128}
TORCHVISION = IMAGES | {"root": "data", "download": True, "classes": None, "conditional": False}
OWN = ANY | MADE | {"batch_size": 32, "path": None, "horizontal_flip": False, "test_fraction": 0.0, "workers": None}
OWN |= {"size": None, "memory_gb": 2.0, "bits": None}
ARRAYS = OWN | {"labels": None, "classes": None, "order": None, "workers": 0}
FILES = OWN | {"crop": None, "mode": None, "corrupt": "fail", "frames": None, "max_pixels": 175_000_000}

#: As version 0.1 had them, and the conditions that images make.
OPTIONS: dict[str, dict[str, Any]] = {
    "Arrays": ARRAYS | {"key": None, "conditions": None},
    "CIFAR10": TORCHVISION | {"horizontal_flip": True, "augment": 0.0, "val_fraction": 0.0},
    "Checkerboard": TOY | {"noise": 0.0},
    "Circles": TOY | {"noise": 0.05, "factor": 0.5, "conditional": False},
    "Datasaurus": POINTS,
    "Digits": IMAGES | {"conditional": False},
    "EightGaussians": TOY | {"noise": 0.1, "conditional": False},
    "FashionMNIST": TORCHVISION | {"horizontal_flip": False, "size": None},
    "Fields": ANY
    | {"batch_size": 32, "test_fraction": 0.0, "workers": 0, "path": None, "key": None, "axes": None}
    | {"conditions": None, "residual": None, "missing": "refuse", "as_float": False, "memory_gb": 2.0},
    "Folder": FILES | {"conditional": False, "conditions": None},
    "HDF5": ARRAYS | {"dataset": None},
    "HuggingFace": FILES
    | {"split": "train", "test_split": None, "image_column": None, "label_column": None, "download": True},
    "Latents": {"batch_size": 128, "repeats": None, "seed": 0, "workers": 0}
    | {"path": None, "autoencoder": None, "images": None},
    "MNIST": TORCHVISION | {"colored": False, "name": None, "size": None},
    "Moons": TOY | {"noise": 0.05, "conditional": False},
    "Picture": MADE
    | {"batch_size": 32, "repeats": None, "seed": 0, "horizontal_flip": False}
    | {"path": None, "size": 32, "shorter_side": 128, "crops": 10_000, "mode": None},
    "Pinwheel": TOY | {"noise": 0.1, "conditional": False},
    "SwissRoll": TOY | {"noise": 0.5},
    "Table": POINTS | {"path": None, "columns": None, "where": None},
}
MODULES: dict[str, type[DataModule]] = {
    name: kind
    for name, kind in vars(data).items()
    if inspect.isclass(kind) and issubclass(kind, DataModule) and not inspect.isabstract(kind)
}


def test_every_data_module_has_its_options_stored() -> None:
    assert OPTIONS.keys() == MODULES.keys() - {"Unknown"}  # which stands for data that are not there


@pytest.mark.parametrize("name", OPTIONS)
def test_configurations_give_the_options_of_before(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MODULES[name], "data")
    assert vars(parser.get_defaults().data) == OPTIONS[name]
    for text in parser.format_help().split("  --data.")[1:]:
        described = text.partition("(type: ")[0].split()
        assert len(described) > 4, f"no help: {text}"


@pytest.mark.parametrize("name", OPTIONS)
def test_parameters_name_what_kwargs_hand_on(name: str) -> None:
    """Null for an option, its absence in an old checkpoint, suggestions: these need the types and defaults."""
    result = parameters(MODULES[name])
    assert result.keys() == OPTIONS[name].keys()
    given = {key: p.default for key, p in result.items() if p.default is not inspect.Parameter.empty}
    assert given.items() <= OPTIONS[name].items()
    assert result["seed"].annotation is int


def test_options_that_make_no_sense_are_unknown() -> None:
    with pytest.raises(TypeError, match="horizontal_flip"):
        Digits(horizontal_flip=True)
    with pytest.raises(TypeError, match="flip"):
        Digits(flip=True)


def test_parameters_of_what_is_no_class_are_none() -> None:
    assert parameters(3) == {}


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (data.Digits(), []),
        (data.Digits(conditional=True, batch_size=16, repeats=2), ["conditional", "true"]),
        (data.CIFAR10("my data", classes=[1, 3]), ["root", "my data", "classes", "[1, 3]", "horizontal_flip", "false"]),
        (data.CIFAR10(horizontal_flip=False, augment=0.1), ["horizontal_flip", "false"]),
        (data.Folder("images", size=32, horizontal_flip=True, workers=2), ["path", "images", "size", "32"]),
        (
            data.Folder("images", size=(16, 32), low=8, low_noise=0.5),
            ["path", "images", "size", "[16, 32]", "low", "8"],
        ),
    ],
)
def test_options_name_the_same_examples_without_augmentation(made: DataModule, options: list[str]) -> None:
    pairs = [
        part for name, value in zip(options[::2], options[1::2], strict=True) for part in (f"--data.{name}", value)
    ]
    named = options_of(made)
    assert named[:2] == ["--data", type(made).__name__]
    given = dict(zip(named[2::2], named[3::2], strict=True))
    assert given == dict(zip(pairs[::2], pairs[1::2], strict=True))
