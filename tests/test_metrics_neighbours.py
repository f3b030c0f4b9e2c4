"""Nearest neighbours against a brute-force loop, and what the ratio of distances says."""

import math

import pytest
import torch
from torch import Tensor

from diffusion_pl.evaluation import memory
from diffusion_pl.metrics import neighbours
from diffusion_pl.metrics.neighbours import NearestNeighbours, memorisation


def draw(n: int, seed: int, *shape: int) -> Tensor:
    return torch.randn(n, *(shape or (5,)), generator=torch.Generator().manual_seed(seed))


def brute(x: Tensor, y: Tensor) -> list[tuple[float, int]]:
    """(distance, number) of the nearest of y to each of x, one pair at a time."""
    found = []
    for a in x.double():
        distances = [math.sqrt(float((a - b).square().mean())) for b in y.double()]
        number = min(range(len(y)), key=distances.__getitem__)
        found.append((distances[number], number))
    return found


def test_the_nearest_of_all_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 4)
    x, y = draw(6, 0, 2, 3), draw(31, 1, 2, 3)
    found = NearestNeighbours(x)
    for piece in y.split((10, 1, 20)):
        found.update(piece)
    assert found.seen == 31
    for k, (distance, number) in enumerate(brute(x, y)):
        assert int(found.best.place[k]) == number
        assert float(found.best.distance[k]) == pytest.approx(distance, rel=1e-5)


def test_a_copy_is_at_no_distance_at_all() -> None:
    """Whatever rounding a matrix product would bring."""
    y = 1000 + draw(50, 0)
    found = NearestNeighbours(y[[7, 33]])
    found.update(y)
    assert found.best.place.tolist() == [7, 33]
    assert found.best.distance.tolist() == [0.0, 0.0]


def test_what_is_not_a_number_is_near_to_nothing() -> None:
    x = draw(3, 0)
    x[1, 2] = math.nan
    found = NearestNeighbours(x)
    found.update(draw(20, 1))
    assert found.best.distance.isfinite().tolist() == [True, False, True]


def test_the_ratio_is_one_for_new_examples_and_none_for_copies() -> None:
    seen, new, held_out = draw(500, 0), draw(200, 1), draw(200, 2)

    def distances(x: Tensor) -> Tensor:
        found = NearestNeighbours(x)
        found.update(seen)
        return found.best.distance

    assert memorisation(distances(new), distances(held_out)) == pytest.approx(1, abs=0.15)
    assert memorisation(distances(seen[:100]), distances(held_out)) == 0
    near = seen[:100] + 0.01 * draw(100, 3)
    assert memorisation(distances(near), distances(held_out)) < 0.1
    with pytest.raises(ValueError, match="needs samples"):
        memorisation(distances(new), torch.empty(0))


def test_samples_of_a_data_set_beside_its_held_out_examples() -> None:
    from diffusion_pl.data import Digits

    data = Digits(val_fraction=0.2)
    data.setup("fit")
    train = next(data.batches("train", 2000))["x"]
    copies = memory(data, train[[300, 5, 300]])
    assert copies.ratio == 0
    assert copies.nearest.place.tolist() == [300, 5, 300]
    assert torch.equal(copies.examples, train[[300, 5, 300]])
    fresh = next(data.batches("val", 150))["x"]
    ratio = memory(data, fresh).ratio
    assert ratio is not None
    assert 0.9 < ratio < 1.1
    alone = Digits(val_fraction=0.0)
    alone.setup("fit")
    assert memory(alone, train[:2]).ratio is None
