"""Nearest seen examples against brute force, and the ratio that separates copies from new examples."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import array
from torch import Tensor

from diffusion_pl.data import DataModule, Datasaurus, Digits
from diffusion_pl.evaluation import memory
from diffusion_pl.metrics import neighbours
from diffusion_pl.metrics.neighbours import NearestNeighbours, memorisation


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(x: Tensor, y: Tensor) -> tuple[list[float], list[int]]:
    distances, places = [], []
    for a in array(x.double()):
        every = [math.sqrt(((a - b) ** 2).mean()) for b in array(y.double())]
        places.append(int(np.argmin(every)))
        distances.append(min(every))
    return distances, places


@pytest.mark.parametrize("pieces", [[50], [1, 30, 19]])
def test_the_nearest_are_those_of_a_plain_loop(pieces: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    x, y = normal(0, 20, 1, 3, 4), normal(1, 50, 1, 3, 4)
    search = NearestNeighbours(x)
    for piece in y.split(pieces):
        search.update(piece)
    distances, places = brute_force(x, y)
    assert search.best.place.tolist() == places
    assert len(set(places)) > 5
    np.testing.assert_allclose(array(search.best.distance), distances, rtol=1e-6)


def test_a_copy_has_no_distance_at_all() -> None:
    """Also far from the origin, where a distance from products would be off by rounding."""
    y = 100 + normal(0, 200, 64)
    search = NearestNeighbours(y[[150, 3, 77]])
    search.update(y[:100])
    search.update(y[100:])
    assert search.best.place.tolist() == [150, 3, 77]
    assert search.best.distance.tolist() == [0, 0, 0]


def test_non_finite_rows_have_no_neighbours() -> None:
    x, y = normal(0, 4, 5), normal(1, 30, 5)
    distances, places = brute_force(x, y)
    with_nan, holes = x.clone(), y.clone()
    with_nan[1, 2] = torch.nan
    holes[next(k for k in range(30) if k not in places), 0] = torch.nan
    search = NearestNeighbours(with_nan)
    search.update(holes[:10])
    search.update(holes[10:])
    assert search.best.distance[1] == torch.inf
    others = [0, 2, 3]
    np.testing.assert_allclose(array(search.best.distance[others]), [distances[k] for k in others], rtol=1e-6)
    assert search.best.place[others].tolist() == [places[k] for k in others]


def test_new_examples_have_the_ratio_1_and_copies_0() -> None:
    seen, held_out, fresh = normal(0, 2000, 4), normal(1, 500, 4), normal(2, 500, 4)

    def distances(x: Tensor) -> Tensor:
        search = NearestNeighbours(x)
        search.update(seen)
        return search.best.distance

    assert memorisation(distances(fresh), distances(held_out)) == pytest.approx(1, abs=0.1)
    assert memorisation(distances(seen[:500]), distances(held_out)) == 0
    blurred = seen[:500] + 0.01 * normal(3, 500, 4)
    assert 0.005 < memorisation(distances(blurred), distances(held_out)) < 0.1
    assert memorisation(distances(5 * fresh), distances(held_out)) > 3
    with pytest.raises(ValueError, match="needs samples, and held-out examples"):
        memorisation(distances(fresh), torch.empty(0))


@pytest.mark.parametrize("data", [Datasaurus(val_fraction=0.3), Digits()], ids=lambda d: type(d).__name__)
def test_the_memory_of_a_data_set(data: DataModule) -> None:
    """Of held-out examples as samples the ratio is 1, of training examples 0; their neighbours are handed out."""
    data.setup("fit")
    seen = next(data.batches("train", 2000))["x"]
    new = next(data.batches("val", 2000))["x"]
    order = torch.tensor([5, 60, 5, 0])  # neither rising nor without repeats
    copies = memory(data, seen[order])
    assert copies.ratio == 0
    assert torch.equal(copies.examples, seen[order])
    fresh = memory(data, new)
    assert fresh.ratio == 1
    distances, places = brute_force(new[:5], seen)
    np.testing.assert_allclose(array(fresh.nearest.distance[:5]), distances, rtol=1e-5)
    assert torch.equal(fresh.examples[:5], seen[places])


def test_without_held_out_examples_there_is_no_ratio() -> None:
    data = Datasaurus(val_fraction=0.0)
    data.setup("fit")
    search = memory(data, torch.zeros(3, 2))
    assert search.ratio is None
    assert search.nearest.distance.isfinite().all()


def test_a_bounded_search_reads_examples_spread_over_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Digits()
    data.setup("fit")
    source, read = data.part("train"), list[int]()
    seen = next(data.batches("train", 2000))["x"]
    get = type(source).__getitems__

    def reading(self: Any, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        read.extend(indices.tolist())
        return get(self, indices)

    monkeypatch.setattr(type(source), "__getitems__", reading)
    nearest = memory(data, seen[[0, len(seen) // 2, 7]], most=100)
    searched = torch.arange(100) * len(seen) // 100
    held_out = len(data.part("val"))
    assert len(read) <= 100 + held_out + 3
    distances, places = brute_force(seen[[0, len(seen) // 2, 7]], seen[searched])
    np.testing.assert_allclose(array(nearest.nearest.distance), distances, rtol=1e-5, atol=1e-6)
    assert torch.equal(nearest.examples, seen[searched][places])
