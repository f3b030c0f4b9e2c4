"""State dicts of improved-diffusion, against a second implementation of its network, written here from the paper and
the names in its files; the package itself cannot be installed."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Outcome, cli
from torch import Tensor, nn

from diffusion_pl.checkpoints.loading import load_model
from diffusion_pl.conditions import class_count
from diffusion_pl.interop import openai
from diffusion_pl.interop.foreign import sketch
from diffusion_pl.interop.keys import take
from diffusion_pl.networks import UNet
from diffusion_pl.samplers import Ancestral
from diffusion_pl.schedules import CosineBetas, LinearBetas

HEADS = 2
#: improved-diffusion's published models, of real size: height, flags of network and schedule, and the number
#: of parameters that the names of their files round.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "cifar10_uncond_50M": ({"side": 32, "mults": (1, 2, 2, 2)}, {"steps": 4000, "dropout": 0.3}, 50),
    "imagenet64_uncond_100M": ({"side": 64, "mults": (1, 2, 3, 4)}, {"steps": 4000}, 100),
    "imagenet64_cond_270M": (
        {"side": 64, "mults": (1, 2, 3, 4), "nf": 192, "classes": 1000},
        {"steps": 4000, "rescale_timesteps": False},
        270,
    ),
    "lsun_uncond_100M": (
        {"side": 256, "mults": (1, 1, 2, 2, 4, 4), "depth": 2, "scales": False, "attends": (16,)},
        {"steps": 1000, "heads": 1, "rescale_timesteps": False},
        100,
    ),
    # guided-diffusion's, with resblock_updown; their numbers are in the ADM paper's Table 11 to 13.
    "64x64_diffusion": (
        {
            **{"side": 64, "mults": (1, 2, 3, 4), "nf": 192, "classes": 1000, "attends": (32, 16, 8)},
            **{"head_channels": 64, "blocks": True},
        },
        {"steps": 1000, "num_head_channels": 64, "use_new_attention_order": True, "dropout": 0.1},
        296,
    ),
    "256x256_diffusion": (
        {
            **{"side": 256, "mults": (1, 1, 2, 2, 4, 4), "nf": 256, "depth": 2, "classes": 1000},
            **{"attends": (32, 16, 8), "head_channels": 64, "blocks": True},
        },
        {"steps": 1000, "num_head_channels": 64},
        554,
    ),
}


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def conv(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, padding=1)


def halve(x: Tensor) -> Tensor:
    return x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Res(nn.Module):
    def __init__(
        self, channels: int, out: int, width: int, scales: bool, change: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.change = change
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), conv(channels, out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, out * (1 + scales)))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Dropout(0.3), conv(out, out))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.scales = scales

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h, embedding = self.in_layers[:2](x), self.emb_layers(time)[..., None, None]
        if self.change is not None:
            h, x = self.change(h), self.change(x)
        h = self.in_layers[2](h)
        if self.scales:
            scale, shift = embedding.split(h.shape[1], 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + embedding)
        return self.skip_connection(x) + h  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Its channels are those of the first head's queries, keys and values, then of the second's."""

    def __init__(self, channels: int, heads: int, whole_first: bool = False) -> None:
        super().__init__()
        self.norm, self.qkv = norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        self.heads, self.whole_first = heads, whole_first

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = []
        made = self.qkv(self.norm(x).flatten(2))
        if self.whole_first:  # all queries, all keys, all values, instead of head by head
            made = made.unflatten(1, (3, self.heads, -1)).transpose(1, 2).flatten(1, 3)
        for head in made.chunk(self.heads, 1):
            q, k, v = head.chunk(3, 1)
            weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), 2)
            h.append(v @ weight.transpose(1, 2))
        return x + self.proj_out(torch.cat(h, 1)).reshape(x.shape)  # type: ignore[no-any-return]


class Halve(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = conv(channels, channels, 2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.op(x)  # type: ignore[no-any-return]


class Double(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(double(x))  # type: ignore[no-any-return]


class Peer(nn.Module):
    """UNetModel; of two levels of 32 and 64 channels by default, with attention in the second."""

    def __init__(
        self,
        depth: int = 1,
        scales: bool = True,
        learned: bool = True,
        classes: int | None = None,
        nf: int = 32,
        mults: tuple[int, ...] = (1, 2),
        side: int = 8,
        attends: tuple[int, ...] = (4,),
        heads: int = HEADS,
        head_channels: int | None = None,
        up_heads: int | None = None,
        whole_first: bool = False,
        blocks: bool = False,
    ) -> None:
        super().__init__()
        width, self.nf, last = 4 * nf, nf, len(mults) - 1
        self.time_embed = nn.Sequential(nn.Linear(nf, width), nn.SiLU(), nn.Linear(width, width))
        if classes:
            self.label_emb = nn.Embedding(classes, width)

        def attention(c: int, number: int) -> Attention:
            return Attention(c, c // head_channels if head_channels else number, whole_first)

        def row(c: int, out: int, level: int, number: int) -> list[nn.Module]:
            return [Res(c, out, width, scales), *([attention(out, number)] if side >> level in attends else [])]

        rows: list[list[nn.Module]] = [[conv(3, nf)]]
        skips, c = [nf], nf
        for level, mult in enumerate(mults):
            for _ in range(depth):
                rows.append(row(c, nf * mult, level, heads))
                c = nf * mult
                skips.append(c)
            if level < last:
                rows.append([Res(c, c, width, scales, halve) if blocks else Halve(c)])
                skips.append(c)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, rows))
        self.middle_block = nn.ModuleList([Res(c, c, width, scales), attention(c, heads), Res(c, c, width, scales)])
        rows = []
        for level in reversed(range(len(mults))):
            for number in range(depth + 1):
                rows.append(row(c + skips.pop(), nf * mults[level], level, up_heads or heads))
                c = nf * mults[level]
                if level and number == depth:
                    rows[-1].append(Res(c, c, width, scales, double) if blocks else Double(c))
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, rows))
        self.out = nn.Sequential(norm(c), nn.SiLU(), conv(c, 6 if learned else 3))

    def forward(self, x: Tensor, steps: Tensor, label: Tensor | None = None) -> Tensor:
        phase = steps[:, None] * 10_000 ** (-torch.arange(self.nf // 2) / (self.nf // 2))
        time = self.time_embed(torch.cat((phase.cos(), phase.sin()), 1))
        time = time if label is None else time + self.label_emb(label)
        h, skips = x, []
        row: Any
        for row in self.input_blocks:
            for block in row:
                h = block(h) if isinstance(block, nn.Conv2d) else block(h, time)
            skips.append(h)
        for block in self.middle_block:
            h = block(h, time)
        for row in self.output_blocks:
            h = torch.cat((h, skips.pop()), 1)
            for block in row:
                h = block(h, time)
        return self.out(h)  # type: ignore[no-any-return]


def save(path: Path, **options: Any) -> Peer:
    torch.manual_seed(0)
    made = Peer(**options).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    torch.save(made.state_dict(), path)
    return made


def come_in(folder: Path, name: str, *args: Any) -> Outcome:
    return cli(folder, "import", "--from", "openai", name, "--size", 8, "--output", "a.ckpt", *args)


TWO = ["--heads", HEADS]


@pytest.mark.parametrize(
    ("options", "given", "betas", "steps"),
    [
        ({}, TWO, "cosine", 400),
        ({"scales": False, "learned": False, "depth": 2}, [*TWO, "--sigma_small", True], "linear", 1000),
        ({"classes": 4}, [*TWO, "--rescale_timesteps", False], "linear", 400),
        ({"whole_first": True}, [*TWO, "--use_new_attention_order", True, "--predict_xstart", True], "linear", 1000),
        ({"head_channels": 16, "attends": (8, 4)}, ["--num_head_channels", 16], "linear", 1000),
        ({"up_heads": 4}, [*TWO, "--num_heads_upsample", 4], "linear", 1000),
        ({"blocks": True, "classes": 4, "attends": (8, 4)}, TWO, "cosine", 1000),
    ],
)
def test_it_denoises_as_theirs(
    tmp_path: Path, options: dict[str, Any], given: list[Any], betas: str, steps: int
) -> None:
    theirs = save(tmp_path / "model001000.pt", **options)
    done = come_in(tmp_path, "model001000.pt", "--betas", betas, "--steps", steps, *given)
    assert done.code == 0, done.err
    model, data = load_model(tmp_path / "a.ckpt", "raw")
    assert type(model.schedule) is {"cosine": CosineBetas, "linear": LinearBetas}[betas]
    assert class_count(data.conditions) == options.get("classes")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["global_step"] == 1000
    x, i = torch.randn(3, 3, 8, 8), torch.tensor([0, 30, 311])
    label = torch.tensor([3, 0, 1]) if data.conditions else None
    cond = {} if label is None else {"label": label}
    with torch.no_grad():
        output = theirs(x, i if "--rescale_timesteps" in given else i * 1000 / steps, label)
        actual = model.denoiser(x, ((i + 1) / steps).view(-1, 1, 1, 1), **cond)
    atol = 1e-5 * output.abs().max().item()
    predicted = actual.x_0 if "--predict_xstart" in given else actual.eps
    torch.testing.assert_close(predicted, output[:, :3], rtol=0, atol=atol)
    assert isinstance(model.sampler, Ancestral)
    if options.get("learned", True):
        assert actual.v is not None
        torch.testing.assert_close(actual.v, (output[:, 3:] + 1) / 2, rtol=0, atol=atol)
        assert model.sampler.variance is None
        assert model.loss.variance is not None
    else:
        assert actual.v is None
        assert model.sampler.variance == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_of_improved_diffusion_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its real size, by names and shapes alone."""
    flags, given, millions = PUBLISHED[name]
    options = {"nf": 128, "depth": 3, "attends": (16, 8), "heads": given.get("heads", 4), **flags}
    with torch.device("meta"):
        state = Peer(**options).state_dict()
    monkeypatch.setattr(openai, "read_tensors", lambda *_: state)
    betas = "linear" if name.startswith("lsun") else "cosine"
    foreign = openai.read(Path("model.pt"), size=[flags["side"]], betas=betas, **given)  # type: ignore[arg-type]
    network = sketch(foreign)
    ours = take(foreign.raw, foreign.sources(network), network, name)
    numbers = sum(t.numel() for t in ours.values())
    low, high = (0.99, 1.01) if "diffusion" in name else (0.9, 1.25)
    assert low * millions < numbers / 1e6 < high * millions
    scale = 1000 if given.get("rescale_timesteps", True) else given["steps"]
    assert foreign.model["noise_input"]["init_args"]["scale"] == scale
    assert ("--use_new_attention_order false" in foreign.notes[0]) == ("use_new_attention_order" not in given)


def test_heads_of_the_unet_must_divide_its_levels() -> None:
    with pytest.raises(ValueError, match="head_channels 24 must divide 32"):
        UNet((3, 8, 8), nf=32, ch_mult=(1, 2), attn_resolutions=(8,), head_channels=24)
    with pytest.raises(ValueError, match="head_channels must be at least 1 and without heads"):
        UNet((3, 8, 8), nf=32, ch_mult=(1, 2), attn_resolutions=(8,), head_channels=16, heads=2)


def test_assumptions_are_said_and_idle_options_refused(tmp_path: Path) -> None:
    save(tmp_path / "m.pt", heads=4)
    good = ["--betas", "linear"]
    done = come_in(tmp_path, "m.pt", *good)
    assert done.code == 0, done.err
    said = "--steps 1000 --dropout 0 --heads 4 --num_heads_upsample 4 --use_new_attention_order false"
    assert f"{said} --predict_xstart false" in done.out
    (tmp_path / "a.ckpt").unlink()
    assert "--sigma_small does not apply" in come_in(tmp_path, "m.pt", *good, "--sigma_small", True).error
    both = ["--heads", 2, "--num_head_channels", 16]
    assert "--heads does not apply" in come_in(tmp_path, "m.pt", *good, *both).error
    assert "steps must be from 1 to 100,000" in come_in(tmp_path, "m.pt", *good, "--steps", 10**9).error


def test_an_average_is_known_by_the_name_of_its_file(tmp_path: Path) -> None:
    save(tmp_path / "ema_0.9999_050000.pt")
    done = come_in(tmp_path, "ema_0.9999_050000.pt", "--betas", "cosine")
    assert done.code == 0, done.err
    assert "note: the file holds EMA weights only" in done.out
    assert load_model(tmp_path / "a.ckpt")[0].weights_name == "ema0.9999"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    theirs = save(tmp_path / "m.pt")
    good = ["--betas", "linear"]
    assert ": add --betas linear or cosine" in come_in(tmp_path, "m.pt").error
    assert (
        "64 channels cannot be divided into 5 heads: set --heads"
        in come_in(tmp_path, "m.pt", *good, "--heads", 5).error
    )
    state = dict(theirs.state_dict())
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {n: t for n, t in state.items() if n != "out.0.bias"},
            r"1 of \d+ tensors .*: out.0.bias is missing",
        ),
        ({**state, "extra": torch.zeros(2)}, r"1 of \d+ tensors .*: extra is unexpected"),
        ({**state, "out.0.bias": torch.zeros(2)}, r"out.0.bias is 2, expected 32"),
        (
            {**state, "time_embed.0.weight": torch.zeros(256, 64)},
            r"a first level of 32 channels, other than num_channels 64, .* is not supported",
        ),
        ({n: t for n, t in state.items() if "blocks.1." not in n}, r"3 input_blocks on 2 levels are no UNetModel"),
        ({"weight": torch.zeros(2)}, r"0 input_blocks on 1 levels are no UNetModel"),
        ({n: t for n, t in state.items() if n != "out.2.weight"}, r"out.2.weight is missing: no UNetModel"),
        ({**state, "input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}, r"a SuperResModel .* is not supported"),
        ({**state, "input_blocks.0.0.weight": torch.zeros(32)}, r"wrong shapes: no UNetModel"),
        ({**state, "step": 3}, r"state dict.step is a int, not a dense tensor"),
        (
            {**state, "input_blocks.1.0.out_layers.3.weight": torch.zeros(32 * 10**5, 1)},
            r"tensors do not match",
        ),
    ]
    for content, message in cases:
        torch.save(content, tmp_path / "m.pt")
        error = come_in(tmp_path, "m.pt", *good).error
        assert re.search(message, error), error
