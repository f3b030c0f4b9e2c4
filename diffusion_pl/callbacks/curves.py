"""The losses and metrics of a run over its steps, as an image."""

import contextlib
import re
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ..runtime.loggers import writing
from ..runtime.run_card import CARD, read_card
from ..runtime.storage import write_file
from ..training import History, LeanCallback, Trainable

CURVES = "curves.png"
BESIDE = ("_nfe_", "_error_", "not_finite")  # of a metric, what says how it was measured


class Curves(LeanCallback):
    """Draws curves.png in the run's folder: training, validation and seen loss, and each metric, over the steps.

    It is drawn at the end of `fit`, and when a run is stopped or fails.  The values are the model's `history`, which is
    in every checkpoint: the curves of a resumed run begin with its first session.  What was measured at the step of the
    checkpoint after it was written is taken from the run card.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not isinstance(pl_module, Trainable) or trainer.state.fn != "fit":
            return
        with contextlib.suppress(OSError, ValueError):  # there is none, or RunCard reports it
            card, step = read_card(Path(trainer.default_root_dir) / CARD), checkpoint["global_step"]
            if (card.get("metrics") or {}).get("step") == step:
                values = {name: float(value) for name, value in card["metrics"]["values"].items()}
                pl_module.history.add(step, _new_values(values, pl_module.history, card.get("validated_step") == step))

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


def _new_values(values: dict[str, float], history: History, validated: bool) -> dict[str, float]:
    """Those of the last values of a run that are of its last step, and not in its history.

    Args:
        values: by name; metrics may be of an earlier step, which the history has then.
        history: of the run.
        validated: whether the losses on the validation split are of the last step.
    """
    series = history.series()
    fresh = {name: value for name, value in values.items() if name not in series or series[name][-1, 1] != value}
    pattern = rf"{r'(val|seen)_(loss|accuracy)/|' if validated else ''}\w+_n\d+/"
    return {name: value for name, value in fresh.items() if re.match(pattern, name) and not re.search(r"_t\d", name)}
