"""Power-function EMA weights, their snapshots, and EMA weights of any width made of these after training."""

import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ema_pytorch import PostHocEMA
from ema_pytorch.post_hoc_ema import KarrasEMA, sigma_rel_to_gamma, solve_weights
from shell import assert_same_training, checkpoint, cli, differences, fit, start, wait_for
from torch import Tensor, nn

import diffusion_pl
from diffusion_pl.callbacks import EMA
from diffusion_pl.checkpoints import snapshots
from diffusion_pl.training import Averages, PowerFunction
from diffusion_pl.training.profiles import (
    WIDEST,
    Profile,
    fit_profile,
    gamma_of,
    inner_products,
    nearest_width,
    std_of,
)

STDS = (0.05, 0.1)
OPTIONS = ("--ema.stds", "[0.05, 0.1]", "--ema.snapshots", 8)


def grid(steps: int, every: int, stds: Sequence[float] = STDS) -> list[Profile]:
    return [Profile(std, step) for step in range(every, steps + 1, every) for std in stds]


def trained(path: list[Tensor], stds: Sequence[float] = STDS) -> list[Averages]:
    """The state of the averages after each step of a training in which one parameter takes these values."""
    states, p = [], path[0].clone()
    averages = Averages()
    averages.track([PowerFunction(std) for std in stds])
    averages.begin({"p": p}, None)
    for value in path[1:]:
        p.copy_(value)
        averages.update()
        copied = Averages()
        copied.track(averages.tracked)
        copied.load(
            {
                "updates": averages.updates,
                "shadows": {name: {"p": averages.of(name)["p"].clone()} for name in averages.names},
            }
        )
        states.append(copied)
    return states


# profiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.001, 0.01, 0.05, 0.1, 0.25, WIDEST])
def test_the_width_is_the_deviation_of_the_profile(std: float) -> None:
    gamma = gamma_of(std)
    assert std_of(gamma) == pytest.approx(std, rel=1e-12)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)  # moments of Beta(γ + 1, 1)
    assert math.sqrt(square - mean**2) == pytest.approx(std, rel=1e-6)
    assert gamma == pytest.approx(sigma_rel_to_gamma(std), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.2887, math.nan])
def test_a_width_that_no_profile_has_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match=r"width \(std\) .* in \(0, 0.2887\]"):
        PowerFunction(std)
    with pytest.raises(ValueError, match="stds"):
        EMA(stds=(0.1, 0.1))
    with pytest.raises(ValueError, match="snapshot_every must be at least 1"):
        EMA(stds=(0.1,), snapshot_every=0)


def test_inner_products_are_the_integrals() -> None:
    a, b = [Profile(0.05, 700), Profile(0.1, 1000)], [Profile(0.2, 400), Profile(0.1, 1000), Profile(0.25, 1000)]
    t = torch.linspace(0, 1000, 400_001, dtype=torch.float64)

    def values(p: Profile) -> Tensor:
        gamma = gamma_of(p.std)
        return torch.where(t <= p.time, (gamma + 1) * t**gamma / float(p.time) ** (gamma + 1), 0.0)

    exact = torch.tensor([[float(torch.trapezoid(values(x) * values(y), t)) for y in b] for x in a])
    torch.testing.assert_close(inner_products(a, b).float(), exact, rtol=1e-4, atol=0)


def test_the_recursion_weighs_steps_by_powers() -> None:
    """Weight of step i after t: (i^{γ+1} − (i−1)^{γ+1}) / t^{γ+1}, whatever it began with."""
    path = [torch.full((1,), 1e6, dtype=torch.float64), *torch.randn(200, 1, dtype=torch.float64)]
    state = trained(path)[-1]
    for std in STDS:
        power = gamma_of(std) + 1
        ends = (torch.arange(201, dtype=torch.float64) / 200) ** power
        expected = (ends.diff()[:, None] * torch.stack(path[1:])).sum(0)
        torch.testing.assert_close(state.of(f"std{std}")["p"], expected, rtol=1e-12, atol=1e-12)
        model = nn.Linear(1, 1, bias=False).double()
        theirs = KarrasEMA(model, sigma_rel=std, update_every=1)
        theirs.step.fill_(-1)  # they count from one step later
        for value in path[1:]:
            model.weight.data.copy_(value[None])
            theirs.update()
        torch.testing.assert_close(theirs.ema_model.weight[0].detach(), expected, rtol=1e-9, atol=1e-9)


def test_the_average_of_a_power_of_time_is_known() -> None:
    """θ(t) = t^k: its average is (γ + 1)/(γ + k + 1) t^k, up to the length of a step."""
    t = torch.arange(4001, dtype=torch.float64)
    state = trained(list((t[:, None] / 4000) ** torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)))[-1]
    for std in STDS:
        gamma = gamma_of(std)
        expected = torch.tensor([(gamma + 1) / (gamma + k + 1) for k in (1, 2, 3)], dtype=torch.float64)
        torch.testing.assert_close(state.of(f"std{std}")["p"], expected, rtol=1e-3, atol=0)


# the fit ----------------------------------------------------------------------------------------------------------


def test_a_profile_in_the_span_comes_back() -> None:
    given = grid(2000, 100)
    kept = Profile(0.1, 1500)
    assert fit_profile(kept, given).weights.tolist() == [float(p == kept) for p in given]
    # One bit away from it the linear system is solved.
    solved = fit_profile(Profile(math.nextafter(0.1, 1), 1500), given)
    expected = torch.tensor([float(p == kept) for p in given], dtype=torch.float64)
    torch.testing.assert_close(solved.weights, expected, rtol=0, atol=1e-10)
    assert solved.residual < 1e-7


@pytest.mark.parametrize("std", [0.03, 0.075, 0.15, 0.2])
def test_the_fit_has_the_weights_of_post_hoc_ema(std: float) -> None:
    given, target = grid(2000, 50), Profile(std, 2000)
    gammas = torch.tensor([sigma_rel_to_gamma(p.std) for p in given], dtype=torch.float64)
    times = torch.tensor([float(p.time) for p in given], dtype=torch.float64)
    theirs = solve_weights(times, gammas, torch.tensor([2000.0]), torch.tensor([sigma_rel_to_gamma(std)]).double())[
        :, 0
    ]
    fit = fit_profile(target, given)
    np.testing.assert_allclose(fit.weights, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))
    # The residual is the distance of the profiles, and the smallest there is.
    own = inner_products([target], [target])

    def residual(w: Tensor) -> float:
        squared = own[0, 0] - 2 * w @ inner_products(given, [target])[:, 0] + w @ inner_products(given, given) @ w
        return math.sqrt(float((squared / own[0, 0]).clamp(min=0)))

    assert residual(fit.weights) == pytest.approx(fit.residual, abs=1e-6)
    assert residual(fit.weights * 1.001) > fit.residual
    assert fit.residual < 0.01


def test_widths_outside_of_the_span_are_seen() -> None:
    given = grid(1000, 100)
    assert fit_profile(Profile(0.01, 1000), given).residual > 0.3
    near = nearest_width(Profile(0.01, 1000), given, 0.02)
    assert near is not None
    assert 0.03 < near < 0.05
    assert fit_profile(Profile(near, 1000), given).residual <= 0.02
    assert nearest_width(Profile(0.01, 1500), given, 0.02) is None


def test_reconstruction_is_the_average_that_was_tracked(tmp_path: Path) -> None:
    """Of a random walk, of snapshots in float64, against the recursion of that width, and PostHocEMA."""
    torch.manual_seed(0)
    walk = torch.randn(481, 6, dtype=torch.float64).cumsum(0) / 20
    width = 0.14
    states = trained(list(walk), (*STDS, width))
    run = tmp_path / "run"
    (run / "snapshots").mkdir(parents=True)
    for step in range(15, 481, 15):
        shadows = {f"std{std}": states[step - 1].of(f"std{std}") for std in STDS}
        torch.save({"updates": step, "shadows": shadows}, snapshots.path_of(run, step))
    content = {"state_dict": {"p": walk[-1]}, "averages": {"updates": 480, "shadows": {}}}
    (run / "checkpoints").mkdir()
    torch.save(content, run / "checkpoints/last.ckpt")
    made = snapshots.reconstruct(content, run, snapshots.Choice(width, None))
    tracked = states[-1].of(f"std{width}")["p"]
    scale = float(walk.abs().max())
    assert (made.tensors["p"] - tracked).abs().max() < 1e-4 * scale
    assert (states[-1].of("std0.1")["p"] - tracked).abs().max() > 2e-2 * scale
    kept = snapshots.reconstruct(content, run, snapshots.Choice(0.1, 240)).tensors["p"]
    assert (kept - states[239].of("std0.1")["p"]).abs().max() < 1e-10

    model = nn.Linear(6, 1, bias=False).double()
    ema = PostHocEMA(
        model,
        sigma_rels=STDS,
        update_every=1,
        checkpoint_every_num_steps=15,
        checkpoint_folder=str(tmp_path / "theirs"),
        checkpoint_dtype=torch.float64,
    )
    for value in walk[1:]:
        model.weight.data.copy_(value[None])
        ema.update()
    theirs: KarrasEMA = ema.synthesize_ema_model(sigma_rel=width)
    # Theirs counts from one step later, and begins with the weights of the first.
    difference = theirs.ema_model.weight[0] - made.tensors["p"]
    assert difference.abs().max() < 1e-3 * scale


# snapshots --------------------------------------------------------------------------------------------------------


def test_snapshots_are_bounded_and_nested() -> None:
    assert [snapshots.first_interval(n, 64) for n in (1, 64, 65, 1000, 10_000, -1)] == [1, 1, 2, 16, 256, 128]
    for every, kept in ((1, 8), (3, 5), (16, 64)):
        kept_steps: list[int] = []
        for step in range(1, 3000):
            distance = snapshots.interval(step, every, kept)
            if step % distance == 0:
                if len(kept_steps) >= kept:
                    kept_steps = [other for other in kept_steps if other % distance == 0]
                kept_steps.append(step)
            assert len(kept_steps) <= kept
        if step > every * kept:
            assert len(kept_steps) >= kept // 2


def test_a_run_writes_them_and_a_resumed_one_the_same(tmp_path: Path) -> None:
    whole = fit(tmp_path, *OPTIONS, run="whole", trainer__max_steps=24)
    assert list(snapshots.find(whole)) == [4, 8, 12, 16, 20, 24]
    last = checkpoint(whole)["averages"]
    content = torch.load(snapshots.path_of(whole, 24), weights_only=True)
    assert set(content["shadows"]) == {"std0.05", "std0.1"}
    for name, shadow in content["shadows"].items():
        assert {key: t.dtype for key, t in shadow.items()} == dict.fromkeys(last["shadows"][name], torch.float16)
        assert not list(differences(shadow, {key: t.half() for key, t in last["shadows"][name].items()}))
    part = fit(tmp_path, *OPTIONS, run="part", trainer__max_steps=10)
    fit(tmp_path, *OPTIONS, "--ckpt_path", "last", run="part", trainer__max_steps=24)
    assert_same_training(whole, part)
    # The shorter run began with half the distance: too many, so every second one has gone.
    assert list(snapshots.find(part)) == list(snapshots.find(whole))
    for step, path in snapshots.find(whole).items():
        ours = torch.load(path, weights_only=True)
        assert not list(differences(ours, torch.load(snapshots.path_of(part, step), weights_only=True)))


def test_files_beyond_and_of_the_user_stay(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    for name in ("mine.pt", "step00000003.pt.bak", *(f"step{k:08d}.pt" for k in range(1, 13))):
        (tmp_path / "snapshots" / name).touch()
    snapshots.overtake(tmp_path, 5, 7)
    assert 6 not in snapshots.find(tmp_path)
    snapshots.thin(tmp_path, 9, 1, 8)  # there are seven, and one is to come
    assert len(snapshots.find(tmp_path)) == 11
    snapshots.thin(tmp_path, 10, 1, 8)
    assert list(snapshots.find(tmp_path)) == [2, 4, 8, 10, 11, 12]
    assert (tmp_path / "snapshots/mine.pt").exists()
    assert (tmp_path / "snapshots/step00000003.pt.bak").exists()


# the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps with 20 snapshots; its first EMA is a power function."""
    options = ("--ema.decays", "[]", "--ema.stds", "[0.05, 0.1]", "--ema.snapshot_every", 2)
    return fit(tmp_path_factory.mktemp("run"), *options)


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run.parents[1], folder, dirs_exist_ok=True)
    return folder


def test_average_writes_a_checkpoint_for_every_command(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    done = cli(folder, "average", "runs/run", "--std", 0.15)
    assert done.code == 0, done.err
    made = folder / "runs/run/averaged/std0.15.ckpt"
    assert "exists already" in cli(folder, "average", "runs/run", "--std", 0.15).error
    ours = diffusion_pl.load(made)
    assert ours.weights == "emastd0.15"
    named = diffusion_pl.load(folder / "runs/run", weights="std:0.15")
    for a, b in zip(ours.denoiser.parameters(), named.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)
    own = diffusion_pl.load(folder / "runs/run")
    assert own.weights == "emastd0.05"
    assert not torch.equal(next(own.denoiser.parameters()), next(ours.denoiser.parameters()))
    options = ("--num_samples", 4, "--output", "s", "--seed", 1)
    assert "std0.15" in cli(folder, "sample", "--ckpt_path", made, *options, "--weights", "std:0.15").out
    tuned = cli(folder, "fit", "--init_from", made, "--trainer.max_steps", 1, "--trainer.accelerator", "cpu")
    assert "emastd0.15 weights" in tuned.out


def test_sweeps_and_autoguidance_take_profiles(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    swept = cli(
        folder,
        "sweep",
        "runs/run",
        "--samplers",
        "DDIM",
        "--nfe",
        2,
        "--num_samples",
        20,
        "--weights",
        "std:0.05",
        "std:0.12",
    )
    assert swept.code == 0, swept.err
    rows = (folder / "sweep/sweep.csv").read_text().splitlines()
    assert [row.partition(":")[0] for row in rows[1:]] == ["emastd0.05", "emastd0.12"]
    drawn: dict[str, Any] = {}
    for weak in ("runs/run@20", "runs/run@std:0.05@20", "runs/run@std:0.1", "runs/run"):
        output = f"s{len(drawn)}"
        sampled = cli(
            folder, "sample", "runs/run", "--weak", weak, "--scale", 2, "--num_samples", 8, "--output", output
        )
        assert sampled.code == 0, sampled.err
        drawn[weak] = (folder / output / "samples.csv").read_text()
    assert drawn["runs/run@20"] == drawn["runs/run@std:0.05@20"]
    assert len(set(drawn.values())) == 3
    assert '"weak_weights": "@20"' in (folder / "s0/samples.json").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--weights", "std:0.001"), r"give the nearest possible, std:0.0"),
        (("--weights", "std:wide"), r"weights std:wide: expected a number, got 'wide'"),
        (("--weights", "std:0.3"), r"must be in \(0, 0.2887\], got 0.3"),
        (("--weights", "std:0.1@21"), r"no snapshot of step 21. Fix: give the nearest, 20 or 22"),
        (("--weights", "std:0.1@1"), r"no snapshots of power-function EMA weights up to step 1"),
        (("--weak", "runs/run@99", "--scale", 2), r"no snapshot of step 99"),
    ],
)
def test_what_the_snapshots_do_not_give_is_named(run: Path, args: Sequence[Any], message: str) -> None:
    refused = cli(run.parents[1], "sample", "runs/run", "--num_samples", 1, "--output", "no", *args).error
    assert re.search(message, refused), refused


def test_runs_without_or_with_damaged_snapshots_are_refused(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    path = snapshots.path_of(folder / "runs/run", 20)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(255 - byte for byte in content[middle : middle + 300])
    path.write_bytes(bytes(content))
    assert "step00000020.pt is damaged" in cli(folder, "average", "runs/run", "--std", 0.15).error
    path.unlink()
    assert cli(folder, "average", "runs/run", "--std", 0.15).code == 0
    plain = fit(tmp_path / "other", trainer__max_steps=2).parents[1]
    refused = cli(plain, "average", "runs/run", "--std", 0.15).error
    assert "holds raw, ema:0.999. Fix: train with --ema.stds" in refused


@pytest.mark.slow
def test_a_killed_run_has_whole_snapshots_and_ends_with_the_same(tmp_path: Path) -> None:
    options = (*OPTIONS, "--saver.every_n_steps", 50, "--ema.snapshot_every", 1)
    whole = fit(tmp_path, *options, run="whole", trainer__max_steps=400)
    killed = tmp_path / "runs/killed"
    process = start(tmp_path, "fit", "--config", "whole.yaml", "--run", "killed", *options)
    wait_for(snapshots.path_of(killed, 192), process)
    process.kill()
    process.wait()
    for path in snapshots.find(killed).values():
        torch.load(path, weights_only=True)
    assert cli(tmp_path, "fit", "--config", "whole.yaml", "--run", "killed", *options, "--ckpt_path", "last").code == 0
    assert_same_training(whole, killed)
    assert list(snapshots.find(whole)) == list(snapshots.find(killed))
    for step, path in snapshots.find(whole).items():
        pair = (torch.load(each, weights_only=True) for each in (path, snapshots.path_of(killed, step)))
        assert not list(differences(*pair))


@pytest.mark.slow
def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    fit(tmp_path, *OPTIONS, run="one", trainer__max_steps=16)
    config = tmp_path / "one.yaml"
    options = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.batch_size", 16)
    process = start(tmp_path, "fit", "--config", config, "--run", "two", *OPTIONS, *options)
    assert process.communicate()[1] is not None
    assert process.returncode == 0
    ours = snapshots.find(tmp_path / "runs/two")
    assert list(ours) == list(snapshots.find(tmp_path / "runs/one"))
    last = checkpoint(tmp_path / "runs/two")["averages"]["shadows"]
    saved = torch.load(ours[16], weights_only=True)["shadows"]
    for name in saved:
        assert not list(differences(saved[name], {key: t.half() for key, t in last[name].items()}))
