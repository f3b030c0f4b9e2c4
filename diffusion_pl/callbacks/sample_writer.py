"""Writes the samples of `predict`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed

from ..lean import LeanCallback


class SampleWriter(LeanCallback):
    """Gathers the samples of all processes in the order of their index and hands them to the data module's `write`.

    Args:
        write: (samples (N, *) in model units, folder) -> the files written.
        folder: where they go.
    """

    def __init__(self, write: Callable[[Tensor, Path], list[Path]], folder: Path) -> None:
        self.write, self.folder = write, folder
        self.files: list[Path] = []
        self.nfe = 0  # evaluations of the denoiser that each sample took
        self._index: list[Tensor] = []
        self._x: list[Tensor] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._index.append(outputs["index"].cpu())
        self._x.append(outputs["x"].cpu())
        self.nfe = outputs["nfe"]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shares: list[Any] = [(self._index, self._x)]
        if trainer.world_size > 1:
            shares = [None] * trainer.world_size
            distributed.all_gather_object(shares, (self._index, self._x))
        if trainer.is_global_zero:
            index = torch.cat([i for indices, _ in shares for i in indices])
            x = torch.cat([part for _, parts in shares for part in parts])
            self.folder.mkdir(parents=True, exist_ok=True)
            self.files = self.write(x[index.argsort()], self.folder)
        self._index, self._x = [], []
