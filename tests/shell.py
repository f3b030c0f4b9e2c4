"""What the tests of the shell share: a tiny model as YAML and as objects, the command line in process, events."""

import copy
import io
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import diffusion_pl
from diffusion_pl.__main__ import main
from diffusion_pl.checkpoints.io import AtomicCheckpointIO
from diffusion_pl.data import Datasaurus
from diffusion_pl.denoisers import V
from diffusion_pl.losses import SNR, DenoisingLoss, UniformTimes
from diffusion_pl.networks import MLP
from diffusion_pl.runtime.dashboard import PANELS, SECTIONS
from diffusion_pl.samplers import DDIM, UniformGrid
from diffusion_pl.schedules import VP
from diffusion_pl.training import DiffusionModule

ROOT = Path(diffusion_pl.__file__).parents[1]
LAST = Path("checkpoints/last.ckpt")  # within a run's folder

#: 40 steps of a network of 16 units; an epoch is 20 batches.
TINY: dict[str, Any] = {
    "model": {
        "network": {"class_path": "diffusion_pl.networks.MLP", "init_args": {"width": 16, "depth": 1}},
        "schedule": {"class_path": "VP"},
        "parameterization": {"class_path": "V"},
        "loss": {
            "times": {"class_path": "UniformTimes"},
            "weighting": {"class_path": "SNR", "init_args": {"plus": 1}},
        },
        "sampler": {
            "class_path": "DDIM",
            "init_args": {"grid": {"class_path": "UniformGrid", "init_args": {"steps": 4}}},
        },
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
    },
    "data": {"class_path": "Datasaurus", "init_args": {"batch_size": 32, "repeats": 5}},
    "trainer": {
        "max_steps": 40,
        "accelerator": "cpu",
        "val_check_interval": 20,
        "log_every_n_steps": 10,
        "enable_progress_bar": False,
    },
}


def tiny_config(folder: Path, name: str = "tiny.yaml", /, **changes: Any) -> Path:
    """Write TINY as folder/name with some keys changed: model__schedule={...}, None takes a key out."""
    config = copy.deepcopy(TINY)
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for part in path:
            section = section.setdefault(part, {})
        if value is None:
            del section[last]
        else:
            section[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / name


class Outcome(NamedTuple):
    """Exit status of a command line, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def run(self) -> str:
        """The folder that a command names at its end."""
        assert self.code == 0, self.err
        (line,) = (line for line in self.out.splitlines() if line.startswith("run saved to "))
        return line.removeprefix("run saved to ")

    @property
    def next(self) -> list[str]:
        """The arguments of the command that a command names as the next."""
        (line,) = (line for line in self.out.splitlines() if line.startswith("next: "))
        assert line.startswith("next: python -m diffusion_pl ")
        return shlex.split(line)[4:]

    @property
    def error(self) -> str:
        """The one line on stderr of a refused command line."""
        lines = self.err.splitlines()
        assert self.code == 2, self
        assert len(lines) == 1, self.err
        assert lines[0].startswith("diffusion_pl: error: "), self.err
        return lines[0].removeprefix("diffusion_pl: error: ")


def cli(folder: Path, *args: Any) -> Outcome:
    """python -m diffusion_pl ARGS in the folder, but in this process: Lightning takes seconds to import."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Outcome(code, out.getvalue(), err.getvalue())


def fit(folder: Path, *args: Any, run: str = "run", **changes: Any) -> Path:
    """Train the tiny model through the command line; the run's folder."""
    config = tiny_config(folder, f"{run}.yaml", **changes)
    done = cli(folder, "fit", "--config", config, "--run", run, *args)
    assert done.code == 0, done.err
    return folder / "runs" / run


def environment() -> dict[str, str]:
    """Of a process that finds the package and this file."""
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def start(folder: Path, *args: Any) -> "subprocess.Popen[str]":
    """python -m diffusion_pl ARGS in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_pl", *map(str, args)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    """Until the file exists."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {path} after {seconds} s"
        time.sleep(0.02)


def checkpoint(run: Path) -> dict[str, Any]:
    """A run's newest checkpoint."""
    content: dict[str, Any] = torch.load(run / LAST, weights_only=True)
    return content


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two nested structures of tensors and plain values differ, bit by bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or not torch.equal(a, b):
            yield path
    elif isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            yield f"{path}: {sorted(map(str, a.keys() ^ b.keys()))}"
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}[{index}]")
    elif a != b:
        yield f"{path}: {a} != {b}"


#: The parts of a checkpoint that decide what training does next.
STATE = ("state_dict", "averages", "callbacks", "optimizer_states", "lr_schedulers", "global_step", "Datasaurus")


def assert_same_training(a: Path, b: Path) -> None:
    """Two runs ended in the same state, bit by bit: weights, averages, optimizer, learning rate."""
    ours, theirs = ({key: checkpoint(run)[key] for key in STATE} for run in (a, b))
    assert not list(differences(ours, theirs))


def events(run: Path) -> list[EventAccumulator]:
    """The event files of a run in the order of their writing."""
    result = []
    for file in sorted(run.glob("events.*"), key=lambda file: (file.stat().st_mtime_ns, file.name)):
        result.append(EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 0}))
        result[-1].Reload()
    return result


#: What a clock or the machine decides: no two runs have the same.
MEASURED = ("examples_per_second", "memory_gib")


def name_of(tag: str) -> str:
    """The name of what TensorBoard shows under a tag, without the section before it."""
    section, _, name = tag.partition("/")
    return name if section in (PANELS, *SECTIONS.values()) else tag


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar that a run logged, by name."""
    series: dict[str, list[tuple[int, float]]] = {}
    for file in events(run):
        for tag in file.Tags()["scalars"]:
            values = ((event.step, event.value) for event in file.Scalars(tag))
            series.setdefault(name_of(tag), []).extend(values)
    return series


def images(run: Path) -> dict[str, list[tuple[int, bytes]]]:
    """(step, PNG) of every image that a run logged."""
    series: dict[str, list[tuple[int, bytes]]] = {}
    for file in events(run):
        for tag in file.Tags()["images"]:
            series.setdefault(name_of(tag), []).extend((e.step, e.encoded_image_string) for e in file.Images(tag))
    return series


def tiny_module(width: int = 16, **changes: Any) -> DiffusionModule:
    """The model of TINY as an object."""
    parts: dict[str, Any] = {
        "network": partial(MLP, width=width, depth=1),
        "schedule": VP(),
        "parameterization": V(),
        "loss": DenoisingLoss(UniformTimes(), SNR(plus=1)),
        "sampler": DDIM(UniformGrid(4)),
        "optimizer": partial(torch.optim.AdamW, lr=0.01),
    }
    torch.manual_seed(0)
    return DiffusionModule(**(parts | changes))


def tiny_data(**changes: Any) -> Datasaurus:
    """The data of TINY as an object."""
    return Datasaurus(**({"batch_size": 32, "repeats": 5} | changes))


def tiny_trainer(folder: Path, *callbacks: Callback, **changes: Any) -> Trainer:
    """A trainer of 20 steps that writes nothing."""
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": -1,
        "max_steps": 20,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": None,
        "val_check_interval": 1000,
        "log_every_n_steps": 5,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "use_distributed_sampler": False,
        "inference_mode": False,
        "default_root_dir": str(folder),
        "plugins": [AtomicCheckpointIO()],
    }
    return Trainer(callbacks=list(callbacks), **(options | changes))


def weights(module: DiffusionModule) -> dict[str, Tensor]:
    """A copy of the network's parameters."""
    return {name: p.detach().clone() for name, p in module.network.named_parameters()}


class Losses(Callback):
    """Keeps the loss of every training batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self.losses.append(outputs["loss"].item())


class SignalAt(Callback):
    """Sends this process a signal in the middle of the given batch, counted from 1 over the run."""

    def __init__(self, batch: int, number: int) -> None:
        self.batch, self.number = batch, number

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batch:
            signal.raise_signal(self.number)


class Slow(Callback):
    """Makes steps slow enough for a signal to find the run at work."""

    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(0.01)


class Witness(Callback):
    """Writes what each process saw and drew: rank0.pt, rank1.pt, … in the working directory."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.seeds: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.x.append(batch["x"].clone())

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.seeds.append(torch.default_generator.initial_seed())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        state = {"x": self.x, "seeds": self.seeds, "weights": dict(pl_module.state_dict()), "metrics": metrics}
        torch.save(state, f"rank{trainer.global_rank}.pt")


@contextmanager
def no_files_change(folder: Path) -> Iterator[None]:
    """Whatever the block does, the files below the folder stay as they are, and no new one appears."""
    before = _contents(folder)
    yield
    assert _contents(folder) == before


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def shared_keys(tags: Sequence[str], prefix: str) -> list[str]:
    """Tags that begin with the prefix."""
    return sorted(tag for tag in tags if tag.startswith(prefix))


def cifar10(root: Path, count: int = 20, smooth: bool = False) -> None:
    """Files as of CIFAR-10, of random pixels or smooth images.

    torchvision takes them once `accept_any_cifar10` is called.
    """
    import pickle

    import numpy as np

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        if smooth:  # a slope in each channel
            slope, axis = rng.uniform(-60, 60, (2, count, 3, 1, 1)), np.linspace(-1, 1, 32)
            pixels = (127 + slope[0] * axis[:, None] + slope[1] * axis).astype(np.uint8).reshape(count, 3072)
        content = {
            "data": pixels,
            "labels": [k % 10 for k in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


def accept_any_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision read CIFAR-10's files whatever their check sums."""
    from torchvision.datasets import CIFAR10

    for name in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, name, [[file, None] for file, _ in getattr(CIFAR10, name)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})


def fake_scontrol(folder: Path, status: int = 0) -> Path:
    """A folder for PATH with a scontrol that writes its arguments to scontrol.log."""
    script = folder / "bin" / "scontrol"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/scontrol.log"\necho "slurm says no" >&2\nexit {status}\n')
    script.chmod(0o755)
    return script.parent
