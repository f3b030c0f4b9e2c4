"""DDPM++ and NCSN++: their size counted by hand, filters against scipy, pyramids, and the division by σ."""

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import by_class
from scipy.signal import convolve2d
from torch import Tensor, nn

from diffusion_pl.networks import Fourier, NCSNpp
from diffusion_pl.networks.biggan import BigGANBlock
from diffusion_pl.networks.fir import FIR, Down, Mean, Up
from diffusion_pl.networks.ncsnpp_parts import Combine
from diffusion_pl.networks.resnet import AttentionBlock, ResBlock

small = partial(NCSNpp, nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0)
TIME = torch.zeros(2, 1)


def counted(blocks: int, *, ncsn: bool) -> int:
    """Parameters for (3, 32, 32), nf 128, (1, 2, 2, 2), attention at 16, from the paper's description alone."""

    def conv(a: int, b: int, side: int = 3) -> int:
        return side * side * a * b + b

    def res(a: int, b: int, resampled: bool = False) -> int:
        shortcut = conv(a, b, 1) if a != b or resampled else 0
        return 2 * a + conv(a, b) + 512 * b + b + 2 * b + conv(b, b) + shortcut

    def attention(c: int) -> int:
        return 2 * c + 4 * conv(c, c, 1)

    widths = [128, 256, 256, 256]
    embedded = 256 if ncsn else 128  # sines and cosines
    total = embedded * 512 + 512 + 512 * 512 + 512 + conv(3, 128)
    skips, c, pyramid = [128], 128, 3
    for level, width in enumerate(widths):
        for _ in range(blocks):
            total += res(c, width) + (attention(width) if level == 1 else 0)
            c = width
            skips.append(c)
        if level < 3:
            total += res(c, c, resampled=True)
            if ncsn:
                total += conv(pyramid, c)
                pyramid = c
            skips.append(c)
    total += 2 * res(256, 256) + attention(256)
    for level in (3, 2, 1, 0):
        for _ in range(blocks + 1):
            total += res(c + skips.pop(), widths[level])
            c = widths[level]
        total += attention(c) if level == 1 else 0
        total += res(c, c, resampled=True) if level else 0
    return total + 2 * 128 + conv(128, 3)


@pytest.mark.parametrize(
    ("blocks", "ncsn", "parameters"),
    [(4, False, 61_804_419), (8, False, 106_632_579), (4, True, 62_758_787), (8, True, 107_586_947)],
)
def test_the_published_networks_have_exactly_their_size(blocks: int, ncsn: bool, parameters: int) -> None:
    options: dict[str, Any] = {"num_res_blocks": blocks}
    if ncsn:
        embedding = partial(Fourier, features=256, scale=16.0)
        options |= {"fir": True, "progressive_input": "residual", "scale_by_sigma": True, "time_embedding": embedding}
    with torch.device("meta"):
        network = NCSNpp((3, 32, 32), **options)
    assert sum(p.numel() for p in network.parameters()) == parameters == counted(blocks, ncsn=ncsn)


def reference(x: np.ndarray, taps: list[float], up: int, down: int, pad: tuple[int, int], gain: float) -> np.ndarray:
    """Zeros after each value, zeros around, convolution with the filter, every down-th value."""
    spread = np.zeros((x.shape[0] * up, x.shape[1] * up))
    spread[::up, ::up] = x
    line = np.array(taps) / np.sum(taps)
    filtered: np.ndarray = convolve2d(np.pad(spread, pad), np.outer(line, line), mode="valid")
    return gain * filtered[::down, ::down]


@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [1, 2, 3, 5]])
def test_filters_are_zero_insertion_convolution_and_decimation(taps: list[float]) -> None:
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    fir = FIR(taps).double()
    smaller, larger = fir.down(x), fir.up(x)
    assert (smaller.shape, larger.shape) == ((2, 3, 3, 4), (2, 3, 12, 16))
    for b, c in itertools.product(range(2), range(3)):
        plane = x[b, c].numpy()
        np.testing.assert_allclose(smaller[b, c], reference(plane, taps, 1, 2, (1, 1), 1), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(larger[b, c], reference(plane, taps, 2, 1, (2, 1), 4), rtol=1e-6, atol=1e-7)


def test_filters_keep_constants_and_remove_the_finest_pattern() -> None:
    fir = FIR()
    flat = torch.full((1, 2, 8, 8), 0.7)
    for y in (fir.down(flat), fir.up(flat)):
        torch.testing.assert_close(y[:, :, 1:-1, 1:-1], torch.full_like(y[:, :, 1:-1, 1:-1], 0.7))
    checkerboard = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1)[None, None]
    assert fir.down(checkerboard)[:, :, 1:-1, 1:-1].abs().max() < 1e-6


def test_convolution_is_after_the_downfilter_before_the_upfilter() -> None:
    """Against the definition with explicit zeros, in one channel."""
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    down, up = Down(FIR(), 1, 1, True).double(), Up(FIR(), 1, 1, True).double()
    assert down.conv is not None
    assert up.conv is not None
    with torch.no_grad():
        for layer in (down.conv, up.conv):
            nn.init.normal_(layer.weight)
            nn.init.constant_(layer.bias, 0.3)  # type: ignore[arg-type]
    line = np.array([1, 3, 3, 1]) / 8
    kernel = np.outer(line, line)
    plane = x[0, 0].numpy()

    w = down.conv.weight[0, 0].detach().numpy()
    full = convolve2d(np.pad(plane, 2), kernel, mode="valid")
    expected = convolve2d(full, w[::-1, ::-1], mode="valid")[::2, ::2] + 0.3
    np.testing.assert_allclose(down(x, TIME)[0, 0].detach(), expected, rtol=1e-6)

    w = up.conv.weight[0, 0].detach().numpy()
    spread = np.zeros((11, 11))
    spread[::2, ::2] = plane
    whole = convolve2d(np.pad(spread, 2), w[::-1, ::-1], mode="valid")
    expected = 4 * convolve2d(np.pad(whole, 1), kernel, mode="valid") + 0.3
    np.testing.assert_allclose(up(x, TIME)[0, 0].detach(), expected, rtol=1e-6)
    assert expected.shape == (12, 12)


def test_channels_change_by_convolution_only() -> None:
    for layer in (Down, Up):
        assert layer(Mean(), 3, 5, True)(torch.zeros(1, 3, 4, 4), TIME).shape[1] == 5
        with pytest.raises(ValueError, match="3 -> 5 channels need a convolution"):
            layer(Mean(), 3, 5, False)


@pytest.mark.parametrize("direction", [None, "down", "up"])
def test_a_fresh_biggan_block_is_its_shortcut_resampled(direction: Any) -> None:
    block = BigGANBlock(8, 16, 4, "swish", 0.0, True, Mean(), direction)
    x = torch.randn(2, 8, 4, 4)
    resampled = {None: x, "down": Mean().down(x), "up": Mean().up(x)}[direction]
    expected = block.shortcut(resampled) / math.sqrt(2)
    torch.testing.assert_close(block(x, torch.randn(2, 4)), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("progressive", ["none", "output_skip", "residual"])
@pytest.mark.parametrize("progressive_input", ["none", "input_skip", "residual"])
@pytest.mark.parametrize(
    ("combine", "blocks", "fir"), [("sum", "biggan", True), ("cat", "ddpm", False), ("sum", "ddpm", True)]
)
def test_every_combination_depends_on_all_inputs(
    progressive: Any, progressive_input: Any, combine: Any, blocks: Any, fir: bool
) -> None:
    torch.manual_seed(0)
    network = small(
        (3, 8, 8),
        progressive=progressive,
        progressive_input=progressive_input,
        progressive_combine=combine,
        resblock_type=blocks,
        fir=fir,
    )
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    output = network(x, torch.rand(1))
    assert output.shape == x.shape
    (gradient,) = torch.autograd.grad(output[0, 0, 0, 0], x, retain_graph=True)
    assert (gradient != 0).all()
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_input_pyramid_reaches_the_output() -> None:
    """With the stem silenced, only the pyramid can carry the image."""
    for kind in ("none", "input_skip", "residual"):
        torch.manual_seed(0)
        network = small((3, 8, 8), progressive_input=kind)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.2 * torch.randn_like(p))
            network.stem.weight.zero_()
        x = torch.randn(2, 3, 8, 8)
        heard = not torch.allclose(network(x, torch.zeros(2)), network(-x, torch.zeros(2)))
        assert heard == (kind != "none")


def test_the_input_pyramid_is_added_or_put_before_the_way_down() -> None:
    pyramid, h = torch.randn(2, 3, 4, 4), torch.randn(2, 8, 4, 4)
    joined, added = Combine(3, 8, "cat"), Combine(3, 8, "sum")
    torch.testing.assert_close(joined(pyramid, h), torch.cat((joined.conv(pyramid), h), 1))
    torch.testing.assert_close(added(pyramid, h), added.conv(pyramid) + h)


def test_division_by_sigma() -> None:
    networks = []
    for scaled in (False, True):
        torch.manual_seed(0)
        network = small((3, 8, 8), scale_by_sigma=scaled)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.2 * torch.randn_like(p))
        networks.append(network)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.01, 50.0])
    plain, scaled = (network(x, sigma.log()) for network in networks)
    torch.testing.assert_close(scaled, plain / sigma.view(2, 1, 1, 1), rtol=1e-4, atol=1e-6)


def test_attention_once_per_level_on_the_way_up() -> None:
    network = NCSNpp((3, 16, 16), nf=8, ch_mult=(1, 2), num_res_blocks=3, attn_resolutions=(8,))
    kinds = [isinstance(m, AttentionBlock) for m in network.modules()]
    assert sum(kinds) == 3 + 1 + 1


def test_the_scale_of_the_last_convolutions() -> None:
    x, c_noise = torch.randn(2, 3, 8, 8), torch.rand(2)
    assert small((3, 8, 8))(x, c_noise).abs().max() < 1e-3
    assert small((3, 8, 8), init_scale=1.0)(x, c_noise).std() > 0.1


def test_skip_rescale_keeps_the_scale_of_deep_sums() -> None:
    """With blocks as loud as their shortcuts, sums grow without it."""
    torch.manual_seed(0)
    deep = partial(NCSNpp, (3, 8, 8), nf=16, ch_mult=(1,), num_res_blocks=8, attn_resolutions=(), init_scale=1.0)

    def loudness(network: NCSNpp) -> float:
        seen: list[Tensor] = []
        network.middle.register_forward_hook(lambda module, args, out: seen.append(out))
        network(torch.randn(4, 3, 8, 8), torch.rand(4))
        return seen[0].std().item()

    assert loudness(deep(skip_rescale=True)) < 0.6 * loudness(deep(skip_rescale=False))


def by_hand(network: Any, x: Tensor, c_noise: Tensor) -> Tensor:
    """The wiring of Song et al. App. H once more, level by level, for biggan blocks; norms and sums are written out."""
    root = math.sqrt(0.5)

    def norm(layer: nn.GroupNorm, h: Tensor) -> Tensor:
        grouped = h.reshape(len(h), max(1, h.shape[1] // 4), -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        scaled = (centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()).reshape(h.shape)
        y = scaled * layer.weight[:, None, None] + layer.bias[:, None, None]
        return y * y.sigmoid()

    def res(block: Any, h: Tensor, resample: Any = None) -> Tensor:
        y = norm(block.norm_1, h)
        if resample is not None:
            y, h = resample(y), resample(h)
        y = block.conv_1(y) + block.time(time * time.sigmoid())[:, :, None, None]
        joined: Tensor = block.shortcut(h) + block.conv_2(norm(block.norm_2, y))
        return root * joined

    features = network.time.embedding(c_noise[:, None])
    time = network.time.dense_1(features)
    time = network.time.dense_2(time * time.sigmoid())
    h = network.stem(x)
    skips, pyramid = [h], x
    for level, rows in enumerate(network.down):
        for i in range(2):
            h = res(rows[i][0], h)
            h = rows[i][1](h, time) if level == 1 else h
            skips.append(h)
        if level < 2:
            h = res(rows[2][0], h, network.resampling.down)
            if network.progressive_input == "input_skip":
                pyramid = network.resampling.down(pyramid)
                h = h + network.input_pyramid[level].conv(pyramid)
            elif network.progressive_input == "residual":
                h = pyramid = root * (network.input_pyramid[level](pyramid, time) + h)
            skips.append(h)
    h = res(network.middle[2], network.middle[1](res(network.middle[0], h), time))
    shown: Any = None
    for place, rows in enumerate(network.up):
        for i in range(3):
            h = res(rows[i][0], torch.cat([h, skips.pop()], 1))
        h = rows[2][1](h, time) if place == 1 else h
        if network.progressive == "output_skip":
            head, last = network.output_pyramid[place]
            shown = (0 if shown is None else network.resampling.up(shown)) + last(norm(head, h))
        elif network.progressive == "residual" and place == 0:
            head, last = network.output_pyramid[0]
            shown = last(norm(head, h))
        elif network.progressive == "residual":
            h = shown = root * (network.output_pyramid[place](shown, time) + h)
        h = res(rows[3][0], h, network.resampling.up) if place < 2 else h
    assert not skips
    result: Tensor = shown if network.progressive == "output_skip" else network.output(norm(network.norm, h))
    return result


@pytest.mark.parametrize("fir", [False, True])
@pytest.mark.parametrize("progressive", ["none", "output_skip", "residual"])
@pytest.mark.parametrize("progressive_input", ["none", "input_skip", "residual"])
def test_it_computes_the_wiring_written_out_by_hand(fir: bool, progressive: Any, progressive_input: Any) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"progressive": progressive, "progressive_input": progressive_input}
    network = NCSNpp((3, 8, 8), nf=8, ch_mult=(1, 2, 2), num_res_blocks=2, attn_resolutions=(4,), fir=fir, **options)
    network.double().eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    x, c_noise = torch.randn(2, 3, 8, 16, dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(network(x, c_noise), by_hand(network, x, c_noise), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", ["biggan", "ddpm"])
def test_the_initial_scale_reaches_every_kind_of_block(blocks: Any) -> None:
    for scale in (0.0, 1.0):
        network = small((3, 8, 8), resblock_type=blocks, init_scale=scale)
        result = [m.conv_2.weight for m in network.modules() if isinstance(m, (BigGANBlock, ResBlock))]
        result += [m.output.weight for m in network.modules() if isinstance(m, AttentionBlock)]
        assert len(result) > 6
        assert all((weight.std() > 1e-2) == (scale == 1) for weight in result)


def test_checkpointing_recomputes_blocks_with_equal_gradients() -> None:
    results, counts = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = small((3, 8, 8), dropout=0.3, init_scale=1.0, checkpointing=checkpointing)
        count: list[int] = []
        network.middle[0].register_forward_pre_hook(lambda module, args, count=count: count.append(1))
        network(torch.randn(2, 3, 8, 8), torch.rand(2)).square().sum().backward()
        results.append([p.grad for p in network.parameters()])
        counts.append(len(count))
    assert counts == [1, 2]
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain)


def test_without_time_it_uses_the_class_only() -> None:
    network = small((3, 8, 8), by_class(3), time_conditional=False, init_scale=1.0)
    x, c_noise, label = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 1])
    assert torch.equal(network(x, c_noise, label), network(x, c_noise + 1, label))
    assert not torch.allclose(network(x, c_noise, label), network(x, c_noise, label.flip(0)))
    assert small((3, 8, 8), time_conditional=False)(x, c_noise).shape == x.shape


def test_sigma_is_not_rounded_under_autocast() -> None:
    torch.manual_seed(0)
    plain = small((3, 8, 8), init_scale=1.0)
    scaled = small((3, 8, 8), init_scale=1.0, scale_by_sigma=True)
    scaled.load_state_dict(plain.state_dict())
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.0123, 47.3])
    with torch.autocast("cpu", torch.bfloat16):
        bare, divided = plain(x, sigma.log()), scaled(x, sigma.log())
    torch.testing.assert_close(divided, bare.float() / sigma.view(2, 1, 1, 1), rtol=1e-5, atol=0)


def test_indivisible_image_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"NCSNpp: .*multiples of 2, got 7x8 .*nearest"):
        small((3, 8, 8))(torch.randn(1, 3, 7, 8), torch.rand(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fir": True, "fir_kernel": (1, 2, 1)}, "FIR: needs four taps of positive sum"),
        ({"init_scale": -1.0}, "NCSNpp: init_scale must be finite and not negative, got -1.0"),
        ({"nf": 3}, "NCSNpp: nf must be an even number"),
        ({"attn_resolutions": (5,)}, r"NCSNpp: attn_resolutions \[5\] are not heights of a level"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small((3, 8, 8), **options)
