"""Metrics of continuous fields: moments, marginal distributions, radial power spectrum, energy distance.

A field is (C, *sizes) with C channels and any number of spatial axes, in model units: of order one in each channel.

    P(k) = mean of |FFT(x)|² / n over the modes of a shell, n grid points;  1 for white noise of variance 1
    Σ_k (number of modes) P(k) = n · mean of x²;  every mode is in exactly one shell
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from .points import energy_distance

NAMES = ("moments", "marginals", "spectrum", "energy")

RANGE, WIDTH = 32, 1 / 512  # of the bins in which values are counted, in model units
BINS = round(2 * RANGE / WIDTH)
FLOOR = 1e-9  # of a power spectrum, relative to the mean power of the data: below it is rounding


class Shells(NamedTuple):
    """The modes of a real FFT by wave number.

    k: (S,), wave numbers in cycles per the longest axis;  place: (*half), of each mode in k;  modes: (S,), number
    of modes of the whole FFT in each shell;  weight: (*half), of a mode in its shell's mean.
    """

    k: Tensor
    place: Tensor
    modes: Tensor
    weight: Tensor


def shells(sizes: Sequence[int]) -> Shells:
    """Shells of width 1 around k = 0, 1, 2, … cycles per the longest axis; the spacing is equal along all axes.

    Args:
        sizes: of the spatial axes, at least one.
    """
    longest, last = max(sizes), len(sizes) - 1
    squares = torch.zeros(1, dtype=torch.float64)
    for axis, size in enumerate(sizes):
        frequencies = torch.fft.rfftfreq(size) if axis == last else torch.fft.fftfreq(size)
        squares = squares[..., None] + (frequencies.double() * longest).square()
    k, place = torch.unique(squares[0].sqrt().round(), return_inverse=True)
    # A real FFT omits the mirror image of each mode, except in the first plane and, of an even size, in the last.
    count = torch.full(place.shape, 2.0, dtype=torch.float64)
    count[..., 0] = 1
    if sizes[-1] % 2 == 0:
        count[..., -1] = 1
    modes = torch.zeros(len(k), dtype=torch.float64).index_add_(0, place.flatten(), count.flatten())
    return Shells(k, place, modes, count / modes[place])


def power(x: Tensor, by: Shells) -> Tensor:
    """P(k) of each field: (B, C, *sizes) -> (B, C, S), float64."""
    axes = tuple(range(2, x.ndim))
    squared = torch.fft.rfftn(x.double(), dim=axes).abs().square() * by.weight.to(x.device)
    total: Tensor = squared.new_zeros(*x.shape[:2], len(by.k))
    total.index_add_(2, by.place.flatten().to(x.device), squared.flatten(2))
    return total / math.prod(x.shape[2:])


class Summary(NamedTuple):
    """What N fields have in common, channel by channel; float64.

    n: number of fields;  mean, std, skewness, kurtosis: (C,), of all values, kurtosis − 3;  k: (S,) wave numbers;
    power: (C, S), mean P(k);  cdf: (C, BINS), share of the values up to the end of each bin.
    """

    n: int
    mean: Tensor
    std: Tensor
    skewness: Tensor
    kurtosis: Tensor
    k: Tensor
    power: Tensor
    cdf: Tensor


class FieldStatistics(Metric):
    """Sums over fields in all batches and processes; memory does not grow with their number.

    Args:
        shape: (C, *sizes) of a field.
    """

    full_state_update = False
    count: Tensor
    bad: Tensor
    powers: Tensor
    spectrum: Tensor
    histogram: Tensor
    rows: list[Tensor]

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        if len(shape) < 2:
            raise ValueError(f"a field has a channel axis and spatial axes, got the shape {tuple(shape)}")
        self.shape, self.shells = tuple(shape), shells(shape[1:])
        channels = shape[0]
        for name, size in (("count", ()), ("bad", ()), ("powers", (channels, 4))):
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        for name, size in (("spectrum", (channels, len(self.shells.k))), ("histogram", (channels, BINS))):
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, x: Tensor, keep: Tensor | None = None) -> None:
        """Add fields; those that are not finite are counted in `bad` and not added.

        Args:
            x: (B, C, *sizes), in model units.
            keep: (B,), bool: the fields that are kept whole for the energy distance; None: none.
        """
        good = x.flatten(1).isfinite().all(1)
        if keep is not None:
            self.rows.append(x[good & keep.to(good.device)].flatten(1).float())
        x = x[good]
        self.bad += (~good).sum()
        self.count += len(x)
        values = x.transpose(0, 1).flatten(1).double()  # (C, B · n)
        self.powers += torch.stack([values.pow(p).sum(1) for p in range(1, 5)], 1)
        self.spectrum += power(x, self.shells).sum(0)
        bins = ((values + RANGE) / WIDTH).long().clamp(0, BINS - 1)
        self.histogram += torch.stack([row.bincount(minlength=BINS) for row in bins])

    def compute(self) -> Summary:
        """Moments, spectrum and distribution of all values.

        Raises:
            ValueError: fewer than two fields were finite.
        """
        n = int(self.count)
        if n < 2:
            bad = int(self.bad)
            raise ValueError(f"{bad} of {n + bad} samples are not finite: at least 2 are needed to measure")
        m1, m2, m3, m4 = (self.powers / (n * math.prod(self.shape[1:]))).unbind(1)
        var = (m2 - m1**2).clamp(min=0)
        third = m3 - 3 * m1 * m2 + 2 * m1**3
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return Summary(
            n=n,
            mean=m1,
            std=var.sqrt(),
            skewness=torch.where(var > 0, third / var.pow(1.5), 0.0),
            kurtosis=torch.where(var > 0, fourth / var.square() - 3, 0.0),
            k=self.shells.k.to(m1.device),
            power=self.spectrum / n,
            cdf=self.histogram.cumsum(1) / self.histogram.sum(1, keepdim=True),
        )

    def kept(self) -> Tensor:
        """The fields that were kept, flattened: (N, D), in the order of the processes."""
        with self.sync_context():
            return torch.cat(self.rows) if isinstance(self.rows, list) else self.rows


def moment_errors(samples: Summary, data: Summary) -> dict[str, Tensor]:
    """By channel, (C,) each: (μ − μ_d)/σ_d,  σ/σ_d − 1,  and the differences of skewness and excess kurtosis."""
    return {
        "mean_error": (samples.mean - data.mean) / data.std,
        "std_error": samples.std / data.std - 1,
        "skewness_error": samples.skewness - data.skewness,
        "kurtosis_error": samples.kurtosis - data.kurtosis,
    }


def marginal_distance(samples: Summary, data: Summary) -> Tensor:
    """Wasserstein-1 distance of the values of a channel, ∫|F − F_d| dv / σ_d: (C,).

    Values are counted in bins of 1/512 in model units between −32 and 32, so the error is below 1/512 / σ_d.

    Reference: Ramdas et al., arXiv 1509.02237, Sec. 2.3.
    """
    return (samples.cdf - data.cdf).abs().sum(1) * WIDTH / data.std


def spectral_ratio(samples: Summary, data: Summary) -> Tensor:
    """log10 of P(k)/P_d(k) for k > 0: (C, S − 1); both are taken as at least 1e-9 of the mean power of the data.

    k = 0 is the mean of each field.  It is 0 in fields from which it was taken, so that its ratio would say nothing.
    """
    least = FLOOR * data.power.mean(1, keepdim=True)
    return torch.log10(torch.maximum(samples.power, least) / torch.maximum(data.power, least))[:, 1:]


def scores(names: Sequence[str], samples: FieldStatistics, data: FieldStatistics) -> dict[str, dict[str, Any]]:
    """{metric: {"value", "channels": details of each channel, and what it depends on}} of the named metrics.

    moments    the four errors of `moment_errors`, each the root mean square over the channels
    marginals  mean over the channels of `marginal_distance`
    spectrum   log-spectral distance, the root mean square over channels and shells k > 0 of `spectral_ratio`
    energy     energy distance of the whole fields that were kept, see `energy_distance`
    """
    s, d = samples.compute(), data.compute()
    if not (d.std > 0).all():
        raise ValueError(f"channel {int(d.std.argmin())} of the data is constant: leave it out")
    results: dict[str, dict[str, Any]] = {}
    if "moments" in names:
        for name, error in moment_errors(s, d).items():
            part = name.removesuffix("_error")
            pair = {"samples": getattr(s, part), "data": getattr(d, part)}
            results[name] = {"value": _rms(error), "channels": _plain(pair)}
    if "marginals" in names:
        distance = marginal_distance(s, d)
        results["marginals"] = {"value": float(distance.mean()), "channels": _plain({"distance": distance})}
    if "spectrum" in names:
        spectra = {"k": s.k, "samples": s.power, "data": d.power}
        results["spectrum"] = {"value": _rms(spectral_ratio(s, d)), "channels": _plain(spectra)}
    if "energy" in names:
        x, y = samples.kept(), data.kept()
        results["energy"] = {"value": energy_distance(x, y), "fields": [len(x), len(y)]}
    return results


def _rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}
