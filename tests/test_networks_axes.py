"""Networks along 1, 2 and 3 spatial axes: each against the one with an axis less, and sizes, memory, gradients.

A network for data with one more axis, of size 1, equals the network without it if its kernels are those in the middle
slice and zeros elsewhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import by_class
from test_networks import SMALL, Factory, batch, stirred
from torch import Tensor, nn

from diffusion_pl.networks import DiT, Fourier, NCSNpp, UNet, UNetEncoder
from diffusion_pl.networks.fir import FIR, Down, Mean, Up
from diffusion_pl.networks.layers import CONV
from diffusion_pl.networks.resnet import Downsample, Upsample
from diffusion_pl.networks.transformer import positions

TIME = torch.zeros(1, 1)
small: dict[str, Any] = {"nf": 8, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "dropout": 0.0}
unet: Factory = partial(UNet, attn_resolutions=(), **small)
ncsnpp: Factory = partial(NCSNpp, attn_resolutions=(), **small)
NETWORKS: dict[str, Factory] = {
    "UNet": unet,
    "UNet around": partial(unet, padding="around", conv_shortcut=True, fourier=(1,), time_scales=True),
    "UNet mean": partial(unet, resamp_with_conv=False, up_attention="once_per_level", learned_variance=True),
    "UNet blocks": partial(unet, resample_blocks=True, time_scales=True),
    "DDPM++": ncsnpp,
    "ddpm blocks": partial(ncsnpp, resblock_type="ddpm", progressive="residual", progressive_input="residual"),
    "NCSN++": partial(
        ncsnpp,
        progressive="output_skip",
        progressive_input="input_skip",
        progressive_combine="cat",
        scale_by_sigma=True,
        time_embedding=partial(Fourier, features=16, scale=1.0),
    ),
    "DiT": partial(DiT, patch_size=4, width=24, depth=2, heads=2),
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


def inflate(source: nn.Module, target: nn.Module) -> None:
    """Give target, a network for one more axis before the others, of size 1, the weights of source."""
    state = target.state_dict()
    for name, value in source.state_dict().items():
        if value.ndim < state[name].ndim:
            middle = torch.zeros_like(state[name])
            middle[:, :, state[name].shape[2] // 2] = value
            value = middle
        state[name] = value
    target.load_state_dict(state)
    if isinstance(source, DiT) and isinstance(target, DiT):
        target.positions.copy_(source.positions[None])


@pytest.mark.parametrize(
    ("shape", "flat"), [((3, 16), (3, 1, 16)), ((3, 8, 8), (3, 1, 8, 8)), ((3, 8, 4), (3, 1, 8, 4))]
)
@every_network
def test_an_axis_of_size_one_changes_nothing(make: Factory, shape: tuple[int, ...], flat: tuple[int, ...]) -> None:
    network, wider = stirred(make, shape, by_class(4)).double(), make(flat, by_class(4)).double().eval()
    inflate(network, wider)
    assert sum(p.numel() for p in wider.parameters()) >= sum(p.numel() for p in network.parameters())
    x, c_noise, label = torch.randn(2, *shape).double(), torch.rand(2).double(), torch.tensor([0, -1])
    expected = network(x, c_noise, label)
    assert expected.std() > 1e-3
    torch.testing.assert_close(wider(x[:, :, None], c_noise, label)[:, :, 0], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 16), (3, 8, 8)])
def test_a_classifier_does_so_too(shape: tuple[int, ...]) -> None:
    make = partial(UNetEncoder, attn_resolutions=(), nf=8, ch_mult=(1, 2), num_res_blocks=1)
    network, wider = stirred(make, shape, by_class(4)), make((3, 1, *shape[1:]), by_class(4)).eval()
    inflate(network, wider)
    x, c_noise = torch.randn(2, *shape), torch.rand(2)
    torch.testing.assert_close(wider(x[:, :, None], c_noise), network(x, c_noise), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["corner", "around"])
def test_halving_and_doubling_go_along_the_third_axis_too(padding: str) -> None:
    """Of data that are constant along it; the kernel sees one slice, the first of which no zeros are."""
    down, down_3 = Downsample(2, True, padding), Downsample(2, True, padding, (2, 2, 2))  # type: ignore[arg-type]
    up, up_3 = Upsample(2, True), Upsample(2, True, (2, 2, 2))
    for layer, layer_3 in ((down, down_3), (up, up_3)):
        assert layer.conv is not None and layer_3.conv is not None
        with torch.no_grad():
            layer_3.conv.weight.zero_()
            layer_3.conv.weight[:, :, 0 if layer is down and padding == "corner" else 1] = layer.conv.weight
    x = torch.randn(1, 2, 4, 6)
    volume = x[:, :, None].expand(-1, -1, 4, -1, -1)
    for layer, layer_3, depth in ((down, down_3, 2), (up, up_3, 8)):
        expected = layer(x, TIME)[:, :, None].expand(-1, -1, depth, -1, -1)
        torch.testing.assert_close(layer_3(volume, TIME), expected)
    bare, bare_3 = Downsample(2, False), Downsample(2, False, strides=(2, 2, 2))
    torch.testing.assert_close(bare_3(volume, TIME)[:, :, 1], bare(x, TIME))


@pytest.mark.parametrize("kind", [Down, Up])
@pytest.mark.parametrize("with_conv", [False, True])
def test_a_filter_of_a_product_is_the_product_of_filters(kind: Callable[..., nn.Module], with_conv: bool) -> None:
    line, cube = kind(FIR(axes=1), 1, 1, with_conv).double(), kind(FIR(axes=3), 1, 1, with_conv).double()
    if with_conv:
        assert isinstance(line.conv, nn.Module) and isinstance(cube.conv, nn.Module)
        w = torch.randn(3).double()
        with torch.no_grad():
            line.conv.weight.copy_(w[None, None])  # type: ignore[operator]
            cube.conv.weight.copy_(torch.einsum("i,j,k->ijk", w, w, w)[None, None])  # type: ignore[operator]
    parts = [torch.randn(1, 1, n).double() for n in (4, 6, 8)]
    expected = torch.einsum("i,j,k->ijk", *(line(part, TIME)[0, 0] for part in parts))
    volume = torch.einsum("i,j,k->ijk", *(part[0, 0] for part in parts))[None, None]
    torch.testing.assert_close(cube(volume, TIME)[0, 0], expected)


@pytest.mark.parametrize("shape", [(2, 16), (2, 4, 4, 8)])
@pytest.mark.parametrize("make", [*NETWORKS.values(), partial(ncsnpp, fir=True, progressive_input="residual")])
def test_every_parameter_is_trained_along_other_axes(make: Factory, shape: tuple[int, ...]) -> None:
    network = stirred(make, shape, by_class(3))
    y = network(torch.randn(2, *shape), torch.rand(2), torch.tensor([0, -1]))
    assert y.shape[2:] == shape[1:]
    y.square().sum().backward()
    untrained = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert set(untrained) <= {"label.table.weight"}
    used = network.get_parameter("label.table.weight").grad
    assert used is not None and used[[0, 3]].abs().sum(1).min() > 0


@pytest.mark.parametrize("make", [unet, ncsnpp, NETWORKS["DiT"]], ids=["UNet", "DDPM++", "DiT"])
def test_checkpointing_saves_memory_and_changes_nothing(make: Factory) -> None:
    kept, gradients, outputs = [], [], []
    for checkpointing in (False, True):
        network = stirred(partial(make, checkpointing=checkpointing), (2, 8, 8, 8)).train()
        saved: list[int] = []

        def note(value: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(value.numel())
            return value

        x = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            y = network(x, torch.ones(1))
        outputs.append(y)
        kept.append(sum(saved))
        y.square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert kept[1] < 0.5 * kept[0]


#: Parameters, their sum, and the sum of squares of the output for 2-D networks with seed 0 before they had other axes.
BEFORE = {
    "UNet": (71483, 4008.822850, 771.908319),
    "DDPM++": (80867, 4585.939752, 1472.629274),
    "NCSN++": (83449, 4803.816739, 2967.317891),
    "DiT": (52528, 2633.581067, 297967.193726),
}


@pytest.mark.parametrize("name", BEFORE)
def test_networks_of_images_are_as_they_were(name: str) -> None:
    torch.manual_seed(0)
    network = SMALL[name]((3, 8, 8), by_class(4)).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05)
        y = network(*batch(), torch.tensor([0, 4])).double()
    size = sum(p.numel() for p in network.parameters())
    total = sum(p.double().sum().item() for p in network.parameters())
    assert (size, total, y.square().sum().item()) == pytest.approx(BEFORE[name], rel=1e-5)
    assert not any(name.startswith("cond.") for name in network.state_dict())


def test_patches_of_volumes_come_back_to_where_they_were() -> None:
    network = DiT((3, 4, 2, 6), patch_size=2, width=24, depth=1, heads=1)
    layers: Any = (network.patch, network.output)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.eye(24))
        network.positions.zero_()
    network.norm = nn.Identity()
    x = torch.randn(2, 3, 4, 2, 6)
    torch.testing.assert_close(network(x, torch.rand(2)), x)


@pytest.mark.parametrize(("counts", "width"), [((40,), 16), ((4, 5, 6), 24), ((4, 5, 6), 20)])
def test_positions_are_distinct_along_all_axes(counts: tuple[int, ...], width: int) -> None:
    grid = positions(counts, width)
    assert grid.shape == (*counts, width)
    flat = grid.flatten(0, -2)
    assert (torch.cdist(flat, flat) + 9 * torch.eye(len(flat))).min() > 0.01
    part = 2 * (width // (2 * len(counts)))
    last = grid[..., part * (len(counts) - 1) : part * len(counts)]
    assert torch.equal(last, last[(0,) * (len(counts) - 1)].expand_as(last))
    assert not grid[..., part * len(counts) :].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unet((3, 30)), "UNet: length must be a multiple of 4, got 30: the nearest valid size is 32; resize"),
        (lambda: ncsnpp((3, 6, 8, 9)), r"depth, height and width must be multiples of 4, got 6x8x9 \(depth x height"),
        (lambda: DiT((3, 9), patch_size=2), "DiT: length must be a multiple of 2, got 9: .* give another patch_size"),
        (lambda: unet((3, 16))(torch.zeros(1, 3, 18), torch.zeros(1)), "length must be a multiple of 4, got 18"),
        (lambda: unet((3, 16))(torch.zeros(1, 3, 8, 8), torch.zeros(1)), r"needs data of shape \(C, L\), got data of"),
        (lambda: ncsnpp((3, 1, 8), fir=True), r"NCSNpp: fir needs every size above 1, got data of shape \(3, 1, 8\)"),
        (
            lambda: UNet((3, 16), nf=8, ch_mult=(1, 2), attn_resolutions=(4,)),
            r"lengths of a level, which are \[16, 8\]",
        ),
        (lambda: DiT((3, 4, 4, 4), width=4, heads=1), "width must be at least twice the number of axes"),
        (lambda: unet(()), r"needs data of shape \(C, L\), \(C, H, W\) or \(C, D, H, W\), got data of shape \(\)"),
    ],
)
def test_data_that_do_not_fit_are_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_other_sizes_may_be_given_later() -> None:
    for make in (unet, ncsnpp, NETWORKS["DiT"]):
        assert make((3, 1, 8, 8))(torch.randn(1, 3, 4, 16, 8), torch.rand(1)).shape == (1, 3, 4, 16, 8)
        assert make((3, 16))(torch.randn(1, 3, 32), torch.rand(1)).shape == (1, 3, 32)


@pytest.mark.parametrize("axes", CONV)
def test_resampling_without_filter_keeps_constants(axes: int) -> None:
    strides, x = (2,) * axes, torch.full((1, 1, *(4,) * axes), 0.7)
    torch.testing.assert_close(Mean(strides).up(Mean(strides).down(x)), x)
