"""What holds for every image network: sizes, conditions, precision, gradients, messages, YAML.

A network is compared with itself on another image or at another noise level only after its weights were all made
random: those that begin as nothing would hide what they lead to.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import by_class
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from diffusion_pl.conditions import Condition
from diffusion_pl.networks import ConvUNet, DiT, EDM2UNet, Fourier, LinearAttentionUNet, NCSNpp, UNet

Factory = Callable[..., nn.Module]

SMALL: dict[str, Factory] = {
    "UNet": partial(UNet, nf=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(4,)),
    "DDPM++": partial(NCSNpp, nf=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(4,)),
    "NCSN++": partial(
        NCSNpp,
        nf=8,
        ch_mult=(1, 2, 2),
        num_res_blocks=1,
        attn_resolutions=(4,),
        fir=True,
        progressive_input="residual",
        progressive="output_skip",
        scale_by_sigma=True,
        time_embedding=partial(Fourier, features=16, scale=1.0),
    ),
    "LinearAttentionUNet": partial(LinearAttentionUNet, dim=8, dim_mults=(1, 2, 2), dim_head=4, groups=4),
    "ConvUNet": partial(ConvUNet, channels=(4, 8, 8), groups=2),
    "DiT": partial(DiT, patch_size=4, width=32, depth=2, heads=2),
    "EDM2UNet": partial(
        EDM2UNet, nf=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(4,), head_channels=8, dropout=0.1
    ),
}
every_network = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL.keys())


def stirred(make: Factory, *args: Any, **options: Any) -> nn.Module:
    """The network with every parameter random, without dropout."""
    torch.manual_seed(0)
    network = make(*args, **options).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (1 if "norm" in name and "weight" in name else 0))
    return network


def batch(n: int = 2, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, height, width, generator=generator), torch.rand(n, generator=generator)


@every_network
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 16), (16, 8), (24, 12)])
def test_height_and_width_may_differ_and_be_new(make: Factory, height: int, width: int) -> None:
    x, c_noise = batch(2, height, width)
    for network in (make((3, 8, 8)), make((3, height, width), **_any_level(make))):
        assert network(x, c_noise).shape == x.shape


def _any_level(make: Factory) -> dict[str, Any]:
    """Attention on no level: its heights are those of another image."""
    return {"attn_resolutions": ()} if "attn_resolutions" in make.keywords else {}  # type: ignore[attr-defined]


@every_network
def test_the_examples_of_a_batch_do_not_see_each_other(make: Factory) -> None:
    network = stirred(make, (3, 8, 8), by_class(4)).double()
    x, c_noise = (value.double() for value in batch(4))
    label = torch.tensor([0, 1, 4, 2])
    together = network(x, c_noise, label)
    for i in range(4):
        alone = network(x[i : i + 1], c_noise[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@every_network
def test_noise_level_and_class_are_heard(make: Factory) -> None:
    network = stirred(make, (3, 8, 8), by_class(4))
    x, c_noise = batch(1)
    shown = [network(x, c_noise + shift, torch.tensor([k])) for shift, k in ((0, 0), (0.5, 0), (0, 1))]
    assert (shown[0] - shown[1]).abs().max() > 1e-3
    assert (shown[0] - shown[2]).abs().max() > 1e-3


@every_network
def test_no_label_is_the_label_past_the_last(make: Factory) -> None:
    network = stirred(make, (3, 8, 8), by_class(4))
    x, c_noise = batch()
    assert torch.equal(network(x, c_noise), network(x, c_noise, torch.tensor([4, 4])))


@every_network
def test_labels_for_a_network_without_classes_are_refused(make: Factory) -> None:
    with pytest.raises(ValueError, match=r"got labels .*without conditions"):
        make((3, 8, 8))(*batch(), torch.tensor([0, 1]))


@every_network
def test_every_parameter_is_trained(make: Factory) -> None:
    network = stirred(make, (3, 8, 8), by_class(4))
    network(*batch(), torch.tensor([0, 4])).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@every_network
def test_channels_last_changes_the_layout_and_not_the_numbers(make: Factory) -> None:
    network = stirred(make, (3, 8, 8)).double()
    x, c_noise = (value.double() for value in batch())
    plain = network(x, c_noise)
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x, c_noise), plain, rtol=1e-8, atol=1e-8)


@every_network
def test_bfloat16_is_near(make: Factory) -> None:
    torch.manual_seed(0)
    network = make((3, 8, 8)).eval()
    with torch.no_grad():  # as large as in training, not as in `stirred`
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    x, c_noise = batch()
    exact = network(x, c_noise)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x, c_noise).float()
    assert (rounded - exact).norm() < 0.03 * exact.norm()


@every_network
def test_it_learns_to_separate_noise_from_image(make: Factory) -> None:
    """A few steps on one batch lower its loss."""
    torch.manual_seed(0)
    network = make((3, 8, 8)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    x, c_noise = batch(8)
    losses = []
    for _ in range(30):
        loss = (network(x, c_noise) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@every_network
@pytest.mark.parametrize("shape", [(2,), (3, 0, 8), (1, 1, 3, 8, 8)])
def test_non_image_data_are_refused(make: Factory, shape: Any) -> None:
    with pytest.raises(ValueError, match=r"needs (images|data) of shape .*\(C, H, W\).*, got data of shape"):
        make(shape)


@pytest.mark.parametrize("name", ["LinearAttentionUNet", "ConvUNet"])
@pytest.mark.parametrize("shape", [(3, 8), (1, 3, 8, 8)])
def test_networks_of_images_refuse_other_axes(name: str, shape: Any) -> None:
    with pytest.raises(ValueError, match=r"needs images of shape \(C, H, W\), got data of shape"):
        SMALL[name](shape)


@every_network
def test_indivisible_sizes_are_refused_with_the_nearest_valid(make: Factory) -> None:
    with pytest.raises(
        ValueError, match=r"multiples of 4, got 30x9 \(height x width\): the nearest valid size is 32x8"
    ):
        make((3, 30, 9))
    with pytest.raises(
        ValueError,
        match=r"the nearest valid size is 8x4; resize the data to it or (use|give)",
    ):
        make((3, 9, 2))


@every_network
def test_classes_below_one_are_refused(make: Factory) -> None:
    with pytest.raises(ValueError, match="label: classes must be at least 1, got 0"):
        make((3, 8, 8), {"label": Condition((), 0)})


@pytest.mark.parametrize(
    ("path", "args"),
    [
        ("UNet", {"nf": 8, "ch_mult": [1, 2], "attn_resolutions": [4], "up_attention": "once_per_level"}),
        ("NCSNpp", {"nf": 8, "ch_mult": [1, 2], "attn_resolutions": [], "fir": True, "progressive": "residual"}),
        ("LinearAttentionUNet", {"dim": 8, "dim_mults": [1, 2]}),
        ("ConvUNet", {"channels": [4, 8]}),
        ("DiT", {"width": 32, "depth": 1, "heads": 2}),
        ("EDM2UNet", {"nf": 8, "ch_mult": [1, 2], "attn_resolutions": [4], "head_channels": 8}),
    ],
)
def test_it_is_built_from_yaml(path: str, args: dict[str, Any]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Callable[[tuple[int, ...], int | None], nn.Module])
    embedding = {"class_path": "diffusion_pl.networks.Fourier", "init_args": {"features": 8}}
    if path not in ("DiT", "EDM2UNet"):
        args = {**args, "time_embedding": embedding}
    config = parser.parse_object({"network": {"class_path": f"diffusion_pl.networks.{path}", "init_args": args}})
    network = parser.instantiate(config).network((3, 8, 8), by_class(3))
    assert network(*batch(), torch.tensor([0, 3])).shape == (2, 3, 8, 8)
    if "time_embedding" in args:
        assert any(isinstance(module, Fourier) for module in network.modules())
