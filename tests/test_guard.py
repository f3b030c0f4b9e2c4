"""Guard: what is not finite changes nothing, is counted, and ends the run if it does not end itself."""

import copy
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flaws import FlawedLoss, FlawedMLP, flawed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from shell import (
    assert_same_training,
    checkpoint,
    cli,
    differences,
    fit,
    scalars,
    start,
    tiny_config,
    tiny_data,
    tiny_module,
    tiny_trainer,
    weights,
)
from torch.optim import SGD, Adam, AdamW

from diffusion_pl.callbacks import Guard
from diffusion_pl.callbacks.guard import RunningMedian
from diffusion_pl.checkpoints.io import read
from diffusion_pl.losses import SNR, LossSecondMoment, UniformTimes
from diffusion_pl.tensors import mix
from diffusion_pl.training import DiffusionModule, WarmupCosine, run_seed

BAD = (0, 5, 6, 7)
OPTIMIZERS: dict[str, Any] = {
    "Adam": partial(Adam, lr=0.01),
    "fused AdamW": partial(AdamW, lr=0.01, fused=True),
    "SGD": partial(SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
}


class Record(Callback):
    """Batches, and after each of them the weights and the optimizer's state; metrics of logging steps."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.states: list[Any] = []
        self.metrics: list[dict[str, float]] = []
        self.norms: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(copy.deepcopy(batch))
        if not self.states:
            self.on_train_batch_end(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients: list[Any] = [p.grad for p in pl_module.parameters()]
        self.norms.append(sum(gradient.double().square().sum().item() for gradient in gradients) ** 0.5)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        state = {"weights": pl_module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()["state"]}
        self.states.append(copy.deepcopy(state))
        self.metrics.append({name: value.item() for name, value in trainer.logged_metrics.items()})


def train(folder: Path, module: DiffusionModule, guard: Guard, **options: Any) -> Record:
    record = Record()
    trainer = tiny_trainer(folder, record, guard, **({"max_steps": 12, "log_every_n_steps": 1} | options))
    trainer.fit(module, datamodule=tiny_data())
    return record


def module_with(kind: str, bad: Any, **changes: Any) -> DiffusionModule:
    if kind == "loss":
        loss = FlawedLoss(changes.pop("times", UniformTimes()), SNR(plus=1))
        loss.bad = bad
        return tiny_module(loss=loss, **changes)
    return tiny_module(network=partial(FlawedMLP, kind=kind, bad=bad), **changes)


def plain_loop(module: DiffusionModule, batches: list[Any], bad: Any, together: int = 1) -> None:
    """The same training in ten lines of torch, which never sees the bad batches."""
    optimizer = module.optimizer_factory(module.network.parameters())
    scheduler = WarmupCosine(optimizer, len(batches) // together, 3)
    for first in range(0, len(batches), together):
        numbers = range(first, first + together)
        for n in numbers if not set(numbers) & set(bad) else ():
            torch.manual_seed(mix(run_seed(), n, 0))
            (module.losses(batches[n]).loss.mean() / together).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


@pytest.mark.parametrize("kind", ["output", "gradient", "loss"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_non_finite_step_is_skipped(tmp_path: Path, optimizer: str, kind: str) -> None:
    parts = {"optimizer": OPTIMIZERS[optimizer], "lr_scheduler": partial(WarmupCosine, warmup_steps=3)}
    module, guard = module_with(kind, BAD, **parts), Guard()
    record = train(tmp_path, module, guard)
    for n in range(12):
        changed = list(differences(record.states[n], record.states[n + 1]))
        assert bool(changed) == (n not in BAD), (n, changed)
    assert (guard.skipped, guard.in_a_row) == (4, 0)
    assert [m["guard/skipped_steps"] for m in record.metrics[1:]] == [1, 1, 1, 1, 1, 2, 3, 4, 4, 4, 4, 4]

    reference = tiny_module(network=partial(FlawedMLP), **parts)
    plain_loop(reference, record.batches, BAD)
    assert not list(differences(weights(module), weights(reference)))


def test_one_bad_accumulated_batch_skips_the_step(tmp_path: Path) -> None:
    bad, parts = (5,), {"lr_scheduler": partial(WarmupCosine, warmup_steps=3)}
    module, guard = module_with("output", bad, **parts), Guard()
    record = train(tmp_path, module, guard, max_steps=6, accumulate_grad_batches=2)
    assert guard.skipped == 1
    reference = tiny_module(network=partial(FlawedMLP))
    plain_loop(reference, record.batches, bad, together=2)
    assert not list(differences(weights(module), weights(reference)))


def test_the_norm_is_that_before_clipping(tmp_path: Path) -> None:
    record = train(tmp_path, tiny_module(), Guard(), gradient_clip_val=1e-3)
    assert [m["gradient_norm/raw"] for m in record.metrics[1:]] == pytest.approx(record.norms, rel=1e-6)
    assert min(record.norms) > 0.01


def test_learned_time_distributions_ignore_skipped_steps(tmp_path: Path) -> None:
    times = LossSecondMoment(steps=2, history=1)
    module = module_with("loss", (6,), times=times)
    record = train(tmp_path, module, Guard())
    seen = [state["weights"]["loss.times.seen"].sum().item() for state in record.states]
    assert seen == [32 * n for n in (0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11)]
    assert times.history.isfinite().all()


# The end of the run


def stopped(folder: Path, bad: Any, *args: Any, kind: str = "output", run: str = "run", **changes: Any) -> str:
    config = tiny_config(folder, f"{run}.yaml", model__network=flawed(kind, bad), **changes)
    return cli(folder, "fit", "--config", config, "--run", run, *args).error


def test_it_stops_after_consecutive_skips_and_keeps_the_state(tmp_path: Path) -> None:
    bad = [*range(3, 12), *range(25, 40)]  # the first are one too few
    error = stopped(tmp_path, bad, "--saver.every_n_steps", 25)
    assert error == (
        "loss not finite in 10 steps in a row, at last in step 34: `python -m diffusion_pl replay "
        "runs/run/dumps/step-00000034.ckpt` shows where it begins"
    )
    run = tmp_path / "runs" / "run"
    assert [file.name for file in (run / "dumps").iterdir()] == ["step-00000034.ckpt"]
    dump, kept = read(run / "dumps/step-00000034.ckpt"), checkpoint(run)
    assert kept["global_step"] == 25
    assert kept["callbacks"]["Guard"]["skipped"] == 9
    assert not list(differences(dump["state_dict"], kept["state_dict"]))  # 25 to 34 changed nothing
    about = dump["dump"]
    assert (about["step"], about["seed"], about["world_size"], about["precision"]) == (34, 0, 1, "32-true")
    assert "output.weight" in about["not_finite"]
    (share,) = about["ranks"]
    assert share["numbers"] == [34]
    assert share["batches"][0]["x"].shape == (32, 2)
    assert math.isnan(share["losses"][0])
    assert dump["diffusion_pl"]["model"]["schedule"]["class_path"].endswith("VP")


def test_the_first_skip_is_reported_once_per_100_steps(tmp_path: Path) -> None:
    changes = {"model__network": flawed("gradient", [3, 4, 8]), "trainer__max_steps": 10}
    done = cli(tmp_path, "fit", "--config", tiny_config(tmp_path, **changes), "--run", "run")
    lines = [line for line in done.out.splitlines() if line.startswith("step ")]
    assert lines == ["step 3: gradients not finite: the step is skipped (1 so far)"]
    assert checkpoint(tmp_path / "runs/run")["callbacks"]["Guard"]["skipped"] == 3


def test_a_resumed_run_keeps_the_count(tmp_path: Path) -> None:
    bad = {"model__network": flawed("output", [4, 15, 22])}
    whole = fit(tmp_path, run="whole", **bad)
    fit(tmp_path, run="parts", **bad, trainer__max_steps=16)
    parts = fit(tmp_path, "--ckpt_path", "last", run="parts", **bad)
    assert_same_training(whole, parts)  # the callbacks' states too
    assert checkpoint(parts)["callbacks"]["Guard"]["skipped"] == 3
    assert [value for _, value in scalars(parts)["guard/skipped_steps"]] == [1, 2, 3, 3]


def test_a_resumed_run_keeps_the_consecutive_count(tmp_path: Path) -> None:
    bad = range(18, 30)
    assert "step 22" in stopped(tmp_path, bad, "--guard.stop_after", 5)
    fit(tmp_path, run="parts", model__network=flawed("output", bad), trainer__max_steps=20)
    error = stopped(tmp_path, bad, "--guard.stop_after", 5, "--ckpt_path", "last", run="parts")
    assert error.startswith("loss not finite in 5 steps in a row, at last in step 22: ")


def test_a_trial_run_writes_no_dump(tmp_path: Path) -> None:
    error = stopped(tmp_path, [0], "--guard.stop_after", 1, "--trainer.fast_dev_run", "true")
    assert error == "loss not finite in one step, at last in step 0"
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path: Path) -> None:
    """What fails on the second process only is skipped by both, and shown by the replay of its share."""
    pair = {"trainer__devices": 2, "trainer__strategy": "ddp"}
    config = tiny_config(tmp_path, model__network=flawed("output", [2, *range(5, 30)], rank=1), **pair)
    process = start(tmp_path, "fit", "--config", config, "--run", "run", "--guard.stop_after", 3)
    out, err = process.communicate(timeout=240)  # waits for all who hold its pipes
    assert process.returncode not in (0, None)
    assert "Traceback" not in err
    assert "diffusion_pl: error: loss not finite in 3 steps in a row, at last in step 7: " in err
    assert [line for line in out.splitlines() if line.startswith("step 2: ")] == [
        "step 2: loss not finite: the step is skipped (1 so far)"  # once, not by both
    ]
    (path,) = (tmp_path / "runs/run/dumps").iterdir()
    first, second = read(path)["dump"]["ranks"]
    assert math.isfinite(first["losses"][0])
    assert math.isnan(second["losses"][0])
    assert not torch.equal(first["batches"][0]["x"], second["batches"][0]["x"])
    replayed = cli(tmp_path, "replay", path)
    assert replayed.code == 0, replayed
    assert "2 processes" in replayed.out
    assert "the first that is not finite: the output of blocks.1 (Flaw) (process 1)" in replayed.out
    loss = first["losses"][0]
    assert re.search(rf"loss \(process 0, batch 0\) +{loss!r}, in the run {loss!r}\n", replayed.out)


# Spikes


def test_spikes_are_reported_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = Guard(spike=20)
    module = module_with("spike", (50, 120, 130), optimizer=partial(SGD, lr=1e-6))
    record = train(tmp_path, module, guard, max_steps=135)
    assert guard.spikes == 2  # before there are 100 steps to compare with, none
    warned = re.fullmatch(
        r"step 120: gradient norm (\S+), (\d+) times the median of the last 100 \(1 spikes so far\)\n",
        capsys.readouterr().out,
    )
    assert warned
    assert float(warned[1]) == pytest.approx(record.norms[120], rel=1e-2)
    assert int(warned[2]) == pytest.approx(record.norms[120] / np.median(record.norms[20:120]), abs=0.51)
    assert record.metrics[-1]["guard/spikes"] == 2


def test_the_running_median_is_numpys() -> None:
    numbers = np.random.default_rng(0).normal(size=60).round(1)  # with some that are equal
    for size in (7, 8):
        median = RunningMedian(size)
        for n, number in enumerate(numbers):
            assert median.median == (None if n < size else pytest.approx(np.median(numbers[n - size : n]), abs=1e-12))
            median.add(number)


# float16


def half(scale: float) -> dict[str, Any]:
    """Options of a trainer in float16 on the CPU, which Lightning leaves to those who ask for it like this."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


@pytest.mark.parametrize("fused", [False, True])
def test_what_the_scaler_leaves_out_is_its_own_business(tmp_path: Path, fused: bool) -> None:
    guard = Guard(stop_after=1)
    module = tiny_module(optimizer=partial(Adam, lr=0.01, fused=fused))
    record = train(tmp_path, module, guard, max_steps=24, **half(2.0**24))
    assert guard.skipped == 0
    states = [state["weights"] for state in record.states]
    same = [n for n in range(24) if not list(differences(states[n], states[n + 1]))]
    assert same[:3] == [0, 1, 2]
    assert same[-1] < 23
    assert len(same) == guard.scaler_skipped
    last = record.metrics[-1]
    assert last["scaler/scale"] == 2.0 ** (24 - guard.scaler_skipped)
    assert last["scaler/skipped_steps"] == guard.scaler_skipped
    # Gradients as they are without the scale, whoever takes it off.
    norms = record.norms[-1] / (last["scaler/scale"] if fused else 1)
    assert last["gradient_norm/raw"] == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["output", "loss"])
def test_a_loss_that_is_not_finite_is_no_overflow_of_gradients(tmp_path: Path, kind: str, fused: bool) -> None:
    guard = Guard()
    module = module_with(kind, (3, 4), optimizer=partial(Adam, lr=0.01, fused=fused))
    record = train(tmp_path, module, guard, **half(8.0))
    assert (guard.skipped, guard.scaler_skipped) == (2, 0)
    for n in range(12):
        changed = list(differences(record.states[n]["weights"], record.states[n + 1]["weights"]))
        assert bool(changed) == (n not in (3, 4)), n


def test_a_scale_below_one_ends_the_run(tmp_path: Path) -> None:
    guard = Guard(stop_after=1)
    module = module_with("gradient", range(3, 20))
    with pytest.raises(ValueError, match=r"the gradients overflow at a loss scale of 0\.5 \(step 6\): .*replay"):
        train(tmp_path, module, guard, **half(4.0))
    assert (guard.skipped, guard.scaler_skipped) == (0, 4)
    assert read(tmp_path / "dumps/step-00000006.ckpt")["dump"]["scaler"]["scale"] == 0.5


def test_float16_on_the_cpu_is_bfloat16_and_has_no_scaler(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__precision="16-mixed", model__network=flawed("gradient", [4]))
    result = scalars(run)
    assert not [name for name in result if name.startswith("scaler/")]
    assert result["guard/skipped_steps"][-1][1] == 1
    assert all(value > 0 for _, value in result["gradient_norm/raw"])


@pytest.mark.parametrize(("options", "option"), [({"stop_after": 0}, "stop_after"), ({"spike": 1.0}, "spike")])
def test_what_makes_no_sense_is_named(options: dict[str, Any], option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .*, got {next(iter(options.values()))}"):
        Guard(**options)
