"""Resuming: options are what the user writes now, state and position come from the checkpoint, what is lost is said."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from shell import (
    LAST,
    Outcome,
    assert_same_training,
    checkpoint,
    cli,
    differences,
    fit,
    tiny_config,
    tiny_data,
    tiny_module,
    tiny_trainer,
    weights,
)
from torch import Tensor, nn

from diffusion_pl.callbacks import EMA, Description, Guard, Saver
from diffusion_pl.training import ConstantDecay, WarmupCosine, make_scheduler
from diffusion_pl.training.resuming import resume_optimizer

S = "--model.lr_scheduler"
COSINE = {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 4, "final": 0.1}}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with AdamW at a constant rate of 0.01."""
    folder = tmp_path_factory.mktemp("begun")
    fit(folder, trainer__max_steps=6, trainer__limit_val_batches=0, ema__decays=[0.9])
    return folder


def resume(begun: Path, folder: Path, *args: Any, steps: int = 8) -> tuple[Outcome, dict[str, Any]]:
    """Resume from `begun` in another folder; what is printed and the new checkpoint."""
    tiny_config(folder, "run.yaml", trainer__limit_val_batches=0, ema__decays=[0.9])
    args = ("--run", "run", "--ckpt_path", begun / "runs/run" / LAST, "--trainer.max_steps", steps, *args)
    done = cli(folder, "fit", "--config", "run.yaml", *args)
    assert done.code == 0, done.err
    return done, checkpoint(folder / "runs/run")


def group(content: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = content["optimizer_states"][0]["param_groups"][0]
    return options


def warnings(done: Outcome) -> list[str]:
    lines = [line for line in done.out.splitlines() if line.startswith("diffusion_pl: warning: ")]
    return [line for line in lines if "warning: ema: decay" not in line]


def test_optimizer_options_are_the_users(begun: Path, tmp_path: Path) -> None:
    options = ("lr", "5e-3", "betas", "[0.5, 0.6]", "weight_decay", "0.3", "fused", "true")
    pairs = zip(options[::2], options[1::2], strict=True)
    done, content = resume(begun, tmp_path, *(w for name, v in pairs for w in (f"--model.optimizer.{name}", v)))
    options_ = {name: group(content)[name] for name in ("lr", "weight_decay", "fused")}
    assert options_ == {"lr": 5e-3, "weight_decay": 0.3, "fused": True}
    assert list(group(content)["betas"]) == [0.5, 0.6]
    assert content["optimizer_states"][0]["state"][0]["step"] == 8  # the count and the moments continue
    assert warnings(done) == []
    recorded = yaml.safe_load((tmp_path / "runs/run/config.yaml").read_text())["model"]["optimizer"]["init_args"]
    assert (recorded["lr"], recorded["weight_decay"]) == (5e-3, 0.3)


def test_moments_come_from_the_checkpoint(begun: Path, tmp_path: Path) -> None:
    """With hardly any learning rate weights stay, with β near 1 moments too."""
    zero = ("--model.optimizer.lr", "1e-30", "--model.optimizer.betas", "[0.999999999, 0.999999999]")
    _, after = resume(begun, tmp_path, *zero)
    before = checkpoint(begun / "runs/run")
    assert not list(differences(before["state_dict"], after["state_dict"]))
    for k, state in before["optimizer_states"][0]["state"].items():
        now = after["optimizer_states"][0]["state"][k]
        torch.testing.assert_close(now["exp_avg_sq"], state["exp_avg_sq"], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(now["exp_avg"], state["exp_avg"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("args", "rate"),
    [
        ((S, "WarmupCosine", f"{S}.warmup_steps", 20), 0.01 * 9 / 20),  # the checkpoint has none
        ((S, "torch.optim.lr_scheduler.ExponentialLR", f"{S}.gamma", 0.5), 0.01 * 0.5**8),
        ((S, "StepLR", f"{S}.step_size", 3, "--model.optimizer.lr", 0.2), 0.002),
    ],
    ids=["warm-up", "exponential", "steps"],
)
def test_a_new_schedule_stands_where_the_run_is(begun: Path, tmp_path: Path, args: Any, rate: float) -> None:
    done, content = resume(begun, tmp_path, *args)
    assert group(content)["lr"] == pytest.approx(rate)
    assert warnings(done) == []


def test_a_schedule_can_change_end_and_grow(tmp_path: Path) -> None:
    """max_steps is the length that a cosine knows; its options, another one or none are what the user writes."""
    run = fit(tmp_path, model__lr_scheduler=COSINE, trainer__max_steps=6, trainer__limit_val_batches=0)
    more: dict[str, Any] = {"model__lr_scheduler": COSINE, "trainer__limit_val_batches": 0}
    fit(tmp_path, "--ckpt_path", "last", **more, trainer__max_steps=8)
    assert group(checkpoint(run))["lr"] == pytest.approx(0.001)  # the end of a run of 8
    fit(tmp_path, "--ckpt_path", "last", f"{S}.final", 0.5, **more, trainer__max_steps=9)
    assert group(checkpoint(run))["lr"] == pytest.approx(0.005)
    fit(tmp_path, "--ckpt_path", "last", S, "null", **more, trainer__max_steps=10)
    assert group(checkpoint(run))["lr"] == 0.01
    assert checkpoint(run)["lr_schedulers"] == []


@pytest.mark.parametrize(
    "scheduler",
    [
        {"class_path": "ExponentialLR", "init_args": {"gamma": 0.93}},
        {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.03}},
        pytest.param({"class_path": "MultiStepLR", "init_args": {"milestones": [3, 8]}}, marks=pytest.mark.slow),
    ],
    ids=lambda spec: spec["class_path"],
)
def test_an_unchanged_schedule_resumes_bitwise(tmp_path: Path, scheduler: dict[str, Any]) -> None:
    """OneCycleLR turns β₁ too."""
    common = {"model__lr_scheduler": scheduler, "trainer__limit_val_batches": 0, "trainer__max_steps": 12}
    whole = fit(tmp_path, run="whole", **common)
    config = tiny_config(tmp_path, "parts.yaml", **common)
    stop = {"class_path": "shell.SignalAt", "init_args": {"batch": 7, "number": 15}}
    args = ["--config", config, "--run", "parts"]
    assert cli(tmp_path, "fit", *args, "--trainer.callbacks", f"[{yaml.safe_dump(stop, default_flow_style=True)}]").code
    assert checkpoint(tmp_path / "runs/parts")["global_step"] == 7
    assert cli(tmp_path, "fit", *args, "--ckpt_path", "last").code == 0
    assert_same_training(whole, tmp_path / "runs/parts")


def test_another_optimizer_starts_fresh_and_says_so(begun: Path, tmp_path: Path) -> None:
    done, content = resume(begun, tmp_path, "--model.optimizer", "SGD", "--model.optimizer.momentum", "0.9")
    (line,) = warnings(done)
    assert "AdamW" in line and "SGD" in line and "fresh" in line
    assert list(content["optimizer_states"][0]["state"][0]) == ["momentum_buffer"]


def test_adam_takes_over_adamws_state(begun: Path, tmp_path: Path) -> None:
    done, content = resume(begun, tmp_path, "--model.optimizer", "Adam")
    assert warnings(done) == []
    assert content["optimizer_states"][0]["state"][0]["step"] == 8
    assert (group(content)["decoupled_weight_decay"], group(content)["weight_decay"]) == (False, 0)


def test_an_option_that_needs_other_state_is_said(begun: Path, tmp_path: Path) -> None:
    done, content = resume(begun, tmp_path, "--model.optimizer.amsgrad", "true")
    (line,) = warnings(done)
    assert "max_exp_avg_sq" in line and "fresh" in line
    assert content["optimizer_states"][0]["state"][0]["step"] == 2


class Counting(torch.optim.SGD):
    """Keeps a number for a group of parameters that is no option."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.defaults["count"] = 0
        for options in self.param_groups:
            options.setdefault("count", 0)


def resumed(saved: dict[str, Any] | None, factory: Any, *parameters: Tensor) -> tuple[dict[str, Any], list[str]]:
    content: dict[str, Any] = {"global_step": 3, "lr_schedulers": [{}]}
    if saved is not None:
        content["optimizer_states"] = [saved]
    changes = list(resume_optimizer(content, factory(parameters), None, factory, parameters))
    return content, changes


def test_what_an_optimizer_counts_for_a_group_is_state() -> None:
    p = nn.Parameter(torch.zeros(2))
    saved = Counting([p], lr=0.1).state_dict()
    saved["param_groups"][0]["count"] = 7
    content, changes = resumed(saved, partial(Counting, lr=0.5), p)
    options = content["optimizer_states"][0]["param_groups"][0]
    assert (options["count"], options["lr"], changes) == (7, 0.5, [])


def test_groups_and_missing_states_start_fresh() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    saved = torch.optim.Adam([a, b])
    a.grad = b.grad = None
    a.grad, b.grad = torch.ones(2), torch.ones(3)
    saved.step()

    def two(parameters: Any) -> torch.optim.Optimizer:
        first, second = parameters
        groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "lr": 0.5}]
        return torch.optim.Adam(groups)

    content, (line,) = resumed(saved.state_dict(), two, a, b)
    assert "groups" in line
    assert [g["lr"] for g in content["optimizer_states"][0]["param_groups"]] == [0.001, 0.5]
    content, (line,) = resumed(None, torch.optim.Adam, a, b)
    assert "holds none" in line and content["optimizer_states"] == []


def test_parameters_thawed_since_have_no_state_yet() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3), requires_grad=False)
    before = torch.optim.Adam([a, b])
    a.grad = torch.ones(2)
    before.step()
    b.requires_grad_()
    content, changes = resumed(before.state_dict(), torch.optim.Adam, a, b)
    assert changes == [] and list(content["optimizer_states"][0]["state"]) == [0]
    now = torch.optim.Adam([a, b])
    now.load_state_dict(content["optimizer_states"][0])
    b.grad = torch.ones(3)
    now.step()
    assert [float(now.state[p]["step"]) for p in (a, b)] == [2, 1]


def test_averages_that_come_and_go_are_said(begun: Path, tmp_path: Path) -> None:
    done, content = resume(begun, tmp_path, "--ema.decays", "[0.5]", "--ema.half_lives", "[100]")
    new, dropped = warnings(done)
    assert "0.5, 100examples" in new and "0.9" in dropped
    assert list(content["averages"]["shadows"]) == ["0.5", "100examples"]


def test_an_average_of_newly_trained_parameters_starts_at_them(tmp_path: Path) -> None:
    """Unfreezing a parameter ended a resumed run with a KeyError."""
    module = tiny_module()
    shadow = {f"denoiser.network.{name}": p for name, p in weights(module).items()}
    name, start = shadow.popitem()
    short = name.removeprefix("denoiser.network.")
    module.averages.track([ConstantDecay(0.9)])
    module.averages.load({"updates": 3, "shadows": {"0.9": shadow}})
    with module.evaluation():
        assert torch.equal(weights(module)[short], start)
    tiny_trainer(tmp_path, EMA((0.9,)), max_steps=1).fit(module, datamodule=tiny_data())
    expected = start + (1 - 4 / 13) * (weights(module)[short] - start)
    torch.testing.assert_close(module.averages.of("0.9")[name], expected)


def test_options_of_callbacks_are_not_in_their_state() -> None:
    guard = Guard(stop_after=3)
    guard.load_state_dict({**Guard().state_dict(), "stop_after": 10})
    assert guard.stop_after == 3
    stopping: Any = EarlyStopping("val_loss", patience=7)
    old: Any = EarlyStopping("val_loss", patience=2)
    content = {"callbacks": {stopping.state_key: old.state_dict()}}
    trainer: Any = type("Trainer", (), {"callbacks": [stopping]})
    module: Any = None
    Saver().on_load_checkpoint(trainer, module, content)
    stopping.load_state_dict(content["callbacks"][stopping.state_key])
    assert stopping.patience == 7


def test_a_classifier_of_other_network_options_is_refused() -> None:
    """A model given by its class has its parts in init_args."""

    def config(width: int) -> dict[str, Any]:
        network = {"class_path": "diffusion_pl.networks.MLP", "init_args": {"width": width}}
        return {"model": {"class_path": "diffusion_pl.training.NoisyClassifier", "init_args": {"network": network}}}

    nothing: Any = None
    with pytest.raises(ValueError, match=r"model.network.init_args.width is 8 in the checkpoint, 16 here"):
        Description(config(16), nothing).on_load_checkpoint(nothing, nothing, {"diffusion_pl": config(8)})


def test_a_factory_of_two_parameters_gets_the_length() -> None:
    """As version 0.1 called it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factory: Any = lambda optimizer, steps: WarmupCosine(optimizer, steps, 3)  # noqa: E731
    scheduler = make_scheduler(factory, optimizer, 50)
    assert isinstance(scheduler, WarmupCosine) and scheduler.total_steps == 50
