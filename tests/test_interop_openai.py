"""State dicts of improved-diffusion, against a second implementation of its network, written here from the paper and
the names in its files; the package itself cannot be installed."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Outcome, cli
from torch import Tensor, nn

from diffusion_pl.loading import load
from diffusion_pl.schedules import CosineBetas, LinearBetas

HEADS = 2


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def conv(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, padding=1)


class Res(nn.Module):
    def __init__(self, channels: int, out: int, width: int, scales: bool) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), conv(channels, out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, out * (1 + scales)))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Dropout(0.3), conv(out, out))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.scales = scales

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h, told = self.in_layers(x), self.emb_layers(time)[..., None, None]
        if self.scales:
            scale, shift = told.split(h.shape[1], 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(x) + h  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Its channels are those of the first head's queries, keys and values, then of the second's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = []
        for head in self.qkv(self.norm(x).flatten(2)).chunk(HEADS, 1):
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
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))  # type: ignore[no-any-return]


class Peer(nn.Module):
    """Two levels of 32 and 64 channels; the second attends."""

    def __init__(self, depth: int = 1, scales: bool = True, learned: bool = True, classes: int | None = None) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128))
        if classes:
            self.label_emb = nn.Embedding(classes, 128)
        rows: list[list[nn.Module]] = [[conv(3, 32)]]
        skips, c = [32], 32
        for level, width in enumerate((32, 64)):
            for _ in range(depth):
                rows.append([Res(c, width, 128, scales), *([Attention(width)] if level else [])])
                c = width
                skips.append(c)
            if level == 0:
                rows.append([Halve(c)])
                skips.append(c)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, rows))
        self.middle_block = nn.ModuleList([Res(64, 64, 128, scales), Attention(64), Res(64, 64, 128, scales)])
        rows = []
        for level, width in ((1, 64), (0, 32)):
            for number in range(depth + 1):
                rows.append([Res(c + skips.pop(), width, 128, scales), *([Attention(width)] if level else [])])
                c = width
                if level and number == depth:
                    rows[-1].append(Double(c))
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, rows))
        self.out = nn.Sequential(norm(32), nn.SiLU(), conv(32, 6 if learned else 3))

    def forward(self, x: Tensor, steps: Tensor, label: Tensor | None = None) -> Tensor:
        phase = steps[:, None] * 10_000 ** (-torch.arange(16) / 16)
        time = self.time_embed(torch.cat((phase.cos(), phase.sin()), 1))
        time = time if label is None else time + self.label_emb(label)
        h, skips = x, []
        for row in self.input_blocks:
            for block in row:  # type: ignore[union-attr]
                h = block(h) if isinstance(block, nn.Conv2d) else block(h, time)
            skips.append(h)
        for block in self.middle_block:
            h = block(h, time)
        for row in self.output_blocks:
            h = torch.cat((h, skips.pop()), 1)
            for block in row:  # type: ignore[union-attr]
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
    options = ["--from", "openai", name, "--size", 8, "--heads", HEADS, "--output", "a.ckpt", *args]
    return cli(folder, "import", *options)


@pytest.mark.parametrize(
    ("options", "betas", "steps"),
    [
        ({}, "cosine", 400),
        ({"scales": False, "learned": False, "depth": 2}, "linear", 1000),
        ({"classes": 4}, "linear", 1000),
    ],
)
def test_it_denoises_as_theirs(tmp_path: Path, options: dict[str, Any], betas: str, steps: int) -> None:
    theirs = save(tmp_path / "model001000.pt", **options)
    done = come_in(tmp_path, "model001000.pt", "--betas", betas, "--steps", steps)
    assert done.code == 0, done.err
    model, data = load(tmp_path / "a.ckpt", "raw")
    assert type(model.schedule) is {"cosine": CosineBetas, "linear": LinearBetas}[betas]
    assert data.classes == options.get("classes")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["global_step"] == 1000
    x, i = torch.randn(3, 3, 8, 8), torch.tensor([0, 30, 311])
    label = torch.tensor([3, 0, 1]) if data.classes else None
    cond = {} if label is None else {"label": label}
    with torch.no_grad():
        output = theirs(x, i * 1000 / steps, label)
        found = model.denoiser(x, ((i + 1) / steps).view(-1, 1, 1, 1), **cond)
    atol = 1e-5 * output.abs().max().item()
    torch.testing.assert_close(found.eps, output[:, :3], rtol=0, atol=atol)
    if options.get("learned", True):
        assert found.v is not None
        torch.testing.assert_close(found.v, (output[:, 3:] + 1) / 2, rtol=0, atol=atol)
    else:
        assert found.v is None


def test_an_average_is_known_by_the_name_of_its_file(tmp_path: Path) -> None:
    save(tmp_path / "ema_0.9999_050000.pt")
    done = come_in(tmp_path, "ema_0.9999_050000.pt", "--betas", "cosine")
    assert done.code == 0, done.err
    assert "note: the file is an average" in done.out
    assert load(tmp_path / "a.ckpt")[0].weights_name == "ema0.9999"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    theirs = save(tmp_path / "m.pt")
    good = ["--betas", "linear"]
    assert "does not tell the noise schedule: add --betas linear or cosine" in come_in(tmp_path, "m.pt").error
    assert "cannot be shared by 5 heads: mend --heads" in come_in(tmp_path, "m.pt", *good, "--heads", 5).error
    state = dict(theirs.state_dict())
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {n: t for n, t in state.items() if n != "out.0.bias"},
            r"1 of \d+ tensors do not fit .*: out.0.bias is missing",
        ),
        ({**state, "extra": torch.zeros(2)}, r"1 of \d+ tensors do not fit .*: extra has no place"),
        ({**state, "out.0.bias": torch.zeros(2)}, r"out.0.bias is 2, expected 32"),
        ({**state, "output_blocks.1.2.in_layers.2.weight": torch.zeros(2)}, r"with resblock_updown cannot be held"),
        ({n: t for n, t in state.items() if "blocks.1." not in n}, r"3 input_blocks on 2 levels are no UNetModel"),
        ({"weight": torch.zeros(2)}, r"0 input_blocks on 1 levels are no UNetModel"),
        ({n: t for n, t in state.items() if n != "out.2.weight"}, r"out.2.weight is missing: no UNetModel"),
    ]
    for content, told in cases:
        torch.save(content, tmp_path / "m.pt")
        error = come_in(tmp_path, "m.pt", *good).error
        assert re.search(told, error), error
