"""Errors in one line: the mistake in a configuration, its place, and the exit status."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

import diffusion_pl.cli  # noqa: F401  names of the package are among those suggested
from diffusion_pl.data import DataModule
from diffusion_pl.losses import DenoisingLoss
from diffusion_pl.runtime.diagnosis import mistake_in
from diffusion_pl.runtime.errors import guard, quiet
from diffusion_pl.runtime.messages import explain
from diffusion_pl.runtime.parsing import wrong
from diffusion_pl.samplers import Sampler
from diffusion_pl.schedules import Schedule

#: Of some options of fit.
TYPES = {
    "model.network": Callable[[int, int], torch.nn.Module],
    "model.schedule": Schedule,
    "model.sampler": Sampler,
    "model.loss": DenoisingLoss,
    "model.optimizer": Callable[[Any], torch.optim.Optimizer],
    "trainer.max_epochs": int,
    "trainer.max_steps": int | None,
    "data": DataModule,
}

#: A configuration -> its mistake: the key, and words of the rest.
CONFIGS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "type": ({"trainer": {"max_steps": "abc"}}, "trainer.max_steps", ("int", "abc")),
    "null": ({"trainer": {"max_epochs": None}}, "trainer.max_epochs", ("int", "null")),
    "depth": (
        {
            "model": {
                "sampler": {"class_path": "DDIM", "init_args": {"grid": {"class_path": "UniformGrid"}, "eta": "a"}}
            }
        },
        "model.sampler.eta",
        ("float", "got a"),
    ),
    "a number is no class": ({"model": {"schedule": 3}}, "model.schedule", ("Schedule", "VP", "got 3")),
    "a number or a tensor": (
        {"model": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": "abc"}}}},
        "model.optimizer.lr",
        ("expected float,", "abc"),
    ),
    "unknown class": ({"model": {"schedule": "VPX"}}, "model.schedule", ("no class VPX", "mean VP?")),
    "unknown class in a module": (
        {"model": {"optimizer": {"class_path": "torch.optim.Adamm"}}},
        "model.optimizer",
        ("torch.optim.Adamm", "mean Adam?"),
    ),
    "unknown module": ({"model": {"schedule": "nowhere.VP"}}, "model.schedule", ("nowhere.VP", "mean VP?")),
    "class of another kind": ({"model": {"schedule": "Heun"}}, "model.schedule", ("another kind", "a Schedule", "VP")),
    "path of another kind": (
        {"model": {"schedule": {"class_path": "diffusion_pl.samplers.Heun"}}},
        "model.schedule",
        ("another kind", "a Schedule"),
    ),
    "abstract class": ({"model": {"sampler": "Sampler"}}, "model.sampler", ("abstract", "DDIM")),
    "key of a class": (
        {"model": {"network": {"class_path": "MLP", "init_args": {"widht": 3}}}},
        "model.network.widht",
        ("MLP", "mean width?"),
    ),
    "key next to class_path": (
        {"model": {"schedule": {"class_path": "VP", "beta_max": 3}}},
        "model.schedule.beta_max",
        ("init_args",),
    ),
    "no class_path": ({"model": {"network": {"width": 3}}}, "model.network", ("class_path", "MLP")),
    "key on the way": ({"model": {"netwrok": {"class_path": "MLP"}}}, "model.netwrok", ("mean network?",)),
    "section": ({"modell": {"loss": 3}}, "modell", ("mean model?",)),
    "key of another section": ({"max_epochs": 3}, "max_epochs", ("mean trainer.max_epochs?",)),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_mistake_is_found_by_its_key(case: str) -> None:
    config, key, words = CONFIGS[case]
    line = mistake_in(config, TYPES) or ""
    assert line.startswith(f"{key}: "), line
    assert all(word in line for word in words), line


def test_a_good_configuration_has_no_mistake() -> None:
    network = {"class_path": "MLP", "init_args": {"width": 8, "depth": 1}}
    optimizer = {"class_path": "AdamW", "init_args": {"lr": "1e-3", "betas": [0.9, 0.99]}}
    model = {"network": network, "schedule": "VP", "optimizer": optimizer}
    assert mistake_in({"model": model, "trainer": {"max_steps": "3"}, "data": {"class_path": "Moons"}}, TYPES) is None


def test_the_place_is_the_option_of_the_command_line() -> None:
    for args in (
        ["fit", "--model.network.width", "abc"],
        ["fit", "--model.network.width=abc"],
        ["fit", "--data.width", "3", "--model.network.init_args.width", "abc"],
    ):
        option = next(arg for arg in args if "network" in arg).split("=")[0]
        assert explain(wrong("model.network.width", "no"), args) == f"{option}: no"


def test_the_place_is_a_line_of_the_last_file(tmp_path: Path) -> None:
    error = wrong("model.network.width", "no")
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("model:\n  network:\n    # width: a comment\n    class_path: MLP\n    init_args: {width: 3}\n")
    b.write_text("data:\n  width: 3\nmodel: {network: {init_args: {depth: 3}}}\n")
    for args in (["--config", a], [f"--config={a}"], ["--config", a, "--config", b]):
        assert explain(error, ["fit", *map(str, args)]) == f"{a}:5: model.network.width: no"
    b.write_text("data:\n  width: 3\nmodel:\n  network:\n    init_args: {width: 3}\n")
    assert explain(error, ["fit", "--config", str(a), "--config", str(b)]).startswith(f"{b}:5: ")
    assert explain(error, ["fit", "--config", str(tmp_path / "gone.yaml")]) == "model.network.width: no"


@pytest.mark.parametrize("error", [ValueError("wrong"), OSError("wrong"), FileNotFoundError("wrong")])
def test_what_a_person_did_is_one_line_and_status_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with guard(False, []) as status:
        raise error
    assert status.code == 2
    assert capsys.readouterr() == ("", "diffusion_pl: error: wrong\n")


def test_what_the_trainer_refuses_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with guard(False, []) as status:
        raise MisconfigurationException("no such device")
    assert (status.code, capsys.readouterr().err) == (2, "diffusion_pl: error: no such device\n")


@pytest.mark.parametrize("error", [TypeError, KeyError, RuntimeError, AssertionError, RecursionError, AttributeError])
def test_an_unexpected_error_is_one_line_with_its_place(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    with guard(False, []) as status:
        raise error("ours")
    (line,) = capsys.readouterr().err.splitlines()
    assert status.code == 1
    assert f"unexpected error: {error.__name__}: " in line
    assert "(at test_errors.py:" in line
    assert "--debug" in line


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "--data.batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), 2, "2.00 GiB"),
        (ModuleNotFoundError("No module named 'onnx'"), 2, "onnx"),
    ],
)
def test_known_errors_have_a_line_of_their_own(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with guard(False, []) as status:
        raise error
    (line,) = capsys.readouterr().err.splitlines()
    assert (status.code, message in line) == (code, True), line


def test_an_exit_is_left_alone() -> None:
    with pytest.raises(SystemExit), guard(False, []):
        raise SystemExit(143)


def test_nothing_wrong_is_status_0() -> None:
    with guard(False, []) as status:
        pass
    assert status.code == 0


def test_quiet_leaves_warnings_about_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet()
        warnings.warn("The 'train_dataloader' does not have many workers which may be a bottleneck", stacklevel=1)
        warnings.warn("the loss is NaN", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["the loss is NaN"]
    assert not logging.getLogger("lightning.pytorch.utilities.rank_zero").isEnabledFor(logging.INFO)
    assert logging.getLogger("lightning.pytorch.utilities.rank_zero").isEnabledFor(logging.WARNING)
