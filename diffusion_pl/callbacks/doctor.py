"""All checks of a run before its first step."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from .. import checks
from ..checks import CHECKS, Finding
from ..conditions import class_count, class_names, of_batch, prediction_of
from ..data import DataModule
from ..denoisers import NoiseInput, StepIndex
from ..losses import ChainELBO, DenoisingLoss, FlowMapLoss, GridTimes, LossSecondMoment, TimeSampler
from ..metrics.extractors import URL
from ..networks import Embedding
from ..runtime.errors import EXPECTED
from ..runtime.startup import say
from ..samplers import LeadingGrid, RespacedGrid, Sampler, TrailingGrid
from ..tensors import per_sample
from ..training import DiffusionModule, LeanCallback, NoisyClassifier, Trainable, advance, make_scheduler
from .cost import examples, length_of, measure_step
from .ema import EMA
from .generation import GenerationMetrics

TRIED = 10_000  # steps of a learning-rate schedule

Checks = dict[str, Iterator[Finding]]


class Doctor(LeanCallback):
    """Looks at a run before its first step: stops `fit` on errors, prints warnings, and is silent if all is well.

    The command `doctor` prints all findings and trains nothing.

    Args:
        max_kl: largest mismatch accepted between the end of the forward process and the noise that sampling starts
            from, nats per dimension.
        ignore: names of checks to skip: prior, data, classes, network, embedding, times, jumps, tables, validation, lr,
            ema, precision, disk, metrics, memory, cost.
        price_per_hour: price of a device, in any currency, for the estimate of the command `doctor`; None: only time.
    """

    def __init__(self, max_kl: float = 1e-3, ignore: Sequence[str] = (), price_per_hour: float | None = None) -> None:
        if not max_kl > 0:
            raise ValueError(f"max_kl must be positive, got {max_kl}")
        if price_per_hour is not None and not price_per_hour >= 0:
            raise ValueError(f"doctor.price_per_hour must not be negative, got {price_per_hour}")
        unknown = [name for name in ignore if name not in CHECKS]
        if unknown:
            raise ValueError(f"doctor.ignore: there is no check {unknown[0]!r}, there are {', '.join(CHECKS)}")
        self.max_kl, self.ignore, self.price_per_hour = max_kl, list(ignore), price_per_hour
        self.asked: Any = None  # the precision of the configuration; Lightning may choose another

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule
        if trainer.is_global_zero:
            say("checks before step 1 …")
        findings = list(self.examine(trainer, pl_module, data))
        for finding in findings:
            if finding.level == "warning" and trainer.is_global_zero:
                print(f"diffusion_pl: warning: {finding.name}: {finding}", flush=True)
        errors = [finding for finding in findings if finding.level == "error"]
        if errors:
            names = ", ".join(dict.fromkeys(finding.name for finding in errors))
            messages = "; and ".join(map(str, errors))
            raise ValueError(f"{messages}; or train anyway with --doctor.ignore '[{names}]'")

    def diagnose(self, trainer: Trainer, module: LightningModule, data: DataModule) -> list[Finding]:
        """All findings on a run that will not be trained; data that cannot be read are one of them."""
        findings: list[Finding] = []
        try:
            data.setup("fit")
            if isinstance(module, DiffusionModule):
                module.loss.check(module.denoiser, module.shape, module.conditions)
            findings += self.examine(trainer, module, data)
            if not any(finding.level == "error" for finding in findings):
                findings += self._estimate(trainer, module, data)
        except EXPECTED as error:
            findings.append(Finding("error", "data", str(error)))
        return findings

    def _estimate(self, trainer: Trainer, module: LightningModule, data: DataModule) -> Iterator[Finding]:
        """Memory, time and money of the run, from a step that is taken here; `fit` shows them as it goes."""
        names = ("memory", "cost")
        yield from (Finding("fine", name, "ignored") for name in names if name in self.ignore)
        if set(names) <= set(self.ignore) or not isinstance(module, Trainable):
            return
        need, speed, free = measure_step(trainer, module, data)
        length = length_of(trainer, data)
        if "memory" not in self.ignore:
            yield from checks.memory(need, length, free)
        if "cost" not in self.ignore:
            yield from checks.cost(speed, length, self.price_per_hour)

    def examine(self, trainer: Trainer, module: LightningModule, data: Any) -> Iterator[Finding]:
        """The findings of all checks that apply and are not ignored."""
        findings: Checks = {}
        if isinstance(data, DataModule) and isinstance(module, (DiffusionModule, NoisyClassifier)):
            findings |= self._of_model(trainer, module, data)
        if isinstance(data, DataModule):
            validates = bool(trainer.limit_val_batches) and bool(trainer.val_check_interval)
            every = trainer.val_check_interval if isinstance(trainer.val_check_interval, int) else None
            findings["validation"] = checks.validation(len(data.part("val")), validates, every)
        if isinstance(module, Trainable):
            batch = data.batch_size * trainer.accumulate_grad_batches if isinstance(data, DataModule) else None
            findings |= self._of_run(trainer, module, batch)
        for name in CHECKS:
            if name in findings:
                yield from (Finding("fine", name, "ignored"),) if name in self.ignore else findings[name]

    def _of_model(self, trainer: Trainer, module: DiffusionModule | NoisyClassifier, data: DataModule) -> Checks:
        parts, schedule = _parts(module), module.schedule
        second_moment, t = data.second_moment(), checks.draw_times(parts.times, schedule)
        examples = data.training_examples(256)
        scale = data.units.value_range, _second_moment(data), parts.sigma_data, data.units.levels
        findings: Checks = {"data": checks.data(examples, *scale, of=len(data.part("train")))}
        counts = data.class_counts if "label" in data.conditions else None
        findings["classes"] = checks.classes(counts, class_names(data.conditions))
        embedding = None
        if not {"network", "embedding"} <= set(self.ignore):
            result, shape = _probe(trainer, module, parts, data, t)
            embedding = result.embedding
            findings["network"] = checks.network(result, shape)
            findings["embedding"] = checks.embedding(embedding, parts.noise_input, schedule, t, module.device)
        if isinstance(module, DiffusionModule):
            grid, sampler = module.sampler.grid(schedule), type(module.sampler).__name__
            findings["prior"] = checks.prior(schedule, second_moment, float(grid[0]), sampler, self.max_kl)
            # A jump leads over all times to the data: it needs those that training draws.
            visited = torch.cat((grid, t.min()[None])) if module.sampler.jumps and module.denoiser.flow_map else grid
            findings["times"] = checks.times(schedule, t, visited, second_moment, self.max_kl)
            findings["jumps"] = _jumps(module, embedding, t)
            findings["tables"] = checks.tables(_lengths(trainer, module))
        return findings

    def _of_run(self, trainer: Trainer, module: Trainable, batch: int | None) -> Checks:
        parameters: list[Tensor] = list(module.trained_parameters().values())
        optimizer = module.optimizer_factory(parameters)
        averages, steps = module.averages.tracked, trainer.max_steps
        limits = [average.limit(batch) for average in averages]
        decays = [1 - limit for limit in limits if limit is not None]
        falling = [average for average, limit in zip(averages, limits, strict=True) if limit is None]
        last = [1 - average.rate(steps - 1, batch) for average in falling if steps > 1]  # decays in the last step
        requested, clips = str(self.asked), bool(trainer.gradient_clip_val)
        needed = any(isinstance(c, GenerationMetrics) and c.extractor is None for c in trainer.callbacks)
        findings: Checks = {
            "precision": checks.precision(trainer.precision, requested, optimizer, clips, [*decays, *last]),
            "lr": _learning_rate(module, optimizer, trainer.max_steps),
            "metrics": checks.metrics(needed, URL, checks.unreachable),
        }
        if not trainer.fast_dev_run:
            findings["ema"] = checks.ema(decays, steps, [average.name for average in falling])
            if trainer.checkpoint_callbacks:
                kept = next((callback.snapshots for callback in trainer.callbacks if isinstance(callback, EMA)), 0)
                counts = len(averages), kept * len(falling)
                findings["disk"] = checks.disk(Path(trainer.default_root_dir), parameters, *counts, optimizer)
        return findings


def _second_moment(data: DataModule) -> float:
    """Mean square per dimension of what the network models: of x_0, or of up to 256 residuals."""
    name = prediction_of(data.conditions)
    if name is None:
        return data.second_moment()
    batch = next(data.batches("train", 256))
    return float((batch["x"] - batch[name].nan_to_num()).square().mean())


def _jumps(module: DiffusionModule, embedding: Embedding | None, t: Tensor) -> Iterator[Finding]:
    """The check of what jumps need: of the sampler, and of the embedding where the loss is differentiated with respect
    to t."""
    loss = module.loss
    try:
        module.live_pipeline().check_sampler()
    except ValueError as error:
        yield Finding("error", "jumps", str(error))
        return
    if isinstance(loss, FlowMapLoss) and loss.rule.differentiates:
        yield from checks.jumps(embedding, module.denoiser.noise_input, module.schedule, t, module.device)
    else:
        yield Finding("fine", "jumps", "not differentiated with respect to t" if module.denoiser.flow_map else "none")


class Parts(NamedTuple):
    """What a model of any kind has: its timestep distribution, the noise input of its network, the scale that the
    network's input is made for, a call of the network, and the output shape of one example."""

    times: TimeSampler
    noise_input: NoiseInput
    sigma_data: float | None
    call: Callable[..., Tensor]
    shape: tuple[int, ...]


def _parts(module: DiffusionModule | NoisyClassifier) -> Parts:
    if isinstance(module, NoisyClassifier):
        return Parts(
            module.times,
            module.noise_input,
            None,
            lambda x_t, t, **_: module(x_t, t),
            (class_count(module.conditions) or 0,),
        )
    denoiser = module.denoiser

    def raw(x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return denoiser.raw(x_t, t, denoiser.schedule(t), **cond)[0]

    return Parts(module.loss.times, denoiser.noise_input, denoiser.parameterization.sigma_data, raw, module.shape)


def _probe(
    trainer: Trainer, module: DiffusionModule | NoisyClassifier, parts: Parts, data: DataModule, times: Tensor
) -> tuple[checks.Probe, tuple[int, ...]]:
    """A pass of two training examples at t = ½, with the size of the output at the ends of training's times, and the
    expected shape of the output."""
    batch = examples(data, min(2, len(data.part("train"))), module.device)
    x_0, cond = batch["x"], of_batch(batch)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)).to(x_0)

    def pass_at(time: float) -> tuple[Callable[[], Tensor], Tensor]:
        """A call of the network, and the c_noise that it is given."""
        t = per_sample(torch.full((len(x_0),), time, device=module.device), x_0)
        kernel = module.schedule(t)
        call = partial(parts.call, kernel.alpha * x_0 + kernel.sigma * eps, t, **cond)
        return call, parts.noise_input(module.schedule, t, kernel).flatten()

    with module.evaluation(raw=True), trainer.precision_plugin.forward_context():
        result = checks.probe(module.network, *pass_at(0.5))
        sizes = {}
        for time in (float(times.min()), float(times.max())) if result.output is not None else ():
            call, c_noise = pass_at(time)
            output = checks.probe(module.network, call, c_noise).output
            if output is not None:
                sizes[float(c_noise[0])] = float(output.float().square().mean().sqrt())
    return result._replace(sizes=sizes), (len(x_0), *parts.shape)


def _learning_rate(module: Trainable, optimizer: Optimizer, max_steps: int) -> Iterator[Finding]:
    """The check of the learning rates of the first steps of a run; the optimizer takes no step."""
    group, rates, steps = optimizer.param_groups[0], [], max_steps if max_steps > 0 else TRIED
    own = float(group["lr"])
    if module.lr_scheduler_factory is not None:
        try:
            scheduler = make_scheduler(module.lr_scheduler_factory, optimizer, steps)
            for _ in range(min(steps, TRIED)):
                rates.append(float(group["lr"]))
                advance(scheduler, 1)
        except ValueError as error:
            yield Finding("error", "lr", str(error))
            return
        own = max(own, float(group.get("max_lr", 0)))  # CyclicLR and OneCycleLR have rates of their own
    yield from checks.learning_rate(rates, own, max_steps)


def _lengths(trainer: Trainer, module: DiffusionModule) -> dict[str, int]:
    """The number of steps of a beta schedule that each part of the run has as an option of its own."""
    schedule, loss = module.schedule, module.loss
    lengths: dict[str, int | None] = {type(schedule).__name__: schedule.steps}
    if isinstance(loss.times, (GridTimes, LossSecondMoment)):
        lengths[type(loss.times).__name__] = loss.times.steps
    if isinstance(loss, (DenoisingLoss, FlowMapLoss)) and isinstance(loss.weighting, ChainELBO):
        lengths["ChainELBO"] = loss.weighting.steps
    if isinstance(loss, DenoisingLoss) and loss.variance is not None:
        lengths["VarianceBound"] = loss.variance.steps
    if isinstance(module.denoiser.noise_input, StepIndex):
        lengths["StepIndex"] = module.denoiser.noise_input.steps
    samplers = {"": module.sampler} | {
        f" of {type(callback).__name__}": callback.sampler
        for callback in trainer.callbacks
        if isinstance(getattr(callback, "sampler", None), Sampler)
    }
    for owner, sampler in samplers.items():
        if isinstance(sampler.grid, (LeadingGrid, RespacedGrid, TrailingGrid)):
            lengths[f"{type(sampler.grid).__name__}{owner}"] = sampler.grid.length
    return {name: steps for name, steps in lengths.items() if steps is not None}
