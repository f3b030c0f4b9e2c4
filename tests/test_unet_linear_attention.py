"""The U-Net of the Korean notes: its size counted by hand, its attentions against formulas, two extra options."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import by_class
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from diffusion_pl.conditions import Conditions, label
from diffusion_pl.networks.embeddings import Sinusoidal
from diffusion_pl.networks.unet_linear_attention import (
    Block,
    ChannelNorm,
    FullAttention,
    LearnedFourier,
    LinearAttention,
    LinearAttentionUNet,
)

small = partial(LinearAttentionUNet, dim=8, dim_mults=(1, 2), dim_head=4, groups=4)


def counted(dim: int, mults: tuple[int, ...], channels: int) -> int:
    """Parameters from the notes' description alone."""

    def conv(a: int, b: int, side: int) -> int:
        return side * side * a * b + b

    def block(a: int, b: int) -> int:
        return 4 * dim * 2 * b + 2 * b + conv(a, b, 3) + conv(b, b, 3) + 4 * b + (conv(a, b, 1) if a != b else 0)

    def linear(c: int) -> int:
        return c + c * 384 + conv(128, c, 1) + c

    widths = [dim, *(dim * m for m in mults)]
    pairs = list(pairwise(widths))
    total = dim * 4 * dim + 4 * dim + 16 * dim * dim + 4 * dim + conv(channels, dim, 7)
    for level, (a, b) in enumerate(pairs):
        last = level == len(pairs) - 1
        total += 2 * block(a, a) + linear(a) + (conv(a, b, 3) if last else conv(4 * a, b, 1))
        total += 2 * block(b + a, b) + linear(b) + conv(b, a, 3)
    middle = widths[-1]
    total += 2 * block(middle, middle) + middle + middle * 384 + conv(128, middle, 1)
    return total + block(2 * dim, dim) + conv(dim, channels, 1)


def test_it_has_exactly_its_size() -> None:
    with torch.device("meta"):
        network = LinearAttentionUNet((3, 32, 32))
    assert sum(p.numel() for p in network.parameters()) == 35_711_107 == counted(64, (1, 2, 4, 8), 3)


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"self_condition": True}, 49 * 3 * 16),
        ({"learned_variance": True}, 3 * 16 + 3),
        ({"conditions": by_class(5)}, 6 * 64),
        ({"time_embedding": LearnedFourier}, 8 + 64 * (17 - 16)),
        ({"time_embedding": partial(LearnedFourier, features=4)}, 2 + 64 * (5 - 16)),
    ],
)
def test_each_switch_adds_what_it_needs(options: dict[str, Any], added: int) -> None:
    network = LinearAttentionUNet((3, 8, 8), dim=16, dim_mults=(1, 3), **options)
    assert sum(p.numel() for p in network.parameters()) == counted(16, (1, 3), 3) + added


def qkv(layer: LinearAttention | FullAttention, x: Tensor) -> Tensor:
    """(3, B, heads, dim_head, n)."""
    b = len(x)
    together: Tensor = layer.qkv(layer.norm(x))
    return together.reshape(b, 3, layer.heads, layer.dim_head, -1).transpose(0, 1)


def test_linear_attention_is_the_product_of_its_softmaxes() -> None:
    torch.manual_seed(0)
    layer = LinearAttention(6, heads=2, dim_head=4).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    q, k, v = qkv(layer, x)
    # (n, n) matrix of weights, which the layer never forms.
    weights = torch.einsum("bhdn,bhdm->bhnm", q.softmax(2), k.softmax(3)) / 2
    mixed = torch.einsum("bhnm,bhem->bhen", weights, v).reshape(2, 8, 3, 5)
    torch.testing.assert_close(layer(x), x + layer.output(mixed), rtol=1e-12, atol=1e-12)


def test_linear_attention_keeps_its_scale_for_more_positions() -> None:
    """A tiled image has the same context, hence the same result at each copy (the original code divides it by n)."""
    torch.manual_seed(0)
    layer = LinearAttention(6, heads=2, dim_head=4)
    x = torch.randn(1, 6, 4, 4)
    torch.testing.assert_close(layer(x.tile(1, 1, 8, 8))[:, :, :4, :4], layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [LinearAttention, FullAttention])
def test_attention_has_no_order(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(6, heads=2, dim_head=4).double()
    x = torch.randn(1, 6, 3, 4, dtype=torch.float64)
    order = torch.randperm(12)

    def permuted(y: Tensor) -> Tensor:
        return y.flatten(2)[:, :, order].view_as(y)

    torch.testing.assert_close(layer(permuted(x)), permuted(layer(x)), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(layer(permuted(x)), layer(x), atol=1e-3)


def test_full_attention_is_softmax_attention() -> None:
    torch.manual_seed(0)
    layer = FullAttention(6, heads=2, dim_head=4).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    q, k, v = qkv(layer, x)
    weights = (torch.einsum("bhdn,bhdm->bhnm", q, k) / math.sqrt(4)).softmax(3)
    mixed = torch.einsum("bhnm,bhem->bhen", weights, v).reshape(2, 8, 3, 5)
    torch.testing.assert_close(layer(x), x + layer.output(mixed))


def test_the_channel_norm_makes_unit_mean_square() -> None:
    y = ChannelNorm(5)(7 * torch.randn(2, 5, 3, 4))
    torch.testing.assert_close(y.square().mean(1), torch.ones(2, 3, 4))


def test_the_time_scales_and_shifts_between_the_convolutions() -> None:
    torch.manual_seed(0)
    block = Block(4, 4, 3, groups=2).double()
    x, time = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    modulation = block.time(nn.functional.silu(time))
    scale, shift = modulation[:, :4, None, None], modulation[:, 4:, None, None]
    h = nn.functional.silu(block.norm_1(block.conv_1(x)) * (scale + 1) + shift)
    torch.testing.assert_close(block(x, time), x + nn.functional.silu(block.norm_2(block.conv_2(h))))


def test_linear_attention_on_all_levels_full_in_the_middle() -> None:
    network = LinearAttentionUNet((3, 32, 32), dim=8)
    kinds = [type(m) for m in network.modules()]
    assert (kinds.count(LinearAttention), kinds.count(FullAttention), kinds.count(Block)) == (8, 1, 8 + 2 + 8 + 1)
    assert network.stem.kernel_size == (7, 7)


def test_all_levels_but_the_last_are_resampled() -> None:
    network: Any = small((3, 8, 8), dim_mults=(1, 2, 3))
    assert [network.down[i][3][1].kernel_size for i in (0, 1)] == [(1, 1), (1, 1)]
    assert [network.up[i][3][0].mode for i in (0, 1)] == ["nearest", "nearest"]
    assert network.down[2][3].kernel_size == network.up[2][3].kernel_size == (3, 3)
    # Space to depth: with one weight at 1, each of the four pixels of a 2x2 can be had alone.
    shrink, x = network.down[0][3], torch.randn(1, 8, 4, 6)
    with torch.no_grad():
        shrink[1].weight.zero_()
        shrink[1].bias.zero_()
        shrink[1].weight[0, 4 * 5 + 2] = 1  # channel 5, lower left
    assert torch.equal(shrink(x)[:, 0], x[:, 5, 1::2, ::2])


def test_the_stem_reaches_the_end_directly() -> None:
    torch.manual_seed(0)
    network = small((3, 8, 8)).eval()
    seen: list[Tensor] = []
    network.final.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    x = torch.randn(1, 3, 8, 8)
    network(x, torch.rand(1))
    assert torch.equal(seen[0][:, 8:], network.stem(x))


def test_skips_after_first_block_and_attention_return_in_reverse() -> None:
    torch.manual_seed(0)
    network: Any = small((3, 8, 8)).eval()
    left: list[Tensor] = []
    joined: list[Tensor] = []
    for first, _, attention, _ in network.down:
        for layer in (first, attention):
            layer.register_forward_hook(lambda module, args, out: left.append(out))
    for first, second, _, _ in network.up:
        for layer in (first, second):
            layer.register_forward_hook(lambda module, args, out: joined.append(args[0]))
    network(torch.randn(1, 3, 8, 8), torch.rand(1))
    assert len(left) == len(joined) == 4
    for out, into in zip(reversed(left), joined, strict=True):
        assert torch.equal(into[:, -out.shape[1] :], out)


def test_self_conditioning_without_estimate_takes_zeros() -> None:
    torch.manual_seed(0)
    network = small((3, 8, 8), self_condition=True)
    x, c_noise, estimate = torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 3, 8, 8)
    assert network(x, c_noise).shape == x.shape
    assert torch.equal(network(x, c_noise), network(x, c_noise, x_0_hat=torch.zeros_like(x)))
    assert not torch.allclose(network(x, c_noise), network(x, c_noise, x_0_hat=estimate))
    with torch.no_grad():
        network.stem.weight[:, :3] = 0  # deaf to the estimate, which comes first
    assert torch.equal(network(x, c_noise), network(x, c_noise, x_0_hat=estimate))
    with pytest.raises(ValueError, match=r"x_0_hat must be like x, \(2, 3, 8, 8\), got \(2, 3, 8, 4\)"):
        network(x, c_noise, x_0_hat=estimate[..., :4])
    with pytest.raises(ValueError, match="got x_0_hat but was built without self_condition"):
        small((3, 8, 8))(x, c_noise, x_0_hat=estimate)


def test_a_learned_variance_doubles_the_output() -> None:
    assert small((3, 8, 8), learned_variance=True)(torch.randn(2, 3, 8, 8), torch.rand(2)).shape == (2, 6, 8, 8)


def test_learned_fourier_features_are_learned() -> None:
    embedding = LearnedFourier(1, 4)
    x = torch.tensor([[0.3]])
    w = embedding.frequencies
    phase = 2 * math.pi * 0.3 * w
    torch.testing.assert_close(embedding(x)[0], torch.cat((x[0], phase.sin(), phase.cos())))
    network = small(
        (3, 8, 8),
        {"label": label(3)},
        self_condition=True,
        learned_variance=True,
        time_embedding=partial(LearnedFourier, features=6),
    )
    x, classes = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    network(x, torch.rand(2), classes, x_0_hat=torch.randn_like(x)).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    options: Any
    for options, message in (({"dim": 2}, "embeds one number"), ({"features": 3}, "must be an even number")):
        with pytest.raises(ValueError, match=message):
            LearnedFourier(**options)


def test_random_features_are_the_same_but_stay() -> None:
    embedding = LearnedFourier(1, 4, trained=False)
    assert not embedding.frequencies.requires_grad
    assert LearnedFourier(1, 4).frequencies.requires_grad
    assert "frequencies" in embedding.state_dict()


def test_default_embedding_features_equal_first_level_channels() -> None:
    embedding = small((3, 8, 8)).embedding
    assert isinstance(embedding, Sinusoidal)
    assert embedding.width == 8


def test_every_option_can_be_given_in_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Callable[[tuple[int, ...], Conditions], nn.Module])
    embedding = {"class_path": f"{LearnedFourier.__module__}.LearnedFourier", "init_args": {"trained": False}}
    args = {"dim": 8, "dim_mults": [1, 2], "groups": 2, "self_condition": True, "learned_variance": True}
    path = f"{LinearAttentionUNet.__module__}.LinearAttentionUNet"
    config = parser.parse_object({"network": {"class_path": path, "init_args": {**args, "time_embedding": embedding}}})
    network = parser.instantiate(config).network((3, 8, 8), {"label": label(3)})
    x = torch.randn(2, 3, 8, 8)
    assert network(x, torch.rand(2), torch.tensor([0, 3]), x_0_hat=x).shape == (2, 6, 8, 8)
    assert not network.embedding.frequencies.requires_grad


@pytest.mark.parametrize("autocast", [False, True])
def test_the_noise_level_is_embedded_in_float32(autocast: bool) -> None:
    """In bfloat16, steps 998 and 999 are one."""
    network = small((3, 8, 8))
    if not autocast:
        network = network.bfloat16()
    seen: list[Tensor] = []
    network.embedding.register_forward_hook(lambda module, args, out: seen.extend((args[0], out)))
    c_noise = torch.tensor([998.0, 999.0])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        network(torch.randn(2, 3, 8, 8, dtype=torch.float32 if autocast else torch.bfloat16), c_noise)
    assert [value.dtype for value in seen] == [torch.float32, torch.float32]
    assert torch.equal(seen[0][:, 0], c_noise)
    assert (seen[1][0] - seen[1][1]).abs().max() > 0.1


def test_indivisible_image_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LinearAttentionUNet: .*multiples of 2, got 9x8"):
        small((3, 8, 8))(torch.randn(1, 3, 9, 8), torch.rand(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 9, "groups": 3}, "dim .*got 9"),
        ({"dim_mults": (1, 0)}, r"dim_mults must be one or more positive numbers, got \[1, 0\]"),
        ({"dim_mults": ()}, r"dim_mults must be one or more positive numbers, got \[\]"),
        ({"dim": 10, "groups": 4}, "groups must divide dim, got dim 10 and groups 4"),
        ({"heads": 0}, "heads and dim_head must be at least 1, got 0 and 4"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small((3, 8, 8), **options)
