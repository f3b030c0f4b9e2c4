"""What every network in training shares: optimizer, gradient clipping, check of a checkpoint, losses by noise level."""

import inspect
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..conditions import Conditions, check_batch
from ..losses import Losses
from ..metrics import BinnedMean
from ..runtime.upstream.lightning import QuickHookNotes
from ..tensors import mix
from .lr_schedulers import SchedulerFactory, check_factory, make_scheduler
from .resuming import resume_optimizer

Shape = tuple[int, ...]
Batch = dict[str, Tensor]

VAL_BINS = 4  # equal bins of t for the validation loss


def build_network(network: Callable[..., nn.Module], shape: Shape, conditions: Conditions) -> nn.Module:
    """The network of a model for data of a shape, with a line of its own for a class that is not made for that."""
    made = next((arg for arg in getattr(network, "args", ()) if isinstance(arg, type)), network)
    name = getattr(getattr(made, "func", made), "__name__", "this class")
    if [*inspect.signature(made).parameters][1:2] == ["classes"]:
        raise ValueError(
            f"model.network: {name}: its second parameter is now `conditions`, a dict of Condition; "
            "conditions['label'].classes is the number"
        )
    try:
        return network(shape, conditions)
    except TypeError as error:
        raise ValueError(
            f"model.network: {name} cannot be built from the shape and the conditions of the data: {error}"
        ) from error


class LeanHooks:
    """Takes the empty hooks of the training step away; a class that needs one defines it.

    Lightning calls these six in every step, on the module and on every callback, empty or not, at some microseconds
    each; for a small network that adds up to a third of the step.  It skips a hook that is not callable.
    """

    on_train_batch_start: Any = None
    on_before_zero_grad: Any = None
    on_before_backward: Any = None
    on_after_backward: Any = None
    on_before_optimizer_step: Any = None
    on_train_batch_end: Any = None


class LeanCallback(LeanHooks, Callback):
    """A callback that costs nothing in the training step unless it defines a hook there."""


class LeanProfiler(PassThroughProfiler):
    """Profiles nothing, at less cost: Lightning asks forty times a step and would make a new context each time."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return _NOTHING


_NOTHING = nullcontext()


class Trainable(QuickHookNotes, LeanHooks, LightningModule):
    """Subclasses define `network`, `losses`, `training_step` and `validation_step`.

    Args:
        optimizer: of the network's parameters.
        lr_scheduler: made from the optimizer, and stepped every optimizer step; one that has a parameter total_steps is
            given the number of steps of the run.  None: a constant learning rate.

    Raises:
        ValueError: a scheduler that is not supported, such as ReduceLROnPlateau.
    """

    def __init__(self, optimizer: Callable[[Any], Optimizer], lr_scheduler: SchedulerFactory | None) -> None:
        super().__init__()
        if lr_scheduler is not None:
            check_factory(lr_scheduler)
        self.optimizer_factory, self.lr_scheduler_factory = optimizer, lr_scheduler
        self.val_loss = BinnedMean(VAL_BINS)
        self.sha256: str | None = None  # of the checkpoint that it was loaded from
        self.weights_name = "raw"  # the EMA callback changes it while its averages are swapped in
        self._checked = False  # whether a batch was seen that fits
        self._resumed: dict[str, Any] | None = None  # the checkpoint, between its loading and the optimizer's

    @property
    def attached(self) -> Trainer | None:
        """The trainer that has the module, if one has."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """What is trained and averaged."""

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """The loss of each example of a batch, at random times; the training loss is their mean."""

    def check_first(self, batch: Batch, conditions: Conditions) -> None:
        """Raise ValueError if the first batch of a training does not hold the model's conditions."""
        if not self._checked:
            augmentation = getattr(getattr(self.trainer, "datamodule", None), "augmentation", None)
            check_batch(batch, conditions, getattr(augmentation, "tells", ()))
            self._checked = True

    def log_step(self, **values: Tensor) -> None:
        """Log quantities of a training step, and the learning rate, in the steps that are written at all."""
        if logs_now(self.trainer):
            for name, value in values.items():
                self.log(f"{name}/raw", value, prog_bar=True)
            self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_start(self) -> None:
        # DDP would broadcast buffers before the next forward pass, but not every process has a batch.
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.require_forward_param_sync = False

    def validation_noise(self, batch_idx: int) -> torch.Generator:
        """Of t and ε: the same for the same batch every time, or their noise would hide the progress, and on any number
        of processes, to which batches are dealt out whole."""
        number = self.global_rank + batch_idx * self.trainer.world_size
        return torch.Generator(self.device).manual_seed(mix(number))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(self.network.parameters())
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = make_scheduler(self.lr_scheduler_factory, optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        # Lightning has made the optimizer, and is about to load into it what the checkpoint holds.
        checkpoint, self._resumed = self._resumed, None
        if checkpoint is None:
            return
        configs = self.trainer.lr_scheduler_configs
        scheduler: Any = configs[0].scheduler if configs else None
        optimizer, parameters = self.trainer.optimizers[0], self.network.parameters()
        for lost in resume_optimizer(checkpoint, optimizer, scheduler, self.optimizer_factory, parameters):
            if self.trainer.is_global_zero:
                print(f"diffusion_pl: warning: {lost}", flush=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Now, not before the next backward pass: the forward pass in between can have the gradients' memory.
        self.trainer.optimizers[0].zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # Lightning refuses fused optimizers in mixed precision, for these unscale the gradients themselves; in
            # bfloat16 nothing is scaled.
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
            return
        try:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        except RuntimeError as error:
            if "fused" not in str(error):
                raise
            raise ValueError(
                "trainer.gradient_clip_val and a fused optimizer do not go together in float16: take fused: true out "
                "of model.optimizer, or give precision bf16-mixed"
            ) from None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data: Any = getattr(self.attached, "datamodule", None)
        if hasattr(data, "check_state"):  # other data make other networks: they are the cause
            data.check_state(checkpoint.get(type(data).__qualname__, {}))
        theirs, ours = checkpoint["state_dict"], self.state_dict()
        differences = [
            f"{name} is {_size(theirs, name)} in the checkpoint, {_size(ours, name)} here"
            for name in sorted(theirs.keys() | ours.keys())
            if _size(theirs, name) != _size(ours, name)
        ]
        if differences:
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise ValueError(
                f"the checkpoint is of another network: {differences[0]}{more}; use the config it was made with"
            )
        if self.attached is not None and self.attached.state.fn == TrainerFn.FITTING:
            self._resumed = checkpoint

    def log_bins(self, name: str, metric: BinnedMean) -> None:
        """Log the metric, in total and by noise level, and empty it."""
        total, bins = metric.compute()
        metric.reset()
        self.log(f"{name}/{self.weights_name}", total, prog_bar=True, sync_dist=True)
        for k, value in enumerate(bins):
            if value.isfinite():
                span = f"t{k / VAL_BINS:.2f}-{(k + 1) / VAL_BINS:.2f}"
                self.log(f"{name}/{self.weights_name}_{span}", value, sync_dist=True)


def logs_now(trainer: Any) -> bool:
    """Whether what this step logs is written: logging costs as much as a step of a small network."""
    return bool(trainer.log_every_n_steps) and (trainer.global_step + 1) % trainer.log_every_n_steps == 0


def _size(state: dict[str, Tensor], name: str) -> str:
    return "x".join(map(str, state[name].shape)) or "a number" if name in state else "absent"
