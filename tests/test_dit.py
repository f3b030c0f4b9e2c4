"""DiT: its size counted by hand, patches, positions, attention, and its silent start."""

import math
from typing import Any

import pytest
import torch
from conftest import by_class
from torch import Tensor, nn

from diffusion_pl.conditions import Conditions
from diffusion_pl.networks.dit import DiT
from diffusion_pl.networks.transformer import Block, positions


def counted(width: int, depth: int, channels: int, patch: int, classes: int) -> int:
    block = 3 * width * width + 3 * width + width * width + width  # attention
    block += 8 * width * width + 5 * width  # MLP of 4 times the width
    block += 6 * width * width + 6 * width  # modulation
    conditioning = 256 * width + width + width * width + width + (classes + 1) * width
    ends = channels * patch**2 * width + width + 2 * width * width + 2 * width + channels * patch**2 * (width + 1)
    return depth * block + conditioning + ends


@pytest.mark.parametrize(
    ("width", "depth", "heads", "parameters", "published"),
    [
        (384, 12, 6, 32_858_896, 33e6),
        (768, 12, 12, 130_303_504, 130e6),
        (1024, 24, 16, 457_824_272, 458e6),
        (1152, 28, 16, 674_816_272, 675e6),
    ],
)
def test_the_published_sizes(width: int, depth: int, heads: int, parameters: int, published: float) -> None:
    with torch.device("meta"):
        network = DiT((4, 32, 32), by_class(1000), 2, width, depth, heads)
    assert sum(p.numel() for p in network.parameters()) == parameters == counted(width, depth, 4, 2, 1000)
    assert parameters == pytest.approx(published, rel=5e-3)  # as the paper rounds


def small(conditions: Conditions | None = None, **options: Any) -> DiT:
    return DiT((3, 8, 12), conditions, **({"patch_size": 4, "width": 16, "depth": 2, "heads": 2} | options))


def test_a_new_network_outputs_zero_and_its_blocks_are_identity() -> None:
    assert small()(torch.randn(2, 3, 8, 12), torch.rand(2)).abs().max() == 0
    block = small().blocks[0]
    tokens = torch.randn(2, 6, 16)
    assert torch.equal(block(tokens, torch.randn(2, 16)), tokens)


def test_a_fresh_network_can_start_to_learn() -> None:
    network = small()
    (network(torch.randn(2, 3, 8, 12), torch.rand(2)) - 1).square().sum().backward()
    gradients: dict[str, Any] = {name: p.grad for name, p in network.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient.abs().sum() > 0} == {
        "output.weight",
        "output.bias",
    }


def test_the_parameters_count_what_the_options_say() -> None:
    def size(**options: Any) -> int:
        return sum(p.numel() for p in small(**options).parameters())

    block = size(depth=3) - size()
    assert size(depth=5) == size() + 3 * block
    assert size(mlp_ratio=2.0) == size() - 2 * 2 * (2 * 16 * 16) - 2 * 2 * 16
    assert size(conditions=by_class(5)) == size() + 6 * 16
    assert size(time_features=10) == size() - 246 * 16
    assert size(patch_size=2) == size() - (48 - 12) * (16 + 16 + 1)


def test_a_patch_is_a_square_of_neighbours() -> None:
    network = small()
    seen: list[Tensor] = []
    network.patch.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    x = torch.arange(3 * 8 * 12.0).view(1, 3, 8, 12)
    network(x, torch.rand(1))
    squares = [x[0, :, i : i + 4, j : j + 4].flatten() for i in (0, 4) for j in (0, 4, 8)]
    assert torch.equal(seen[0][0], torch.stack(squares))


def test_patches_come_back_to_where_they_were() -> None:
    """With the identity in place of everything between, the image is unchanged."""
    network = DiT((3, 8, 12), patch_size=2, width=12, depth=1, heads=1)
    layers: Any = (network.patch, network.output)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.eye(12))
        network.positions.zero_()
    network.norm = nn.Identity()
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(network(x, torch.rand(2)), x)
    assert "positions" not in network.state_dict()


def test_positions_are_distinct_and_separate_rows_from_columns() -> None:
    grid = positions((6, 9), 16)
    flat = grid.flatten(0, 1)
    distance = torch.cdist(flat, flat) + 9 * torch.eye(54)
    assert distance.min() > 0.1
    assert (grid[2, :, :8] == grid[2, :1, :8]).all()
    assert (grid[:, 3, 8:] == grid[:1, 3, 8:]).all()
    for k in range(4):
        rate = 10_000 ** (-k / 4)
        assert grid[5, 0, k].item() == pytest.approx(math.sin(5 * rate), abs=1e-6)
        assert grid[0, 7, 12 + k].item() == pytest.approx(math.cos(7 * rate), abs=1e-6)


@pytest.mark.parametrize(("height", "across"), [(12, 4), (12, 8)])  # (12, 8): as many patches as it was built for
def test_other_image_sizes_have_their_own_positions(height: int, across: int) -> None:
    torch.manual_seed(0)
    network = small()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn_like(p))
    same = DiT((3, height, across), patch_size=4, width=16, depth=2, heads=2)
    same.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, height, across)
    assert torch.equal(network(x, torch.ones(2)), same(x, torch.ones(2)))


def test_the_noise_level_shifts_and_scales_the_last_norm() -> None:
    torch.manual_seed(0)
    network = small(depth=1)
    nn.init.normal_(network.modulation.weight)
    seen: list[Tensor] = []
    network.output.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    network.norm.register_forward_hook(lambda module, args, out: seen.append(out))
    c_noise = torch.tensor([3.0, 700.0])
    network(torch.randn(2, 3, 8, 12), c_noise)
    modulation = network.modulation(nn.functional.silu(network.time(network.embedding(c_noise[:, None]))))
    shift, scale = modulation[:, None, :16], modulation[:, None, 16:]
    torch.testing.assert_close(seen[1], seen[0] * (1 + scale) + shift)


def test_blocks_attend_as_defined_and_are_modulated() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, 2.0).double()
    tokens, embedding = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    nn.init.normal_(block.modulation.weight, std=0.5)
    a = block.modulation(nn.functional.silu(embedding))[:, None]
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (a[:, :, 8 * i : 8 * i + 8] for i in range(6))

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, correction=0) + 1e-6).sqrt()

    h = block.qkv(norm(tokens) * (1 + scale_1) + shift_1)
    heads = []
    for head in range(2):
        q, k, v = (h[:, :, 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
        heads.append((q @ k.transpose(1, 2) / 2).softmax(2) @ v)
    middle = tokens + gate_1 * block.project(torch.cat(heads, 2))
    expected = middle + gate_2 * block.mlp(norm(middle) * (1 + scale_2) + shift_2)
    torch.testing.assert_close(block(tokens, embedding), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_noise_level_is_embedded_in_float32(autocast: bool) -> None:
    """In bfloat16, steps 998 and 999 are one."""
    network = small(patch_size=2)
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


def test_image_sizes_must_be_multiples_of_the_patch_size() -> None:
    with pytest.raises(ValueError, match="DiT: height and width must be multiples of 4, got 8x9"):
        small()(torch.randn(1, 3, 8, 9), torch.rand(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlp_ratio": math.inf}, "mlp_ratio .*got inf"),
        ({"mlp_ratio": math.nan}, "got nan"),
        ({"time_features": 7}, "DiT: time_features .*got 7"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"width": 18}, "width .*got width 18 and heads 2"),
        ({"heads": 3}, "width .*got width 16 and heads 3"),
        ({"mlp_ratio": 0.0}, "mlp_ratio .*got 0.0"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
