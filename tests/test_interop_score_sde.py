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

from diffusion_pl.checkpoints.loading import load_model
from diffusion_pl.interop import score_sde
from diffusion_pl.interop.foreign import sketch
from diffusion_pl.interop.keys import take
from diffusion_pl.networks import NCSNpp, UNet
from diffusion_pl.schedules import VE, VP, LinearBetas, SubVP

#: The 28 configurations of the package's configs/ whose network is DDPM's or NCSN++'s, as arguments of `Peer`.
CIFAR: dict[str, Any] = {"nf": 128, "mults": (1, 2, 2, 2), "depth": 4, "attends": (16,), "side": 32}
DDPM = CIFAR | {"kind": "ddpm", "depth": 2}
LARGE = {"nf": 128, "depth": 2, "side": 256}
SKIPS = {"entry": "input_skip", "exit": "output_skip", "fir": True, "fourier": True}
PYRAMID = {"entry": "residual", "fir": True}
DEEP = {"depth": 8}
LSUN = CIFAR | SKIPS | LARGE | {"mults": (1, 1, 2, 2, 2, 2, 2), "steps": 2000}
HUGE = LSUN | {"nf": 16, "mults": (1, 2, 4, 8, 16, 32, 32, 32), "depth": 1, "side": 1024, "sigma_max": 1348.0}
PUBLISHED: dict[str, dict[str, Any]] = {
    "subvp/cifar10_ddpm_continuous": DDPM,
    "subvp/cifar10_ddpmpp_continuous": CIFAR,
    "subvp/cifar10_ddpmpp_deep_continuous": CIFAR | DEEP,
    "subvp/cifar10_ncsnpp_continuous": CIFAR | PYRAMID,
    "subvp/cifar10_ncsnpp_deep_continuous": CIFAR | PYRAMID | DEEP,
    "ve/bedroom_ncsnpp_continuous": LSUN | {"sigma_max": 378.0},
    "ve/celeba_ncsnpp": CIFAR | PYRAMID | {"side": 64, "sigma_max": 90.0},
    "ve/celebahq_256_ncsnpp_continuous": LSUN | {"sigma_max": 348.0},
    "ve/celebahq_ncsnpp_continuous": HUGE,
    "ve/church_ncsnpp_continuous": LSUN | {"sigma_max": 380.0},
    "ve/cifar10_ddpm": DDPM,
    "ve/cifar10_ncsnpp": CIFAR | PYRAMID,
    "ve/cifar10_ncsnpp_continuous": CIFAR | PYRAMID | {"fourier": True},
    "ve/cifar10_ncsnpp_deep_continuous": CIFAR | PYRAMID | DEEP | {"fourier": True},
    "ve/ffhq_256_ncsnpp_continuous": LSUN | {"sigma_max": 348.0},
    "ve/ffhq_ncsnpp_continuous": HUGE,
    "vp/cifar10_ddpmpp": CIFAR,
    "vp/cifar10_ddpmpp_continuous": CIFAR,
    "vp/cifar10_ddpmpp_deep_continuous": CIFAR | DEEP,
    "vp/cifar10_ncsnpp": CIFAR | PYRAMID,
    "vp/cifar10_ncsnpp_continuous": CIFAR | PYRAMID,
    "vp/cifar10_ncsnpp_deep_continuous": CIFAR | PYRAMID | DEEP,
    "vp/ddpm/bedroom": DDPM | LARGE | {"mults": (1, 1, 2, 2, 4, 4)},
    "vp/ddpm/celebahq": DDPM | LARGE | {"mults": (1, 1, 2, 2, 4, 4)},
    "vp/ddpm/church": DDPM | LARGE | {"mults": (1, 1, 2, 2, 4, 4)},
    "vp/ddpm/cifar10": DDPM,
    "vp/ddpm/cifar10_continuous": DDPM,
    "vp/ddpm/cifar10_unconditional": DDPM | {"conditional": False},
}
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
    """The filter (1, 3, 3, 1)/8 along both axes, zeros around, every step-th value."""
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
    def __init__(self, channels: int, out: int, width: int, kind: str, way: str, fir: bool, act: Any) -> None:
        super().__init__()
        self.act = act
        groups = 32 if kind == "ddpm" else None
        self.GroupNorm_0, self.Conv_0 = norm(channels, groups), nn.Conv2d(channels, out, 3, padding=1)
        self.Dense_0 = nn.Linear(width, out)
        self.GroupNorm_1, self.Conv_1 = norm(out, groups), nn.Conv2d(out, out, 3, padding=1)
        if kind == "biggan" and (channels != out or way):
            self.Conv_2 = nn.Conv2d(channels, out, 1)
        elif channels != out:
            self.NIN_0 = Nin(channels, out)
        self.kind, self.way, self.fir = kind, way, fir

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        h = self.act(self.GroupNorm_0(x))
        if self.way:
            change = halved if self.way == "down" else doubled
            h, x = change(h, self.fir), change(x, self.fir)
        h = self.Conv_0(h) + (0 if time is None else self.Dense_0(self.act(time))[:, :, None, None])
        h = self.Conv_1(self.act(self.GroupNorm_1(h)))
        short = getattr(self, "Conv_2", getattr(self, "NIN_0", None))
        y: Tensor = h + (x if short is None else short(x))
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
        y: Tensor = x + self.NIN_3((v @ weight.transpose(1, 2)).reshape(x.shape))
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
        self.Conv_0 = nn.Conv2d(channels, out, 1)


class Frequencies(nn.Module):
    def __init__(self, nf: int) -> None:
        super().__init__()
        self.W = nn.Parameter(16 * torch.randn(nf), requires_grad=False)


class Peer(nn.Module):
    """Their network: one list of modules, run from first to last.  The pyramids' filters have no place in the list."""

    def __init__(
        self,
        kind: str = "biggan",
        nf: int = 8,
        mults: tuple[int, ...] = (1, 2),
        depth: int = 1,
        attends: tuple[int, ...] = (4,),
        side: int = 8,
        fourier: bool = False,
        conditional: bool = True,
        entry: str = "none",
        exit: str = "none",
        fir: bool = False,
        concatenated: bool = False,
        divides: bool = False,
        act: Any = F.silu,
        sigma_max: float = 50.0,
        steps: int = 1000,
    ) -> None:
        super().__init__()
        logs = torch.linspace(math.log(sigma_max), math.log(0.01), steps, dtype=torch.float64, device="cpu")
        self.register_buffer("sigmas", logs.exp())  # falling
        self.kind, self.nf, self.mults, self.depth, self.conditional = kind, nf, mults, depth, conditional
        self.attends = [side >> level in attends for level in range(len(mults))]
        self.fourier, self.entry, self.exit, self.fir, self.concatenated = fourier, entry, exit, fir, concatenated
        self.divides, self.act = divides, act
        width, last = 4 * nf, len(mults) - 1
        result: list[nn.Module] = [Frequencies(nf)] if fourier else []
        if conditional:
            result += [nn.Linear(2 * nf if fourier else nf, width), nn.Linear(width, width)]
        result.append(nn.Conv2d(3, nf, 3, padding=1))
        skips, c, pyramid = [nf], nf, 3

        def res(channels: int, out: int, way: str = "") -> Res:
            return Res(channels, out, width, kind, way, fir, act)

        for level, mult in enumerate(mults):
            for _ in range(depth):
                result.append(res(c, nf * mult))
                c = nf * mult
                result += [Attention(c, kind)] if self.attends[level] else []
                skips.append(c)
            if level < last:
                result.append(Resample(c, c, "down") if kind == "ddpm" else res(c, c, "down"))
                if entry == "input_skip":
                    result.append(Combine(3, c))
                    c *= 1 + concatenated
                elif entry == "residual":
                    result.append(Resample(pyramid, c, "down", fir))
                    pyramid = c
                skips.append(c)
        result += [res(c, c), Attention(c, kind), res(c, c)]
        for level in reversed(range(len(mults))):
            for _ in range(depth + 1):
                result.append(res(c + skips.pop(), nf * mults[level]))
                c = nf * mults[level]
            result += [Attention(c, kind)] if self.attends[level] else []
            if exit == "output_skip":
                result += [norm(c), nn.Conv2d(c, 3, 3, padding=1)]
            if level > 0:
                result.append(Resample(c, c, "up") if kind == "ddpm" else res(c, c, "up"))
        if exit != "output_skip":
            result += [norm(c, 32 if kind == "ddpm" else None), nn.Conv2d(c, 3, 3, padding=1)]
        self.all_modules = nn.ModuleList(result)

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """x: images, of which those in [0, 1] (divides) are first brought to [-1, 1]; noise_level: σ, else the step."""
        rest = iter(self.all_modules)
        act = self.act
        x = 2 * x - 1 if self.divides else x
        if self.fourier:
            phase = 2 * math.pi * noise_level.log()[:, None] * next(rest).W  # type: ignore[operator]
        else:
            half = self.nf // 2
            phase = noise_level[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1))
        time = torch.cat((phase.sin(), phase.cos()), 1).to(x)
        if self.conditional:
            time = next(rest)(time)
            time = next(rest)(act(time))
        h, pyramid = next(rest)(x), x
        time = time if self.conditional else None  # type: ignore[assignment]
        skips = [h]
        for level, attend in enumerate(self.attends):
            for _ in range(self.depth):
                h = next(rest)(h, time)
                h = next(rest)(h, time) if attend else h
                skips.append(h)
            if level < len(self.mults) - 1:
                h = next(rest)(h, time)
                if self.entry == "input_skip":
                    pyramid = halved(pyramid, self.fir)
                    joined = next(rest).Conv_0(pyramid)  # type: ignore[operator]
                    h = torch.cat((joined, h), 1) if self.concatenated else joined + h
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
                    shown = doubled(shown, self.fir)
                scaled = act(next(rest)(h))
                shown = shown + next(rest)(scaled)
            if level > 0:
                h = next(rest)(h, time)
        if self.exit != "output_skip":
            scaled = act(next(rest)(h))
            shown = next(rest)(scaled)
        assert next(rest, None) is None
        if not self.divides:
            return shown  # type: ignore[no-any-return]
        used = noise_level if self.fourier else self.sigmas[noise_level.long()].to(x)  # type: ignore[index]
        return shown / used[:, None, None, None]  # type: ignore[no-any-return]


def peer(**options: Any) -> Peer:
    """With weights as large as in training."""
    torch.manual_seed(0)
    made = Peer(**options).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return made


def content_of(network: Peer) -> dict[str, Any]:
    """What checkpoint.pth holds: the average is a list, twice the weights, in the order of parameters()."""
    listed = [2 * p.detach() for p in network.parameters() if p.requires_grad]
    return {
        "optimizer": {},
        "model": {f"module.{name}": tensor for name, tensor in network.state_dict().items()},
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": listed},
        "step": 9,
    }


def save(folder: Path, network: Peer) -> dict[str, Any]:
    content = content_of(network)
    torch.save(content, folder / "checkpoint.pth")
    return content


def come_in(folder: Path, *args: Any) -> Outcome:
    options = ["--from", "score_sde", "checkpoint.pth", "--size", 8, "--output", "a.ckpt", *args]
    return cli(folder, "import", *options)


SHAPES: dict[str, Peer] = {}  # networks without numbers, by their options: many configurations have the same


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_configuration_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its real size, by names and shapes alone."""
    options = PUBLISHED[name]
    sde = name.partition("/")[0]
    with torch.device("meta"):
        theirs = SHAPES.setdefault(repr(options), SHAPES.get(repr(options)) or Peer(**options))
        content = content_of(theirs)
    variant = "ddpm" if sde == "vp" and "continuous" not in name else sde
    monkeypatch.setattr(score_sde, "read_tensors", lambda *_: content)
    foreign = score_sde.read(Path("checkpoint.pth"), size=[options["side"]], variant=variant)  # type: ignore[arg-type]
    network = sketch(foreign)
    assert type(network) is (UNet if options.get("kind") == "ddpm" else NCSNpp)
    ours = take(foreign.raw, foreign.sources(network), network, name)
    count = sum(
        t.numel() for n, t in theirs.named_parameters() if options.get("conditional", True) or ".Dense_0." not in n
    )
    assert sum(t.numel() for t in ours.values()) == count
    for average in foreign.averages.values():
        take(average, foreign.sources(network), network, name)
    said = " ".join(foreign.notes)
    published_size = {"vp/cifar10_ddpmpp": 61_804_419, "ve/cifar10_ncsnpp_deep_continuous": 107_586_947 + 128}
    assert count == published_size.get(name, count)  # of the paper, the frequencies besides
    expected = {
        "skip_rescale": "false" if options.get("kind") == "ddpm" else "true",
        "scale_by_sigma": "true" if sde == "ve" else "false",
        "centered": "false" if sde == "ve" else "true",
        "nonlinearity": "swish",
    }
    assert all(f"--{option} {value}" in said for option, value in expected.items()), said
    if foreign.model["network"]["class_path"].endswith("NCSNpp"):
        assert foreign.model["network"]["init_args"]["fir"] == options.get("fir", False)
    if sde == "ve":
        schedule = foreign.model["schedule"]["init_args"]
        assert schedule["sigma_max"] == pytest.approx(2 * options.get("sigma_max", 50))
    assert foreign.model["sampler"]["init_args"]["grid"]["init_args"]["steps"] == options.get("steps", 1000)


SMALL: dict[str, Any] = {"steps": 40}
PLAIN = SMALL | {"kind": "ddpm", "nf": 32}
NCSN = SMALL | {"fourier": True, "fir": True, "entry": "residual"}
DEEP_SKIPS = SMALL | {"fir": True, "entry": "input_skip", "exit": "output_skip", "mults": (1, 2, 2), "depth": 2}
CASES: dict[str, tuple[dict[str, Any], str, type, list[Any]]] = {
    "ddpm": (PLAIN, "ddpm", UNet, []),
    "ddpm unconditional": (PLAIN | {"conditional": False}, "ddpm", UNet, []),
    "ddpm continuous": (PLAIN | {"attends": (8,)}, "vp", UNet, []),
    "ddpm of ve": (PLAIN, "ve", UNet, []),
    "ddpm++": (SMALL, "vp", NCSNpp, []),
    "ddpm++ deep": (SMALL | {"depth": 2, "mults": (1, 2, 2), "act": F.elu}, "subvp", NCSNpp, ["--nonlinearity", "elu"]),
    "ncsn++": (NCSN, "ve", NCSNpp, []),
    "ncsn++ of vp": (NCSN | {"fourier": False}, "vp", NCSNpp, []),
    "ncsn++ by number": (NCSN | {"fourier": False}, "ve", NCSNpp, []),
    "ncsn++ of large images": (DEEP_SKIPS | {"fourier": True}, "ve", NCSNpp, []),
    "ncsn++ of large images by number": (DEEP_SKIPS, "ve", NCSNpp, []),
    "ncsn++ concatenated": (
        DEEP_SKIPS | {"fourier": True, "concatenated": True, "fir": False},
        "ve",
        NCSNpp,
        ["--fir", False],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_denoises_as_theirs(tmp_path: Path, case: str) -> None:
    options, variant, network, given = CASES[case]
    theirs = peer(**options, divides=variant == "ve")
    save(tmp_path, theirs)
    done = come_in(tmp_path, *(["--variant", variant] if not theirs.fourier else []), *given)
    assert done.code == 0, done.err
    model, _ = load_model(tmp_path / "a.ckpt", "raw")
    assert type(model.network) is network
    assert type(model.schedule) is {"ddpm": LinearBetas, "vp": VP, "subvp": SubVP, "ve": VE}[variant]
    steps, number = 40, torch.tensor([0, 8, 39])
    x, t = torch.randn(3, 3, 8, 8), (number + 1.0) / steps
    if variant == "ve":
        t = number / (steps - 1.0)  # at its noise levels
    kernel = model.schedule(t.view(-1, 1, 1, 1))
    with torch.no_grad():
        ours = model.denoiser(x, t.view(-1, 1, 1, 1)).eps
        if variant == "ve":
            # Theirs sees images in [0, 1] under half the noise, and gives their score, −ε/σ.
            sigma = theirs.sigmas.flip(0)[number].float()
            torch.testing.assert_close(sigma.view(-1, 1, 1, 1), kernel.sigma / 2)
            level = sigma if theirs.fourier else steps - 1 - number
            output = -theirs((x + 1) / 2, level) * sigma[:, None, None, None]
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
    raw, average = load_model(tmp_path / "a.ckpt", "raw")[0], load_model(tmp_path / "a.ckpt")[0]
    assert average.weights_name == "ema0.9999"
    for (name, one), two in zip(raw.network.named_parameters(), average.network.parameters(), strict=True):
        torch.testing.assert_close(two, 2 * one, msg=name)
    if variant == "ve":  # the frequencies are no parameters of the training
        frequencies = "time.embedding.frequencies"
        torch.testing.assert_close(average.network.state_dict()[frequencies], raw.network.state_dict()[frequencies])


def test_options_missing_from_the_file_are_required(tmp_path: Path) -> None:
    save(tmp_path, peer())
    assert "add --variant ddpm (discrete steps), vp, subvp or ve" in come_in(tmp_path).error
    assert "leave it out" in come_in(tmp_path, "--variant", "vp", "--snr", 0.1).error
    assert "--centered true" in come_in(tmp_path, "--variant", "vp", "--centered", False).error
    without = cli(tmp_path, "import", "--from", "score_sde", "checkpoint.pth", "--output", "a.ckpt", "--variant", "vp")
    assert ": add --size" in without.error
    assert not (tmp_path / "a.ckpt").exists()


def lacking(content: dict[str, Any]) -> None:
    del content["model"]["module.all_modules.4.Conv_1.bias"]
    content["ema"]["shadow_params"].pop()


def left_over(content: dict[str, Any]) -> None:
    content["model"]["module.all_modules.4.Conv_9.bias"] = torch.zeros(3)
    content["ema"]["shadow_params"].append(torch.zeros(3))


def misshaped(content: dict[str, Any]) -> None:
    content["model"]["module.all_modules.4.Conv_1.bias"] = torch.zeros(3)


def test_an_assumption_gives_way_to_its_option(tmp_path: Path) -> None:
    """And one that the tensors contradict is refused."""
    save(tmp_path, peer(fir=True, entry="residual"))
    options = {"beta_min": 0.2, "beta_max": 18.0, "skip_rescale": False, "nonlinearity": "relu", "dropout": 0.0}
    given = [part for option, value in options.items() for part in (f"--{option}", value)]
    kernel = ["--fir_kernel", "[1.0,2.0,2.0,1.0]"]
    done = come_in(tmp_path, "--variant", "vp", *given, *kernel)
    assert done.code == 0, done.err
    assert "assumed, since the file does not show it: --centered true --scale_by_sigma false (give" in done.out
    model, _ = load_model(tmp_path / "a.ckpt", "raw")
    network = model.network
    assert isinstance(network, NCSNpp)
    assert network.gain == 1
    assert network.act is F.relu
    assert isinstance(network.resampling.kernel, Tensor)
    assert network.resampling.kernel[0, 0] == pytest.approx(1 / 36)
    torch.testing.assert_close(model.schedule(torch.tensor(1.0)).alpha, VP(0.2, 18.0)(torch.tensor(1.0)).alpha)
    (tmp_path / "a.ckpt").unlink()
    assert "the tensors of checkpoint.pth show true" in come_in(tmp_path, "--variant", "vp", "--fir", False).error
    assert "--betas is not for --from score_sde" in come_in(tmp_path, "--betas", "linear").error


def short(content: dict[str, Any]) -> None:
    content["ema"]["shadow_params"].pop()


def refined(content: dict[str, Any]) -> None:
    content["model"] = {"module.begin_conv.weight": torch.zeros(4, 3, 3, 3), "module.sigmas": torch.ones(3)}


def far(content: dict[str, Any]) -> None:
    content["model"]["module.all_modules.100000000000.weight"] = torch.zeros(3)


def with_wrong_options(content: dict[str, Any]) -> None:
    """A few numbers that promise a network of 10¹² parameters."""
    content["model"]["module.all_modules.2.weight"] = torch.zeros(10**6, 3, 1, 1)


def cut(content: dict[str, Any]) -> None:
    content["model"] = {name: t for name, t in content["model"].items() if ".5." not in name and ".6." not in name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lacking, r"1 of \d+ tensors .*: module.all_modules.4.Conv_1.bias is missing"),
        (left_over, r"1 of \d+ tensors .*: module.all_modules.4.Conv_9.bias is unexpected"),
        (misshaped, r"module.all_modules.4.Conv_1.bias is 3, expected 8"),
        (short, r"ema.shadow_params lists \d+ tensors, the network has \d+"),
        (cut, r"checkpoint.pth: .*are no U-Net"),
        (refined, r"NCSN and NCSNv2 are not supported"),
        (far, r"is the last of only \d+ modules"),
        (with_wrong_options, r"are no multiples of nf 1000000"),
        (
            lambda content: content["model"].update({"module.all_modules.4.Conv_1.bias": 3}),
            r"Conv_1.bias is a int, not",
        ),
        (lambda content: content["ema"].update(shadow_params=7), r"ema.shadow_params lists no tensors"),
        (lambda content: content["ema"].update(decay="0.9"), r"ema.decay must be a number"),
        (lambda content: content.update(step=-1), r"step must be a whole number"),
        (lambda content: content.pop("ema"), r"is no checkpoint of score_sde_pytorch: it needs model, ema .* and has"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    content = save(tmp_path, peer())
    damage(content)
    torch.save(content, tmp_path / "checkpoint.pth")
    error = come_in(tmp_path, "--variant", "vp").error
    assert re.search(message, error), error
    assert not (tmp_path / "a.ckpt").exists()
