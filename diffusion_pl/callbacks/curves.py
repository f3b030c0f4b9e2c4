"""The losses and metrics of a run over its steps, as an image."""

import contextlib
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from ..runtime.loggers import writing
from ..runtime.storage import write_file
from ..training import LeanCallback, Trainable

CURVES = "curves.png"
BESIDE = ("_nfe_", "_error_", "not_finite")  # of a metric, what says how it was measured


class Curves(LeanCallback):
    """Draws curves.png in the run's folder: training, validation and seen loss, and each metric, over the steps.

    It is drawn at the end of `fit`, and when a run is stopped or fails.  The values are the model's `history`, which is
    in every checkpoint: the curves of a resumed run begin with its first session.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)  # after other callbacks have measured at the end of the training

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with contextlib.suppress(Exception):  # the one that ended the run says more, and may have left no device
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, model: LightningModule) -> None:
        if not isinstance(model, Trainable) or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        series = {name: rows.numpy() for name, rows in model.history.series().items()}
        losses = {name: rows for name, rows in series.items() if "_loss/" in name}
        others = {name: rows for name, rows in series.items() if name not in losses}
        metrics = {name: rows for name, rows in others.items() if not any(part in name for part in BESIDE)}
        if not losses and not metrics:
            return
        from PIL import Image

        from .. import plots

        folder = Path(trainer.default_root_dir)
        image = Image.fromarray(plots.to_image(plots.curves_panel(losses, metrics, folder.name)))
        with writing(folder / CURVES):
            write_file(folder / CURVES, lambda file: image.save(file, "PNG"))
