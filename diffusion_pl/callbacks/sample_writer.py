"""Keeps the samples of `predict`, or what is made of them, block by block: an interruption loses at most one batch."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from ..checkpoints.io import read_part
from ..data import DataModule
from ..runtime.bounds import check_room
from ..runtime.drawing import not_finite, steps_hint
from ..runtime.signals import AfterBlock
from ..runtime.storage import write_file
from ..training import DiffusionModule, LeanCallback
from .progress import StepProgress


class Drawn(NamedTuple):
    """What a `SampleWriter` kept.

    x: (N, *), in order, on disk, for it may not fit into memory;  nfe: evaluations that each sample took;  bad: how
    many samples are not finite.
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero and isinstance(pl_module, DiffusionModule):  # before there is a progress bar
            hint = steps_hint(pl_module.sampler, pl_module.schedule, trainer.strategy.root_device)
            if hint is not None:
                print(hint)

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
            # Block by block, or rounding would differ with the number of processes.
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
    whole, nfe, count, bad = None, 0, 0, 0
    for path in sorted(parts.glob("*.pt")):
        part = read_part(path)
        nfe = max(nfe, part["nfe"])
        wanted = part["index"] < num_samples
        rows = part["x"][wanted].numpy()
        if whole is None:
            whole = np.lib.format.open_memmap(parts / "all.npy", "w+", rows.dtype, (num_samples, *rows.shape[1:]))
        whole[part["index"][wanted].numpy()] = rows
        count += len(rows)
        bad += not_finite(part["x"][wanted])
    if whole is None or count < num_samples:
        raise ValueError(f"{parts} holds {count} of {num_samples} samples. Fix: repeat the call to draw the rest")
    return Drawn(torch.from_numpy(whole), nfe, bad)


def draw(
    model: LightningModule,
    data: DataModule,
    parts: Path,
    accelerator: str,
    devices: int,
    convert: Callable[[Tensor], Tensor] | None = None,
) -> bool:
    """Draw what data.predict_dataloader asks for and is not in `parts` yet, on some devices.

    Returns:
        Whether this is the first process, which goes on alone.
    """
    count, free = data.predict_samples, shutil.disk_usage(_existing(parts)).free
    size = 4 * math.prod(getattr(model, "shape", (1,)))  # bytes, at least, that are kept of a sample
    check_room(count * size, free, f"{count:,} samples")
    data.predict_done = done(parts)
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        inference_mode=False,  # some guidance differentiates
        callbacks=[StepProgress(), SampleWriter(parts, convert)],
    )
    data.trainer, blocks = trainer, LightningDataModule()  # not `data`, which Lightning would set up at any rate
    blocks.predict_dataloader = data.predict_dataloader  # type: ignore[method-assign]
    trainer.predict(model, datamodule=blocks, return_predictions=False)
    return bool(trainer.is_global_zero)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
