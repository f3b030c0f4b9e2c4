"""Checkpoints of score_sde_pytorch, against a second implementation of its networks, written here from the paper and
the names in its files; the package itself cannot be installed."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Outcome, cli
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_pl.loading import load
from diffusion_pl.networks import NCSNpp, UNet
from diffusion_pl.schedules import VE, VP, LinearBetas, SubVP

#: Falling, as they list them.
SIGMAS = torch.exp(torch.linspace(math.log(50.0), math.log(0.01), 40, dtype=torch.float64))
ROOT_HALF = math.sqrt(0.5)


class Nin(nn.Module):
    """A 1x1 convolution kept as W: (in, out) and b."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.zeros(channels, out)), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


def norm(channels: int, groups: int | None = None) -> nn.GroupNorm:
    return nn.GroupNorm(groups or min(channels // 4, 32), channels, eps=1e-6)


def smooth(x: Tensor, before: int, after: int, step: int = 1, gain: float = 1.0) -> Tensor:
    """The filter (1, 3, 3, 1)/8 along both sides, zeros around, every step-th value."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    x = F.pad(x, (before, after, before, after)).unfold(3, 4, step) @ taps.to(x)
    return gain * (x.unfold(2, 4, step) @ taps.to(x))


def halved(x: Tensor, fir: bool) -> Tensor:
    return smooth(x, 1, 1, step=2) if fir else F.avg_pool2d(x, 2)


def doubled(x: Tensor, fir: bool) -> Tensor:
    if not fir:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    spread = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype)
    spread[:, :, ::2, ::2] = x
    return smooth(spread, 2, 1, gain=4.0)


class Res(nn.Module):
    def __init__(self, channels: int, out: int, width: int, kind: str, way: str = "", fir: bool = False) -> None:
        super().__init__()
        groups = 32 if kind == "ddpm" else None
        self.GroupNorm_0, self.Conv_0 = norm(channels, groups), nn.Conv2d(channels, out, 3, padding=1)
        self.Dense_0 = nn.Linear(width, out)
        self.GroupNorm_1, self.Conv_1 = norm(out, groups), nn.Conv2d(out, out, 3, padding=1)
        if kind == "biggan" and (channels != out or way):
            self.Conv_2 = nn.Conv2d(channels, out, 1)
        elif channels != out:
            self.NIN_0 = Nin(channels, out)
        self.kind, self.way, self.fir = kind, way, fir

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.way:
            change = halved if self.way == "down" else doubled
            h, x = change(h, self.fir), change(x, self.fir)
        h = self.Conv_0(h) + self.Dense_0(F.silu(time))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        short = getattr(self, "Conv_2", getattr(self, "NIN_0", None))
        y = h + (x if short is None else short(x))
        return y if self.kind == "ddpm" else ROOT_HALF * y


class Attention(nn.Module):
    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.GroupNorm_0 = norm(channels, 32 if kind == "ddpm" else None)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (Nin(channels, channels) for _ in range(4))
        self.kind = kind

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), 2)
        y = x + self.NIN_3((v @ weight.transpose(1, 2)).reshape(x.shape))
        return y if self.kind == "ddpm" else ROOT_HALF * y


class Resample(nn.Module):
    """Of DDPM: a convolution that halves or follows a doubling; of the input pyramid: filter and convolution."""

    def __init__(self, channels: int, out: int, way: str, fir: bool = False) -> None:
        super().__init__()
        padding = 1 if way == "up" else 0
        layer = nn.Conv2d(channels, out, 3, 1 if way == "up" else 2, padding)
        self.way, self.fir = way, fir
        setattr(self, "Conv2d_0" if fir else "Conv_0", layer)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.way == "up":
            return self.Conv_0(doubled(x, False))  # type: ignore[no-any-return, operator]
        if self.fir:
            return self.Conv2d_0(smooth(x, 2, 2))  # type: ignore[no-any-return, operator]
        return self.Conv_0(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return, operator]


class Combine(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.Conv = nn.Conv2d(channels, out, 1)


class Nothing(nn.Module):
    """A block without tensors keeps its number in the list."""


class Frequencies(nn.Module):
    def __init__(self, nf: int) -> None:
        super().__init__()
        self.W = nn.Parameter(16 * torch.randn(nf), requires_grad=False)


class Peer(nn.Module):
    """Their network: one list of modules, run from first to last."""

    def __init__(
        self,
        kind: str,
        nf: int,
        mults: tuple[int, ...],
        depth: int,
        attends: tuple[bool, ...],
        fourier: bool = False,
        entry: str = "none",
        exit: str = "none",
        fir: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("sigmas", SIGMAS)
        self.kind, self.nf, self.mults, self.depth, self.attends = kind, nf, mults, depth, attends
        self.fourier, self.entry, self.exit, self.fir = fourier, entry, exit, fir
        width, last = 4 * nf, len(mults) - 1
        found: list[nn.Module] = [Frequencies(nf)] if fourier else []
        found += [nn.Linear(2 * nf if fourier else nf, width), nn.Linear(width, width), nn.Conv2d(3, nf, 3, padding=1)]
        skips, c, pyramid = [nf], nf, 3
        for level, mult in enumerate(mults):
            for _ in range(depth):
                found.append(Res(c, nf * mult, width, kind))
                c = nf * mult
                found += [Attention(c, kind)] if attends[level] else []
                skips.append(c)
            if level < last:
                found.append(Resample(c, c, "down") if kind == "ddpm" else Res(c, c, width, kind, "down", fir))
                if entry == "input_skip":
                    found += [Nothing(), Combine(3, c)]
                elif entry == "residual":
                    found.append(Resample(pyramid, c, "down", fir))
                    pyramid = c
                skips.append(c)
        found += [Res(c, c, width, kind), Attention(c, kind), Res(c, c, width, kind)]
        for level in reversed(range(len(mults))):
            for _ in range(depth + 1):
                found.append(Res(c + skips.pop(), nf * mults[level], width, kind))
                c = nf * mults[level]
            found += [Attention(c, kind)] if attends[level] else []
            if exit == "output_skip":
                found += [Nothing()] if level < last else []
                found += [norm(c), nn.Conv2d(c, 3, 3, padding=1)]
            if level > 0:
                found.append(Resample(c, c, "up") if kind == "ddpm" else Res(c, c, width, kind, "up", fir))
        if exit != "output_skip":
            found += [norm(c, 32 if kind == "ddpm" else None), nn.Conv2d(c, 3, 3, padding=1)]
        self.all_modules = nn.ModuleList(found)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """x: pictures, in [0, 1] for VE; told: σ for VE, else the step."""
        rest = iter(self.all_modules)
        if self.fourier:
            x = 2 * x - 1
            phase = 2 * math.pi * told.log()[:, None] * next(rest).W  # type: ignore[operator]
        else:
            half = self.nf // 2
            phase = told[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1))
        time = next(rest)(torch.cat((phase.sin(), phase.cos()), 1).to(x))
        time = next(rest)(F.silu(time))
        h, pyramid = next(rest)(x), x
        skips = [h]
        for level, attend in enumerate(self.attends):
            for _ in range(self.depth):
                h = next(rest)(h, time)
                h = next(rest)(h, time) if attend else h
                skips.append(h)
            if level < len(self.mults) - 1:
                h = next(rest)(h, time)
                if self.entry == "input_skip":
                    next(rest)
                    pyramid = halved(pyramid, self.fir)
                    h = h + next(rest).Conv(pyramid)  # type: ignore[operator, union-attr]
                elif self.entry == "residual":
                    h = pyramid = ROOT_HALF * (next(rest)(pyramid, time) + h)
                skips.append(h)
        for _ in range(3):
            h = next(rest)(h, time)
        shown: Any = 0
        for level in reversed(range(len(self.mults))):
            for _ in range(self.depth + 1):
                h = next(rest)(torch.cat((h, skips.pop()), 1), time)
            h = next(rest)(h, time) if self.attends[level] else h
            if self.exit == "output_skip":
                if level < len(self.mults) - 1:
                    next(rest)
                    shown = doubled(shown, self.fir)
                scaled = F.silu(next(rest)(h))
                shown = shown + next(rest)(scaled)
            if level > 0:
                h = next(rest)(h, time)
        if self.exit != "output_skip":
            scaled = F.silu(next(rest)(h))
            shown = next(rest)(scaled)
        assert next(rest, None) is None
        return shown / told[:, None, None, None] if self.fourier else shown


def peer(**options: Any) -> Peer:
    """With weights as large as in training."""
    torch.manual_seed(0)
    made = Peer(**({"kind": "biggan", "nf": 8, "mults": (1, 2), "depth": 1, "attends": (False, True)} | options)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return made


def save(folder: Path, network: Peer, **changes: Any) -> dict[str, Any]:
    """checkpoint.pth, as theirs: the average is a list, twice the weights, in the order of parameters()."""
    listed = [2 * p.detach() for p in network.parameters() if p.requires_grad]
    content = {
        "optimizer": torch.optim.Adam(network.parameters()).state_dict(),
        "model": {f"module.{name}": tensor for name, tensor in network.state_dict().items()},
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": listed},
        "step": 9,
    }
    content |= changes
    torch.save(content, folder / "checkpoint.pth")
    return content


def come_in(folder: Path, *args: Any) -> Outcome:
    options = ["--from", "score_sde", "checkpoint.pth", "--size", 8, "--output", "a.ckpt", *args]
    return cli(folder, "import", *options)


NCSN = {"fourier": True, "fir": True, "entry": "residual"}
CASES: dict[str, tuple[dict[str, Any], str, type, type]] = {
    "ddpm": ({"kind": "ddpm", "nf": 32}, "ddpm", UNet, LinearBetas),
    "ddpm continuous": ({"kind": "ddpm", "nf": 32, "attends": (True, False)}, "vp", UNet, VP),
    "ddpm++": ({}, "vp", NCSNpp, VP),
    "ddpm++ deep": ({"depth": 2, "mults": (1, 2, 2), "attends": (False, True, False)}, "subvp", NCSNpp, SubVP),
    "ncsn++": (NCSN, "ve", NCSNpp, VE),
    "ncsn++ of large pictures": (NCSN | {"entry": "input_skip", "exit": "output_skip"}, "ve", NCSNpp, VE),
}


@pytest.mark.parametrize("case", CASES)
def test_it_denoises_as_theirs(tmp_path: Path, case: str) -> None:
    options, variant, network, schedule = CASES[case]
    theirs = peer(**options)
    save(tmp_path, theirs)
    done = come_in(tmp_path, *([] if variant == "ve" else ["--variant", variant]))
    assert done.code == 0, done.err
    model, _ = load(tmp_path / "a.ckpt", "raw")
    assert type(model.network) is network
    assert type(model.schedule) is schedule
    steps = len(SIGMAS)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([1, 9, 40]).view(-1, 1, 1, 1) / steps
    kernel = model.schedule(t)
    with torch.no_grad():
        ours = model.denoiser(x, t).eps
        if variant == "ve":
            # Theirs sees pictures in [0, 1] under half the noise, and gives their score, −ε/σ.
            sigma = (0.01 * 5000**t).flatten()
            torch.testing.assert_close(sigma.view_as(t), kernel.sigma / 2)
            output = -theirs((x + 1) / 2, sigma) * sigma[:, None, None, None]
        else:
            output = theirs(x, (t * steps - 1 if variant == "ddpm" else 999 * t).flatten())
    largest = output.abs().max().item()
    assert largest > 0.1
    torch.testing.assert_close(ours, output, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("case", ["ddpm", "ddpm++", "ncsn++"])
def test_the_list_of_averages_is_in_the_order_of_parameters(tmp_path: Path, case: str) -> None:
    options, variant, *_ = CASES[case]
    save(tmp_path, peer(**options))
    assert come_in(tmp_path, *([] if variant == "ve" else ["--variant", variant])).code == 0
    raw, average = load(tmp_path / "a.ckpt", "raw")[0], load(tmp_path / "a.ckpt")[0]
    assert average.weights_name == "ema0.9999"
    for (name, one), two in zip(raw.network.named_parameters(), average.network.parameters(), strict=True):
        torch.testing.assert_close(two, 2 * one, msg=name)
    if variant == "ve":  # the frequencies are no parameters of the training
        frequencies = "time.embedding.frequencies"
        torch.testing.assert_close(average.network.state_dict()[frequencies], raw.network.state_dict()[frequencies])


def test_what_the_file_does_not_tell_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path, peer())
    assert "add --variant ddpm (discrete steps), vp, subvp or ve" in come_in(tmp_path).error
    assert "has no Fourier features, those are ve's" in come_in(tmp_path, "--variant", "ve").error
    without = cli(tmp_path, "import", "--from", "score_sde", "checkpoint.pth", "--output", "a.ckpt", "--variant", "vp")
    assert "does not tell the sides of the pictures: add --size, such as --size 32" in without.error
    assert not (tmp_path / "a.ckpt").exists()


def lacking(content: dict[str, Any]) -> None:
    del content["model"]["module.all_modules.4.Conv_1.bias"]
    content["ema"]["shadow_params"].pop()


def left_over(content: dict[str, Any]) -> None:
    content["model"]["module.all_modules.4.Conv_9.bias"] = torch.zeros(3)
    content["ema"]["shadow_params"].append(torch.zeros(3))


def misshaped(content: dict[str, Any]) -> None:
    content["model"]["module.all_modules.4.Conv_1.bias"] = torch.zeros(3)


def short(content: dict[str, Any]) -> None:
    content["ema"]["shadow_params"].pop()


def cut(content: dict[str, Any]) -> None:
    content["model"] = {name: t for name, t in content["model"].items() if ".5." not in name and ".6." not in name}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lacking, r"1 of \d+ tensors do not fit .*: module.all_modules.4.Conv_1.bias is missing"),
        (left_over, r"1 of \d+ tensors do not fit .*: module.all_modules.4.Conv_9.bias has no place"),
        (misshaped, r"module.all_modules.4.Conv_1.bias is 3, expected 8"),
        (short, r"ema.shadow_params lists \d+ tensors, the network has \d+"),
        (cut, r"checkpoint.pth: .*(residual blocks on|modules, where a)"),
        (lambda content: content.pop("ema"), r"is no checkpoint of score_sde_pytorch: it needs model, ema .* and has"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, damage: Any, told: str) -> None:
    content = save(tmp_path, peer())
    damage(content)
    torch.save(content, tmp_path / "checkpoint.pth")
    error = come_in(tmp_path, "--variant", "vp").error
    assert re.search(told, error), error
    assert not (tmp_path / "a.ckpt").exists()
