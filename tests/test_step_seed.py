"""The randomness of a training step is a function of (seed, step, rank) and of nothing else."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from shell import Losses, cli, scalars, tiny_config, tiny_data, tiny_module, tiny_trainer

from diffusion_pl.training import reseed, run_seed


def drawn(batch: int, rank: int = 0, seed: int | None = 0) -> tuple[float, ...]:
    """What a step draws first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PL_GLOBAL_SEED", raising=False)
        if seed is not None:
            patch.setenv("PL_GLOBAL_SEED", str(seed))
        reseed(run_seed(), batch, rank, torch.device("cpu"))
        return tuple(torch.randn(3).tolist())


def test_draws_of_a_step_do_not_depend_on_earlier_draws() -> None:
    first = drawn(5)
    torch.manual_seed(99)
    torch.randn(17)
    assert drawn(5) == first


def test_steps_ranks_and_seeds_all_draw_differently() -> None:
    draws = {drawn(batch, rank, seed) for batch in range(20) for rank in range(4) for seed in range(3)}
    assert len(draws) == 20 * 4 * 3


def test_nearby_seeds_steps_and_ranks_are_not_shifted_copies() -> None:
    """Nor does (seed 1, step 0) draw what (seed 0, step 1) does."""
    assert len({drawn(1, 0, 0), drawn(0, 1, 0), drawn(0, 0, 1)}) == 3


def test_without_a_seed_it_is_zero() -> None:
    assert drawn(3, seed=None) == drawn(3, seed=0)


class Disturbance(Callback):
    """Draws from the global generator between the steps, as a validation or a panel may."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        torch.randn(trainer.global_step)


def losses(folder: Path, *callbacks: Callback) -> list[float]:
    kept = Losses()
    torch.manual_seed(len(callbacks))  # nor does the generator's state at the start matter
    tiny_trainer(folder, kept, *callbacks).fit(tiny_module(), datamodule=tiny_data())
    return kept.losses


def test_a_run_draws_the_same_whatever_happens_between_its_steps(tmp_path: Path) -> None:
    undisturbed = losses(tmp_path)
    assert len(undisturbed) == 20
    assert losses(tmp_path, Disturbance()) == undisturbed


def test_the_seed_of_the_command_line_reaches_the_steps(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__log_every_n_steps=1, trainer__max_steps=3)
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli(tmp_path, "fit", "--config", config, "--run", run, "--seed_everything", seed).code == 0
    a, b, c = (scalars(tmp_path / "runs" / run)["train_loss/raw"] for run in "abc")
    assert a == b
    assert a != c
    assert "PL_GLOBAL_SEED" in os.environ
