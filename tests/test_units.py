"""Units of data: what was done to the user's numbers, and exactly undone."""

import pytest
import torch

from diffusion_pl.data.units import Levels, Standardized


@pytest.mark.parametrize("levels", [2, 17, 256, 4096, 65_536])
def test_every_level_is_spaced_evenly_and_comes_back(levels: int) -> None:
    units, v = Levels(levels), torch.arange(levels)
    x = units.encode(v)
    assert units.value_range == (x.min().item(), x.max().item()) == (-1, 1)
    assert x.double().diff().numpy() == pytest.approx(2 / (levels - 1), abs=2**-22)
    assert torch.equal(units.decode(x).long(), v)
    assert units.decode(x).dtype == (torch.uint8 if levels <= 256 else torch.int32)


def test_levels_round_to_the_nearest_and_stay_in_range() -> None:
    x = torch.tensor([-1.3, -1.0, -0.51, 0.49, 0.51, 1.0, 7.0])
    assert Levels(3).decode(x).tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert Levels(3).to_uint8(x).tolist() == [0, 0, 62, 190, 193, 255, 255]
    assert torch.equal(Levels(256).to_uint8(x), Levels(256).decode(x))


def test_levels_are_the_arithmetic_of_old_checkpoints() -> None:
    """Stored values: a last bit that moved would move the bits/dim and the samples of old runs."""
    stored = [-1.0, -0.9921568632125854, -0.0039215087890625, 0.003921627998352051, 0.992156982421875]
    assert Levels(256).encode(torch.tensor([0, 1, 127, 128, 254])).tolist() == stored
    stored = [-0.9995115995407104, -0.000244140625, 0.0002442598342895508]
    assert Levels(4096).encode(torch.tensor([1, 2047, 2048])).tolist() == stored


def test_standardized_points_have_zero_mean_and_unit_variance() -> None:
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1e-3, 1, 1e4]) + 7
    units = Standardized(x.mean(0), x.std(0, correction=0))
    encoded = units.encode(x)
    assert encoded.mean(0).tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    assert encoded.square().mean(0).tolist() == pytest.approx([1, 1, 1])
    assert units.decode(encoded).numpy() == pytest.approx(x.numpy(), rel=1e-12)
    assert units.encode(x.float()).dtype == torch.float32
    assert (units.value_range, units.levels) == (None, None)


def test_unbounded_data_cannot_be_shown_as_images() -> None:
    with pytest.raises(ValueError, match="Standardized: unbounded data cannot be shown as images"):
        Standardized(torch.zeros(2), torch.ones(2)).to_uint8(torch.zeros(1, 2))


def test_data_of_one_level_are_refused() -> None:
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        Levels(1)
