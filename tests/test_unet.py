"""The U-Net of DDPM: exact sizes, initialisation, attention, resampling, and what each switch changes."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from conftest import by_class
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
        ((3, 16, 16), {"num_res_blocks": 4, "up_attention": "once_per_level"}, 56_646_147),  # VP-SDE seminar
    ],
)
def test_the_published_networks_have_exactly_their_size(shape: Any, options: Any, parameters: int) -> None:
    with torch.device("meta"):
        assert size(UNet(shape, **options)) == parameters


def improved(levels: list[int], blocks: int, attends: list[bool]) -> int:
    """Parameters of Improved DDPM's network for (3, 32, 32) with 128 channels, from the paper's description alone."""

    def conv(a: int, b: int, side: int = 3) -> int:
        return side * side * a * b + b

    def res(a: int, b: int) -> int:  # the time features make a scale and a shift of each channel
        return 2 * a + conv(a, b) + (512 + 1) * 2 * b + 2 * b + conv(b, b) + (conv(a, b, 1) if a != b else 0)

    def attention(c: int) -> int:
        return 2 * c + conv(c, 3 * c, 1) + conv(c, c, 1)

    total = (128 + 1) * 512 + (512 + 1) * 512 + conv(3, 128)
    skips, c = [128], 128
    for level, mult in enumerate(levels):
        for _ in range(blocks):
            total += res(c, 128 * mult) + attends[level] * attention(128 * mult)
            c = 128 * mult
            skips.append(c)
        if level < len(levels) - 1:
            total += conv(c, c)
            skips.append(c)
    total += 2 * res(c, c) + attention(c)
    for level in reversed(range(len(levels))):
        for _ in range(blocks + 1):
            total += res(c + skips.pop(), 128 * levels[level]) + attends[level] * attention(128 * levels[level])
            c = 128 * levels[level]
        total += conv(c, c) if level else 0
    return total + 2 * c + conv(c, 6)


def test_improved_ddpms_network_has_its_size() -> None:
    options: dict[str, Any] = {"num_res_blocks": 3, "attn_resolutions": (16, 8), "heads": 4}
    with torch.device("meta"):
        network = UNet((3, 32, 32), time_scales=True, learned_variance=True, **options)
    # The released checkpoint is called cifar10_uncond_50M.
    assert size(network) == improved([1, 2, 2, 2], 3, [False, True, True, False]) == 52_546_438


def test_heads_are_those_of_multi_head_attention() -> None:
    """Against torch's own module with the same weights."""
    block, torchs = AttentionBlock(16, heads=4, scale=1.0).double(), nn.MultiheadAttention(16, 4, batch_first=True)
    torchs = torchs.double()
    with torch.no_grad():
        parts: list[Any] = [block.query, block.key, block.value]
        for layer in (*parts, block.output):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
        torchs.in_proj_weight.copy_(torch.cat([layer.weight.flatten(1) for layer in parts]))
        torchs.in_proj_bias.copy_(torch.cat([layer.bias for layer in parts]))
        torchs.out_proj.weight.copy_(block.output.weight.flatten(1))
        assert block.output.bias is not None
        torchs.out_proj.bias.copy_(block.output.bias)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    expected = x + torchs(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x, torch.zeros(2, 1)), expected)
    single = AttentionBlock(16, scale=1.0).double()
    single.load_state_dict(block.state_dict())
    assert (single(x, torch.zeros(2, 1)) - expected).abs().max() > 0.1


def test_the_time_can_scale_and_shift_the_second_norm() -> None:
    block = ResBlock(8, 8, 4, "swish", 0.0, scale=1.0, time_scales=True).double()
    x, time = torch.randn(3, 8, 4, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    assert block.time is not None
    modulation = time * torch.sigmoid(time) @ block.time.weight.T + block.time.bias
    h = block.norm_2(block.conv_1(F.silu(block.norm_1(x))))
    h = h * (1 + modulation[:, :8, None, None]) + modulation[:, 8:, None, None]
    torch.testing.assert_close(block(x, time), x + block.conv_2(F.silu(h)))


def test_a_learned_variance_doubles_the_channels() -> None:
    network = small((3, 8, 8), learned_variance=True)
    assert network(torch.randn(2, 3, 8, 8), torch.rand(2)).shape == (2, 6, 8, 8)


def test_input_waves_separate_the_last_bits() -> None:
    """Neighbouring levels of 8 bits, 2/255 apart, are half a period of n = 7 apart and a whole one of n = 8."""
    network = small((1, 8, 8), fourier=(7, 8))
    seen: list[Tensor] = []
    network.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = (2 * torch.arange(64) / 255 - 1).view(1, 1, 8, 8)
    network(x, torch.rand(1))
    (given,) = seen
    wave = x.double() * 128 * math.pi
    expected = torch.cat([x.double(), wave.sin(), wave.cos(), (2 * wave).sin(), (2 * wave).cos()], 1)
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=1e-4)
    step = given[0, 2].flatten().diff().abs().max()
    assert step > 1.5  # cos turns over from level to level


def test_the_seminars_network_has_its_blocks() -> None:
    with torch.device("meta"):
        network = UNet((3, 16, 16), num_res_blocks=4, up_attention="once_per_level")
    kinds = [type(module) for module in network.modules()]
    assert (kinds.count(ResBlock), kinds.count(AttentionBlock)) == (38, 6)


@pytest.mark.parametrize("up_attention", ["every_block", "once_per_level"])
def test_attention_is_at_listed_resolutions_and_in_the_middle(up_attention: Any) -> None:
    network = UNet((3, 16, 16), nf=8, ch_mult=(1, 2, 2), attn_resolutions=(8,), up_attention=up_attention)

    def places(rows: Any) -> list[bool]:
        return [any(isinstance(block, AttentionBlock) for block in row) for row in rows]

    # Down: two blocks and a resampling for each of the first two levels, two blocks of the last.
    assert places(network.down) == [False, False, False, True, True, False, False, False]
    up = [True] * 3 if up_attention == "every_block" else [False, False, True]
    assert places(network.up) == [False] * 3 + up + [False] * 3
    assert places([network.middle]) == [True]


def test_a_new_network_outputs_zero_and_its_blocks_are_identity() -> None:
    """Scale 0 of the last convolutions: the network begins at 0 and every block at its shortcut."""
    x, c_noise = torch.randn(2, 3, 8, 8), torch.rand(2)
    assert small((3, 8, 8))(x, c_noise).abs().max() < 1e-3
    h, time = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    torch.testing.assert_close(ResBlock(8, 8, 32, "swish", 0.0)(h, time), h, rtol=0, atol=1e-3)
    torch.testing.assert_close(AttentionBlock(8)(h, time), h, rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_variance_scaling_has_variance_scale_over_mean_fan(scale: float) -> None:
    torch.manual_seed(0)
    weight = torch.empty(96, 32, 3, 3)
    variance_scaling_(weight, scale)
    variance = scale / ((32 * 9 + 96 * 9) / 2)
    n = weight.numel()
    # Uniform: the variance of the sample variance is 4/5 of its square by n; the range is √12 deviations.
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

    def tokens(layer: Any) -> list[list[Tensor]]:
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


def test_conv_shortcut_applies_only_where_channels_change() -> None:
    one, three = small((3, 8, 8)), small((3, 8, 8), conv_shortcut=True)

    def resolutions(network: nn.Module) -> list[int]:
        shortcuts = [m.shortcut for m in network.modules() if isinstance(m, ResBlock)]
        return [s.weight.shape[2] for s in shortcuts if isinstance(s, nn.Conv2d)]

    shapes = [resolutions(one), resolutions(three)]
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


def test_without_time_it_uses_the_class_only() -> None:
    torch.manual_seed(0)
    network = small((3, 8, 8), by_class(3), time_conditional=False)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(2, 3, 8, 8)
    label = torch.tensor([0, 1])
    assert torch.equal(network(x, torch.zeros(2), label), network(x, torch.ones(2), label))
    assert not torch.allclose(network(x, torch.zeros(2), label), network(x, torch.zeros(2), label.flip(0)))
    assert size(small((3, 8, 8), time_conditional=False)) < size(small((3, 8, 8)))


def test_checkpointing_keeps_output_gradients_and_dropout() -> None:
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


def test_the_default_time_embedding_has_nf_sinusoidal_features() -> None:
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
            Sinusoidal(**options)


def randomised(network: nn.Module) -> nn.Module:
    """Every parameter as large as in training: fresh blocks begin as nothing and would hide what they lead to."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return network.eval()


def leaves(network: nn.Module, *args: Any) -> list[Any]:
    """The convolutions, dense layers and norms in the order in which they run."""
    ran: list[Any] = []
    hooks = [
        m.register_forward_hook(lambda module, args, out: ran.append(module))
        for m in network.modules()
        if isinstance(m, (nn.Conv2d, nn.Linear, nn.GroupNorm))
    ]
    network(*args)
    for hook in hooks:
        hook.remove()
    return ran


def test_output_equals_diffusers_with_the_same_weights() -> None:
    """An independent implementation of Ho et al.'s wiring; its layers run in the same order, one for one."""
    diffusers = pytest.importorskip("diffusers")
    network = randomised(UNet((3, 8, 16), ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,)))
    peer = diffusers.UNet2DModel(
        sample_size=(8, 16),
        block_out_channels=(128, 256),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    ).eval()
    x, c_noise = torch.randn(2, 3, 8, 16), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        for mine, theirs in zip(leaves(network, x, c_noise), leaves(peer, x, c_noise), strict=True):
            theirs.weight.copy_(mine.weight.view_as(theirs.weight))
            theirs.bias.copy_(mine.bias)
        torch.testing.assert_close(network(x, c_noise), peer(x, c_noise).sample, rtol=1e-3, atol=1e-4)
    assert size(network) == size(peer)


def test_attention_once_per_level_keeps_the_last_of_each_level() -> None:
    full, once = (
        randomised(UNet((3, 8, 8), nf=8, ch_mult=(1, 2), attn_resolutions=(4,), up_attention=wiring))
        for wiring in ("every_block", "once_per_level")
    )
    for row in list(full.up)[:2]:  # type: ignore[arg-type]
        nn.init.zeros_(row[1].output.weight)
        nn.init.zeros_(row[1].output.bias)
    removed = ("up.0.1.", "up.1.1.")
    once.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith(removed)})
    x, c_noise = torch.randn(2, 3, 8, 8), torch.rand(2)
    torch.testing.assert_close(once(x, c_noise), full(x, c_noise))


def test_state_dict_lists_blocks_in_execution_order() -> None:
    network = small((3, 8, 8), by_class(3))
    tops = list(dict.fromkeys(name.split(".")[0] for name in network.state_dict()))
    assert tops == ["time", "label", "stem", "down", "middle", "up", "norm", "output"]


def test_attention_is_chosen_by_height_for_any_image_size() -> None:
    network: Any = UNet((3, 8, 32), nf=8, ch_mult=(1, 2, 2), attn_resolutions=(4,))
    attending = [i for i, row in enumerate(network.down) for m in row if isinstance(m, AttentionBlock)]
    assert attending == [3, 4]
    called: list[int] = []
    for i in attending:
        network.down[i][1].register_forward_hook(lambda module, args, out: called.append(out.shape[2]))
    network(torch.randn(1, 3, 24, 16), torch.rand(1))
    assert called == [12, 12]
    with pytest.raises(ValueError, match=r"\[16\] are not heights of a level, which are \[8, 4, 2\]"):
        UNet((3, 8, 32), nf=8, ch_mult=(1, 2, 2), attn_resolutions=(16,))


def test_indivisible_image_sizes_are_refused() -> None:
    network = small((3, 8, 8))
    with pytest.raises(ValueError, match=r"UNet: .*multiples of 2, got 8x7 .*nearest"):
        network(torch.randn(1, 3, 8, 7), torch.rand(1))


def test_checkpointing_computes_blocks_twice() -> None:
    for checkpointing, expected in ((False, 1), (True, 2)):
        network = small((3, 8, 8), checkpointing=checkpointing)
        count: list[int] = []
        network.middle[0].register_forward_pre_hook(lambda module, args, count=count: count.append(1))
        network(torch.randn(1, 3, 8, 8), torch.rand(1)).sum().backward()
        assert len(count) == expected


def test_initial_scales_of_attention_shortcuts_and_last_layers() -> None:
    torch.manual_seed(0)
    attention, block = AttentionBlock(64), ResBlock(64, 128, 8, "swish", 0.0)
    layers: tuple[Any, ...] = (attention.query, attention.key, attention.value, block.shortcut)
    for layer, variance in zip(layers, (0.1 / 64, 0.1 / 64, 0.1 / 64, 0.1 / 96), strict=True):
        assert layer.weight.var().item() == pytest.approx(variance, rel=0.1)
        assert not layer.bias.any()
    network = UNet((3, 8, 8), nf=8, ch_mult=(1, 2), attn_resolutions=(4,))
    for layer in (attention.output, block.conv_2, network.output):
        assert 0 < layer.weight.abs().max() < 1e-4
    assert block.conv_1.weight.var().item() == pytest.approx(1 / (9 * 96), rel=0.1)
    assert ResBlock(64, 128, 8, "swish", 0.0, scale=1.0).conv_2.weight.std() > 1e-2


def test_the_noise_level_is_embedded_in_float32() -> None:
    network = small((3, 8, 8)).to(torch.bfloat16)
    seen: list[torch.dtype] = []
    network.time.embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))  # type: ignore[union-attr]
    output = network(torch.randn(2, 3, 8, 8, dtype=torch.bfloat16), torch.tensor([1.0, 999.0]))
    assert (seen, output.dtype) == ([torch.float32], torch.bfloat16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nf": 7}, "nf must be an even number from 4 on, got 7"),
        ({"ch_mult": ()}, r"ch_mult must be one or more positive numbers, got \[\]"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"attn_resolutions": (16,)}, r"attn_resolutions \[16\] are not heights of a level, which are \[8, 4\]"),
        ({"heads": 3}, "256 channels cannot be shared by 3 heads: give a divisor"),
        ({"fourier": (7, 40)}, r"fourier must be exponents from 0 to 12, got \[7, 40\]"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet((3, 8, 8), **({"ch_mult": (1, 2), "attn_resolutions": ()} | options))


def test_sinusoids_keep_their_phase_with_16_bit_weights() -> None:
    x = torch.tensor([[998.0], [999.0]])
    assert torch.equal(Sinusoidal(1, 64).bfloat16()(x), Sinusoidal(1, 64)(x))
