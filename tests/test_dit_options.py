"""Options of DiT: norms, SwiGLU, rotary positions, further tokens, bottleneck, sizes by name, with all else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import by_class
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from diffusion_pl.conditions import Condition, Conditions
from diffusion_pl.losses.jumps import derivative
from diffusion_pl.networks import DiT
from diffusion_pl.networks.transformer import SIZES, Block, RMSNorm, SwiGLU, rotate, rotations

LIGHTNING: dict[str, Any] = {"norm": "RMSNorm", "mlp": "SwiGLU", "rotary": True}
JIT: dict[str, Any] = {**LIGHTNING, "qk_norm": True, "bottleneck": 128, "in_context": 32}
ALL: dict[str, Any] = {**JIT, "bottleneck": 5, "in_context": 3, "in_context_start": 1, "registers": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "norm": {"norm": "RMSNorm"},
    "mlp": {"mlp": "SwiGLU"},
    "rotary": {"rotary": True},
    "qk_norm": {"qk_norm": True},
    "registers": {"registers": 2},
    "in_context": {"in_context": 3, "in_context_start": 1},
    "bottleneck": {"bottleneck": 5},
    "all": ALL,
}
#: Shape of the data, options, and what was published: parameters in millions, multiply-adds in billions.
#: Peebles & Xie, arXiv 2212.09748, Table 4; Li & He, arXiv 2511.13720, Table 7.
PUBLISHED: dict[str, tuple[tuple[int, ...], dict[str, Any], float, float]] = {
    "DiT-S/2": ((4, 32, 32), {"size": "S"}, 33, 6.06),
    "DiT-B/2": ((4, 32, 32), {"size": "B"}, 130, 23.01),
    "DiT-L/2": ((4, 32, 32), {"size": "L"}, 458, 80.71),
    "DiT-XL/2": ((4, 32, 32), {"size": "XL", "learned_variance": True}, 675, 118.64),
    "LightningDiT-XL/1": ((32, 16, 16), {"size": "XL", "patch_size": 1, **LIGHTNING}, 675, 119),
    "JiT-B/16": ((3, 256, 256), {"size": "B", "patch_size": 16, "in_context_start": 4, **JIT}, 131, 25),
    "JiT-L/16": ((3, 256, 256), {"size": "L", "patch_size": 16, "in_context_start": 8, **JIT}, 459, 88),
    "JiT-H/16": (
        (3, 256, 256),
        {"size": "H", "patch_size": 16, **JIT, "in_context_start": 10, "bottleneck": 256},
        953,
        182,
    ),
    "JiT-G/16": (
        (3, 256, 256),
        {"size": "G", "patch_size": 16, **JIT, "in_context_start": 10, "bottleneck": 256},
        2000,
        383,
    ),
}
LARGE = ("DiT-L/2", "DiT-XL/2", "LightningDiT-XL/1", "JiT-L/16", "JiT-H/16", "JiT-G/16")


def small(conditions: Conditions | None = None, shape: tuple[int, ...] = (3, 8, 12), **options: Any) -> DiT:
    return DiT(shape, conditions, **({"patch_size": 4, "width": 16, "depth": 2, "heads": 2} | options))


def stirred(*args: Any, **options: Any) -> DiT:
    """With every parameter random."""
    torch.manual_seed(0)
    network = small(*args, **options).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return network


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in PUBLISHED]
)
def test_parameters_and_flops_of_named_sizes(name: str) -> None:
    shape, options, millions, billions = PUBLISHED[name]
    with torch.device("meta"):
        network = DiT(shape, by_class(1000), **options)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, *shape), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=6e-3)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=0.02 if name[0] == "D" else 0.8)


def test_what_is_given_takes_the_place_of_the_size() -> None:
    with torch.device("meta"):
        network = DiT((4, 8, 8), size="S", depth=2)
    assert (len(network.blocks), network.modulation.in_features) == (2, SIZES["S"].width)
    with pytest.raises(ValueError, match=r"DiT: size must be one of S, B, L, XL, H, G, got 'M'"):
        DiT((4, 8, 8), size="M")


def attention_weights(q: Tensor, k: Tensor, shift: tuple[int, int], head: int = 12) -> Tensor:
    """Products of queries and keys of a grid of 3 x 4 patches that is moved within a larger one."""
    table = rotations((9, 9), head).unflatten(1, (9, 9))
    moved = table[:, shift[0] : shift[0] + 3, shift[1] : shift[1] + 4].flatten(1, 2).double()
    return rotate(q, moved) @ rotate(k, moved).transpose(-1, -2)


def test_rotary_attention_depends_on_differences_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 12, 12, dtype=torch.float64)
    here = attention_weights(q, k, (0, 0))
    for shift in ((0, 5), (6, 0), (4, 3)):
        torch.testing.assert_close(attention_weights(q, k, shift), here, rtol=0, atol=1e-6)
    assert (here - q @ k.T).abs().max() > 0.5  # and on the differences it does


def test_rotations_turn_pairs_as_complex_numbers() -> None:
    """Su et al., Eq. 12: pair j of the first axis, at place m, is multiplied by exp(i m 10⁴^(−j/n))."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 14, dtype=torch.float64)  # a head of 14: three pairs for each axis, two numbers stay
    turned = rotate(x, rotations((2, 3), 14).double())
    for n in range(6):
        place = (n // 3, n % 3)
        for pair in range(6):
            angle = torch.tensor(place[pair // 3] * 10_000 ** (-(pair % 3) / 3), dtype=torch.float64)
            number = torch.complex(x[0, n, 2 * pair], x[0, n, 2 * pair + 1]) * torch.polar(angle * 0 + 1, angle)
            torch.testing.assert_close(
                torch.view_as_real(number), turned[0, n, 2 * pair : 2 * pair + 2], atol=1e-6, rtol=0
            )
    assert torch.equal(turned[..., 12:], x[..., 12:])


def test_tokens_without_a_place_are_not_turned() -> None:
    x = torch.randn(2, 3 + 4, 8)
    turned = rotate(x, rotations((2, 2), 8))
    assert torch.equal(turned[:, :3], x[:, :3])
    torch.testing.assert_close(turned[:, 3:], rotate(x[:, 3:], rotations((2, 2), 8)))


def test_rms_norm_and_swiglu_are_those_of_torch() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    norm, mlp = RMSNorm(12).double(), SwiGLU(12, 7).double()
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (12,), norm.weight, 1e-6))
    gate, value = (F.linear(x, w, b) for w, b in zip(*(p.chunk(2) for p in mlp.input.parameters()), strict=True))
    torch.testing.assert_close(mlp(x), mlp.output(gate * gate.sigmoid() * value))


def test_a_block_norms_and_turns_queries_and_keys() -> None:
    torch.manual_seed(0)
    block = Block(16, 2, 2.0, norm="RMSNorm", mlp="SwiGLU", qk_norm=True).double()
    nn.init.normal_(block.modulation.weight, std=0.5)
    tokens, features = torch.randn(2, 6, 16, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    turn = rotations((2, 3), 8).double()
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.modulation(F.silu(features))[:, None].chunk(6, 2)
    h = block.qkv(F.rms_norm(tokens, (16,), eps=1e-6) * (1 + scale_1) + shift_1)
    heads = []
    for head in range(2):
        q, k, v = (h[:, :, 16 * part + 8 * head : 16 * part + 8 * head + 8] for part in range(3))
        q, k = (rotate(F.rms_norm(x, (8,), eps=1e-6), turn) for x in (q, k))
        heads.append((q @ k.transpose(1, 2) / 8**0.5).softmax(2) @ v)
    middle = tokens + gate_1 * block.project(torch.cat(heads, 2))
    expected = middle + gate_2 * block.mlp(F.rms_norm(middle, (16,), eps=1e-6) * (1 + scale_2) + shift_2)
    torch.testing.assert_close(block(tokens, features, None, turn), expected)


def test_further_tokens_come_first_and_are_removed() -> None:
    network = stirred(by_class(4), registers=2, in_context=3, in_context_start=1, width=16)
    lengths: list[int] = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda part, args: lengths.append(args[0].shape[1]))
    seen: list[Tensor] = []
    network.blocks[1].register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    x, c_noise, label = torch.randn(2, 3, 8, 12).double(), torch.rand(2).double(), torch.tensor([3, -1])
    assert network(x, c_noise, label).shape == x.shape
    assert lengths == [6 + 2, 6 + 2 + 3]
    assert network.extra_tokens == (2, 5)
    assert network.label.table is not None and network.in_context_positions is not None
    expected = network.label.table.weight[[3, 4]][:, None] + network.in_context_positions
    torch.testing.assert_close(seen[0][:, :3], expected)


def test_in_context_tokens_of_data_without_classes_are_registers() -> None:
    network = stirred(in_context=3)
    x, c_noise = torch.randn(2, 3, 8, 12).double(), torch.rand(2).double()
    assert torch.equal(network(x, c_noise), network(x, c_noise))
    assert network.in_context_positions is not None
    network(x, c_noise).square().sum().backward()
    assert network.in_context_positions.grad is not None and network.in_context_positions.grad.abs().sum() > 0


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_a_step(name: str) -> None:
    torch.manual_seed(0)
    network = small(by_class(4), **OPTIONS[name])
    x, c_noise, label = torch.randn(8, 3, 8, 12), 100 * torch.rand(8), torch.arange(8) % 5 - 1
    assert network(x, c_noise, label).abs().max() == 0  # as a new network without them
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss = (network(x, c_noise, label) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("shape", [(2, 12), (2, 8, 4), (2, 4, 8, 4), (2, 1, 8, 8)], ids=str)
def test_all_options_on_every_number_of_axes(shape: tuple[int, ...]) -> None:
    network = stirred(by_class(3), shape, width=24, **ALL)
    x, c_noise, label = torch.randn(2, *shape).double(), torch.rand(2).double(), torch.tensor([2, -1])
    longer = torch.cat((x, x), -1)
    other = stirred(by_class(3), longer.shape[1:], width=24, **ALL)
    other.load_state_dict(network.state_dict())
    assert network(x, c_noise, label).shape == x.shape
    torch.testing.assert_close(network(longer, c_noise, label), other(longer, c_noise, label))


def test_all_options_with_sequences_checkpointing_and_jumps() -> None:
    conditions = {**by_class(3), "text": Condition((4, 5)), "wind": Condition((2,))}
    plain, saving = (stirred(conditions, flow_map=True, checkpointing=saved, **ALL) for saved in (False, True))
    x, c_noise, text = torch.randn(2, 3, 8, 12).double(), torch.rand(2).double(), torch.randn(2, 4, 5).double()
    outputs, gradients = [], []
    for network in (plain, saving):
        output = network(x, c_noise, torch.tensor([0, -1]), torch.rand(2).double() * 0 + 0.2, text=text)
        output.square().sum().backward()
        outputs.append(output)
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*outputs)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_all_options_have_a_forward_mode_derivative() -> None:
    network = stirred(by_class(3), flow_map=True, **ALL)
    x, v = torch.randn(2, 2, 3, 8, 12, dtype=torch.float64)
    c_noise, label = torch.tensor([0.3, 0.7]).double(), torch.tensor([0, -1])

    def call(x: Tensor) -> Tensor:
        output: Tensor = network(x, c_noise, label, c_noise / 2)
        return output

    step = 1e-6
    _, change = derivative(call, (x,), (v,))
    differences = (call(x + step * v) - call(x - step * v)) / (2 * step)
    torch.testing.assert_close(change, differences, rtol=1e-5, atol=1e-6)


def test_a_learned_variance_has_twice_the_channels() -> None:
    plain, learned = small(), small(learned_variance=True)
    assert learned(torch.randn(2, 3, 8, 12), torch.rand(2)).shape == (2, 6, 8, 12)
    extra = sum(p.numel() for p in learned.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 3 * 16 * 17


def test_bfloat16_is_near_with_all_options() -> None:
    torch.manual_seed(0)
    network = small(by_class(3), **ALL)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    x, c_noise = torch.randn(2, 3, 8, 12), torch.rand(2)
    exact = network(x, c_noise)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x, c_noise).float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_size_is_named_in_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Callable[[tuple[int, ...], Conditions], nn.Module])
    options = {"size": "S", "depth": 1, "patch_size": 4, **LIGHTNING}
    config = parser.parse_object({"network": {"class_path": "diffusion_pl.networks.DiT", "init_args": options}})
    assert parser.instantiate(config).network((3, 8, 8), {}).modulation.in_features == 384


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"registers": -1}, "DiT: registers must be at least 0, got -1"),
        ({"in_context": -1}, "DiT: in_context must be at least 0, got -1"),
        ({"in_context": 2, "in_context_start": 2}, "DiT: in_context_start must be from 0 to depth - 1"),
        ({"in_context_start": 1}, "needs in_context"),
        ({"bottleneck": 0}, "DiT: bottleneck must be at least 1, got 0"),
        ({"rotary": True, "heads": 8}, "width divided by heads must be at least twice the number of axes"),
        ({"max_period": 1.0}, "max_period"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
