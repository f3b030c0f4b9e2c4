"""EDM2's network: its operations against denoising-diffusion-pytorch's, its sizes, and the magnitudes that it keeps."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import by_class
from denoising_diffusion_pytorch import karras_unet as theirs
from shell import tiny_trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_pl.conditions import Condition
from diffusion_pl.data import Digits
from diffusion_pl.denoisers import EDM, LogSNR
from diffusion_pl.losses import DenoisingLoss, LogNormalTimes, Plain
from diffusion_pl.networks import EDM2UNet, magnitude
from diffusion_pl.networks.edm2 import Block
from diffusion_pl.networks.magnitude import Layer, Waves, mp_cat, mp_silu, mp_sum, normalized
from diffusion_pl.samplers import Heun, KarrasGrid
from diffusion_pl.schedules import Karras
from diffusion_pl.training import DiffusionModule

small = partial(EDM2UNet, nf=16, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(4,), head_channels=16)

#: Published size -> nf, millions of parameters, and GFLOPs of one evaluation (Table 2), where a multiplication and an
#: addition count once, and elementwise operations count too.
PUBLISHED = {"XS": (128, 124.7, 46), "S": (192, 280.2, 102), "XXL": (448, 1523.2, 552)}


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def layers(network: nn.Module) -> list[Layer]:
    return [module for module in network.modules() if isinstance(module, Layer)]


def test_operations_are_those_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums give the first of two its share 1 − t, whatever it is; without what keeps a norm from 0."""
    monkeypatch.setattr(magnitude, "EPS", 0.0)
    a, b = torch.randn(2, 5, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    torch.testing.assert_close(mp_silu(a), theirs.MPSiLU()(a))
    torch.testing.assert_close(mp_sum(a, 2 * a.flip(0), 0.3), theirs.MPAdd(0.3)(a, 2 * a.flip(0)))
    torch.testing.assert_close(mp_cat(a, b, 0.4), theirs.MPCat(0.4, dim=1)(a, b))
    torch.testing.assert_close(normalized(a, 1), theirs.PixelNorm(1)(a))
    conv, linear = theirs.Conv2d(5, 7, 3).double(), theirs.Linear(4, 6).double()
    for peer, ours in ((conv, Layer(5, 7, 3, 2)), (linear, Layer(4, 6))):
        ours.weight = nn.Parameter(3 * peer.weight.detach())
        torch.testing.assert_close(ours(a), peer.eval()(a))
        ours.after_step()
        torch.testing.assert_close(ours.weight.detach(), theirs.normalize_weight(peer.weight).detach())


@pytest.mark.parametrize("up", [False, True])
def test_blocks_are_those_of_another_package(up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks give the residual branch the share 1 − t, where the paper gives it t."""
    monkeypatch.setattr(magnitude, "EPS", 0.0)
    torch.manual_seed(0)
    kind: Any = theirs.Decoder if up else theirs.Encoder
    channels = 24 if up else 16
    peer = kind(channels, 16, emb_dim=8, mp_add_t=0.7, has_attn=True, attn_dim_head=8, attn_res_mp_add_t=0.7)
    peer.attn = theirs.Attention(16, 2, 8, num_mem_kv=0, mp_add_t=0.7)
    ours = Block(channels, 16, 8, up, 2, 0.0, 2)
    peer, ours = peer.double().eval(), ours.double().eval()
    pairs: list[tuple[Any, Any]] = [
        (ours.conv_1, peer.block1[1]),
        (ours.conv_2, peer.block2[2]),
        (ours.time, peer.to_emb[0]),
        (ours.qkv, peer.attn.to_qkv),
        (ours.project, peer.attn.to_out),
        *([(ours.shortcut, peer.res_conv)] if up else []),
    ]
    with torch.no_grad():
        for mine, other in pairs:
            mine.weight.copy_(other.weight)
        ours.time_gain.fill_(0.7)
        peer.to_emb[1].gain.fill_(0.7)
        x, time = torch.randn(2, channels, 4, 4).double(), torch.randn(2, 8).double()
        torch.testing.assert_close(ours(x, time), peer(x, time))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    nf, millions, gflops = PUBLISHED[name]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = EDM2UNet((4, 64, 64), by_class(1000), nf=nf).eval()
        network(torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, dtype=torch.int64))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert 0.97 < counter.get_total_flops() / 2e9 / gflops < 1


def test_features_and_layers_have_unit_magnitude() -> None:
    """Over many outputs, of inputs of magnitude 1."""
    torch.manual_seed(0)
    assert rms(Waves(4096)(torch.randn(64))) == pytest.approx(1, abs=0.02)
    x = torch.randn(64, 32, 8, 8)
    assert rms(mp_silu(x)) == pytest.approx(1, abs=0.01)
    assert rms(mp_sum(x, torch.randn_like(x), 0.3)) == pytest.approx(1, abs=0.01)
    assert rms(mp_cat(x, torch.randn(64, 8, 8, 8), 0.5)) == pytest.approx(1, abs=0.01)
    assert rms(Layer(32, 256, 3, 2)(x)[..., 1:-1, 1:-1]) == pytest.approx(1, abs=0.02)
    assert rms(Layer(4, 4096)(torch.randn(256, 4))) == pytest.approx(1, abs=0.03)


def activations(network: nn.Module, x: Tensor, c_noise: Tensor) -> list[float]:
    """Root mean squares of what all blocks give."""
    seen: list[float] = []
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    hooks = [block.register_forward_hook(lambda module, args, output: seen.append(rms(output))) for block in blocks]
    with torch.no_grad():
        network(x, c_noise)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("projected", [True, False])
def test_magnitudes_stay_near_one_in_training(projected: bool) -> None:
    """At the start and after steps of Adam; without the projection the weights grow."""
    torch.manual_seed(0)
    network = small((3, 16, 16))
    x, c_noise = torch.randn(8, 3, 16, 16), torch.randn(8)
    assert all(0.7 < value < 1.25 for value in activations(network, x, c_noise))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(25):
        optimizer.zero_grad()
        (network(x, c_noise) - x).square().mean().backward()
        optimizer.step()
        for layer in layers(network) if projected else []:
            layer.after_step()
    sizes = [rms(layer.weight.detach()) for layer in layers(network)]
    if projected:
        assert all(value == pytest.approx(1, abs=1e-3) for value in sizes)
        assert all(0.6 < value < 1.6 for value in activations(network, x, c_noise))
    else:
        assert max(sizes) > 1.05


def test_the_projection_changes_the_weights_and_not_the_function() -> None:
    torch.manual_seed(0)
    network = small((3, 8, 8)).double().eval()
    x, c_noise = torch.randn(2, 3, 8, 8).double(), torch.randn(2).double()
    with torch.no_grad():
        network.gain.fill_(1.0)
        before = network(x, c_noise)
        for layer in layers(network):
            layer.weight.mul_(1 + torch.rand(len(layer.weight), *[1] * (layer.weight.ndim - 1)))
            layer.after_step()
        torch.testing.assert_close(network(x, c_noise), before, rtol=0, atol=1e-3)


def test_gradients_are_orthogonal_to_the_weights() -> None:
    layer = Layer(6, 5, 3, 2).double()
    layer(torch.randn(4, 6, 8, 8).double()).pow(3).sum().backward()
    assert layer.weight.grad is not None
    along = (layer.weight.grad * layer.weight).flatten(1).sum(1).abs()
    assert (along < 1e-3 * layer.weight.grad.flatten(1).norm(dim=1)).all()


def test_a_training_step_may_evaluate_it_twice_and_forward() -> None:
    """What changes weights within forward cannot do: two passes before one backward pass, and a directional one."""
    torch.manual_seed(0)
    network = small((3, 8, 8)).train()
    x, c_noise = torch.randn(2, 3, 8, 8), torch.randn(2)
    (network(x, c_noise) * network(x, c_noise + 1)).sum().backward()
    with torch.no_grad():
        network.gain.fill_(1.0)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH), torch.no_grad():
        tangent: Tensor = torch.func.jvp(lambda c: network(x, c), (c_noise,), (torch.ones(2),))[1]
        step = 1e-2
        difference = (network(x, c_noise + step) - network(x, c_noise - step)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=0, atol=0.02 * difference.abs().max().item())


def test_the_trainer_projects_after_each_step(tmp_path: Path) -> None:
    """Before the averages take the weights in."""
    torch.manual_seed(0)
    module = DiffusionModule(
        partial(small, nf=8, ch_mult=(1, 2), head_channels=8),
        Karras(),
        EDM(0.5),
        DenoisingLoss(LogNormalTimes(-0.8, 1.6), Plain()),
        Heun(KarrasGrid(4)),
        partial(torch.optim.Adam, lr=0.1),
        noise_input=LogSNR(),
        shape=(1, 8, 8),
    )
    tiny_trainer(tmp_path, max_steps=3).fit(module, datamodule=Digits(batch_size=8))
    for layer in layers(module.network):
        assert rms(layer.weight.detach()) == pytest.approx(1, abs=1e-3)


def test_axes_conditions_and_jumps() -> None:
    conditions = {**by_class(3), "wind": Condition((2,)), "low": Condition((1, 4, 8, 8))}
    network = small((2, 4, 8, 8), conditions, flow_map=True, checkpointing=True)
    x, c_noise = torch.randn(2, 2, 4, 8, 8), torch.randn(2)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith("gain"):
                p.fill_(1.0)
            elif name.startswith(("jump", "cond")):
                p.copy_(0.3 * torch.randn_like(p))
    plain = network(x, c_noise)
    assert plain.shape == x.shape
    given: list[dict[str, Tensor]] = [
        {"label": torch.tensor([2, 0])},
        {"jump": torch.tensor([0.5, 0.1])},
        {"wind": torch.ones(2, 2)},
        {"low": torch.ones(2, 1, 4, 8, 8)},
    ]
    for cond in given:
        assert (network(x, c_noise, **cond) - plain).abs().max() > 1e-3
    assert small((1, 16))(torch.randn(2, 1, 16), c_noise).shape == (2, 1, 16)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="EDM2UNet: head_channels 24 must divide 32, a level's channels"):
        small((3, 8, 8), head_channels=24)
    with pytest.raises(ValueError, match=r"EDM2UNet: cannot embed the condition text .* only those of kind label"):
        small((3, 8, 8), {"text": Condition((4, 8))})
    with pytest.raises(ValueError, match="EDM2UNet: got the length of a jump"):
        small((3, 8, 8))(torch.randn(1, 3, 8, 8), torch.zeros(1), jump=torch.zeros(1))
    assert math.isclose(magnitude.SILU, rms(nn.functional.silu(torch.randn(10**6))), rel_tol=5e-3)
