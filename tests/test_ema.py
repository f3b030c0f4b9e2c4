"""EMA: the averages themselves, and where they stand in for the weights."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from shell import (
    assert_same_training,
    checkpoint,
    differences,
    fit,
    tiny_data,
    tiny_module,
    tiny_trainer,
    weights,
)

from diffusion_pl.callbacks import EMA
from diffusion_pl.training import ConstantDecay, DiffusionModule, HalfLife
from diffusion_pl.training.averages import LONG

DECAYS = (0.999, 0.5, 0.0, 0.2)


class Recorder(Callback):
    """Keeps the weights before training and after every optimizer step."""

    def __init__(self) -> None:
        self.history: list[np.ndarray] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.keep(pl_module)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == len(self.history):  # a step was taken since
            self.keep(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == len(self.history):
            self.keep(pl_module)

    def keep(self, module: DiffusionModule) -> None:
        self.history.append(flat(weights(module)))


def flat(parameters: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([p.flatten() for p in parameters.values()]).double().numpy()


def recursion(history: Sequence[np.ndarray], decay: float) -> np.ndarray:
    """The average after each of the updates in history[1:], in float64."""
    value = history[0].copy()
    for n, parameters in enumerate(history[1:]):
        d = min(decay, (1 + n) / (10 + n))
        value = d * value + (1 - d) * parameters
    return value


def train(folder: Path, *callbacks: Callback, module: DiffusionModule | None = None, **options: Any) -> DiffusionModule:
    module = module or tiny_module()
    tiny_trainer(folder, *callbacks, **options).fit(module, datamodule=tiny_data())
    return module


def average(module: DiffusionModule, name: str) -> dict[str, torch.Tensor]:
    """An average of the network's parameters, by their names within the network."""
    return {key.removeprefix("denoiser.network."): value for key, value in module.averages.of(name).items()}


def test_every_average_is_the_recursion_in_float64(tmp_path: Path) -> None:
    recorder = Recorder()
    module = train(tmp_path, EMA(DECAYS), recorder, max_steps=30)
    assert len(recorder.history) == 31
    assert module.averages.updates == 30
    for decay in DECAYS:
        ours = flat(average(module, str(decay)))
        np.testing.assert_allclose(ours, recursion(recorder.history, decay), rtol=2e-5, atol=1e-6)
    # The test can fail: one update more or less in the warm-up, or none at all, is far outside that.
    for wrong in (recorder.history[1:], [recorder.history[0], *recorder.history]):
        assert np.abs(recursion(wrong, 0.999) - recursion(recorder.history, 0.999)).max() > 1e-4


def test_a_half_life_counts_examples_whatever_the_batch(tmp_path: Path) -> None:
    """Half of what an average holds is half_life examples old; early on, ramp_up of what the run has seen."""
    for accumulated, batch in ((1, 32), (3, 96)):
        ema, recorder = EMA((), half_lives=(320, 10_000), ramp_up=0.5), Recorder()
        module = train(tmp_path, ema, recorder, max_steps=30, accumulate_grad_batches=accumulated)
        for half_life in (320, 10_000):
            expected = recorder.history[0]
            for n, parameters in enumerate(recorder.history[1:]):
                life = min(half_life, 0.5 * n * batch)  # examples
                d = 2 ** (-batch / life) if life else 0.0
                expected = d * expected + (1 - d) * parameters
            ours = flat(average(module, f"{half_life}examples"))
            np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)
        assert (1 - ema.averages[0].rate(LONG, batch)) ** (320 / batch) == pytest.approx(0.5)


def test_half_lives_stand_in_after_decays_and_survive_a_stop(tmp_path: Path) -> None:
    options = ("--ema.decays", "[]", "--ema.half_lives", "[500]")
    whole = fit(tmp_path, *options, run="whole", trainer__max_steps=12)
    part = fit(tmp_path, *options, run="part", trainer__max_steps=5)
    fit(tmp_path, *options, "--ckpt_path", "last", run="part", trainer__max_steps=12)
    assert_same_training(whole, part)
    assert list(checkpoint(whole)["averages"]["shadows"]) == ["500examples"]
    module = train(tmp_path, EMA((0.9,), half_lives=(500,)), max_steps=3)
    assert module.averages.names == ["0.9", "500examples"]
    with module.evaluation():
        assert module.weights_name == "ema0.9"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"half_lives": (0,)}, "half_lives must be at least 1 example, got 0"),
        ({"ramp_up": 0.0}, "ramp_up must be positive and finite, got 0.0"),
        ({"decays": (0.999, 0.9, 0.999)}, "decays must differ from each other, got 0.999 twice"),
        ({"half_lives": (500, 500)}, "half_lives .*got 500 twice"),
    ],
)
def test_half_lives_outside_their_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMA(**options)
    with pytest.raises(ValueError, match="how many a step has is not known: give decays"):
        HalfLife(5).rate(0, None)


def test_accumulated_gradients_count_as_one_update(tmp_path: Path) -> None:
    recorder = Recorder()
    module = train(tmp_path, EMA((0.9,)), recorder, max_steps=5, accumulate_grad_batches=3)
    assert len(recorder.history) == 6
    assert module.averages.updates == 5
    np.testing.assert_allclose(flat(average(module, "0.9")), recursion(recorder.history, 0.9), rtol=2e-5, atol=1e-6)


class Looks(Callback):
    """What each hook finds in the network."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[str, dict[str, torch.Tensor]]] = {}

    def look(self, where: str, module: Any) -> None:
        self.seen[where] = module.weights_name, weights(module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.look("train", pl_module)
        with pl_module.evaluation():
            self.look("evaluated", pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look("validation starts", pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look("validation ends", pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look("test", pl_module)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return not list(differences(a, b))


@pytest.mark.parametrize("first", [True, False], ids=["before the others", "after the others"])
def test_the_first_ema_is_evaluated_and_weights_are_restored(tmp_path: Path, first: bool) -> None:
    ema, looks, module = EMA((0.9, 0.5)), Looks(), tiny_module()
    callbacks = [ema, looks] if first else [looks, ema]
    trainer = tiny_trainer(tmp_path, *callbacks, max_steps=10, val_check_interval=10)
    trainer.fit(module, datamodule=tiny_data())
    expected, raw = copy.deepcopy(average(module, "0.9")), looks.seen["train"][1]
    assert not same(expected, raw)
    for where in ("evaluated", "validation starts", "validation ends"):  # the first with the step just taken
        assert looks.seen[where][0] == "ema0.9"
        assert same(looks.seen[where][1], expected)
    assert module.weights_name == "raw"
    assert same(weights(module), raw)

    trainer.test(module, datamodule=tiny_data(), verbose=False)
    assert looks.seen["test"][0] == "ema0.9"
    assert same(looks.seen["test"][1], expected)
    assert same(weights(module), raw)
    assert same(average(module, "0.9"), expected)  # evaluating it does not change it


def test_validation_changes_nothing_in_training(tmp_path: Path) -> None:
    """Neither the weights nor the averages, bit by bit."""
    ends = []
    for every in (1, 1000):
        module = train(tmp_path, EMA(), val_check_interval=every)
        ends.append({"raw": weights(module), "ema": module.averages.state()})
    assert not list(differences(ends[0], ends[1]))


def test_no_ema_weights_are_used_before_the_first_update(tmp_path: Path) -> None:
    ema, looks, module = EMA(), Looks(), tiny_module()
    before = weights(module)
    trainer = tiny_trainer(tmp_path, ema, looks)
    trainer.validate(module, datamodule=tiny_data(), verbose=False)
    assert looks.seen["validation ends"][0] == "raw"
    assert same(looks.seen["validation ends"][1], before)
    # Nor when the validation comes before the first step of a fit.
    train(tmp_path, EMA(), first := Looks(), max_steps=1, num_sanity_val_steps=1)
    assert first.seen["validation ends"][0] == "raw"
    # Nor when the gradients of the first step are still being accumulated.
    with pytest.raises(RuntimeError, match="on purpose"):
        train(tmp_path, EMA(), early := Looks(), Fail(), accumulate_grad_batches=3, val_check_interval=1)
    assert early.seen["validation starts"][0] == "raw"


def test_no_decay_means_no_average(tmp_path: Path) -> None:
    looks = Looks()
    module = train(tmp_path, EMA(()), looks, max_steps=4, val_check_interval=4)
    assert looks.seen["validation ends"][0] == "raw"
    assert module.averages.state()["shadows"] == {}


class Fail(Callback):
    """Fails in the middle of a validation."""

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        raise RuntimeError("on purpose")


def test_an_exception_during_validation_restores_the_weights(tmp_path: Path) -> None:
    looks, module, ema = Looks(), tiny_module(), EMA((0.9,))
    with pytest.raises(RuntimeError, match="on purpose"):
        train(tmp_path, ema, looks, Fail(), module=module, max_steps=10, val_check_interval=5)
    assert looks.seen["validation starts"][0] == "ema0.9"
    assert module.weights_name == "raw"
    assert same(weights(module), looks.seen["train"][1])


def test_swapping_in_twice_is_swapping_in_once(tmp_path: Path) -> None:
    module = train(tmp_path, EMA((0.9,)), max_steps=5)
    raw = weights(module)
    with module.evaluation():
        inside = weights(module)
        with module.evaluation():
            assert same(weights(module), inside)
        with module.evaluation(raw=True):
            assert module.weights_name == "raw"
            assert same(weights(module), raw)
        assert same(weights(module), inside)
        assert module.weights_name == "ema0.9"
    assert same(weights(module), raw)
    with pytest.raises(ValueError, match="inside"), module.evaluation():
        raise ValueError("inside")
    assert same(weights(module), raw)


def test_without_averages_raw_weights_are_evaluated() -> None:
    module = tiny_module()
    with module.evaluation():
        assert module.weights_name == "raw"


class Saves(Callback):
    """Writes a checkpoint at the end of a validation, while the average may still be in place."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "during.ckpt")


def test_a_checkpoint_within_a_validation_holds_raw_weights(tmp_path: Path) -> None:
    module = train(tmp_path, EMA((0.9,)), Saves(), max_steps=4, val_check_interval=4)
    saved = torch.load(tmp_path / "during.ckpt", weights_only=True)
    ours = {f"denoiser.network.{name}": p for name, p in weights(module).items()}
    assert same({name: saved["state_dict"][name] for name in ours}, ours)
    assert same(saved["averages"]["shadows"]["0.9"], module.averages.of("0.9"))


def test_averages_are_tracked_without_a_callback(tmp_path: Path) -> None:
    ends = []
    for callbacks in ([EMA((0.9,))], []):
        module = tiny_module()
        module.averages.track([ConstantDecay(0.9)])
        ends.append(train(tmp_path, *callbacks, module=module, max_steps=5).averages.state())
    assert not list(differences(ends[0], ends[1]))
    with pytest.raises(ValueError, match=r"differ from each other, got 0\.9 twice"):
        tiny_module().averages.track([ConstantDecay(0.9), ConstantDecay(0.9)])


@pytest.mark.parametrize(
    ("choice", "name"), [(None, "ema0.9"), ("ema", "ema0.9"), ("ema:0.5", "ema0.5"), ("raw", "raw")]
)
def test_averaged_network_is_a_copy(tmp_path: Path, choice: str | None, name: str) -> None:
    module = train(tmp_path, EMA((0.9, 0.5)), max_steps=4)
    raw = weights(module)
    network, actual = module.averaged(module.network, choice)
    assert actual == name and not network.training
    expected = raw if name == "raw" else average(module, name.removeprefix("ema"))
    assert same(dict(network.named_parameters()), expected)
    for p in network.parameters():
        p.data.zero_()
    assert same(weights(module), raw)
    assert module.averages.names == ["0.9", "0.5"]


def test_unknown_averaged_weights_are_named(tmp_path: Path) -> None:
    module = train(tmp_path, EMA((0.9,)), max_steps=1)
    for choice in ("ema:0.5", "best", "raw:0.9"):
        with pytest.raises(ValueError, match=rf"no weights '{choice}': it has raw, ema:0\.9"):
            module.averaged(module.network, choice)
    loaded = tiny_module()
    loaded.load_weights(loaded.state_dict(), "ema0.9")
    assert loaded.averaged(loaded.network)[1] == loaded.averaged(loaded.network, "ema:0.9")[1] == "ema0.9"
    with pytest.raises(ValueError, match=r"no weights 'raw': it has ema:0\.9"):
        loaded.averaged(loaded.network, "raw")


def test_every_checkpoint_holds_raw_and_averaged_weights(tmp_path: Path) -> None:
    """Also the one written while training stops for a validation, and the last."""
    run = fit(tmp_path, "--ema.decays", "[0.9,0.5]", "--saver.every_n_steps", 20)
    raw = {k: v for k, v in checkpoint(run)["state_dict"].items() if "network" in k}
    ema = checkpoint(run)["averages"]
    assert ema["updates"] == 40
    assert list(ema["shadows"]) == ["0.9", "0.5"]
    for shadow in ema["shadows"].values():
        assert shadow.keys() == raw.keys()
        assert all(not torch.equal(shadow[name], raw[name]) for name in raw)
    # The faster average is nearer to the newest weights.
    far = {d: sum((a[name] - raw[name]).norm() for name in raw) for d, a in ema["shadows"].items()}
    assert far["0.5"] < far["0.9"]


def test_a_resumed_average_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    decays = ("--ema.decays", "[0.999,0.5]")
    whole = fit(tmp_path, *decays, run="whole", trainer__max_steps=30)
    part = fit(tmp_path, *decays, run="part", trainer__max_steps=13)
    assert checkpoint(part)["averages"]["updates"] == 13
    fit(tmp_path, *decays, "--ckpt_path", "last", run="part", trainer__max_steps=30)
    assert_same_training(whole, part)


def test_decays_added_or_removed_at_resume(tmp_path: Path) -> None:
    run, name = fit(tmp_path, "--ema.decays", "[0.9,0.5]", trainer__max_steps=10), "denoiser.network.output.weight"
    kept = checkpoint(run)["averages"]["shadows"]["0.5"][name]
    raw = checkpoint(run)["state_dict"][name]
    fit(tmp_path, "--ema.decays", "[0.5,0.99]", "--ckpt_path", "last", trainer__max_steps=11)
    step = checkpoint(run)["state_dict"][name]
    now = checkpoint(run)["averages"]["shadows"]
    assert list(now) == ["0.5", "0.99"]
    torch.testing.assert_close(now["0.5"][name], 0.5 * kept + 0.5 * step)
    torch.testing.assert_close(now["0.99"][name], 11 / 20 * raw + 9 / 20 * step)  # the warm-up is the run's


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_outside_its_range_is_named(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"EMA decays must be in \[0, 1\), got {decay}"):
        EMA((0.9, decay))


def test_frozen_parameters_and_buffers_are_not_averaged(tmp_path: Path) -> None:
    module = tiny_module()
    output: Any = module.network.output
    output.bias.requires_grad_(False)
    module.network.register_buffer("constant", torch.ones(3))
    train(tmp_path, EMA((0.5,)), module=module, max_steps=3)
    names = set(average(module, "0.5"))
    assert names == set(weights(module)) - {"output.bias"}


@pytest.mark.parametrize("callbacks", [[], [EMA()]], ids=["raw", "ema"])
def test_evaluation_drops_nothing_and_restores_modes(tmp_path: Path, callbacks: list[EMA]) -> None:
    module = train(tmp_path, *callbacks, max_steps=1)
    module.train()
    module.denoiser.eval()  # somebody's choice for one part
    before = [part.training for part in module.modules()]
    with module.evaluation():
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == before


def test_decays_that_hardly_differ_are_kept_apart(tmp_path: Path) -> None:
    decays = [0.9999999, 0.99999995]
    module = train(tmp_path, EMA(decays), max_steps=1)
    assert [float(name) for name in module.averages.names] == decays
