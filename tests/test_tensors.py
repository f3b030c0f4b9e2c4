"""Shapes, per-sample noise, seeds."""

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion_pl.tensors import SampleNoise, combine, mean_data, mix, per_sample


def test_per_sample_broadcasts_along_the_batch_axis() -> None:
    x = torch.ones(2, 3, 4, 5)
    scaled = per_sample(torch.tensor([2.0, 7.0]), x) * x
    assert scaled.flatten(1).unique(dim=1).tolist() == [[2.0], [7.0]]


def test_mean_data_averages_all_but_the_batch() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 6))
    expected = [x[i].mean() for i in range(3)]
    np.testing.assert_allclose(mean_data(torch.from_numpy(x)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (3, 5, 5)], ids=str)
def test_sample_noise_does_not_depend_on_how_the_batch_is_split(shape: tuple[int, ...], device: torch.device) -> None:
    def rows(indices: list[int], calls: int = 70) -> torch.Tensor:  # 70 calls run past any block drawn ahead
        noise, like = SampleNoise(5, indices), torch.empty(len(indices), *shape, device=device, dtype=torch.float64)
        return torch.stack([noise(like) for _ in range(calls)], dim=1)

    whole = rows(list(range(6)))
    assert torch.equal(torch.cat([rows([0]), rows([1, 2, 3]), rows([4, 5])]), whole)
    assert torch.equal(rows([4, 0]), whole[[4, 0]])
    assert len(whole.flatten().unique()) == whole.numel()  # no number is dealt twice


def test_sample_noise_of_other_seeds_is_other_noise() -> None:
    like = torch.empty(4, 2)
    draws = [SampleNoise(seed, range(4))(like) for seed in (0, 1, 2)]
    assert len(torch.cat(draws).unique(dim=0)) == 12  # also across (seed, index) pairs with equal sums


def test_sample_noise_is_standard_normal_in_both_directions() -> None:
    like = torch.empty(400, 3, dtype=torch.float64)
    noise = SampleNoise(1, range(400))
    draws = torch.stack([noise(like) for _ in range(50)])
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    assert draws.mean(0).std().item() == pytest.approx(50**-0.5, rel=0.1)  # independent over calls
    assert draws.mean(1).std().item() == pytest.approx(400**-0.5, rel=0.15)  # independent over samples


def test_sample_noise_follows_the_shape_and_type_of_its_argument() -> None:
    noise = SampleNoise(0, [0, 1])
    for like in (torch.empty(2, 3), torch.empty(2, 4, 4), torch.empty(2, 3, dtype=torch.float64)):
        drawn = noise(like)
        assert (drawn.shape, drawn.dtype) == (like.shape, like.dtype)


def test_sample_noise_refuses_another_batch() -> None:
    with pytest.raises(ValueError, match=r"2 samples, got a batch of 3"):
        SampleNoise(0, [0, 1])(torch.empty(3, 2))


def test_sample_noise_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    SampleNoise(0, [0, 1])(torch.empty(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_mix_is_splitmix64() -> None:
    # The first outputs of splitmix64 seeded with 0 (published test vector), without the lowest bit.
    assert mix(0) == 0xE220A8397B1DCDAF >> 1
    assert len({mix(a, b) for a in range(60) for b in range(60)}) == 3600
    assert mix(1, 2) != mix(2, 1) != mix(1, 2, 0)
    flips = [bin(mix(n) ^ mix(n + 1)).count("1") for n in range(500)]
    assert np.mean(flips) == pytest.approx(31.5, abs=1)  # neighbouring seeds share nothing
    assert all(0 <= mix(n) < 2**63 for n in (-1, 2**70, 12345))


def test_a_combination_is_the_sum_and_leaves_its_terms_alone() -> None:
    x = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c = torch.tensor([0.3, -2.0, 1e-3, 7.0], dtype=torch.float64)
    before = x.clone()
    result = combine(*zip(c, x, strict=True))
    np.testing.assert_allclose(result.numpy(), np.einsum("k,kij->ij", c.numpy(), x.numpy()), rtol=1e-13)
    assert torch.equal(x, before)
    single = combine(*zip(c, x.float(), strict=True))
    assert single.dtype == torch.float32
