"""The U-Net of DDPM: exact sizes, initialisation, attention, resampling, and what each switch changes."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_pl.networks import UNet
from diffusion_pl.networks.embeddings import Fourier, Sinusoidal
from diffusion_pl.networks.resnet import AttentionBlock, Downsample, ResBlock, Upsample, group_norm, variance_scaling_

small = partial(UNet, nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0)


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("shape", "options", "parameters"),
    [
        ((3, 32, 32), {}, 35_746_307),  # Ho et al., Sec. 4: 35.7 million
        ((3, 32, 32), {"up_attention": "once_per_level"}, 35_218_947),
        ((3, 16, 16), {"num_res_blocks": 4, "up_attention": "once_per_level"}, 56_646_147),  # document 0
    ],
)
def test_the_published_networks_have_exactly_their_size(shape: Any, options: Any, parameters: int) -> None:
    with torch.device("meta"):
        assert size(UNet(shape, **options)) == parameters


def test_the_documents_network_has_its_blocks() -> None:
    with torch.device("meta"):
        network = UNet((3, 16, 16), num_res_blocks=4, up_attention="once_per_level")
    kinds = [type(module) for module in network.modules()]
    assert (kinds.count(ResBlock), kinds.count(AttentionBlock)) == (38, 6)


@pytest.mark.parametrize("up_attention", ["every_block", "once_per_level"])
def test_attention_lies_where_the_side_is_listed_and_in_the_middle(up_attention: Any) -> None:
    network = UNet((3, 16, 16), nf=8, ch_mult=(1, 2, 2), attn_resolutions=(8,), up_attention=up_attention)

    def places(rows: Any) -> list[bool]:
        return [any(isinstance(block, AttentionBlock) for block in row) for row in rows]

    # Down: two blocks and a resampling for each of the first two levels, two blocks of the last.
    assert places(network.down) == [False, False, False, True, True, False, False, False]
    up = [True] * 3 if up_attention == "every_block" else [False, False, True]
    assert places(network.up) == [False] * 3 + up + [False] * 3
    assert places([network.middle]) == [True]


def test_a_fresh_network_says_nothing_and_its_blocks_change_nothing() -> None:
    """Scale 0 of the last convolutions: the network begins at 0 and every block at its shortcut."""
    x, c_noise = torch.randn(2, 3, 8, 8), torch.rand(2)
    assert small((3, 8, 8))(x, c_noise).abs().max() < 1e-3
    h, time = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    torch.testing.assert_close(ResBlock(8, 8, 32, "swish", 0.0)(h, time), h, rtol=0, atol=1e-3)
    torch.testing.assert_close(AttentionBlock(8)(h, time), h, rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_variance_scaling_is_uniform_with_variance_scale_over_mean_fan(scale: float) -> None:
    torch.manual_seed(0)
    weight = torch.empty(96, 32, 3, 3)
    variance_scaling_(weight, scale)
    variance = scale / ((32 * 9 + 96 * 9) / 2)
    n = weight.numel()
    # Of a uniform law, the variance of the sample variance is 4/5 of its square by n; the range is √12 deviations.
    assert weight.var().item() == pytest.approx(variance, rel=5 * math.sqrt(0.8 / n))
    assert weight.abs().max().item() == pytest.approx(math.sqrt(3 * variance), rel=1e-3)
    assert abs(weight.mean().item()) < 5 * math.sqrt(variance / n)
    variance_scaling_(weight, 0.0)
    assert 0 < weight.abs().max().item() < 1e-5


def test_attention_is_softmax_attention_of_all_positions() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(8, scale=1.0).double()
    for layer in (block.query, block.key, block.value):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    h = block.norm(x)

    def tokens(layer: nn.Conv2d) -> list[list[Tensor]]:
        weight = layer.weight[:, :, 0, 0]
        return [[weight @ h[b, :, i, j] + layer.bias for i in range(3) for j in range(5)] for b in range(2)]

    q, k, v = (tokens(layer) for layer in (block.query, block.key, block.value))
    expected = x.clone()
    for b in range(2):
        for place in range(15):
            weights = torch.stack([(q[b][place] @ other) / math.sqrt(8) for other in k[b]]).softmax(0)
            mixed = sum(w * value for w, value in zip(weights, v[b], strict=True))
            expected[b, :, place // 5, place % 5] += block.output.weight[:, :, 0, 0] @ mixed
    torch.testing.assert_close(block(x, torch.zeros(2, 1)), expected)


def test_rescaled_sums_are_divided_by_the_root_of_two() -> None:
    h, time = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    torch.manual_seed(0)
    plain = ResBlock(8, 8, 32, "swish", 0.0)
    torch.manual_seed(0)
    rescaled = ResBlock(8, 8, 32, "swish", 0.0, rescale=True)
    torch.testing.assert_close(rescaled(h, time), plain(h, time) / math.sqrt(2))
    torch.testing.assert_close(AttentionBlock(8, rescale=True)(h, time), h / math.sqrt(2), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 2), (32, 8), (128, 32), (256, 32), (384, 32), (96, 24), (200, 25), (3, 1)]
)
def test_groups_are_32_or_what_divides_fewer_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_downsampling_pads_below_and_at_the_right() -> None:
    x, time = torch.randn(1, 4, 6, 8), torch.zeros(1, 1)
    down = Downsample(4, with_conv=True)
    assert down.conv is not None
    y = down(x, time)
    assert y.shape == (1, 4, 3, 4)
    # The first output sees rows 0 … 2; the last sees the bottom row and one row of zeros.
    first = (down.conv.weight * x[:, None, :, :3, :3]).sum((2, 3, 4))
    torch.testing.assert_close(y[:, :, 0, 0], first)
    padded = F.pad(x[..., 4:, 6:], (0, 1, 0, 1))
    torch.testing.assert_close(y[:, :, -1, -1], (down.conv.weight * padded[:, None]).sum((2, 3, 4)))


def test_resampling_without_convolution_is_mean_and_repetition() -> None:
    x, time = torch.arange(16.0).reshape(1, 1, 4, 4), torch.zeros(1, 1)
    assert Downsample(1, with_conv=False)(x, time).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert Upsample(1, with_conv=False)(x[:, :, :1, :2], time).tolist() == [[[[0, 0, 1, 1], [0, 0, 1, 1]]]]
    bare = UNet((3, 8, 8), nf=8, ch_mult=(1, 2), attn_resolutions=(), resamp_with_conv=False)
    assert not any(
        getattr(m, "conv", None) is not None for m in bare.modules() if isinstance(m, (Downsample, Upsample))
    )


def test_conv_shortcut_changes_the_shortcut_only_where_channels_change() -> None:
    one, three = small((3, 8, 8)), small((3, 8, 8), conv_shortcut=True)

    def sides(network: nn.Module) -> list[int]:
        shortcuts = [m.shortcut for m in network.modules() if isinstance(m, ResBlock)]
        return [s.weight.shape[2] for s in shortcuts if isinstance(s, nn.Conv2d)]

    shapes = [sides(one), sides(three)]
    assert set(shapes[0]) == {1}
    assert set(shapes[1]) == {3}
    assert len(shapes[0]) == len(shapes[1])


@pytest.mark.parametrize(
    ("activation", "at_minus_one"), [("swish", -0.2689414), ("relu", 0.0), ("lrelu", -0.2), ("elu", -0.6321206)]
)
def test_activations(activation: Any, at_minus_one: float) -> None:
    network = small((3, 8, 8), activation=activation)
    acts = [m.act for m in network.modules() if hasattr(m, "act")]
    assert len(acts) > 4
    for act in acts:
        assert act(torch.tensor(-1.0)).item() == pytest.approx(at_minus_one)  # type: ignore[operator]


def test_dropout_works_in_training_only() -> None:
    torch.manual_seed(0)
    network = small((3, 8, 8), dropout=0.5)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x, c_noise = torch.randn(2, 3, 8, 8), torch.rand(2)
    assert not torch.equal(network(x, c_noise), network(x, c_noise))
    network.eval()
    assert torch.equal(network(x, c_noise), network(x, c_noise))


def test_without_time_it_ignores_the_noise_level_but_not_the_class() -> None:
    torch.manual_seed(0)
    network = small((3, 8, 8), 3, time_conditional=False)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(2, 3, 8, 8)
    label = torch.tensor([0, 1])
    assert torch.equal(network(x, torch.zeros(2), label), network(x, torch.ones(2), label))
    assert not torch.allclose(network(x, torch.zeros(2), label), network(x, torch.zeros(2), label.flip(0)))
    assert size(small((3, 8, 8), time_conditional=False)) < size(small((3, 8, 8)))


def test_checkpointing_changes_neither_output_nor_gradients_dropout_included() -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(0)
        network = small((3, 8, 8), dropout=0.3, checkpointing=checkpointing)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.1 * torch.randn_like(p))
        x = torch.randn(2, 3, 8, 8)
        torch.manual_seed(1)
        output = network(x, torch.rand(2))
        output.square().sum().backward()
        return [output.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]

    for mine, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_time_embedding_is_sinusoidal_of_nf_features_unless_given() -> None:
    assert isinstance(small((3, 8, 8)).time.embedding, Sinusoidal)  # type: ignore[union-attr]
    assert small((3, 8, 8)).time.embedding.width == 8  # type: ignore[union-attr]
    fourier = small((3, 8, 8), time_embedding=partial(Fourier, features=6))
    assert fourier.time.dense_1.in_features == 6  # type: ignore[union-attr]


def test_the_sinusoidal_embedding_is_that_of_the_papers_code() -> None:
    x = torch.tensor([[0.0], [1.0], [999.0]])
    shown = Sinusoidal(1, 6)(x)
    for row, number in zip(shown.tolist(), (0.0, 1.0, 999.0), strict=True):
        rates = [1.0, 1e-2, 1e-4]  # 10000^(-i/2)
        assert row == pytest.approx(
            [*(math.sin(number * r) for r in rates), *(math.cos(number * r) for r in rates)], abs=1e-4
        )
    assert Sinusoidal(1, 2)(x).isfinite().all()
    for options, message in (
        ({"dim": 2}, "embeds one number, got 2 coordinates"),
        ({"features": 7}, "must be an even number"),
        ({"max_period": 1.0}, "max_period must be finite and above 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Sinusoidal(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nf": 7}, "nf must be an even number from 4 on, got 7"),
        ({"ch_mult": ()}, r"ch_mult must be one or more positive numbers, got \[\]"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"attn_resolutions": (16,)}, r"attn_resolutions \[16\] are not heights of a level, which are \[8, 4\]"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet((3, 8, 8), **({"ch_mult": (1, 2), "attn_resolutions": ()} | options))
