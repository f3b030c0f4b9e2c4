"""The convolutional U-Net of the French DDPM demonstration: its size counted by hand, its blocks, its bypasses."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import by_class
from torch import Tensor, nn

from diffusion_pl.networks.embeddings import Fourier
from diffusion_pl.networks.unet_conv import ConvBlock, ConvUNet, DownLevel, StrideConvBlock, UpLevel


def counted(channels: tuple[int, ...], time: int, colours: int) -> int:
    def conv(a: int, b: int, side: int = 3) -> int:
        return side * side * a * b + b

    def block(a: int, b: int, side: int = 3) -> int:
        return conv(a, b, side) + 2 * b

    def project(c: int) -> int:
        return time * c + c + c * c + c

    total = block(colours, channels[0]) + conv(channels[0], colours)
    for a, b in pairwise(channels):
        total += project(a) + block(a, b) + block(b, b) + block(b, b, 4)
        total += block(b, b, 4) + project(2 * b) + block(2 * b, b) + block(b, a)
    return total


def test_it_has_exactly_its_size() -> None:
    network = ConvUNet((3, 32, 32))
    assert sum(p.numel() for p in network.parameters()) == 395_763 == counted((8, 16, 32, 64), 16, 3)


def test_a_time_embedding_and_classes_bring_their_own_width() -> None:
    network = ConvUNet((1, 8, 8), by_class(5), (4, 8), 2, time_size=10)
    assert sum(p.numel() for p in network.parameters()) == counted((4, 8), 10, 1) + 6 * 10
    network = ConvUNet((1, 8, 8), by_class(5), (4, 8), 2, time_embedding=partial(Fourier, features=12))
    assert sum(p.numel() for p in network.parameters()) == counted((4, 8), 12, 1) + 6 * 12


def test_the_noise_level_is_seen_at_all_scales() -> None:
    """From single steps to the whole schedule; the demonstration divides by its length, and never gets below 0.27."""
    network = ConvUNet((3, 8, 8))
    small = torch.tensor([[1e-3]])
    rates = network.embedding(small)[0, :8] / small[0]
    assert rates.max().item() == pytest.approx(1, rel=1e-3)
    assert rates.min().item() == pytest.approx(1e-4, rel=1e-3)
    assert len(rates) == 8


def test_the_groups_are_as_configured() -> None:
    norms = [m for m in ConvUNet((3, 8, 8), groups=2).modules() if isinstance(m, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {2}


def test_blocks_are_convolution_mish_and_group_norm() -> None:
    for block in (ConvBlock(4, 8, 2), StrideConvBlock(4, 8, 2, up=False), StrideConvBlock(4, 8, 2, up=True)):
        assert [type(layer).__name__ for layer in block][1:] == ["Mish", "GroupNorm"]
    x = torch.randn(1, 4, 6, 10)
    assert ConvBlock(4, 8, 2)(x).shape == (1, 8, 6, 10)
    assert StrideConvBlock(4, 8, 2, up=False)(x).shape == (1, 8, 3, 5)
    assert StrideConvBlock(4, 8, 2, up=True)(x).shape == (1, 8, 12, 20)


def test_the_time_is_added_to_every_pixel_of_every_level() -> None:
    torch.manual_seed(0)
    x, time = torch.randn(2, 4, 6, 6), torch.randn(2, 5)
    level = DownLevel(4, 8, 5, 2)
    full, halved = level(x, time)
    expected = level.convs(x + level.time(time).view(2, 4, 1, 1))
    assert torch.equal(full, expected)
    assert torch.equal(halved, level.shrink(expected))
    up, bypass = UpLevel(8, 4, 5, 2), torch.randn(2, 8, 6, 6)
    joined = torch.cat((up.enlarge(halved), bypass), 1) + up.time(time).view(2, 16, 1, 1)
    assert torch.equal(up(halved, bypass, time), up.convs(joined))


def test_bypasses_join_levels_of_one_size_innermost_first() -> None:
    network = ConvUNet((3, 16, 16), channels=(4, 8, 12), groups=2)
    left: list[Tensor] = []
    joined: list[Tensor] = []
    for level in network.down:
        level.register_forward_hook(lambda module, args, out: left.append(out[0]))
    for level in network.up:
        level.register_forward_hook(lambda module, args, out: joined.append(args[1]))
    network(torch.randn(1, 3, 16, 16), torch.rand(1))
    assert [tuple(bypass.shape) for bypass in joined] == [(1, 12, 8, 8), (1, 8, 16, 16)]
    assert all(torch.equal(a, b) for a, b in zip(reversed(left), joined, strict=True))


def test_every_parameter_is_trained() -> None:
    torch.manual_seed(0)
    network = ConvUNet((3, 8, 8), by_class(3))
    network(torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 3])).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_the_output_is_a_convolution_without_activation() -> None:
    network = ConvUNet((3, 8, 8))
    seen: list[Tensor] = []
    network.output.register_forward_hook(lambda module, args, out: seen.append(out))
    output = network(torch.randn(1, 3, 8, 8), torch.rand(1))
    assert isinstance(network.output, nn.Conv2d)
    assert output is seen[0]


@pytest.mark.parametrize("autocast", [False, True])
def test_the_noise_level_is_embedded_in_float32(autocast: bool) -> None:
    """In bfloat16, steps 998 and 999 are one."""
    network = ConvUNet((3, 8, 8), channels=(8, 16))
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
    with pytest.raises(ValueError, match=r"ConvUNet: .*multiples of 8, got 12x8"):
        ConvUNet((3, 8, 8))(torch.randn(1, 3, 12, 8), torch.rand(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must divide all channels, got groups 0"),
        ({"channels": (8,)}, r"channels must be two or more positive numbers, got \[8\]"),
        ({"channels": (8, 9)}, r"groups must divide all channels, got groups 4 and \[8, 9\]"),
        ({"time_size": 5}, "time_size must be an even number from 2 on, got 5"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvUNet((3, 8, 8), **options)
