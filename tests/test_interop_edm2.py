"""Networks of EDM2, against a second implementation, written here from the paper and the names in its files."""

import math
import pickle
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
from diffusion_pl.interop import edm2, persistent

SIZE, WIDTHS, DEPTH, ATTENDS, CLASSES, HEAD = 8, (8, 16), 1, (4,), 3, 8
LEVELS = [SIZE >> level for level in range(len(WIDTHS))]


def unit(x: Tensor, *dims: int) -> Tensor:
    """x over its root mean square along the dimensions, and 1e-4."""
    return x / (x.square().mean(dims, keepdim=True).sqrt() + 1e-4)


class Peer:
    """Precond: σ and data in, the estimate of the data out; tensors by their names in its files."""

    def __init__(self, channels: int = 3, classes: int = CLASSES) -> None:
        torch.manual_seed(0)
        self.state: dict[str, Tensor] = {}
        self.classes, width = classes, WIDTHS[-1]
        self.put("emb_fourier.freqs", 2 * math.pi * torch.randn(WIDTHS[0]))
        self.put("emb_fourier.phases", 2 * math.pi * torch.rand(WIDTHS[0]))
        self.put("emb_noise.weight", torch.randn(width, WIDTHS[0]))
        if classes:
            self.put("emb_label.weight", torch.randn(width, classes))
        self.put("out_gain", torch.tensor(0.8))
        c, skips = WIDTHS[0], [WIDTHS[0]]
        self.put(f"enc.{SIZE}x{SIZE}_conv.weight", torch.randn(c, channels + 1, 3, 3))
        for level, (side, out) in enumerate(zip(LEVELS, WIDTHS, strict=True)):
            if level:
                self.block(f"enc.{side}x{side}_down", c, c)
                skips.append(c)
            for k in range(DEPTH):
                self.block(f"enc.{side}x{side}_block{k}", c, out, attends=side in ATTENDS)
                c = out
                skips.append(c)
        for level in reversed(range(len(LEVELS))):
            side, out = LEVELS[level], WIDTHS[level]
            if level == len(LEVELS) - 1:
                self.block(f"dec.{side}x{side}_in0", c, c, up=True, attends=True)
                self.block(f"dec.{side}x{side}_in1", c, c, up=True)
            else:
                self.block(f"dec.{side}x{side}_up", c, c, up=True)
            for k in range(DEPTH + 1):
                self.block(f"dec.{side}x{side}_block{k}", c + skips.pop(), out, up=True, attends=side in ATTENDS)
                c = out
        self.put("out_conv.weight", torch.randn(channels, c, 3, 3))

    def put(self, name: str, tensor: Tensor) -> None:
        self.state[f"unet.{name}"] = tensor

    def block(self, name: str, channels: int, out: int, up: bool = False, attends: bool = False) -> None:
        self.put(f"{name}.emb_gain", torch.tensor(0.5))
        self.put(f"{name}.conv_res0.weight", torch.randn(out, channels if up else out, 3, 3))
        self.put(f"{name}.emb_linear.weight", torch.randn(out, WIDTHS[-1]))
        self.put(f"{name}.conv_res1.weight", torch.randn(out, out, 3, 3))
        if channels != out:
            self.put(f"{name}.conv_skip.weight", torch.randn(out, channels, 1, 1))
        if attends:
            self.put(f"{name}.attn_qkv.weight", torch.randn(3 * out, out, 1, 1))
            self.put(f"{name}.attn_proj.weight", torch.randn(out, out, 1, 1))

    def layer(self, name: str, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = self.state[f"unet.{name}.weight"]
        w = unit(w, *range(1, w.ndim)) / math.sqrt(w[0].numel()) * gain
        return F.conv2d(x, w, padding=w.shape[-1] // 2) if w.ndim == 4 else x @ w.T

    def run(self, name: str, x: Tensor, time: Tensor) -> Tensor:
        side, up = name.partition(".")[2].partition("_")[0], name.startswith("dec")
        if name.endswith("_down"):
            x = F.avg_pool2d(x, 2)
        if name.endswith("_up"):
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert x.shape[2] == int(side.partition("x")[0])
        skipped = self.layer(f"{name}.conv_skip", x) if f"unet.{name}.conv_skip.weight" in self.state else x
        if not up:
            x = skipped = unit(skipped, 1)
        y = self.layer(f"{name}.conv_res0", F.silu(x) / 0.596)
        c = self.layer(f"{name}.emb_linear", time, self.state[f"unet.{name}.emb_gain"]) + 1
        y = self.layer(f"{name}.conv_res1", F.silu(y * c[..., None, None]) / 0.596)
        x = (0.7 * skipped + 0.3 * y) / math.sqrt(0.58)
        if f"unet.{name}.attn_qkv.weight" in self.state:
            heads = x.shape[1] // HEAD
            y = self.layer(f"{name}.attn_qkv", x).reshape(len(x), heads, HEAD, 3, -1)
            q, k, v = unit(y, 2).unbind(3)
            weight = torch.softmax(torch.einsum("nhcq,nhck->nhqk", q, k) / math.sqrt(HEAD), 3)
            y = torch.einsum("nhqk,nhck->nhcq", weight, v).reshape(x.shape)
            x = (0.7 * x + 0.3 * self.layer(f"{name}.attn_proj", y)) / math.sqrt(0.58)
        return x

    def __call__(self, x: Tensor, sigma: float, label: Tensor | None) -> Tensor:
        waves = self.state["unet.emb_fourier.freqs"] * math.log(sigma) / 4 + self.state["unet.emb_fourier.phases"]
        time = self.layer("emb_noise", math.sqrt(2) * torch.cos(waves).expand(len(x), -1))
        if self.classes:
            hot = torch.zeros(len(x), self.classes) if label is None else F.one_hot(label, self.classes).float()
            time = (time + self.layer("emb_label", hot * math.sqrt(self.classes))) / math.sqrt(2)
        time = F.silu(time) / 0.596
        h = torch.cat((x / math.sqrt(0.25 + sigma**2), torch.ones_like(x[:, :1])), 1)
        ways = [name.split(".") for name in self.state if ".enc." in name or ".dec." in name]
        names = list(dict.fromkeys(".".join(parts[1:3]) for parts in ways))
        skips = []
        for name in names:
            if name.startswith("enc"):
                h = self.layer(name, h) if name.endswith("_conv") else self.run(name, h, time)
                skips.append(h)
                continue
            if "_block" in name:
                s = skips.pop()
                n, m = h.shape[1], s.shape[1]
                scale = math.sqrt((n + m) / 0.5) / 2
                h = torch.cat((h * scale / math.sqrt(n), s * scale / math.sqrt(m)), 1)
            h = self.run(name, h, time)
        output = self.layer("out_conv", h, self.state["unet.out_gain"])
        return 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / math.sqrt(sigma**2 + 0.25) * output


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a network pickle of EDM2."""

    def writer(path: Path, peer: Peer, **changes: Any) -> None:
        net = nested({**peer.state, "logvar_linear.weight": torch.randn(1, 4)}, "Precond", sigma_data=0.5)
        unet = net.state["_modules"]["unet"]
        unet.state.update({"label_balance": 0.5, **changes})
        for part in unet.state["_modules"]["enc"].state["_modules"].values():
            part.state.update(dropout=0.1, num_heads=0)
        loss = Persistent("EDM2Loss", P_mean=-0.8, P_std=1.6)
        write(path, monkeypatch, ema=net, loss_fn=loss, dataset_kwargs={"path": "img.zip"})

    return writer


def come_in(folder: Path, name: str, *args: Any) -> Outcome:
    return cli(folder, "import", "--from", "edm2", name, "--output", "a.ckpt", *args)


def check(folder: Path, peer: Peer) -> Any:
    """Compare the imported model with the peer; gives the model."""
    model, data = load_model(folder / "a.ckpt", "raw")
    assert (class_count(data.conditions) or 0) == peer.classes
    x = torch.randn(3, 3, SIZE, SIZE)
    for sigma in (0.05, 1.0, 20.0):
        t = model.schedule.time(torch.tensor(-2 * math.log(sigma), dtype=torch.float64)).float()
        for label in [None, *([torch.tensor([2, 0, 1])] if peer.classes else [])]:
            cond = {} if label is None else {"label": label}
            with torch.no_grad():
                ours, theirs = model.denoiser(sigma * x, t, **cond).x_0, peer(sigma * x, sigma, label)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4 * theirs.abs().max().item())
    return model


def test_a_network_pickle_denoises_as_theirs_and_runs_no_code(tmp_path: Path, published: Any) -> None:
    peer = Peer()
    published(tmp_path / "net.pkl", peer)
    done = come_in(tmp_path, "net.pkl", "--num_head_channels", HEAD)
    assert done.code == 0, done.err
    assert "CC BY-NC-SA" in done.out
    model = check(tmp_path, peer)
    assert (model.loss.times.mean, model.loss.times.std) == (-0.8, 1.6)
    assert model.network.down[0].dropout.p == 0.1


def test_a_state_dict_is_read_with_what_is_assumed(tmp_path: Path) -> None:
    peer = Peer(classes=0)
    torch.save(peer.state, tmp_path / "net.pt")
    done = come_in(tmp_path, "net.pt", "--num_head_channels", HEAD)
    assert done.code == 0, done.err
    assert "assumed, since the file does not show it: --dropout 0 --sigma_data 0.5 --p_mean -0.4 --p_std 1" in done.out
    check(tmp_path, peer)


def test_latents_have_no_data(tmp_path: Path) -> None:
    torch.save(Peer(channels=4).state, tmp_path / "net.pt")
    done = come_in(tmp_path, "net.pt", "--num_head_channels", HEAD)
    assert done.code == 0, done.err
    assert "latents of mean 0 and standard deviation 0.5" in done.out
    assert load_model(tmp_path / "a.ckpt", "raw")[1].shape == (4, SIZE, SIZE)


def test_names_are_those_of_the_published_networks() -> None:
    """Of ImageNet 64x64, as its files list them."""
    table = edm2.names(64, 3, 4)
    assert len(set(table.values())) == 1 + 15 + 2 + 19
    assert (table["stem"], table["down.0"], table["down.3"]) == ("enc.64x64_conv", "enc.64x64_block0", "enc.32x32_down")
    assert (table["middle.1"], table["up.0"], table["up.3"]) == ("dec.8x8_in1", "dec.8x8_block0", "dec.8x8_block3")
    assert (table["up.4"], table["up.18"]) == ("dec.16x16_up", "dec.64x64_block3")


def test_what_does_not_fit_is_refused(tmp_path: Path, published: Any) -> None:
    published(tmp_path / "net.pkl", Peer(), label_balance=0.3)
    error = come_in(tmp_path, "net.pkl").error
    assert "label_balance is 0.3, only networks with 0.5 are supported" in error
    published(tmp_path / "net.pkl", Peer())
    assert "--sigma_data 1: the tensors of" in come_in(tmp_path, "net.pkl", "--sigma_data", 1).error
    assert "--betas is not for --from edm2" in come_in(tmp_path, "net.pkl", "--betas", "linear").error
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04nonsense")
    assert "is damaged, or no network pickle" in come_in(tmp_path, "net.pkl").error
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"G_ema": 1}))
    assert "holds G_ema, expected a network under the name ema" in come_in(tmp_path, "net.pkl").error
    torch.save({"weight": torch.zeros(2)}, tmp_path / "net.pt")
    assert "no tensor enc.NxN_conv.weight: no network of EDM2" in come_in(tmp_path, "net.pt").error
    state = Peer().state
    torch.save({**state, "unet.extra": torch.zeros(2)}, tmp_path / "net.pt")
    assert "extra is unexpected" in come_in(tmp_path, "net.pt", "--num_head_channels", HEAD).error


def test_a_pickle_cannot_call_what_it_names(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            import os

            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"ema": Harm()}))
    content = persistent.read(tmp_path / "net.pkl")
    assert not (tmp_path / "harm").exists()
    assert isinstance(content["ema"], persistent.Shell)
