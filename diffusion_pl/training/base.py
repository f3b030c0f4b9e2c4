"""Base of all trained modules: optimizer, gradient clipping, check of a checkpoint, losses by noise level."""

import inspect
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..conditions import Conditions, check_batch
from ..data import DataModule, not_given
from ..losses import Losses
from ..metrics import BinnedMean
from ..runtime.storage import write_file
from ..runtime.upstream.lightning import QuickHookNotes, batch_number
from ..runtime.usage import peak_memory
from ..tensors import Recorded, mix
from . import saving
from .averages import Averages, examples_per_step
from .history import History
from .lean import LeanHooks
from .lr_schedulers import SchedulerFactory, check_factory, make_scheduler
from .resuming import resume_optimizer
from .step_noise import reseed, run_seed

Shape = tuple[int, ...]
Part = TypeVar("Part", bound=nn.Module)
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


class Trainable(Recorded, QuickHookNotes, LeanHooks, LightningModule):
    """Subclasses define `network`, `losses`, `training_step` and `validation_step`, and may define `next_arguments`.

    What a training step draws from torch's global generator (t, ε, dropout) is a function of (seed, batch, rank).

    Attributes:
        shape: of one example without the batch axis.
        conditions: of the data, by name.
        averages: of the trained parameters; none unless `averages.track` chooses some, as the EMA callback does.
        history: losses and metrics over the steps of the run, also of the sessions before this one.

    Args:
        optimizer: of the trained parameters.
        lr_scheduler: made from the optimizer, and stepped every optimizer step; one that has a parameter total_steps is
            given the number of steps of the run.  None: a constant learning rate.

    Raises:
        ValueError: a scheduler that is not supported, such as ReduceLROnPlateau.
    """

    shape: Shape
    conditions: Conditions

    def __init__(self, optimizer: Callable[[Any], Optimizer], lr_scheduler: SchedulerFactory | None) -> None:
        super().__init__()
        if lr_scheduler is not None:
            check_factory(lr_scheduler)
        self.optimizer_factory, self.lr_scheduler_factory = optimizer, lr_scheduler
        self.val_loss = BinnedMean(VAL_BINS)
        self.sha256: str | None = None  # of the checkpoint that it was loaded from
        self.averages = Averages()
        self._loaded_weights = "raw"  # the name of the weights that it was loaded with
        self._noise_of: tuple[int, Sequence[int], int] | None = None  # seed, batches and rank of the step replayed
        self._checked = False  # whether a batch was seen that fits
        self._resumed: dict[str, Any] | None = None  # the checkpoint, between its loading and the optimizer's
        self.history = History()
        self._constrained: list[Any] = []  # parts of the network with a method after_step
        self._mark: tuple[float, int] | None = None  # time and step from which the speed is measured

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
        """The network; other parts may learn too, see `trained_parameters`."""

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that learns, by its name in the state dict: the parameters of the network, frozen ones as well,
        then those of other parts (a noise schedule, a loss) that are not frozen."""
        names = {id(p): name for name, p in self.named_parameters()}
        network = {names[id(p)]: p for p in self.network.parameters()}
        others = {name: p for name, p in self.named_parameters() if p.requires_grad and name not in network}
        return network | others

    def _averaged_parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.trained_parameters().items() if p.requires_grad}

    @property
    def weights_name(self) -> str:
        """Of the weights that the model has at the moment: "raw", or those of an EMA such as "ema0.999"."""
        average = self.averages.standing_in
        return self._loaded_weights if average is None else f"ema{average}"

    def load_weights(self, state: dict[str, Tensor], name: str) -> None:
        """Load a state dict whose trained parameters are these weights, for good; EMA weights are removed."""
        self.averages.clear()
        self.load_state_dict(state)
        self._loaded_weights = name

    def use_raw_weights(self) -> None:
        """Restore the raw weights if EMA weights are in their place."""
        self.averages.swap_out(self._averaged_parameters())

    @contextmanager
    def evaluation(self, raw: bool = False) -> Iterator[None]:
        """Within, the model is as it is evaluated: the first EMA weights, if there are any, are in place of its own,
        unless `raw` ones are asked for, and nothing is dropped out."""
        modes = {part: part.training for part in self.modules()}
        self.eval()
        try:
            with self.averages.swapped(self._averaged_parameters(), not raw):
                yield
        finally:
            for part, training in modes.items():
                part.training = training

    def save(self, path: str | Path, data: DataModule | None = None) -> None:
        """Write a checkpoint of the weights and averages, from which the model can be loaded.

        The configuration in it is what the parts were made with; factories must be classes, or functools.partial of
        classes.

        Args:
            path: a file, which is replaced.
            data: what the model was trained on, which gives samples their units; None: samples stay in model units.

        Raises:
            ValueError: a part does not know how it was made.
            OSError: the file cannot be written.
        """
        data = data or not_given(self.shape, self.conditions)
        content = saving.content(self, data, 0 if self.attached is None else self.attached.global_step)
        write_file(Path(path), lambda file: torch.save(content, file))

    def averaged(self, part: Part, weights: str | None = None) -> tuple[Part, str]:
        """A copy of a part of this module, such as its denoiser, with chosen weights, in evaluation mode.

        Args:
            part: any of `modules()`.
            weights: None or "ema": the first EMA weights, or the weights as they are where there are none; "raw";
                "ema:0.999" for one of several.

        Returns:
            The copy, and the name of its weights, such as "ema0.999".

        Raises:
            ValueError: there are no such weights.
        """
        names = self.averages.names
        there: dict[str, str | None] = {self._loaded_weights.replace("ema", "ema:"): None}
        there |= {f"ema:{name}": name for name in names}
        first = next(iter(there)) if not names else f"ema:{names[0]}"
        choice = first if weights in (None, "ema") else str(weights)
        if choice not in there:
            raise ValueError(f"the model has no weights {weights!r}: it has {', '.join(there)}")
        chosen = there[choice]
        with self.evaluation(raw=True):
            copied, name = deepcopy(part), self.weights_name
        if chosen is not None:
            shadow, name = self.averages.of(chosen), f"ema{chosen}"
            own = {id(p): name for name, p in self._averaged_parameters().items()}
            with torch.no_grad():
                for p, q in zip(part.parameters(), copied.parameters(), strict=True):
                    if own.get(id(p)) in shadow:
                        q.copy_(shadow[own[id(p)]])
        return copied.eval(), name

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """The loss of each example of a batch, at random times; the training loss is their mean."""

    def next_arguments(self, run: Path, data: DataModule) -> list[str]:
        """Arguments of the command that uses the model after `fit`; [] if there is none.

        Args:
            run: its folder.
            data: what it was trained on.
        """
        return []

    def check_first(self, batch: Batch, conditions: Conditions) -> None:
        """Raise ValueError if the first batch of a training does not hold the model's conditions."""
        if not self._checked:
            augmentation = getattr(getattr(self.trainer, "datamodule", None), "augmentation", None)
            check_batch(batch, conditions, getattr(augmentation, "tells", ()))
            self._checked = True

    def log_step(self, **values: Tensor) -> None:
        """Log quantities of a training step, the learning rate, throughput and memory, in the steps that are written at
        all."""
        if logs_now(self.trainer):
            for name, value in values.items():
                self.log(f"{name}/raw", value, prog_bar=True)
            self.history.add(self.trainer.global_step + 1, {f"{name}/raw": value for name, value in values.items()})
            self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
            memory = peak_memory()
            self.log("memory_gib", float(memory["cuda"] or memory["rss"] or 0) / 2**30)
            self._log_speed()
        elif self._mark is None:
            self._mark = time.monotonic(), self.trainer.global_step

    def _log_speed(self) -> None:
        """Examples that all processes train with in a second, since the last logging step or validation: the time of
        what happens there (validation, panels, checkpoints) does not count."""
        now, step, examples = time.monotonic(), self.trainer.global_step, examples_per_step(self.trainer)
        if self._mark is not None and examples is not None and step > self._mark[1]:
            self.log("examples_per_second", examples * (step - self._mark[1]) / (now - self._mark[0]))
        self._mark = None

    def on_train_start(self) -> None:
        self._constrained = [part for part in self.network.modules() if hasattr(part, "after_step")]
        averaged = self._averaged_parameters()
        for line in self.averages.begin(averaged, examples_per_step(self.trainer)):
            self._warn(line)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.draw_step(batch_idx)

    def draw_step(self, batch_idx: int) -> None:
        """Set torch's global generators to what the training step of this batch draws from."""
        if self._noise_of is None:
            trainer = self.trainer
            reseed(run_seed(), batch_number(trainer), trainer.global_rank, self.device)
        else:
            seed, batches, rank = self._noise_of
            reseed(seed, batches[batch_idx], rank, self.device)

    def replay_noise(self, seed: int, batches: Sequence[int], rank: int) -> None:
        """Draw in batch k what batch `batches[k]` of a run of this seed drew on the process of this rank."""
        self._noise_of = seed, batches, rank

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self.averages.swap_in(self._averaged_parameters())

    def on_test_model_eval(self) -> None:
        super().on_test_model_eval()
        self.averages.swap_in(self._averaged_parameters())

    def on_validation_end(self) -> None:
        self.use_raw_weights()

    def on_test_end(self) -> None:
        self.use_raw_weights()

    def _warn(self, line: str) -> None:
        if self.trainer.is_global_zero:
            print(f"diffusion_pl: warning: {line}", flush=True)

    def on_validation_start(self) -> None:
        self._mark = None
        # DDP would broadcast buffers before the next forward pass, but not every process has a batch.
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.require_forward_param_sync = False

    def validation_noise(self, batch_idx: int) -> torch.Generator:
        """Of t and ε: the same for the same batch every time, or their noise would hide the progress, and on any number
        of processes, each of which gets whole batches."""
        number = self.global_rank + batch_idx * self.trainer.world_size
        return torch.Generator(self.device).manual_seed(mix(number))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(list(self.trained_parameters().values()))
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = make_scheduler(self.lr_scheduler_factory, optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        # Lightning has made the optimizer, and is about to load into it what the checkpoint holds.
        self.use_raw_weights()  # an interrupted validation may have left an average
        self._loaded_weights = "raw"
        checkpoint, self._resumed = self._resumed, None
        if checkpoint is None:
            return
        configs = self.trainer.lr_scheduler_configs
        scheduler: Any = configs[0].scheduler if configs else None
        optimizer, parameters = self.trainer.optimizers[0], self.trained_parameters().values()
        for lost in resume_optimizer(checkpoint, optimizer, scheduler, self.optimizer_factory, parameters):
            self._warn(lost)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for part in self._constrained:
            part.after_step()
        self.averages.update()
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A callback may save while an average is in place.
        checkpoint["state_dict"] = self.averages.with_raw(checkpoint["state_dict"])
        if series := self.history.series():
            checkpoint["history"] = series
        if self.averages.updates:
            checkpoint["averages"] = self.averages.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data: Any = getattr(self.attached, "datamodule", None)
        if hasattr(data, "check_state"):  # other data make other networks: they are the cause
            data.check_state(checkpoint.get(type(data).__qualname__, {}))
        saved, present = checkpoint["state_dict"], self.state_dict()
        differences = [
            f"{name} is {_size(saved, name)} in the checkpoint, {_size(present, name)} here"
            for name in sorted(saved.keys() | present.keys())
            if _size(saved, name) != _size(present, name)
        ]
        if differences:
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise ValueError(
                f"the checkpoint is of another network: {differences[0]}{more}; use the config it was made with"
            )
        if "averages" in checkpoint:
            self.averages.load(checkpoint["averages"])
        self._loaded_weights = checkpoint.get("weights", self._loaded_weights)
        if self.attached is not None and self.attached.state.fn == TrainerFn.FITTING:
            self._resumed = checkpoint
            self.history.load(checkpoint.get("history", {}))

    def log_bins(self, name: str, metric: BinnedMean) -> None:
        """Log the metric, in total and by noise level, and empty it."""
        total, bins = metric.compute()
        metric.reset()
        self.log(f"{name}/{self.weights_name}", total, prog_bar=True, sync_dist=True)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.history.add(self.trainer.global_step, {f"{name}/{self.weights_name}": total})
        for k, value in enumerate(bins):
            if value.isfinite():
                span = f"t{k / VAL_BINS:.2f}-{(k + 1) / VAL_BINS:.2f}"
                self.log(f"{name}/{self.weights_name}_{span}", value, sync_dist=True)


def logs_now(trainer: Any) -> bool:
    """Whether what this step logs is written: logging costs as much as a step of a small network."""
    return bool(trainer.log_every_n_steps) and (trainer.global_step + 1) % trainer.log_every_n_steps == 0


def _size(state: dict[str, Tensor], name: str) -> str:
    return "x".join(map(str, state[name].shape)) or "a number" if name in state else "absent"
