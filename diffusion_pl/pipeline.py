"""Pipeline: everything that a sample depends on, in one frozen object.

    sample i = sampler(guided denoiser, prior std · ε_i, noise_i | condition_i),    ε_i and noise_i from (seed, i) alone

So sample i is the same whatever the number of samples, of batches and of processes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from .conditions import Conditions, check_names, class_number, value_of
from .denoisers import AutoGuided, ClassifierFree, ClassifierGuided, Denoiser
from .samplers import Grid, Sampler, Samples, few_steps, jump_grid, same_ends
from .schedules import Schedule
from .tensors import SampleNoise

Wrapper = Callable[[Denoiser], Denoiser]
Reader = Callable[[Any], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, eq=False, repr=False)
class Pipeline:
    """A denoiser with all that is needed to draw samples from it.  It is never changed: `with_…` returns another one.

        pipe = diffusion_pl.load("runs/digits/checkpoints/last.ckpt")
        images = pipe(16, steps=10, label=3, scale=2.0, seed=1)    # in the units of the data
        x_0 = pipe.samples(range(16)).x_0                          # in model units

    Args:
        denoiser: of the model, unguided.
        sampler: draws the samples.
        shape: of one sample, without the batch.
        conditions: of the denoiser.
        guidance: wraps the denoiser, such as Thresholded; None: nothing.
        guides: other wrappers, inside of `guidance`, applied in their order.
        cond: values of conditions, see `with_cond`: a class number for all samples, −1 for none; of other kinds
            (K, *shape), which samples get in turn.
        turns: by the name of a condition, what samples get in turn where no value is given: classes, or values
            (K, *shape), such as those of held-out examples.  A label that is not in it takes all of its classes.
        readers: by the name of a condition, what makes its value, (K, *shape) or *shape, of what is given and no
            tensor, such as the path of an image or a text.
        dropped: names of the conditions that training dropped at random, which guidance drops; (): not known, all.
        seed: of the infinite sequence of samples.
        latents: where the samples start, in units of the prior, (N, *shape), over and over; None: drawn.
        decode: model units -> the units of the data, (N, *shape); the default leaves model units.
        weights: name of the denoiser's weights, "raw" or such as "ema0.9999".
        sha256: of the checkpoint that the weights are from, hexadecimal; None: of none.
        consistency: whether the denoiser is a consistency model, which has learned jumps to the data (r = 0) alone.
    """

    denoiser: Denoiser
    sampler: Sampler
    shape: tuple[int, ...]
    conditions: Conditions = field(default_factory=dict)
    guidance: Wrapper | None = None
    guides: tuple[Wrapper, ...] = ()
    cond: Mapping[str, int | Tensor] = field(default_factory=dict)
    turns: Mapping[str, Sequence[int] | Tensor] = field(default_factory=dict)
    readers: Mapping[str, Reader] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    seed: int = 0
    latents: Tensor | None = None
    decode: Callable[[Tensor], Tensor] = _same
    weights: str = "raw"
    sha256: str | None = None
    consistency: bool = False

    def __repr__(self) -> str:
        conditions = ", ".join(self.conditions) or "unconditional"
        return (
            f"Pipeline({type(self.denoiser).__name__}, {self.weights} weights, {type(self.sampler).__name__}, "
            f"shape {self.shape}, {conditions}, seed {self.seed})"
        )

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return self.denoiser.schedule

    @cached_property
    def guided(self) -> Denoiser:
        """The denoiser as the sampler gets it, within all that guides it."""
        denoiser = self.denoiser
        for wrap in (*self.guides, *(() if self.guidance is None else (self.guidance,))):
            denoiser = wrap(denoiser)
        return denoiser

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser that a sample takes, of a sampler with fixed steps."""
        return 1 + (len(self.sampler.grid(self.schedule)) - 1) * self.sampler.evaluations

    @property
    def exact_jumps(self) -> bool:
        """Whether the sampler makes jumps of a flow map, which need no small steps."""
        return self.guided.flow_map and self.sampler.jumps

    def check_sampler(self) -> None:
        """Raise ValueError if a consistency model would be used where it has learned nothing."""
        one_jump = self.sampler.jumps and len(self.sampler.grid(self.schedule)) == 1
        if not self.consistency or (self.guided.flow_map and (self.sampler.to_data or one_jump)):
            return
        what = f"{type(self.sampler).__name__} with {self.nfe} NFE" if self.guided.flow_map else "guidance"
        raise ValueError(
            f"{what} needs more than the model has learned, which is a consistency model: it jumps to the data, and "
            "nowhere else. Fix: take the sampler MultistepConsistency, without guidance"
        )

    @property
    def device(self) -> torch.device:
        """Where the samples are drawn."""
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> "Pipeline":
        """This pipeline, its networks moved to a device, as by nn.Module.to."""
        self.guided.to(device)
        return self

    @property
    def block(self) -> int:
        """How many samples are drawn at a time: always as many, or rounding would differ with their number.

        A power of two that keeps a block's memory bounded and the processor busy.
        """
        most = (1 << 12 if self.device.type == "cpu" else 1 << 18) // math.prod(self.shape)
        return 1 << min(8, max(4, most.bit_length() - 1))

    def with_seed(self, seed: int) -> "Pipeline":
        """Draws another sequence of samples."""
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        return replace(self, seed=seed)

    def with_latents(self, latents: Tensor) -> "Pipeline":
        """Starts from given latents in units of the prior: (N, *shape)."""
        if tuple(latents.shape[1:]) != self.shape or not len(latents):
            raise ValueError(f"latents must be (N, {', '.join(map(str, self.shape))}), got {tuple(latents.shape)}")
        return replace(self, latents=latents)

    def with_sampler(
        self,
        sampler: Sampler | Callable[[Grid], Sampler] | None = None,
        grid: Grid | None = None,
        steps: int | None = None,
    ) -> "Pipeline":
        """Draws with another sampler, grid or number of steps, where these are given.

        Args:
            sampler: itself, or a class or function that makes it from a grid; None: the present one.
            grid: None: without `steps` that of the sampler, with `steps` the one that suits few (`few_steps`, or
                `jump_grid` for the jumps of a flow map).
            steps: number of grid times; None: as the grid has.
        """
        make: Callable[[Grid], Sampler]
        if sampler is None or isinstance(sampler, Sampler):
            given = self.sampler if sampler is None else sampler
            own, make = given.grid, partial(_regridded, given)
        else:
            own, make = self.sampler.grid, sampler
        if steps is not None and grid is not None:
            grid = grid.with_steps(steps)
        elif steps is not None:
            like = _made(make, own)
            if self.denoiser.flow_map and like.jumps:
                grid = jump_grid(own, self.schedule, steps)
            elif like.order == 0:  # its error does not depend on the times between the ends
                grid = same_ends(own, self.schedule, steps)
            else:
                grid = few_steps(own, self.schedule, steps, like.evaluations)
        return replace(self, sampler=_made(make, grid or own))

    def with_scale(self, scale: float, drop: Sequence[str] | None = None) -> "Pipeline":
        """Guides by the model's own conditions with scale w; w = 1 is the plain conditional model.

        Args:
            scale: w.
            drop: names of the conditions that guidance strengthens, see `ClassifierFree`; None: those that training
                dropped at random, all if that is not known.

        Raises:
            ValueError: the model is unconditional, or has no such condition.
        """
        if not self.conditions:
            raise ValueError(f"scale {scale:g} is for a model with conditions, and this one is unconditional")
        for name in drop or ():
            if name not in self.conditions:
                raise ValueError(f"drop: the model has no condition {name}; it has {', '.join(self.conditions)}")
        dropped = tuple(name for name in self.dropped if name in self.conditions)
        wrap = partial(ClassifierFree, scale=scale, drop=drop or dropped or None)
        return replace(self, guides=(*self.guides, wrap))

    def with_classifier(self, classifier: nn.Module, conditions: Conditions, scale: float = 1.0) -> "Pipeline":
        """Guides by a classifier of noisy data, whose labels the samples have.

        Args:
            classifier: (x_t, t) ↦ logits, see `ClassifierGuided`.
            conditions: the label that it predicts.
            scale: w; 1 is the posterior.
        """
        wrap = partial(ClassifierGuided, classifier=classifier, scale=scale)
        return replace(self, guides=(*self.guides, wrap), conditions=conditions, turns={})

    def with_weak(self, weak: Denoiser, scale: float = 1.0) -> "Pipeline":
        """Guides away from a weaker model of the same data with scale w; w = 1 is the model as it is."""
        return replace(self, guides=(*self.guides, partial(AutoGuided, weak=weak, scale=scale)))

    def with_wrapper(self, wrap: Wrapper) -> "Pipeline":
        """Wraps the denoiser once more, outside of everything else."""
        inner = self.guidance
        return replace(self, guidance=wrap if inner is None else lambda denoiser: wrap(inner(denoiser)))

    def with_cond(self, **cond: Any) -> "Pipeline":
        """Gives the samples conditions.

        Args:
            cond: of a label a class by number or name; of another kind a tensor in model units, one value for all
                samples or (K, *shape) that they get in turn, a vector's numbers, or what the data's reader takes: the
                path of an image, a text.  None: not given, the estimate without the condition.

        Raises:
            ValueError: the model has no such condition or class, which the message lists; or a value of another shape,
                or not finite.
        """
        check_names(cond, self.conditions)
        return replace(self, cond={**self.cond, **{name: self._value(name, given) for name, given in cond.items()}})

    def with_turns(self, turns: Mapping[str, Sequence[int] | Tensor]) -> "Pipeline":
        """Gives the samples other conditions in turn where no value is given, see `turns`."""
        return replace(self, turns=turns)

    def without_cond(self) -> "Pipeline":
        """Takes conditions that have no value yet as not given, in place of values in turn: labels, and what training
        dropped at random.  Others must be given."""
        known = self.dropped or tuple(self.conditions)
        nulls = {n: self._value(n, None) for n, c in self.conditions.items() if c.kind == "label" or n in known}
        return replace(self, cond={**nulls, **self.cond}, turns={})

    def _value(self, name: str, given: Any) -> int | Tensor:
        condition = self.conditions[name]
        if condition.kind == "label":
            return -1 if given is None else class_number(name, condition, given)
        if name in self.readers and given is not None and not isinstance(given, Tensor):
            given = self.readers[name](given)
        return value_of(name, condition, given)

    def classes(self, name: str = "label") -> list[int]:
        """The classes that samples get in turn."""
        return [int(k) for k in self.turns.get(name, ())] or list(range(self.conditions[name].classes or 0))

    def values(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The conditions of some samples: (len(indices), *shape) each.

        Raises:
            ValueError: a condition has no value.
        """
        at, values = torch.tensor(indices), {}
        for name, condition in self.conditions.items():
            given = self.cond.get(name, self.classes(name) if condition.kind == "label" else self.turns.get(name))
            if given is None:
                raise ValueError(f"cond.{name}: a value is missing, the model needs one ({condition.kind})")
            rows = torch.as_tensor([given] if isinstance(given, int) else given)
            values[name] = rows[at % len(rows)].to(self.device)
        return values

    def samples(
        self,
        indices: Sequence[int],
        *,
        path: bool = False,
        progress: Callable[[Any], Any] = iter,
        **cond: Tensor,
    ) -> Samples:
        """Samples in model units, x_0: (len(indices), *shape).

        Args:
            indices: numbers of samples in the infinite sequence of the seed.
            path: keep x and x̂_0 at every time of the grid.
            progress: wraps the sequence of steps, for a progress bar.
            cond: values of conditions, (len(indices), *shape) each; where none is given, see `values`.

        Raises:
            ValueError: the model has no such condition, or one of another shape, or a condition has no value.
        """
        check_names(cond, self.conditions)
        for name, value in cond.items():
            expected = (len(indices), *self.conditions[name].shape)
            if tuple(value.shape) != expected:
                raise ValueError(f"cond.{name}: expected a tensor of shape {expected}, got {tuple(value.shape)}")
        given = {name: value.to(self.device) for name, value in cond.items()}
        missing = replace(self, conditions={k: c for k, c in self.conditions.items() if k not in given})
        noise = SampleNoise(self.seed, indices)
        # Drawn in any case, so that the noise of a stochastic sampler does not depend on the latents.
        eps = noise(torch.empty(len(indices), *self.shape, device=self.device))
        if self.latents is not None:
            eps = self.latents[torch.tensor(indices) % len(self.latents)].to(eps)
        x_T = self.sampler.prior(self.schedule, eps)
        samples: Samples = self.sampler(
            self.guided, x_T, noise, path=path, progress=progress, **missing.values(indices), **given
        )
        return samples

    def draw(self, n: int, **options: Any) -> Iterator[Samples]:
        """The first n samples and those that fill the last block, block by block, in model units."""
        for first in range(0, n, self.block):
            yield self.samples(range(first, first + self.block), **options)

    def __call__(
        self,
        n: int = 16,
        *,
        steps: int | None = None,
        scale: float | None = None,
        seed: int | None = None,
        **cond: Any,
    ) -> Tensor:
        """The first n samples, in the units of the data, on the CPU: (n, *shape).

        Args:
            n: how many.
            steps: see `with_sampler`.
            scale: see `with_scale`.
            seed: of the sequence of samples; None: the pipeline's.
            cond: see `with_cond`, such as label=3, label="dress", size=0.3 or low=image.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        pipe = self.with_cond(**cond)
        pipe = pipe if steps is None else pipe.with_sampler(steps=steps)
        pipe = pipe if scale is None else pipe.with_scale(scale)
        pipe = pipe if seed is None else pipe.with_seed(seed)
        # Decoded where they are drawn: of latents by another network.
        return torch.cat([self.decode(block.x_0).cpu() for block in pipe.draw(n)])[:n]

    def encode(self, x_0: Tensor) -> Tensor:
        """The latents, in units of the prior, that the samples x_0 come from: (N, *shape) in model units.

        Raises:
            ValueError: the sampler draws noise.
        """
        x_T = self.sampler.encode(self.guided, x_0.to(self.device), **self.values(range(len(x_0))))
        return x_T / self.sampler.prior(self.schedule, torch.ones(1, device=self.device))


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """The points at `share`: (K,) of the way from a to b: (*), on the arc around the origin: (K, *).

    Between latents the straight line would pass through points of too small a norm, which no sample comes from.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
    share = share.reshape(-1, *[1] * a.ndim)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def _regridded(sampler: Sampler, grid: Grid) -> Sampler:
    other = copy(sampler)
    other.grid = grid
    return other


def _made(make: Callable[[Grid], Sampler], grid: Grid) -> Sampler:
    try:
        return make(grid)
    except TypeError as error:
        if "abstract" not in str(error):
            raise
        raise ValueError("sampler: Sampler is abstract, choose one such as DDIM, Heun, DPMpp") from None
