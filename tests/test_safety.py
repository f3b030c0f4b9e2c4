"""Untrusted files: whatever reads a file, code in it is not run, and a checkpoint names trusted classes only.

That `fit`, `predict` and `sample` refuse such checkpoints is tested in test_checkpoints.py.
"""

import copy
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from images_model import fit_digits
from shell import checkpoint, cifar10, cli, fit, tiny_config

from diffusion_pl.checkpoints.io import read_part
from diffusion_pl.checkpoints.loading import TRUST, load_model
from diffusion_pl.runtime.output_folder import UNFINISHED

CONV = {"class_path": "diffusion_pl.networks.ConvUNet"}


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = str(trap)

    def __reduce__(self) -> Any:
        return open, (self.trap, "w")


def raw(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps(evil))


def zipped(path: Path, evil: Evil) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "x": evil, "block": evil}, path)


def npy(path: Path, evil: Evil) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([evil, 1], dtype=object), allow_pickle=True)


def npz(path: Path, evil: Evil) -> None:
    array = np.array([evil, 1], dtype=object)
    with path.open("wb") as file:
        arrays: dict[str, Any] = dict.fromkeys(("x", "eps", "n", "mean", "cov", "note"), array)
        np.savez(file, **arrays)


def hdf5(path: Path, evil: Evil) -> None:
    with h5py.File(path, "w") as file:
        file["imgs"] = np.array([np.void(pickle.dumps(evil))])


WRITERS: dict[str, Callable[[Path, Evil], None]] = {"raw": raw, "zipped": zipped, "npy": npy, "npz": npz, "hdf5": hdf5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With runs/digits of a few steps, and its interrupted samples."""
    folder = tmp_path_factory.mktemp("safety")
    fit_digits(folder, trainer__max_steps=2)
    return folder


def command(*args: Any) -> Any:
    return lambda folder, bad: [*args, bad]


CKPT = "runs/digits/checkpoints/last.ckpt"
SAMPLE = ("sample", "--ckpt_path", CKPT, "--output", "no")
FID = ("--extractor", "DigitsClassifier", "--metrics", "fid")
EVALUATE = ("evaluate", "--ckpt_path", CKPT, "--output", "no")


def data(kind: str, **arguments: Any) -> Any:
    """`fit` on the file; "BAD" stands for it."""

    def build(folder: Path, bad: Path) -> list[Any]:
        given = {key: str(bad) if value == "BAD" else value for key, value in arguments.items()}
        config = tiny_config(folder, data={"class_path": kind, "init_args": given}, model__network=CONV)
        return ["fit", "--config", config, "--run", "no"]

    return build


def labels(folder: Path, bad: Path) -> list[Any]:
    np.save(folder / "fine.npy", np.zeros((9, 8, 8), np.uint8))
    built: list[Any] = data("Arrays", path=str(folder / "fine.npy"), labels="BAD")(folder, bad)
    return built


def inside(name: str) -> Any:
    """`fit` on the folder of the file, which is given this name."""

    def build(folder: Path, bad: Path) -> list[Any]:
        (folder / "inside" / name).parent.mkdir(parents=True, exist_ok=True)
        bad.rename(folder / "inside" / name)
        if name.startswith("cifar"):
            cifar10(folder / "true")
            for file in (folder / "true/cifar-10-batches-py").iterdir():
                if file.name != Path(name).name:
                    file.rename(folder / "inside/cifar-10-batches-py" / file.name)
            built = data("CIFAR10", root=str(folder / "inside"), download=False)(folder, bad)
        elif name.startswith("MNIST"):
            (folder / "inside/MNIST/processed/test.pt").write_bytes((folder / "inside" / name).read_bytes())
            built = data("MNIST", root=str(folder / "inside"), download=False)(folder, bad)
        elif name.endswith(".json"):
            built = data("HuggingFace", path=str(folder / "inside"))(folder, bad)
        else:
            built = data("Folder", path=str(folder / "inside"))(folder, bad)
        return built  # type: ignore[no-any-return]

    return build


#: Place where a file is read: what is written there, the file's name, and the command that reads it.
PLACES: dict[str, tuple[str, str, Any]] = {
    "evaluate": ("zipped", "bad.ckpt", command("evaluate", "--output", "no", "--ckpt_path")),
    "sweep": ("zipped", "bad.ckpt", command("sweep", "--output", "no", "--ckpt_path")),
    "classifier": ("zipped", "bad.ckpt", command(*SAMPLE, "--classifier")),
    "weak": ("zipped", "bad.ckpt", command(*SAMPLE, "--weak")),
    "latents": ("raw npy npz", "bad.npz", command(*SAMPLE, "--latents")),
    "reference": ("raw npy npz", "bad.npz", command(*EVALUATE, *FID, "--reference")),
    "extractor": ("raw zipped", "bad.pth", command(*EVALUATE, "--extractor", "InceptionV3", "--extractor.weights")),
    "compare": ("raw", "bad.json", lambda folder, bad: ["compare", bad, bad]),
    "images": ("raw npy", "bad.png", command("encode", "--ckpt_path", CKPT, "--output", "no", "--path")),
    "Arrays": ("raw npy zipped", "bad.npy", data("Arrays", path="BAD")),
    "Arrays of several": ("raw npz zipped", "bad.npz", data("Arrays", path="BAD")),
    "labels": ("raw npy", "bad.npy", labels),
    "HDF5": ("raw hdf5", "bad.hdf5", data("HDF5", path="BAD", dataset="imgs")),
    "Folder": ("raw zipped", "bad", inside("a.png")),
    "Table": ("raw", "bad.csv", data("Table", path="BAD", columns=["x", "y"])),
    "HuggingFace": ("raw", "dataset_info.json", inside("dataset_info.json")),
    "CIFAR10": ("raw", "bad", inside("cifar-10-batches-py/data_batch_1")),
    "CIFAR10's names": ("raw", "bad", inside("cifar-10-batches-py/batches.meta")),
    "MNIST": ("raw zipped", "bad", inside("MNIST/processed/training.pt")),
}


@pytest.mark.parametrize(("place", "writer"), [(p, w) for p, (writers, *_) in PLACES.items() for w in writers.split()])
def test_code_in_a_file_is_not_run(folder: Path, tmp_path: Path, place: str, writer: str) -> None:
    _, name, build = PLACES[place]
    trap, bad = tmp_path / "trap", tmp_path / name
    WRITERS[writer](bad, Evil(trap))
    assert cli(folder, *build(tmp_path, bad)).error
    assert not trap.exists()


@pytest.mark.parametrize("writer", ["raw", "zipped"])
def test_code_in_what_an_interrupted_call_left_is_not_run(folder: Path, tmp_path: Path, writer: str) -> None:
    """The folder may be untrusted."""
    output, trap = tmp_path / "left", tmp_path / "trap"
    parts = output / UNFINISHED
    parts.mkdir(parents=True)
    WRITERS[writer](parts / "00000000.pt", Evil(trap))
    with pytest.raises(ValueError, match=r"00000000\.pt is damaged or no part"):
        read_part(parts / "00000000.pt")
    assert "without a note of its call" in cli(folder, "sample", "--ckpt_path", CKPT, "--output", output).error
    assert not trap.exists()
    assert [path.name for path in parts.iterdir()] == ["00000000.pt"]


def test_the_traps_work(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    unsafe: dict[str, Callable[[Path], Any]] = {
        "raw": lambda path: pickle.loads(path.read_bytes()),
        "zipped": lambda path: torch.load(path, weights_only=False),
        "npy": lambda path: np.load(path, allow_pickle=True),
        "npz": lambda path: np.load(path, allow_pickle=True)["x"],
    }
    for name, load_it in unsafe.items():
        WRITERS[name](tmp_path / name, Evil(trap))
        load_it(tmp_path / name)
        assert trap.exists()
        trap.unlink()


# Classes that a checkpoint names


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of two steps."""
    folder = tmp_path_factory.mktemp("points")
    fit(folder, trainer__max_steps=2)
    return folder


@pytest.fixture
def stranger(points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], Path]:
    """stranger("model.network", …): that checkpoint with another value there, in a folder with a trap of a module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(TRUST, "")
    text = "from pathlib import Path\nPath('trap').touch()\nfrom diffusion_pl.networks import MLP as Net\n"
    (tmp_path / "stranger.py").write_text(text)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)

    def write(place: str, value: Any) -> Path:
        content = copy.deepcopy(checkpoint(points / "runs" / "run"))
        *path, last = place.split(".")
        section = content["diffusion_pl"]
        for part in path:
            section = section[part]
        section[last] = value
        torch.save(content, tmp_path / "strange.ckpt")
        return tmp_path / "strange.ckpt"

    return write


TOUCH = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "trap"]}}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "model.network",
            {"class_path": "stranger.Net"},
            r"asks for stranger\.Net, .* set DIFFUSION_PL_TRUST=stranger",
        ),
        ("model.network", "stranger.Net", r"asks for stranger\.Net, .* set DIFFUSION_PL_TRUST=stranger in"),
        ("model.schedule", {"class_path": "stranger.Net"}, r"asks for stranger\.Net"),
        ("data", {"class_path": "stranger.Net"}, r"asks for stranger\.Net"),
        ("model", {"class_path": "stranger.Net"}, r"asks for stranger\.Net"),
        (
            "model.optimizer",
            {"class_path": "os.system", "init_args": {"command": "touch trap"}},
            r"asks for os\.system",
        ),
        ("model.optimizer", "os.system", r"asks for os\.system, which is not a model class"),
        ("model.optimizer", TOUCH, r"asks for subprocess\.Popen, which is not a model class"),
        ("model.schedule", TOUCH, r"asks for subprocess\.Popen"),
        ("model.network", TOUCH, r"asks for subprocess\.Popen"),
        (
            "model.network",
            "diffusion_pl.checkpoints.loading.os.system",
            r"asks for (posix|nt)\.system",
        ),  # by a back door
        ("model.network", {"class_path": "torch.hub.load", "init_args": {}}, r"asks for torch\.hub\.load"),
        ("model.guidance", "stranger.Net", r"asks for stranger\.Net"),
    ],
)
def test_a_checkpoint_gets_no_class_of_elsewhere(
    stranger: Callable[[str, Any], Path], tmp_path: Path, place: str, value: Any, message: str
) -> None:
    bad = stranger(place, value)
    error = cli(tmp_path, "sample", "--ckpt_path", bad, "--output", "no").error
    assert re.search(message, error), error
    assert error.startswith(f"{bad} asks for")
    assert not (tmp_path / "trap").exists()
    assert "stranger" not in sys.modules


def test_a_package_that_is_trusted_is_used(
    stranger: Callable[[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("from diffusion_pl.networks import MLP\n\n\nclass Net(MLP):\n    pass\n")
    path = stranger("model.network", {"class_path": "mine.Net", "init_args": {"width": 16, "depth": 1}})
    with pytest.raises(ValueError, match="set DIFFUSION_PL_TRUST=mine in the environment"):
        load_model(path)
    monkeypatch.setenv(TRUST, "other, mine")
    assert type(load_model(path)[0].network).__name__ == "Net"
    monkeypatch.setenv(TRUST, "other")
    with pytest.raises(ValueError, match="mine"):
        load_model(path)
    del sys.modules["mine"]


def test_own_configurations_may_name_any_class(stranger: Callable[[str, Any], Path], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from diffusion_pl.networks import MLP\n\n\nclass Net(MLP):\n    pass\n")
    with pytest.raises(ValueError, match="stranger"):
        load_model(stranger("model.network", "stranger.Net"))
    fit(tmp_path, model__network={"class_path": "own.Net", "init_args": {"width": 8}}, trainer__max_steps=1)
    del sys.modules["own"]
