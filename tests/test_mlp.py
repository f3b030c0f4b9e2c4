"""The MLP and its embeddings: shapes, what each switch changes, reproducible frequencies, and YAML."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import yaml
from conftest import by_class
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from diffusion_pl.conditions import Condition
from diffusion_pl.networks import MLP, Blind, Fourier, Identity
from diffusion_pl.networks.mlp import Block

EMBEDDINGS: list[Any] = [None, Identity, Fourier, partial(Fourier, features=6, scale=3.0, seed=2)]


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("input_embedding", EMBEDDINGS)
@pytest.mark.parametrize("time_embedding", [*EMBEDDINGS, Blind])
def test_every_combination_maps_points_to_points_and_learns(
    dim: int, input_embedding: Any, time_embedding: Any
) -> None:
    network = MLP((dim,), width=16, depth=2, input_embedding=input_embedding, time_embedding=time_embedding)
    x = torch.randn(7, dim)
    output = network(x, torch.rand(7))
    assert output.shape == x.shape
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_the_default_has_the_introductions_width_and_depth() -> None:
    network = MLP((2,), input_embedding=Fourier, time_embedding=partial(Fourier, features=128))
    assert network.input.in_features == 128 + 128
    sizes = 256 * 128 + 128, 3 * (128 * 128 + 128), 128 * 2 + 2
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(sizes)


def test_blocks_are_residual() -> None:
    network = MLP((2,), width=8, depth=4)
    x, c_noise = torch.randn(5, 2), torch.rand(5)
    for block in network.blocks:
        assert isinstance(block, Block)
        nn.init.zeros_(block.linear.weight)
        nn.init.zeros_(block.linear.bias)
    h = nn.functional.gelu(network.input(torch.cat((x, c_noise[:, None]), 1)))
    assert torch.allclose(network(x, c_noise), network.output(h))


def test_only_a_blind_network_ignores_the_noise_level() -> None:
    x = torch.randn(5, 2)
    for embedding in (None, Identity, Fourier):
        network = MLP((2,), time_embedding=embedding)
        assert not torch.allclose(network(x, torch.zeros(5)), network(x, torch.ones(5)))
    network = MLP((2,), time_embedding=Blind)
    assert torch.equal(network(x, torch.zeros(5)), network(x, torch.ones(5)))


def test_points_do_not_influence_each_other() -> None:
    network = MLP((2,), input_embedding=Fourier, time_embedding=Fourier, conditions=by_class(3))
    x, c_noise, label = torch.randn(6, 2), torch.rand(6), torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.allclose(network(x, c_noise, label)[3:4], network(x[3:4], c_noise[3:4], label[3:4]), atol=1e-6)


def test_fourier_features_are_in_cycles_per_unit() -> None:
    embedding = Fourier(2, features=8, scale=2.0)
    x = torch.randn(5, 2)
    features = embedding(x)
    assert features.shape == (5, embedding.width) == (5, 16)
    phase = [2 * math.pi * f * x[:, i] for i in range(2) for f in embedding.frequencies[i].tolist()]
    expected = torch.stack([p.sin() for p in phase] + [p.cos() for p in phase], 1)
    assert torch.allclose(features, expected, atol=1e-5)


def test_each_coordinate_has_its_own_frequencies_of_the_scale() -> None:
    frequencies = Fourier(2, features=4000, scale=3.0).frequencies
    assert frequencies.std(1).tolist() == pytest.approx([3, 3], rel=0.05)
    assert abs(torch.corrcoef(frequencies)[0, 1]) < 0.1


def test_frequencies_depend_on_the_seed_only() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = Fourier(2, seed=4).frequencies
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(Fourier(2, seed=4).frequencies, first)
    assert not torch.equal(Fourier(2, seed=5).frequencies, first)


def test_frequencies_are_in_the_checkpoint_and_not_trained() -> None:
    source, target = (MLP((2,), input_embedding=partial(Fourier, seed=seed)) for seed in (0, 1))
    x, c_noise = torch.randn(4, 2), torch.rand(4)
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x, c_noise), target(x, c_noise))
    assert not any("frequencies" in name for name, _ in source.named_parameters())


def test_classes_change_the_output_and_no_label_means_any_class() -> None:
    network = MLP((2,), conditions=by_class(3))
    x, c_noise = torch.randn(1, 2).expand(4, 2), torch.full((4,), 0.5)
    outputs = network(x, c_noise, torch.arange(4))
    assert len({tuple(output) for output in outputs.tolist()}) == 4
    assert torch.equal(network(x, c_noise), network(x, c_noise, torch.full((4,), 3)))
    with pytest.raises(ValueError, match="got labels but was built without conditions"):
        MLP((2,))(x, c_noise, torch.arange(4))


class Holder:
    """Stands for a module that builds its network from a factory of the data's shape."""

    def __init__(self, network: Callable[[tuple[int, ...]], nn.Module]) -> None:
        self.network = network


def test_embeddings_are_chosen_by_class_in_yaml() -> None:
    text = """
    network:
      class_path: diffusion_pl.networks.MLP
      init_args:
        width: 16
        input_embedding: {class_path: diffusion_pl.networks.Fourier, init_args: {features: 8, scale: 0.5}}
        time_embedding: diffusion_pl.networks.Blind
    """
    parser = ArgumentParser()
    parser.add_class_arguments(Holder, "model")
    config = parser.parse_args([f"--model={yaml.safe_dump(yaml.safe_load(text))}"])
    factory = parser.instantiate(config).model.network
    network = factory((3,), conditions=by_class(2))
    assert isinstance(network, MLP)
    assert (network.input_embedding.width, network.time_embedding.width, network.label.classes) == (24, 0, 2)
    assert network(torch.randn(4, 3), torch.rand(4)).shape == (4, 3)
    assert factory((3,)).input_embedding is not network.input_embedding


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP((3, 32, 32)), r"MLP: .*shape \(D,\), got \(3, 32, 32\)"),
        (lambda: MLP(()), r"got \(\)"),
        (lambda: MLP((2,), width=0), "width and depth must be at least 1, got width 0, depth 3"),
        (lambda: MLP((2,), depth=-1), "got width 128, depth -1"),
        (lambda: MLP((2,), {"label": Condition((), 0)}), "MLP: label: classes must be at least 1, got 0"),
        (lambda: Fourier(2, features=7), "Fourier: features .*got 7"),
        (lambda: Fourier(2, features=0), "got 0"),
        (lambda: Fourier(2, scale=0.0), "Fourier: scale must be positive and finite, got 0"),
        (lambda: Fourier(2, scale=math.inf), "got inf"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
