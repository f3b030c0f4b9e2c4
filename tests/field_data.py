"""Gaussian random fields as a data module, with or without a vector and an image as conditions, and a network."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from shell import cli, tiny_config
from torch import Tensor, nn

from diffusion_pl.conditions import Condition, Conditions
from diffusion_pl.data import DataModule
from diffusion_pl.data.loader import Tensors
from diffusion_pl.data.units import Standardized


def gaussian_fields(n: int, sizes: tuple[int, ...], seed: int = 0) -> Tensor:
    """n fields of unit variance with power ∝ 1/(1 + k²), by numpy's FFT: (n, 1, *sizes), float64."""
    axes = np.meshgrid(*(np.fft.fftfreq(size) * size for size in sizes), indexing="ij")
    spectrum = 1 / (1 + sum(k**2 for k in axes))
    white = np.random.default_rng(seed).standard_normal((n, 1, *sizes))
    over = tuple(range(2, white.ndim))
    fields = np.fft.ifftn(np.sqrt(spectrum / spectrum.mean()) * np.fft.fftn(white, axes=over), axes=over)
    return torch.from_numpy(np.ascontiguousarray(fields.real))


class Waves(DataModule):
    """n training fields and as many held-out ones; conditional: a vector of 2 and an image, the field with noise.

    Args:
        n: Number of training fields.
        sizes: Of the spatial axes.
        conditional: Whether there are conditions.
        kwargs: Of DataModule.
    """

    def __init__(self, n: int = 96, sizes: tuple[int, ...] = (8, 8), conditional: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n, self.sizes, self.conditional = n, tuple(sizes), conditional
        self.scale = Standardized(torch.full((1, *[1] * len(sizes)), 5.0), torch.full((1, *[1] * len(sizes)), 2.0))

    @property
    def units(self) -> Standardized:
        return self.scale

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *self.sizes)

    @property
    def conditions(self) -> dict[str, Condition]:
        return {"size": Condition((2,)), "past": Condition(self.shape)} if self.conditional else {}

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        x = gaussian_fields(2 * self.n, self.sizes).float()
        parts = {"x": x}
        if self.conditional:
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
            parts |= {"size": x.flatten(1)[:, :2].clone(), "past": x + 0.5 * noise}
        halves = slice(self.n), slice(self.n, None)
        self._splits = [{name: part[half] for name, part in parts.items()} for half in halves]

    def part(self, split: str) -> Tensors:
        return Tensors(self._splits[split != "train"])

    def stored(self, indices: Tensor) -> dict[str, Tensor]:
        batch = self.part("train").__getitems__(indices)
        return batch | {"x": self.units.decode(batch["x"])}

    def second_moment(self) -> float:
        return float(self.training_examples(self.n).square().mean())

    def training_examples(self, most: int) -> Tensor:
        x: Tensor = self.part("train").tensors["x"]
        return x[:: -(-len(x) // most)]

    def read(self, path: Path) -> Tensor:
        return self.units.encode(torch.from_numpy(np.load(path)["x"]).float())


class Pointwise(nn.Module):
    """F = two layers over channels, of x_t, the noise level and the conditions, at each point: any number of axes."""

    def __init__(self, shape: tuple[int, ...], conditions: Conditions, width: int = 8) -> None:
        super().__init__()
        channels = shape[0] + 1 + sum(condition.shape[0] for condition in conditions.values())
        self.names = list(conditions)
        self.layers = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, shape[0]))

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        level = c_noise.reshape(-1, *[1] * (x.ndim - 1)).expand(len(x), 1, *x.shape[2:]).to(x)
        parts = [x, level]
        for name in self.names:
            value = torch.nan_to_num(cond[name])
            parts.append(value.reshape(*value.shape, *[1] * (x.ndim - value.ndim)).expand(-1, -1, *x.shape[2:]))
        y: Tensor = self.layers(torch.cat(parts, 1).movedim(1, -1))
        return y.movedim(-1, 1)


def fit_waves(folder: Path, run: str = "waves", data: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The checkpoint of a model of Waves, trained for some steps by the command line."""
    changed: dict[str, Any] = {
        "model__network": {"class_path": "field_data.Pointwise"},
        "data": {"class_path": "field_data.Waves", "init_args": {"batch_size": 32, **(data or {})}},
        "trainer__max_steps": 20,
    }
    config = tiny_config(folder, f"{run}.yaml", **(changed | changes))
    done = cli(folder, "fit", "--config", config, "--run", run)
    assert done.code == 0, done.err
    return Path("runs") / run / "checkpoints/last.ckpt"
