"""The published experiments on ImageNet: what each configuration builds, number by number, without the data."""

from typing import Any, NamedTuple

import pytest
import torch
import yaml
from conftest import by_class
from jsonargparse import ArgumentParser
from shell import ROOT
from torch import nn

from diffusion_pl.checkpoints.loading import DEFAULT_LOSS
from diffusion_pl.training import DiffusionModule


class Row(NamedTuple):
    """One experiment; noise levels are those of data of standard deviation 0.5."""

    shape: tuple[int, int, int]
    millions: float
    lr: float
    warmup: int | None
    decay: int | None
    images: int
    steps: int
    times: tuple[float, float] | None  # mean and standard deviation of ln σ
    dropout: float
    nfe: int
    fid: float


PUBLISHED = {
    "imagenet64/edm2_s": Row(
        *((3, 64, 64), 280.2, 0.01, 4883, 35_000, 1024 * 2**20, 1024 * 2**20 // 2048, (-0.8, 1.6), 0.0, 63, 1.58)
    ),
    "imagenet512/edm2_xs": Row(
        *((4, 64, 64), 124.7, 0.012, 4883, 70_000, 2048 * 2**20, 2048 * 2**20 // 2048, (-0.4, 1.0), 0.0, 63, 3.53)
    ),
    "imagenet64/adm": Row(
        *((3, 64, 64), 295.9, 3e-4, None, None, 540_000 * 2048, 540_000, None, 0.1, 250, 2.07),
    ),
}


def made(name: str, row: Row) -> tuple[Any, nn.Module, dict[str, Any]]:
    """The parts of the model, its network on torch's meta device, and the file."""
    content = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffusionModule, "model", skip={"shape", "conditions"}, instantiate=False)
    parser.set_defaults(DEFAULT_LOSS)
    parts = parser.instantiate(parser.parse_object({"model": content["model"]})).model
    with torch.device("meta"):
        network = parts.network(row.shape, by_class(1000))
    return parts, network, content


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_builds_the_published_experiment(name: str) -> None:
    row = PUBLISHED[name]
    model, network, content = made(name, row)
    numbers = sum(p.numel() for p in network.parameters())
    assert numbers / 1e6 == pytest.approx(row.millions, abs=0.06)
    rates = {module.p for module in network.modules() if isinstance(module, nn.Dropout)}
    assert rates == {row.dropout}
    optimizer = model.optimizer([nn.Parameter(torch.zeros(1))])
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (row.lr, 0)
    schedule: Any = model.lr_scheduler and model.lr_scheduler(optimizer, 1)
    assert (getattr(schedule, "warmup_steps", None), getattr(schedule, "decay_steps", None)) == (row.warmup, row.decay)
    data, trainer = content["data"]["init_args"], content["trainer"]
    assert data["batch_size"] * trainer["max_steps"] == row.images
    assert trainer["max_steps"] == row.steps
    sampler: Any = model.sampler
    points = len(sampler.grid(model.schedule))
    assert (points - 1) * sampler.evaluations + 1 == row.nfe
    band = content["expected"]["fid"]["band"]
    assert band[0] < row.fid < band[1]
    if row.times is not None:
        check_edm2(model, row)
    else:
        check_adm(model)


def check_edm2(model: Any, row: Row) -> None:
    """Noise levels, in units of twice the data's standard deviation."""
    loss: Any = model.loss
    parameterization: Any = model.parameterization
    unit = parameterization.sigma_data / 0.5
    assert row.times is not None
    assert loss.times.mean - torch.tensor(unit).log().item() == pytest.approx(row.times[0], abs=1e-4)
    assert (loss.times.std, type(loss.weighting).__name__) == (row.times[1], "Plain")
    assert type(loss.uncertainty).__name__ == "Uncertainty"
    grid: Any = model.sampler.grid
    sigma = model.schedule(grid(model.schedule)).sigma / unit
    assert sigma[[0, -1]].tolist() == pytest.approx([80, 0.002], rel=1e-4)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    kernel = model.schedule(t)
    c_noise = model.noise_input(model.schedule, t, kernel)
    torch.testing.assert_close(c_noise, (kernel.sigma / unit).log() / 4, rtol=0, atol=1e-4)


def check_adm(model: Any) -> None:
    loss: Any = model.loss
    variance = loss.variance
    assert (variance.weight, variance.mean, variance.levels) == (0.001, False, 256)
    assert (type(model.schedule).__name__, model.schedule.steps) == ("CosineBetas", 1000)
    c_noise = model.noise_input(model.schedule, t := torch.tensor([0.001, 1.0]), model.schedule(t))
    assert c_noise.tolist() == pytest.approx([0, 999], abs=1e-3)
    assert getattr(model.sampler, "variance", 0.0) is None
