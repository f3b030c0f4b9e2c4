"""Save the samples of `predict`, or features of them, in blocks: an interruption loses at most one batch."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoints.io import read_part
from ..data.loader import Loader
from ..pipeline import Pipeline
from ..runtime.bounds import check_room
from ..runtime.signals import AfterBlock
from ..runtime.storage import write_file
from ..tensors import not_finite
from ..training import LeanCallback
from .progress import StepProgress


class Drawn(NamedTuple):
    """What a `SampleWriter` kept.

    x: (N, *), in order, on disk, since it may not fit into memory;  nfe: function evaluations of each sample;  bad:
    number of samples that are not finite.
    """

    x: Tensor
    nfe: int
    bad: int


class SampleWriter(LeanCallback):
    """Writes the samples of every process into a folder, one file for each batch.

    Args:
        parts: the folder; of several machines, one that all of them see.
        convert: samples (B, *) -> what is kept of them, (B, *); None: themselves.
    """

    def __init__(self, parts: Path, convert: Callable[[Tensor], Tensor] | None = None) -> None:
        self.parts, self.convert = parts, convert

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signals = AfterBlock(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not outputs:  # no share of this process
            return
        content = {"block": batch["block"].cpu(), **{name: _cpu(value) for name, value in outputs.items()}}
        if self.convert is not None:
            # Block by block, or rounding would depend on the number of processes.
            blocks = content["x"].chunk(len(content["block"]))
            content["x"] = torch.cat([self.convert(x) for x in blocks])
        path = self.parts / f"{int(batch['block'][0]):08d}.pt"
        try:
            write_file(path, lambda file: torch.save(content, file))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise OSError(f"cannot write {path}: {error}. Fix the cause and repeat the call to continue") from error
        self._signals.check()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()  # what follows needs the parts of all processes


def done(parts: Path) -> frozenset[int]:
    """The blocks that are complete in the folder of a `SampleWriter`."""
    return frozenset(block for path in parts.glob("*.pt") for block in read_part(path)["block"].tolist())


def gathered(parts: Path, num_samples: int) -> Drawn:
    """All that was kept; what was drawn beyond num_samples, to fill the last block, is dropped.

    Raises:
        ValueError: some are missing.
    """
    x, nfe, count, bad = None, 0, 0, 0
    for path in sorted(parts.glob("*.pt")):
        part = read_part(path)
        nfe = max(nfe, part["nfe"])
        kept = part["index"] < num_samples
        rows = part["x"][kept].numpy()
        if x is None:
            x = np.lib.format.open_memmap(parts / "all.npy", "w+", rows.dtype, (num_samples, *rows.shape[1:]))
        x[part["index"][kept].numpy()] = rows
        count += len(rows)
        bad += not_finite(part["x"][kept])
    if x is None or count < num_samples:
        raise ValueError(f"{parts} holds {count} of {num_samples} samples. Fix: repeat the call to draw the rest")
    return Drawn(torch.from_numpy(x), nfe, bad)


class Drawer(LightningModule):
    """Draws whole blocks of a pipeline's samples in `predict`: {"block": (K,)} -> {"index": (B,), "x": (B, *), "nfe"}.

    Args:
        pipeline: whose networks Lightning moves to its devices.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline, self.guided = pipeline, pipeline.guided

    @property
    def block(self) -> int:
        """Samples in a block."""
        return self.pipeline.block

    def on_predict_start(self) -> None:
        if self.trainer.is_global_zero and (hint := steps_hint(self.pipeline)) is not None:
            print(hint)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        hidden = self.trainer.progress_bar_callback is None or not self.trainer.is_global_zero
        progress = partial(tqdm, desc="steps", leave=False, dynamic_ncols=True, disable=hidden)
        index, x, nfe = [], [], 0
        for block in batch["block"].tolist():
            indices = range(block * self.block, (block + 1) * self.block)
            samples = self.pipeline.samples(indices, progress=progress)
            index.append(torch.tensor(indices))
            x.append(samples.x_0)
            nfe = max(nfe, samples.nfe)
        return {"index": torch.cat(index), "x": torch.cat(x), "nfe": nfe} if x else {}


class _Blocks(LightningDataModule):
    """The blocks that are not done yet, as batches {"block": (K,)}, none of which is divided among processes."""

    def __init__(self, count: int, batch: int, done: frozenset[int]) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.count, self.batch, self.done = count, batch, done

    def predict_dataloader(self) -> Loader | list[Any]:
        assert self.trainer is not None
        size: Any = self.trainer.lightning_module.block  # which depends on the device that the drawer is on by now
        blocks = [k for k in range(-(-self.count // size)) if k not in self.done]
        if not blocks:
            return []
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        together = max(1, min(self.batch // size, len(blocks) // world_size))  # at least as many batches as processes
        return Loader({"block": torch.tensor(blocks)}, together, rank=rank, world_size=world_size)


def drawing_trainer(accelerator: str, devices: int) -> Trainer:
    """A trainer that only predicts, on some devices, a process each."""
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        inference_mode=False,  # some guidance differentiates
        callbacks=[StepProgress()],
    )


def draw(
    drawer: LightningModule,
    count: int,
    parts: Path,
    trainer: Trainer,
    batch: int = 250,
    convert: Callable[[Tensor], Tensor] | None = None,
    size: int = 4,
) -> bool:
    """Have the drawer make, with the trainer, what is not in `parts` yet.

    Args:
        drawer: has `block` and `predict_step`, such as Drawer.
        count: samples, or rows, from the first on.
        parts: see SampleWriter.
        trainer: of `drawing_trainer`, or of a run.
        batch: samples between two savings.
        convert: see SampleWriter.
        size: bytes, at least, that are kept of a sample.

    Returns:
        Whether this is the first process, which continues alone.

    Raises:
        ValueError: there is no room for so many on the disk.
    """
    check_room(count * size, shutil.disk_usage(_existing(parts)).free, f"{count:,} samples")
    trainer.callbacks.append(SampleWriter(parts, convert))
    trainer.predict(drawer, datamodule=_Blocks(count, batch, done(parts)), return_predictions=False)
    return bool(trainer.is_global_zero)


def steps_hint(pipeline: Pipeline) -> str | None:
    """A line about a faster sampler, where sampling takes long: a high NFE on a CPU; else None."""
    sampler = pipeline.sampler
    evaluations = pipeline.nfe
    if pipeline.device.type != "cpu" or evaluations < 200 or sampler.order == 0:
        return None
    faster = round(evaluations / 20)
    return f"{evaluations:,} function evaluations per sample; --sampler DPMpp --steps 20 is about {faster} times faster"


def not_finite_error(bad: int, count: int, what: str = "samples") -> str:
    """The line that `bad` of `count` samples (or what they are) are not finite; "" if all are finite."""
    if not bad:
        return ""
    return (
        f"{bad:,} of {count:,} {what} are not finite: the model or its sampler diverges. Fix: take more --steps or "
        "another --sampler, or an earlier checkpoint"
    )


def refuse_not_finite(bad: int, count: int) -> None:
    """Raise ValueError if some of the samples are not finite."""
    if bad:
        raise ValueError(not_finite_error(bad, count))


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
