"""Writes the samples of `predict`, or what is made of them, so that an interrupted call loses at most one batch."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from ..checkpoints import read_part
from ..data import DataModule
from ..lean import LeanCallback
from .progress import StepProgress

UNFINISHED = ".unfinished"


class SampleWriter(LeanCallback):
    """Keeps the samples of every process in `folder`/.unfinished as they come; at the end they become one set of files.

    Args:
        write: (samples (N, *) in model units, folder) -> the files written.
        folder: where they go; of several machines, one that all of them see.
        num_samples: N; what was drawn beyond, to fill the last block, is dropped.
        convert: samples (B, *) -> what is kept of them, (B, *); None: themselves.
    """

    def __init__(
        self,
        write: Callable[[Tensor, Path], list[Path]],
        folder: Path,
        num_samples: int,
        convert: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.write, self.folder, self.num_samples, self.convert = write, folder, num_samples, convert
        self.parts = folder / UNFINISHED
        self.files: list[Path] = []
        self.nfe = 0  # evaluations of the denoiser that each sample took

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)

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
        path = self.parts / f"{int(batch['block'][0]):08d}.pt"
        part = path.with_suffix(f".{os.getpid()}")
        content = {"block": batch["block"].cpu(), **{name: _cpu(value) for name, value in outputs.items()}}
        if self.convert is not None:
            # Block by block, or rounding would differ with the number of processes.
            blocks = content["x"].chunk(len(content["block"]))
            content["x"] = torch.cat([self.convert(x) for x in blocks])
        try:
            torch.save(content, part)
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            part.unlink(missing_ok=True)
            raise OSError(
                f"cannot write {path}: {error}; what was finished before stays: the same command goes on from there"
            ) from error

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self.files = self.write(self._gathered(), self.folder)
            shutil.rmtree(self.parts)
        trainer.strategy.barrier()

    def _gathered(self) -> Tensor:
        """All that was kept, in order: (N, *), on disk, for it may not fit into memory."""
        whole = None
        for path in sorted(self.parts.glob("*.pt")):
            part = read_part(path)
            self.nfe = max(self.nfe, part["nfe"])
            wanted = part["index"] < self.num_samples
            rows = part["x"][wanted].numpy()
            if whole is None:
                shape = (self.num_samples, *rows.shape[1:])
                whole = np.lib.format.open_memmap(self.parts / "all.npy", "w+", rows.dtype, shape)
            whole[part["index"][wanted].numpy()] = rows
        assert whole is not None
        return torch.from_numpy(whole)


def resume(folder: Path, call: dict[str, Any], remedy: str) -> frozenset[int]:
    """The blocks that an interrupted call with the same content left in the folder; makes the folder if need be.

    Args:
        folder: of the samples.
        call: everything that the samples depend on, plain values.
        remedy: what to do if the folder holds samples of another call, for the message.

    Raises:
        ValueError: it holds finished samples, or unfinished ones of another call; or it is no folder.
    """
    finished = next(iter(sorted([*folder.glob("samples.*"), *folder.glob("grid.png")])), None)
    note = folder / UNFINISHED / "call.json"
    if finished is not None and not note.is_file():
        raise ValueError(f"{finished} exists already: {remedy}")
    if note.is_file():
        theirs = json.loads(note.read_text())
        for name in sorted(theirs.keys() | call.keys()):
            if theirs.get(name) != json.loads(json.dumps(call.get(name))):
                raise ValueError(
                    f"{folder} holds unfinished samples of another call ({name} {theirs.get(name)}, now "
                    f"{call.get(name)}): repeat that call to finish them, or {remedy}"
                )
    else:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            # Renamed into place: of several processes each does this, and none may find half of it.
            part = note.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(call))
            os.replace(part, note)
        except OSError as error:  # told now, not after the sampling
            raise ValueError(f"--output {folder} cannot be made a folder: {error.strerror}") from error
    done: set[int] = set()
    for path in note.parent.glob("*.pt"):
        done.update(read_part(path)["block"].tolist())
    return frozenset(done)


def draw(model: LightningModule, data: DataModule, writer: SampleWriter, accelerator: str, devices: int) -> bool:
    """Draw what data.predict_dataloader asks for, on some devices.

    Returns:
        Whether this is the first process, which goes on alone.
    """
    try:
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            logger=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            inference_mode=False,  # some guidance differentiates
            callbacks=[StepProgress(), writer],
        )
        data.trainer, blocks = trainer, LightningDataModule()  # not `data`, which Lightning would set up at any rate
        blocks.predict_dataloader = data.predict_dataloader  # type: ignore[method-assign]
        trainer.predict(model, datamodule=blocks, return_predictions=False)
    except Exception:
        discard(writer.folder)
        raise
    return bool(trainer.is_global_zero)


def discard(folder: Path) -> None:
    """Take away what `resume` made, if no sample was finished since."""
    parts = folder / UNFINISHED
    if not any(parts.glob("*.pt")):
        shutil.rmtree(parts, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds something else
            folder.rmdir()


def _cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
