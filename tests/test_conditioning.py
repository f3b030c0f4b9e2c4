"""Conditions of every kind in the networks: what is given, what is not, and what is learned from them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from test_networks import Factory, stirred
from torch import Tensor, nn

from diffusion_pl.conditions import Condition, Conditions, from_plain, label, null, to_plain
from diffusion_pl.networks import MLP, ConvUNet, DiT, NCSNpp, UNet
from diffusion_pl.networks.cross_attention import Context, CrossAttention, CrossAttentionBlock

NAN = float("nan")
small: dict[str, Any] = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "dropout": 0.0}
MAKE: dict[str, tuple[Factory, tuple[int, ...]]] = {
    "MLP": (partial(MLP, width=16), (3,)),
    "UNet": (partial(UNet, attn_resolutions=(4,), **small), (3, 8, 8)),
    "UNet 1-D": (partial(UNet, attn_resolutions=(4,), heads=2, checkpointing=True, **small), (3, 8)),
    "UNet blind": (partial(UNet, attn_resolutions=(), time_conditional=False, **small), (3, 4, 4)),
    "DDPM++": (partial(NCSNpp, attn_resolutions=(4,), **small), (3, 8, 8)),
    "NCSN++ 3-D": (partial(NCSNpp, attn_resolutions=(), progressive_input="residual", fir=True, **small), (3, 4, 4, 4)),
    "DiT": (partial(DiT, patch_size=2, width=24, depth=2, heads=2), (3, 8, 8)),
}
every_network = pytest.mark.parametrize(("make", "shape"), MAKE.values(), ids=MAKE.keys())


def conditions(shape: tuple[int, ...]) -> dict[str, Condition]:
    """One of every kind that a network of this shape embeds, and a second of most."""
    image = Condition((2, *shape[1:]), image=True)
    return {
        "label": label(4),
        "keys": label(3),  # a method of nn.ModuleDict
        "wind": Condition((3,)),
        "size": Condition((1,)),
        "text": Condition((5, 4)),
        "past": Condition((2, 6)),
        **({"low": image} if len(shape) > 1 else {}),
    }


def values(shape: tuple[int, ...], n: int = 3) -> dict[str, Tensor]:
    """Random values of all conditions."""
    g = torch.Generator().manual_seed(3)
    return {
        name: torch.randint(c.classes, (n,), generator=g)
        if c.classes
        else torch.randn(n, *c.shape, generator=g).double()
        for name, c in conditions(shape).items()
    }


def built(make: Factory, shape: tuple[int, ...], known: Conditions | None = None) -> nn.Module:
    return stirred(make, shape, conditions(shape) if known is None else known).double()


def inputs(shape: tuple[int, ...], n: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=g).double(), torch.rand(n, generator=g).double()


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@every_network
def test_each_condition_changes_the_output(make: Factory, shape: tuple[int, ...]) -> None:
    network, batch, given = built(make, shape), inputs(shape), values(shape)
    y = network(*batch, **given)
    for name, value in given.items():
        other = (value + 1) % conditions(shape)[name].classes if name in ("label", "keys") else value + 1  # type: ignore[operator]
        for changed in (other, null(value)):
            assert (network(*batch, **{**given, name: changed}) - y).abs().amax(tuple(range(1, y.ndim))).min() > 1e-6, (
                name
            )


@every_network
def test_what_is_dropped_was_never_given(make: Factory, shape: tuple[int, ...]) -> None:
    network, batch, given = built(make, shape), inputs(shape), values(shape)
    for name, value in given.items():
        rest = {key: v for key, v in given.items() if key != name}
        assert same(network(*batch, **{**rest, name: null(value)}), network(*batch, **rest)), name
    assert same(network(*batch), network(*batch, **{name: null(value) for name, value in given.items()}))


@every_network
def test_examples_of_mixed_conditions_do_not_see_each_other(make: Factory, shape: tuple[int, ...]) -> None:
    network, (x, c_noise) = built(make, shape), inputs(shape, 4)
    given = values(shape, 4)
    for example, name in enumerate(list(given) * 2):  # another one is dropped from each
        given[name][example % 4] = null(given[name][example % 4])
    given["text"][0, 2:] = NAN
    together = network(x, c_noise, **given)
    for i in range(4):
        alone = network(x[i : i + 1], c_noise[i : i + 1], **{name: value[i : i + 1] for name, value in given.items()})
        assert same(together[i : i + 1], alone)


@every_network
def test_padding_may_be_anywhere_and_of_any_length(make: Factory, shape: tuple[int, ...]) -> None:
    network, batch, given = built(make, shape), inputs(shape), values(shape)
    text = given["text"]
    padded = torch.cat((text, torch.full_like(text, NAN)), 1)
    partly = torch.cat((text, torch.full_like(text, NAN)), 1)
    partly[:, 5:, 0] = 7.0  # one NaN is enough
    y = network(*batch, **given)
    for other in (padded, padded[:, torch.randperm(10)], partly):
        assert same(network(*batch, **{**given, "text": other}), y)
    assert not same(network(*batch, **{**given, "text": text[:, :3]}), y)


@every_network
def test_a_network_hears_each_kind_alone(make: Factory, shape: tuple[int, ...]) -> None:
    for name, condition in conditions(shape).items():
        network, batch, given = built(make, shape, {name: condition}), inputs(shape), values(shape)[name]
        y = network(*batch, **{name: given})
        assert not same(network(*batch), y)
        with pytest.raises(ValueError, match=r"takes no other|got "):
            network(*batch, other=given)


@every_network
def test_every_parameter_has_a_gradient_in_every_step(make: Factory, shape: tuple[int, ...]) -> None:
    """Or processes that share a step would wait for each other; it is zero where the step has not used it."""
    network, batch, given = built(make, shape), inputs(shape), values(shape)
    for cond in (given, {name: null(value) for name, value in given.items()}, {}):
        network.zero_grad(set_to_none=True)
        network(*batch, **cond).square().sum().backward()
        for name, p in network.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name
            if ".null" in name:
                assert (p.grad.abs().sum() > 0) == (cond is not given), name


@pytest.mark.parametrize("name", ["UNet", "DDPM++", "DiT"])
def test_a_new_network_does_not_attend_yet_and_can_learn_to(name: str) -> None:
    make, shape = MAKE[name]
    torch.manual_seed(0)
    network = make(shape, {"text": Condition((5, 4))}).double().eval()
    x, c_noise = inputs(shape)
    with torch.no_grad():  # else the output is zero whatever goes in
        for key, p in network.named_parameters():
            if "attend" not in key and "cross" not in key:
                p.add_(0.1 * torch.randn_like(p))
    text = torch.randn(3, 5, 4).double()
    y = network(x, c_noise, text=text)
    assert y.std() > 1e-3
    assert torch.equal(y, network(x, c_noise))
    y.square().sum().backward()
    last = [p.grad for key, p in network.named_parameters() if "attend.output" in key or "cross.output" in key]
    assert last and all(grad is not None and grad.abs().sum() > 0 for grad in last)


def test_cross_attention_is_as_torch_has_it() -> None:
    ours, theirs = (
        CrossAttention(12, 6, 3).double(),
        nn.MultiheadAttention(12, 3, kdim=6, vdim=6, batch_first=True).double(),
    )
    nn.init.normal_(ours.output.weight)
    with torch.no_grad():
        key, value = ours.key_value.weight.chunk(2)
        theirs.q_proj_weight.copy_(ours.query.weight)
        theirs.k_proj_weight.copy_(key)
        theirs.v_proj_weight.copy_(value)
        theirs.in_proj_bias.copy_(torch.cat((ours.query.bias, ours.key_value.bias)))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    x, tokens, given = torch.randn(2, 5, 12).double(), torch.randn(2, 4, 6).double(), torch.rand(2, 4) < 0.6
    given[:, 0] = True
    expected, _ = theirs(nn.functional.layer_norm(x, (12,)), tokens, tokens, key_padding_mask=~given)
    torch.testing.assert_close(ours(x, Context(tokens, given)), expected)
    block = CrossAttentionBlock(12, 6).double()
    image = torch.randn(2, 12, 2, 3, 1).double()
    assert torch.equal(block(image, torch.zeros(2, 1), Context(tokens, given)), image)


def test_the_mean_of_a_context_is_over_what_is_given() -> None:
    tokens = torch.randn(2, 3, 4)
    mean = Context(tokens, torch.tensor([[True, False, True], [False, True, False]])).mean()
    torch.testing.assert_close(mean, torch.stack((tokens[0, [0, 2]].mean(0), tokens[1, 1])))


def test_a_pixel_that_is_not_given_is_zero_and_masked() -> None:
    make, shape = MAKE["UNet"]
    network = built(make, shape)
    seen: list[Tensor] = []
    network.get_submodule("stem").register_forward_hook(lambda module, args, out: seen.append(args[0]))
    low = torch.randn(3, 2, 8, 8).double()
    low[1, 0, 3, 4] = NAN
    x, c_noise = inputs(shape)
    network(x, c_noise, low=low)
    image, mask = seen[0][:, 3:5], seen[0][:, 5]
    assert torch.equal(seen[0][:, :3], x)
    assert mask.sum() == 3 * 64 - 1 and mask[1, 3, 4] == 0
    assert not image[1, :, 3, 4].any()
    assert torch.equal(image[0], low[0])


@every_network
def test_bfloat16_is_near_with_conditions(make: Factory, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = make(shape, conditions(shape)).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = [value.float() for value in inputs(shape)]
    given = {name: value.float() if value.is_floating_point() else value for name, value in values(shape).items()}
    given["wind"][1] = NAN
    exact = network(*batch, **given)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(*batch, **given).float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


class Graph(nn.Module):
    """A network that takes its conditions in a dictionary."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.network(x, c_noise, **cond)
        return y


@pytest.mark.parametrize("name", [pytest.param("UNet", marks=pytest.mark.slow), "DiT"])
def test_a_program_takes_any_number_with_conditions(name: str) -> None:
    make, shape = MAKE[name]
    graph, given, some = Graph(built(make, shape)), values(shape), torch.export.Dim("batch")
    given["text"][1] = NAN
    dynamic = ({0: some}, {0: some}, {key: {0: some} for key in given})
    program = torch.export.export(graph, (*inputs(shape), given), dynamic_shapes=dynamic)
    more = (*inputs(shape, 5), values(shape, 5))
    assert same(program.module()(*more), graph(*more))


def test_a_one_dimensional_image_is_kept_in_checkpoints() -> None:
    known: dict[str, Condition] = {"past": Condition((2, 8), image=True), "text": Condition((5, 4))}
    assert [c.kind for c in known.values()] == ["image", "sequence"]
    assert from_plain(to_plain(known)) == known
    assert to_plain(known)["text"] == {"shape": [5, 4], "classes": None, "names": []}  # as before


UNET, SHAPE = MAKE["UNet"]
TEXT, LOW = {"text": Condition((5, 4))}, {"low": Condition((1, 8, 8))}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP((2,), LOW), r"MLP: cannot embed the condition low \(a image of shape \(1, 8, 8\)\), only"),
        (lambda: ConvUNet((3, 8, 8), TEXT), "ConvUNet: cannot embed the condition text .*named label"),
        (lambda: UNET(SHAPE, {"low": Condition((1, 4, 4))}), "condition low is an image of size 4x4, expected .* 8x8"),
        (lambda: UNET(SHAPE, {"label": Condition((3,))}), "cannot embed the condition label .*a class number"),
        (lambda: UNET(SHAPE, {"pet": Condition(())}), "UNet: pet: classes must be at least 1, got None"),
        (lambda: UNET(SHAPE, {"a.b": Condition((3,))}), "the name of a condition must be .*got 'a.b'"),
        (lambda: UNET(SHAPE, TEXT)(*batch(), wind=torch.zeros(3, 2)), "takes no wind, its conditions are: text"),
        (lambda: UNET(SHAPE)(*batch(), wind=torch.zeros(3, 2)), "takes no wind, its conditions are: none"),
        (lambda: UNET(SHAPE, TEXT)(*batch(), text=torch.zeros(3, 4)), r"must be of shape \(3, 5, 4\), got \(3, 4\)"),
        (lambda: UNET(SHAPE, TEXT)(*batch(), text=torch.zeros(3, 9, 5)), r"of shape \(3, 9, 4\), got \(3, 9, 5\)"),
        (
            lambda: UNET(SHAPE, LOW)(*batch(), low=torch.zeros(3, 1, 4, 4)),
            r"of shape \(3, 1, 8, 8\), got \(3, 1, 4, 4\)",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def batch() -> tuple[Tensor, Tensor]:
    return torch.zeros(3, *SHAPE), torch.zeros(3)


class Linear(NamedTuple):
    """x = A y + s n, with y and n of unit variance: everything about x given y or x + σ e is known.

    map: A, (numbers of x, numbers of y);  spread: s;  shape, condition: of x and y.
    """

    map: Tensor
    spread: float
    shape: tuple[int, ...]
    condition: Condition

    def draw(self, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """x and the numbers of y, (n, ·)."""
        y = torch.randn(n, self.map.shape[1], generator=g)
        return y @ self.map.T + self.spread * torch.randn(n, self.map.shape[0], generator=g), y

    def mean(self, x_t: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
        """E[x | x_t, y] for x_t = x + σ e. x_t: (n, ·), sigma: (n, 1)."""
        mean: Tensor = (y @ self.map.T * sigma**2 + x_t * self.spread**2) / (sigma**2 + self.spread**2)
        return mean

    def mean_without(self, x_t: Tensor, sigma: float) -> Tensor:
        """E[x | x_t]."""
        cov = self.map @ self.map.T + self.spread**2 * torch.eye(len(self.map))
        mean: Tensor = torch.linalg.solve(cov + sigma**2 * torch.eye(len(cov)), cov @ x_t.T).T
        return mean

    def value(self, y: Tensor) -> Tensor:
        """The condition whose numbers are y; a token is one of them, and which one."""
        if self.condition.kind != "sequence":
            return y.view(-1, *self.condition.shape)
        return torch.cat((y[:, :, None], torch.eye(y.shape[1]).expand(len(y), -1, -1)), 2)


LINE = 0.6 * torch.eye(8) + 0.4 * torch.eye(8).roll(1, 0).tril() - 0.3 * torch.eye(8).roll(-2, 0).triu()
HALVES = 0.8 * torch.eye(2).repeat_interleave(4, 0).flip(1)
CASES = {
    "vector, MLP": (
        partial(MLP, width=48, depth=2),
        Linear(torch.tensor([[0.8, -0.3, 0.0], [0.2, 0.5, 0.6]]), 0.4, (2,), Condition((3,))),
    ),
    "sequence, MLP": (
        partial(MLP, width=48, depth=2),
        Linear(torch.tensor([[0.8, -0.3, 0.0], [0.2, 0.5, 0.6]]), 0.4, (2,), Condition((3, 4))),
    ),
    "image, UNet": (
        partial(UNet, nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), dropout=0.0),
        Linear(LINE, 0.4, (1, 8), Condition((1, 8), image=True)),
    ),
    "sequence, UNet": (
        partial(UNet, nf=16, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), dropout=0.0),
        Linear(torch.full((8, 3), 0.5), 0.4, (1, 8), Condition((3, 4))),
    ),
    "sequence, DiT": (
        partial(DiT, patch_size=2, width=32, depth=2, heads=2),
        Linear(HALVES, 0.4, (1, 8), Condition((2, 3))),
    ),
}


@pytest.mark.parametrize(
    ("make", "joint"),
    [
        pytest.param(*case, id=name, marks=[] if name == "vector, MLP" else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_a_trained_network_has_the_conditional_mean(make: Factory, joint: Linear) -> None:
    """And the unconditional one without the condition, which a fifth of the training examples lack."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    network = make(joint.shape, {"y": joint.condition})
    steps = 600
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)

    def ask(x_t: Tensor, sigma: Tensor, value: Tensor) -> Tensor:
        y: Tensor = network((x_t / (1 + sigma**2).sqrt()).unflatten(1, joint.shape), 3 * sigma.flatten(), y=value)
        return y.flatten(1)

    for _ in range(steps):
        x, y = joint.draw(192, g)
        sigma = torch.where(torch.rand(len(x), 1, generator=g) < 0.5, 1.0, 3.0)
        value = joint.value(y)
        value[torch.rand(len(x), generator=g) < 0.2] = NAN
        x_t = x + sigma * torch.randn(x.shape, generator=g)
        loss = (ask(x_t, sigma, value) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()

    x, y = joint.draw(2000, g)
    for level in (1.0, 3.0):
        sigma = torch.full((len(x), 1), level)
        x_t = x + sigma * torch.randn(x.shape, generator=g)
        exact, without = joint.mean(x_t, y, sigma), joint.mean_without(x_t, level)
        gain = (exact - without).square().mean()  # what the condition is worth
        with torch.no_grad():
            given, dropped = ask(x_t, sigma, joint.value(y)), ask(x_t, sigma, null(joint.value(y)))
        assert (given - exact).square().mean() < 0.05 * gain
        assert (dropped - without).square().mean() < 0.1 * gain
