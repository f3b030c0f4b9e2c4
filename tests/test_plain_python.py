"""Training in plain Python: exact resume and noise without callbacks of ours, other parts that learn, model.save."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import classes, label, takes_grid, variants
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from shell import Losses, cli, differences, environment, tiny_data, tiny_module, tiny_trainer
from torch import Tensor, nn

from diffusion_pl.callbacks import EMA, Guard
from diffusion_pl.checkpoints.loading import load_model, rebuild
from diffusion_pl.data import Unknown
from diffusion_pl.denoisers import NoiseInput, Parameterization
from diffusion_pl.losses import SNR, DenoisingLoss, TimeSampler, UniformTimes, Weighting
from diffusion_pl.networks import MLP
from diffusion_pl.samplers import DDIM, Grid, Sampler, UniformGrid
from diffusion_pl.schedules import Kernel, Schedule
from diffusion_pl.training import DiffusionModule
from diffusion_pl.training.saving import describe


def plain_trainer(folder: Path, steps: int, *callbacks: Callback, **options: Any) -> Trainer:
    """Lightning's own, without plugins of ours."""
    common: dict[str, Any] = {"max_steps": steps, "accelerator": "cpu", "logger": False, "limit_val_batches": 0}
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return Trainer(
        callbacks=list(callbacks), default_root_dir=folder, enable_checkpointing=saving, **common, **quiet, **options
    )


def test_plain_fit_resumes_within_an_epoch_bitwise(tmp_path: Path) -> None:
    """An epoch has 20 batches."""
    network = partial(MLP, width=16, depth=1)
    whole, whole_losses = tiny_module(network=network), Losses()
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=13, save_top_k=-1)
    plain_trainer(tmp_path, 30, saver, whole_losses).fit(whole, datamodule=tiny_data())
    torch.manual_seed(99)
    torch.randn(5)
    part, part_losses = tiny_module(network=network), Losses()
    path = tmp_path / "step=13.ckpt"
    plain_trainer(tmp_path, 30, part_losses).fit(part, datamodule=tiny_data(), ckpt_path=path)
    assert part_losses.losses == whole_losses.losses[13:]
    assert len(set(whole_losses.losses)) == 30
    assert not list(differences(dict(part.state_dict()), dict(whole.state_dict())))


PROGRAM = """
import sys, torch
from lightning.pytorch import Trainer
from shell import Witness, tiny_data, tiny_module
Trainer(max_steps=3, accelerator="cpu", devices=2, strategy="ddp", callbacks=[Witness()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        use_distributed_sampler=False).fit(tiny_module(), datamodule=tiny_data())
"""


@pytest.mark.slow
def test_two_processes_draw_different_noise(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment(), check=True, capture_output=True)
    seeds = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["seeds"] for rank in (0, 1)]
    assert len({*seeds[0], *seeds[1]}) == 6


class LearnedVP(Schedule):
    """σ² = t^p, α² = 1 − σ² (kept from 0 and 1), with a power that is learned."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power))

    def forward(self, t: Tensor) -> Kernel:
        t = 0.001 + 0.998 * t
        variance = t**self.power
        sigma, alpha = variance.sqrt(), (1 - variance).sqrt()
        slope = 0.998 * self.power * variance / t
        return Kernel(alpha, sigma, -slope / (2 * alpha), slope / (2 * sigma))


def learning(**options: Any) -> DiffusionModule:
    return tiny_module(schedule=LearnedVP(), **options)


def test_a_learned_schedule_moves_and_is_averaged(tmp_path: Path) -> None:
    module = learning()
    names = list(module.trained_parameters())
    assert names[-1] == "denoiser.schedule.power"
    assert [module.get_parameter(name) for name in names[:-1]] == list(module.network.parameters())
    tiny_trainer(tmp_path, EMA((0.9,)), Guard(), max_steps=8).fit(module, datamodule=tiny_data())
    schedule: Any = module.schedule
    power = schedule.power.item()
    averaged = float(module.averages.of("0.9")["denoiser.schedule.power"])
    assert abs(power - 1) > 1e-3 and power != averaged
    assert min(power, 1) < averaged < max(power, 1)
    with module.evaluation():
        assert float(schedule.power) == averaged
    copied: Any
    copied, name = module.averaged(module.denoiser)
    assert (float(copied.schedule.power), name) == (averaged, "ema0.9")
    assert float(schedule.power) == power


class Watched(torch.optim.SGD):
    """Keeps the norm of all gradients as its steps get them."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.01)
        self.norms: list[float] = []

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        self.norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        super().step()
        return loss


def test_a_learned_schedule_is_clipped_with_the_network(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_steps=3, gradient_clip_val=1e-3)
    module = learning(optimizer=Watched)
    trainer.fit(module, datamodule=tiny_data())
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, Watched)
    assert len(optimizer.param_groups[0]["params"]) == len(list(module.network.parameters())) + 1
    assert optimizer.norms == pytest.approx([1e-3] * 3, rel=1e-2)


def test_a_learned_schedule_resumes_bitwise(tmp_path: Path) -> None:
    whole, part = learning(), learning()
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    plain_trainer(tmp_path, 8, EMA((0.9,)), saver).fit(whole, datamodule=tiny_data())
    resumed = plain_trainer(tmp_path, 8, EMA((0.9,)))
    resumed.fit(part, datamodule=tiny_data(), ckpt_path=tmp_path / "step=4.ckpt")
    ends = [{"state": dict(m.state_dict()), "averages": m.averages.state()} for m in (whole, part)]
    assert not list(differences(ends[0], ends[1]))


def test_a_saved_model_loads_and_samples_the_same(tmp_path: Path) -> None:
    module, data = tiny_module(), tiny_data()
    tiny_trainer(tmp_path, EMA((0.9,)), max_steps=4).fit(module, datamodule=data)
    module.save(tmp_path / "model.ckpt", data)
    module.save(tmp_path / "alone.ckpt")
    for weights in ("ema", "raw"):
        with module.evaluation(raw=weights == "raw"):
            x = module.live_pipeline().samples(range(4)).x_0
        ours, theirs = load_model(tmp_path / "model.ckpt", weights)
        assert torch.equal(ours.live_pipeline().samples(range(4)).x_0, x)
        assert torch.equal(theirs.decode(x), data.decode(x))
        alone, unknown = load_model(tmp_path / "alone.ckpt", weights)
        assert torch.equal(alone.live_pipeline().samples(range(4)).x_0, x)
        assert isinstance(unknown, Unknown) and torch.equal(unknown.decode(x), x)
    args = ("--ckpt_path", "alone.ckpt", "--num_samples", 4, "--accelerator", "cpu", "--output", "out")
    done = cli(tmp_path, "sample", *args)
    assert done.code == 0, done.err
    with pytest.raises(ValueError, match=r"saved without its data\. Fix: save it by model\.save"):
        Unknown((2,)).setup()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": lambda shape, conditions: MLP(shape, conditions)},
            r"model\.network is .*<lambda>, which a",
        ),
        ({"optimizer": partial(lambda p, lr: torch.optim.SGD(p, lr), lr=0.1)}, r"model\.optimizer is partial"),
        ({"guidance": nn.Identity()}, r"model\.guidance is Identity, which a file cannot describe\. Fix: give"),
    ],
    ids=["lambda", "partial", "foreign"],
)
def test_a_part_that_cannot_be_described_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_module(**changes).save(tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_class_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    class Hidden(MLP):
        pass

    with pytest.raises(ValueError, match=r"model\.network: the class .*Hidden cannot be imported\. Fix"):
        tiny_module(network=partial(Hidden, width=16, depth=1)).save(tmp_path / "model.ckpt")


def parts() -> list[Any]:
    """Every concrete class of the core with its variants."""
    result = []
    for base in (Schedule, Parameterization, NoiseInput, Grid, TimeSampler, Weighting, Sampler):
        for cls in classes(base):
            for kwargs in variants(cls, {"steps": 8} if base is Grid else {}):
                if cls.__name__ not in ("Replacement", "DPS"):  # made of an observation, in `restore` only
                    result.append(pytest.param(cls, kwargs, id=label(cls, kwargs)))
    return result


@pytest.mark.parametrize(("cls", "kwargs"), parts())
def test_every_component_records_its_arguments(cls: type, kwargs: dict[str, Any]) -> None:
    given = {**kwargs, **({"grid": UniformGrid(4)} if takes_grid(cls) else {})}
    spec = describe(cls(**given), "part")
    assert spec["class_path"].rpartition(".")[2] == cls.__name__
    for name, value in given.items():
        assert spec["init_args"][name] == describe(value, name)


def test_a_description_is_rebuilt() -> None:
    module = tiny_module(sampler=DDIM(UniformGrid(7), eta=0.5), loss=DenoisingLoss(UniformTimes(), SNR(plus=2)))
    init_args = describe(module, "model")["init_args"]
    again, _ = rebuild({"model": init_args, "data": describe(tiny_data(), "data")}, {})
    assert isinstance(again, DiffusionModule)
    assert describe(again.sampler, "x") == init_args["sampler"]
    assert describe(again.loss, "x") == init_args["loss"]
    assert again.sampler.grid.arguments["steps"] == 7
