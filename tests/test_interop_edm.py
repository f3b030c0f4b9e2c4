"""Networks of EDM, against a second implementation, written here from the papers and the names in its files."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from network_pickles import Persistent, nested, write
from shell import Outcome, cli
from torch import Tensor
from torch.nn import functional as F

from diffusion_pl.checkpoints.loading import load_model
from diffusion_pl.conditions import class_count

NF, MULTS, DEPTH, ATTENDS = 16, (1, 2), 1, (8,)
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


class Peer:
    """EDMPrecond of SongUNet (DDPM++ or NCSN++) or DhariwalUNet (ADM): σ and data in, the estimate of the data out."""

    def __init__(self, kind: str, classes: int = 0) -> None:
        torch.manual_seed(0)
        self.kind, self.classes, self.state = kind, classes, dict[str, Tensor]()
        self.adm, self.ncsnpp = kind == "adm", kind == "ncsnpp"
        self.head: int | None
        self.groups_eps, self.head = (1e-5, 16) if self.adm else (1e-6, None)
        width, noise = 4 * NF, NF * (1 + self.ncsnpp)
        if self.ncsnpp:
            self.state["model.map_noise.freqs"] = 16 * torch.randn(NF)
        self.dense("map_layer0", noise, width)
        self.dense("map_layer1", width, width)
        self.dense("map_augment", 9, noise, bias=False)
        if classes:
            self.dense("map_label", classes, width, bias=False)
        self.names: list[str] = []
        self.conv("enc.16x16_conv", 3, NF)
        c, skips, aux = NF, [NF], 3
        for level, mult in enumerate(MULTS):
            side = f"{16 >> level}x{16 >> level}"
            if level:
                self.block(f"enc.{side}_down", c, c, moves=True)
                if self.ncsnpp:
                    self.conv(f"enc.{side}_aux_residual", aux, c)
                    self.put(f"enc.{side}_aux_residual.resample_filter", torch.outer(TAPS, TAPS)[None, None])
                skips.append(c)
            for k in range(DEPTH):
                self.block(f"enc.{side}_block{k}", c, NF * mult, attends=16 >> level in ATTENDS)
                c = NF * mult
                skips.append(c)
        for level in reversed(range(len(MULTS))):
            side = f"{16 >> level}x{16 >> level}"
            if level == len(MULTS) - 1:
                self.block(f"dec.{side}_in0", c, c, attends=True)
                self.block(f"dec.{side}_in1", c, c)
            else:
                self.block(f"dec.{side}_up", c, c, moves=True)
            for k in range(DEPTH + 1):
                attends = 16 >> level in ATTENDS and (self.adm or k == DEPTH)
                self.block(f"dec.{side}_block{k}", c + skips.pop(), NF * MULTS[level], attends=attends)
                c = NF * MULTS[level]
        self.ends = ("out_norm", "out_conv") if self.adm else ("dec.16x16_aux_norm", "dec.16x16_aux_conv")
        self.norm(self.ends[0], c)
        self.conv(self.ends[1], c, 3)

    def put(self, name: str, tensor: Tensor) -> None:
        self.state[f"model.{name}"] = tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.state[f"model.{name}"]

    def has(self, name: str) -> bool:
        return f"model.{name}" in self.state

    def dense(self, name: str, channels: int, out: int, bias: bool = True) -> None:
        self.put(f"{name}.weight", torch.randn(out, channels) / math.sqrt(channels))
        if bias:
            self.put(f"{name}.bias", 0.1 * torch.randn(out))

    def conv(self, name: str, channels: int, out: int, size: int = 3) -> None:
        self.put(f"{name}.weight", torch.randn(out, channels, size, size) / math.sqrt(channels * size**2))
        self.put(f"{name}.bias", 0.1 * torch.randn(out))

    def norm(self, name: str, channels: int) -> None:
        self.put(f"{name}.weight", 1 + 0.1 * torch.randn(channels))
        self.put(f"{name}.bias", 0.1 * torch.randn(channels))

    def block(self, name: str, channels: int, out: int, moves: bool = False, attends: bool = False) -> None:
        self.norm(f"{name}.norm0", channels)
        self.conv(f"{name}.conv0", channels, out)
        self.dense(f"{name}.affine", 4 * NF, out * (1 + self.adm))
        self.norm(f"{name}.norm1", out)
        self.conv(f"{name}.conv1", out, out)
        if channels != out or (moves and not self.adm):
            self.conv(f"{name}.skip", channels, out, 1)
        if moves:
            taps = TAPS if self.ncsnpp else torch.ones(2) / 2
            self.put(f"{name}.conv0.resample_filter", torch.outer(taps, taps)[None, None])
        if attends:
            self.norm(f"{name}.norm2", out)
            self.conv(f"{name}.qkv", out, 3 * out, 1)
            self.conv(f"{name}.proj", out, out, 1)

    def normed(self, name: str, x: Tensor) -> Tensor:
        groups = min(32, x.shape[1] // 4)
        return F.group_norm(x, groups, self[f"{name}.weight"], self[f"{name}.bias"], self.groups_eps)

    def convolved(self, name: str, x: Tensor) -> Tensor:
        weight = self[f"{name}.weight"]
        return F.conv2d(x, weight, self[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def moved(self, name: str, x: Tensor) -> Tensor:
        if name.endswith("_down"):
            kernel = self[f"{name}.conv0.resample_filter"].expand(x.shape[1], 1, -1, -1)
            return F.conv2d(x, kernel, stride=2, padding=(kernel.shape[-1] - 1) // 2, groups=x.shape[1])
        if name.endswith("_up"):
            kernel = 4 * self[f"{name}.conv0.resample_filter"].expand(x.shape[1], 1, -1, -1)
            return F.conv_transpose2d(x, kernel, stride=2, padding=(kernel.shape[-1] - 1) // 2, groups=x.shape[1])
        return x

    def run(self, name: str, x: Tensor, time: Tensor) -> Tensor:
        gain = 1 if self.adm else math.sqrt(0.5)
        h = self.convolved(f"{name}.conv0", self.moved(name, F.silu(self.normed(f"{name}.norm0", x))))
        added = F.linear(time, self[f"{name}.affine.weight"], self[f"{name}.affine.bias"])[..., None, None]
        if self.adm:
            scale, shift = added.chunk(2, 1)
            h = F.silu(self.normed(f"{name}.norm1", h) * (1 + scale) + shift)
        else:
            h = F.silu(self.normed(f"{name}.norm1", h + added))
        x = self.moved(name, x)
        x = self.convolved(f"{name}.skip", x) if self.has(f"{name}.skip.weight") else x
        x = (x + self.convolved(f"{name}.conv1", h)) * gain
        if self.has(f"{name}.qkv.weight"):
            heads = x.shape[1] // self.head if self.head else 1
            made = self.convolved(f"{name}.qkv", self.normed(f"{name}.norm2", x))
            q, k, v = made.reshape(len(x) * heads, x.shape[1] // heads, 3, -1).unbind(2)
            weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), 2)
            x = (x + self.convolved(f"{name}.proj", (v @ weight.transpose(1, 2)).reshape(x.shape))) * gain
        return x

    def time(self, c_noise: float, n: int, label: Tensor | None) -> Tensor:
        if self.ncsnpp:
            phase = 2 * math.pi * self["map_noise.freqs"] * c_noise
            waves = torch.cat((phase.sin(), phase.cos()))  # swapped there
        else:
            phase = c_noise * 1e4 ** (-torch.arange(NF // 2) / (NF // 2 - (not self.adm)))
            waves = torch.cat((phase.cos(), phase.sin()) if self.adm else (phase.sin(), phase.cos()))
        time = F.silu(F.linear(waves.expand(n, -1), self["map_layer0.weight"], self["map_layer0.bias"]))
        time = F.linear(time, self["map_layer1.weight"], self["map_layer1.bias"])
        if label is not None:
            time = time + self["map_label.weight"].T[label]
        return F.silu(time)

    def __call__(self, x: Tensor, sigma: float, label: Tensor | None) -> Tensor:
        time = self.time(math.log(sigma) / 4, len(x), label)
        h = aux = x / math.sqrt(0.25 + sigma**2)
        ways = [name.split(".")[1:3] for name in self.state if ".enc." in name or ".dec." in name]
        names = [".".join(way) for way in dict.fromkeys(map(tuple, ways)) if "_aux_" not in way[1]]
        skips: list[Tensor] = []
        for name in names:
            if "_block" in name and name.startswith("dec"):
                h = torch.cat((h, skips.pop()), 1)
            h = self.convolved(name, h) if name.endswith("_conv") else self.run(name, h, time)
            residual = name.replace("_down", "_aux_residual")
            if name.endswith("_down") and self.has(f"{residual}.weight"):
                kernel = self[f"{residual}.resample_filter"].expand(h.shape[1], 1, -1, -1)
                aux = F.conv2d(aux, self[f"{residual}.weight"], padding=2)
                aux = F.conv2d(aux, kernel, stride=2, groups=h.shape[1]) + self[f"{residual}.bias"][:, None, None]
                h = aux = (h + aux) / math.sqrt(2)
            if name.startswith("enc"):
                skips.append(h)
        output = self.convolved(self.ends[1], F.silu(self.normed(self.ends[0], h)))
        return 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / math.sqrt(sigma**2 + 0.25) * output


def publish(path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch, kind: str = "EDMPrecond") -> None:
    net = nested(peer.state, kind, sigma_data=0.5)
    net.state["_modules"]["model"].state["_modules"]["enc"].state["_modules"]["16x16_block0"].state["dropout"] = 0.13
    write(path, monkeypatch, ema=net, loss_fn=Persistent("EDMLoss", P_mean=-1.2, P_std=1.2), augment_pipe=None)


def come_in(folder: Path, name: str, *args: Any) -> Outcome:
    return cli(folder, "import", "--from", "edm", name, "--output", "a.ckpt", *args)


def check(folder: Path, peer: Peer) -> Any:
    model, data = load_model(folder / "a.ckpt", "raw")
    assert (class_count(data.conditions) or 0) == peer.classes
    x = torch.randn(2, 3, 16, 16)
    for sigma in (0.05, 1.0, 20.0):
        t = model.schedule.time(torch.tensor(-2 * math.log(sigma), dtype=torch.float64)).float()
        for label in [None, *([torch.tensor([2, 0])] if peer.classes else [])]:
            cond = {} if label is None else {"label": label}
            with torch.no_grad():
                ours, theirs = model.denoiser(sigma * x, t, **cond).x_0, peer(sigma * x, sigma, label)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4 * theirs.abs().max().item())
    return model


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "adm"])
def test_a_network_pickle_denoises_as_theirs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(kind, 3 if kind == "adm" else 0)
    publish(tmp_path / "net.pkl", peer, monkeypatch)
    done = come_in(tmp_path, "net.pkl", *(["--num_head_channels", 16] if kind == "adm" else []))
    assert done.code == 0, done.err
    assert "CC BY-NC-SA" in done.out
    model = check(tmp_path, peer)
    assert model.network.down is not None
    assert {m.p for m in model.network.modules() if isinstance(m, torch.nn.Dropout)} == {0.13}


def test_a_state_dict_is_read_with_what_is_assumed(tmp_path: Path) -> None:
    peer = Peer("ddpmpp")
    torch.save(peer.state, tmp_path / "net.pt")
    done = come_in(tmp_path, "net.pt")
    assert done.code == 0, done.err
    assert "--dropout 0.1 --sigma_data 0.5 --p_mean -1.2 --p_std 1.2" in done.out
    check(tmp_path, peer)


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "net.pkl", Peer("ddpmpp"), monkeypatch, "VPPrecond")
    assert "VPPrecond, only EDMPrecond is supported" in come_in(tmp_path, "net.pkl").error
    state = Peer("ddpmpp").state
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({**state, "model.map_label.weight": torch.zeros(16, 3)}, "a SongUNet with classes"),
        ({"weight": torch.zeros(2)}, "no tensors enc.NxN_conv.weight and map_layer0.weight"),
        ({**state, "model.enc.8x8_aux_skip.weight": torch.zeros(2)}, "encoder_type and decoder_type skip"),
        ({**state, "model.extra": torch.zeros(2)}, "extra is unexpected"),
    ]
    for content, message in cases:
        torch.save(content, tmp_path / "net.pt")
        assert message in come_in(tmp_path, "net.pt").error
