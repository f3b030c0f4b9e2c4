"""What the tests of fields share: Gaussian random fields, files of them, and small networks for any spatial axes."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_pl.conditions import Conditions

#: Mean and deviation of the channels of `fields`: of very different sizes, as temperature and pressure have.
MEANS, STDS = (0.0, 280.0, 1.0e5), (1.0, 10.0, 500.0)


def fields(n: int, channels: int, *sizes: int, seed: int = 0, power: float = 3.0) -> NDArray[np.float64]:
    """Gaussian random fields with a spectrum |k|^−power: (n, channels, *sizes), in units of MEANS and STDS."""
    rng, axes = np.random.default_rng(seed), tuple(range(2, 2 + len(sizes)))
    k = np.sqrt(sum(np.meshgrid(*[(size * np.fft.fftfreq(size)) ** 2 for size in sizes], indexing="ij")))
    scale = np.where(k > 0, np.maximum(k, 1e-9) ** (-power / 2), 1.0)
    x: NDArray[np.float64] = np.fft.ifftn(
        np.fft.fftn(rng.normal(size=(n, channels, *sizes)), axes=axes) * scale, axes=axes
    ).real
    x /= x.std(axis=(0, *axes), keepdims=True)
    shape = (channels, *[1] * len(sizes))
    made: NDArray[np.float64] = x * np.reshape(STDS[:channels], shape) + np.reshape(MEANS[:channels], shape)
    return made


def save(path: Path, **arrays: NDArray[Any]) -> str:
    """Write arrays in the format of the path's ending: .npy (one), .npz, .h5, .zarr2 and .zarr3."""
    if path.suffix == ".npy":
        (array,) = arrays.values()
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        import zarr

        group = zarr.open_group(path, mode="w", zarr_format=2 if path.suffix == ".zarr2" else 3)
        for name, array in arrays.items():
            group.create_array(name, data=array, chunks=(2, *array.shape[1:]))
    return str(path)


def save_all(folder: Path, n: int = 60) -> None:
    """The files that configurations and pages name, of 16x16."""
    x = fields(n, 2, 16, 16)
    forcing = np.random.default_rng(0).normal(size=(n, 3))
    for name in ("fields", "weather"):
        save(folder / f"{name}.npy", x=x)
    for name in ("fields", "states"):
        save(folder / f"{name}.npz", x=x, past=x[::-1], forcing=forcing, prediction=0.7 * x + 0.3 * x[::-1])
    save(folder / "forcing.npy", forcing=forcing)


class SmallNet(nn.Module):
    """Two convolutions over 1 to 3 spatial axes; image conditions are concatenated, vectors and labels added.

    Args:
        shape: (C, *sizes).
        conditions: of the data; NaN counts as 0.
        width: channels between the convolutions.
    """

    def __init__(self, shape: tuple[int, ...], conditions: Conditions | None = None, width: int = 8) -> None:
        super().__init__()
        self.kinds = dict(conditions or {})
        conv = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(shape)]
        images = sum(c.shape[0] for c in self.kinds.values() if c.kind == "image")
        self.first, self.last = conv(shape[0] + images, width, 3, padding=1), conv(width, shape[0], 3, padding=1)
        flat = 1 + sum(c.shape[0] for c in self.kinds.values() if c.kind == "vector")
        self.level = nn.Linear(flat, width)
        self.tables = nn.ModuleDict(
            {name: nn.Embedding((c.classes or 0) + 1, width) for name, c in self.kinds.items() if c.kind == "label"}
        )

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        known = {name: value if name in self.tables else value.nan_to_num() for name, value in cond.items()}
        images = [value for name, value in known.items() if self.kinds[name].kind == "image"]
        vectors = [value for name, value in known.items() if self.kinds[name].kind == "vector"]
        added = self.level(torch.cat([c_noise[:, None].to(x), *vectors], 1))
        for name, table in self.tables.items():
            added = added + table(cond[name] + 1)
        h = self.first(torch.cat([x, *images], 1)) + added.reshape(*added.shape, *[1] * (x.ndim - 2))
        out: Tensor = self.last(torch.nn.functional.silu(h))
        return out
