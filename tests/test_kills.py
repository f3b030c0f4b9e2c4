"""Runs that are really killed, at any moment and again and again, end as the run that nobody touched, bit for bit."""

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images_model import TIME, digits_changes
from lightning.pytorch import Callback, LightningModule, Trainer
from shell import LAST, MEASURED, checkpoint, differences, environment, fit, scalars, tiny_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion_pl.checkpoints.io import is_whole, previous_checkpoint

EVERY = 5  # steps between two checkpoints
NETWORK = {
    "class_path": "diffusion_pl.networks.UNet",
    "init_args": {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.2},
}


class SlowWrites(Callback):
    """Writing a checkpoint takes long, with half of it on the disk; or ends there, with this process.

    Args:
        seconds: of each write.
        deadly: the write, counted from 1, in which the process kills itself; None: none.
    """

    def __init__(self, seconds: float = 0.15, deadly: int | None = None) -> None:
        self.seconds, self.deadly, self.count = seconds, deadly, 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        real = torch.save

        def save(content: Any, file: Any) -> None:
            whole = io.BytesIO()
            real(content, whole)
            written = memoryview(whole.getvalue())
            file.write(written[: len(written) // 2])
            file.flush()
            self.count += 1
            if self.count == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
            file.write(written[len(written) // 2 :])

        torch.save = save  # type: ignore[assignment]


def experiment(folder: Path, steps: int, *, devices: int = 1) -> dict[str, Any]:
    """All that has a state: dropout, flips, two averages, Adam, a learning rate that moves, accumulated gradients, and
    validations, logs and checkpoints that fall on and between each other's steps and the ends of epochs.
    """
    images = np.random.default_rng(0).integers(0, 256, (540, 8, 8), dtype=np.uint8)
    np.save(folder / "x.npy", images)
    data = {"path": "x.npy", "batch_size": 32, "horizontal_flip": True, "repeats": 1}
    rate = {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 10}}
    return digits_changes(conditional=False, trainer__max_steps=steps) | {
        "model__network": NETWORK,
        "model__noise_input": TIME,
        "model__lr_scheduler": rate,
        "data": {"class_path": "Arrays", "init_args": data},
        "trainer__accumulate_grad_batches": 2,
        "trainer__val_check_interval": 13,
        "trainer__log_every_n_steps": 4,
        "ema": {"decays": [0.99, 0.9]},
        "saver": {"every_n_steps": EVERY},
        **({"trainer__devices": devices, "trainer__strategy": "ddp"} if devices > 1 else {}),
    }


class Run:
    """runs/killed in the folder, trained by processes that are killed."""

    def __init__(self, folder: Path, changes: dict[str, Any]) -> None:
        self.folder, self.changes = folder, changes
        self.path = folder / "runs" / "killed"
        self.kills = 0

    def start(self, **slow: Any) -> "subprocess.Popen[str]":
        callbacks = [{"class_path": "shell.Slow"}, {"class_path": "test_kills.SlowWrites", "init_args": slow}]
        config = tiny_config(self.folder, "killed.yaml", **self.changes, trainer__callbacks=callbacks)
        resume = ["--ckpt_path", "last"] if (self.path / LAST).exists() else []
        return subprocess.Popen(
            [sys.executable, "-m", "diffusion_pl", "fit", "--config", config.name, "--run", "killed", *resume],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that all processes of it can be killed at once
        )

    def kill(self, process: "subprocess.Popen[str]", delay: float) -> bool:
        """Kill it so many seconds after it has written its first checkpoint; False if it was done before."""
        before = self.stamp()
        while self.stamp() == before and process.poll() is None:
            time.sleep(0.005)
        end = time.monotonic() + delay
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.002)
        done = process.poll() is not None
        if not done:
            os.killpg(process.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        if done:
            assert process.returncode == 0, err
            return False
        self.kills += 1
        self.check()
        return True

    def stamp(self) -> int:
        path = self.path / LAST
        return path.stat().st_mtime_ns if path.exists() else 0

    def check(self) -> None:
        """After a kill both checkpoints are whole."""
        assert is_whole(self.path / LAST)
        previous = previous_checkpoint(self.path)
        assert is_whole(previous) or not previous.exists()

    def finish(self) -> None:
        out, err = self.start().communicate(timeout=300)
        assert "run saved to runs/killed" in out, err


def assert_same(whole: Path, killed: Path) -> None:
    """Everything in the last checkpoints, and every value that was logged."""
    ours, theirs = checkpoint(whole), checkpoint(killed)
    parts: Sequence[dict[str, Any]] = (ours, theirs)
    for part in parts:
        loops = part.pop("loops")["fit_loop"]
        # A run resumed after the last batch of an epoch has started one epoch less: Lightning only closes that one.
        ended = {name: loops["epoch_progress"]["total"][name] for name in ("processed", "completed")}
        part["position"] = loops["state_dict"], ended, loops["epoch_loop.batch_progress"]
    assert ours["position"][0]["combined_loader"][0]["batches"] % 15 != 0  # within an epoch
    assert len(ours["averages"]["shadows"]) == 2
    assert not list(differences(ours, theirs))

    values = {(tag, *point) for tag, series in scalars(whole).items() if tag not in MEASURED for point in series}
    assert len({tag for tag, *_ in values}) > 10
    assert {
        (tag, *point) for tag, series in scalars(killed).items() if tag not in MEASURED for point in series
    } <= values  # in all files
    before, after = shown(whole), shown(killed)
    assert before.keys() == after.keys()
    for tag, series in before.items():
        lost = Counter(series) - Counter(after[tag])
        assert not Counter(after[tag]) - Counter(series), f"{tag} is shown twice at a step"
        # Who is killed within a validation, just after the checkpoint of the same step, loses that one; nothing else.
        assert all(step % EVERY == 0 for step, _ in lost) and (not lost or tag.startswith(VALIDATION)), tag


VALIDATION = ("losses/val_loss", "losses/seen_loss", "per_noise_level/", "training/epoch")


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar as TensorBoard shows the folder, without what was overtaken."""
    folder = EventAccumulator(str(run), size_guidance={"scalars": 0})
    folder.Reload()
    return {
        tag: [(e.step, e.value) for e in folder.Scalars(tag)]
        for tag in folder.Tags()["scalars"]
        if not tag.endswith(MEASURED)
    }


@pytest.mark.slow
def test_three_kills_do_not_change_the_result(tmp_path: Path) -> None:
    changes, chance = experiment(tmp_path, 46), random.Random(0)
    run = Run(tmp_path, changes)
    assert run.kill(run.start(), chance.uniform(0, 0.3))
    dying = run.start(deadly=3)
    dying.communicate(timeout=120)
    assert dying.returncode == -signal.SIGKILL
    assert list((run.path / "checkpoints").glob(".last.ckpt.*.part"))  # half a checkpoint
    run.check()
    assert run.kill(run.start(), chance.uniform(0, 0.3))
    fit(tmp_path, "--ckpt_path", "last", run="killed", **changes)
    assert sorted(f.name for f in (run.path / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert_same(fit(tmp_path, run="whole", **changes), run.path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_twelve_kills_do_not_change_the_result(tmp_path: Path, seed: int) -> None:
    changes, chance = experiment(tmp_path, 396), random.Random(seed)
    run = Run(tmp_path, changes)
    while run.kills < 12:
        assert run.kill(run.start(seconds=chance.choice([0.0, 0.2])), chance.expovariate(3.0)), "done too early"
    run.finish()
    assert_same(fit(tmp_path, run="whole", **changes), run.path)


@pytest.mark.slow
def test_two_processes_killed_together_resume_exactly(tmp_path: Path) -> None:
    changes, chance = experiment(tmp_path, 59, devices=2), random.Random(3)
    run = Run(tmp_path, changes)
    for _ in range(2):
        assert run.kill(run.start(), chance.uniform(0, 1))
    run.finish()
    config = tiny_config(tmp_path, "whole.yaml", **changes)
    whole = [sys.executable, "-m", "diffusion_pl", "fit", "--config", config.name, "--run", "whole"]
    subprocess.run(whole, cwd=tmp_path, env=environment(), check=True, capture_output=True, timeout=300)
    assert_same(tmp_path / "runs" / "whole", run.path)
