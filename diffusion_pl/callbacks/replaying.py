"""A training step repeated from a dump of `Guard`: which of its values are not finite, and which was the first."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoints.io import read
from ..checkpoints.loading import from_content
from ..training import LeanCallback, Trainable
from .dump import loss_value, not_finite


class Example(NamedTuple):
    """Loss of one example at one time."""

    rank: int
    batch: int  # of the batches of that process's step
    row: int  # in its batch
    t: float
    loss: float


class Replay(NamedTuple):
    """The result of a process's share of a step."""

    losses: list[float]  # of each batch
    not_finite: list[str]  # parameters with such a gradient
    examples: list[Example]
    first: str | None  # the first value, in the order of the computation, that is not finite
    anomaly: str | None  # what torch's anomaly detection says of the backward pass, if it was asked


def read_dump(path: Path) -> dict[str, Any]:
    """A dump's content; of the folder of a run, its newest dump.

    Raises:
        FileNotFoundError, ValueError: no such file, damaged, with code in it, or a checkpoint of another kind.
    """
    dumps = sorted((path / "dumps").glob("step-*.ckpt")) if path.is_dir() else [path]
    if not dumps:
        raise FileNotFoundError(f"no dump in {path}: a run leaves one in its folder dumps when `guard` stops it")
    content = read(dumps[-1])
    if "dump" not in content:
        raise ValueError(f"{path} is no dump of a step: dumps are in the folder dumps of a run that stopped")
    return content


def replay(
    content: dict[str, Any],
    path: Path,
    rank: int,
    precision: Any = None,
    accelerator: str | None = None,
    detect_anomaly: bool = False,
) -> Replay:
    """The share of one process.

    Args:
        content: of the dump.
        path: where it was read.
        rank: of the process.
        precision, accelerator: other than those of the dump.
        detect_anomaly: let torch name the operation whose gradient is NaN.
    """
    dump = content["dump"]
    share = dump["ranks"][rank]
    model, _ = from_content(content, path, "raw")
    model.train()
    model.replay_noise(dump["seed"], share["numbers"], share["rank"])
    witness = _Witness(content, share)
    with _as_in_training(dump["threads"]):
        trainer = Trainer(
            accelerator=accelerator or dump["accelerator"],
            devices=1,
            precision=precision or dump["precision"],
            callbacks=[witness],
            accumulate_grad_batches=dump["accumulate_grad_batches"],
            detect_anomaly=detect_anomaly,
            max_steps=1,
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        anomaly = None
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*no `val_dataloader`.*")
                trainer.fit(model, _Batches(share["batches"]))
        except RuntimeError as error:
            if not detect_anomaly or "returned nan" not in str(error):
                raise
            anomaly = str(error)
    return Replay(witness.losses, witness.not_finite, witness.examples, witness.first, anomaly)


class _Batches:
    """A loader as Lightning knows it; a list would be one of loaders."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class _Witness(LeanCallback):
    """Sets up the step as it was, and looks at it."""

    def __init__(self, content: dict[str, Any], share: dict[str, Any]) -> None:
        self.content, self.share = content, share
        self.losses: list[float] = []
        self.not_finite: list[str] = []
        self.examples: list[Example] = []
        self.first: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before: now the weights have the type in which they were trained.
        pl_module.load_state_dict(self.content["state_dict"])
        if self.content["dump"]["scaler"] and trainer.precision_plugin.state_dict():
            trainer.precision_plugin.load_state_dict(self.content["dump"]["scaler"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Once before the step itself, which is to run as it did, with nothing hooked into the network.
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        assert isinstance(pl_module, Trainable)
        pl_module.draw_step(batch_idx)
        self._look(trainer, pl_module, batch, batch_idx)
        pl_module.load_state_dict(state)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.losses.append(loss_value(trainer, loss))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.not_finite = not_finite(pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, Trainable)
        rank = self.share["rank"]
        # NaN in a condition says that it is not given.
        values = {name: value if name == "x" else value.nan_to_num(nan=0) for name, value in batch.items()}
        names = [f"{name} of the batch" for name, value in values.items() if _bad(value)]
        with trainer.precision_plugin.train_step_context(), _watched(pl_module.network, names):
            loss, t = pl_module.losses(batch)
        if _bad(loss):
            names.append("the loss, but nothing in the network")
        if names and self.first is None:
            self.first = names[0]
        rows = enumerate(zip(t.tolist(), loss.tolist(), strict=True))
        size = len(batch["x"])  # an example may be there several times, each with a time of its own
        self.examples += [Example(rank, batch_idx, i % size, time, value) for i, (time, value) in rows]


@contextmanager
def _watched(network: nn.Module, names: list[str]) -> Iterator[None]:
    """Append to `names` what is not finite: the network's input, and what its parts return, in this order."""

    def before(part: nn.Module, args: Any, kwargs: Any) -> None:
        if _bad([args, kwargs]):
            names.append("the network's input")

    def after(name: str, part: nn.Module, output: Any) -> None:
        if _bad(output):
            names.append(f"the output of {name or 'the network'} ({type(part).__name__})")

    handles = [network.register_forward_pre_hook(before, with_kwargs=True)]
    for name, part in network.named_modules():
        hook = lambda part, args, output, name=name: after(name, part, output)  # noqa: E731
        handles.append(part.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bad(value: Any) -> bool:
    """Whether a value in it is not finite."""
    if isinstance(value, Tensor):
        return not value.isfinite().all()
    if isinstance(value, dict):
        return any(map(_bad, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_bad, value))


@contextmanager
def _as_in_training(threads: int) -> Iterator[None]:
    """What rounding on the CPU depends on: the number of threads, and denormal values flushed to zero as in `fit`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
