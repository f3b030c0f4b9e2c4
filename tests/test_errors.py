"""Errors in one line: the texts of jsonargparse, and what becomes of them."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import diffusion_pl.cli  # noqa: F401  names of the package are among those suggested
from diffusion_pl.data import DataModule
from diffusion_pl.losses import DenoisingLoss
from diffusion_pl.runtime.errors import guard, quiet
from diffusion_pl.runtime.messages import one_line
from diffusion_pl.samplers import Sampler
from diffusion_pl.schedules import Schedule

#: Of some options of fit.
TYPES = {
    "model.network": Callable[..., torch.nn.Module],
    "model.schedule": Schedule,
    "model.sampler": Sampler,
    "model.loss": DenoisingLoss,
    "model.optimizer": Callable[..., torch.optim.Optimizer],
    "trainer.max_epochs": int,
    "trainer.max_steps": int,
    "data": DataModule,
}

UNION = """Parser key "model.optimizer":
  Parser key "lr":

    - Expected a path but abc either not accessible or invalid
    - Does not validate against any of the Union subtypes
    Subtypes: [<class 'float'>, <class 'torch.Tensor'>]
    Errors:
      - Expected a <class 'float'>
      - Expected a dot import path string: abc
    Given value type: <class 'str'>
    Given value: abc"""

NESTED = """Parser key "model.network":
  Parser key "input_embedding":
    Does not validate against any of the Union subtypes
    Subtypes: [collections.abc.Callable[[int], Embedding], <class 'NoneType'>]
    Errors:
      - Parser key "features":
          Expected a <class 'int'>. Got value: abc
      - Expected a <class 'NoneType'>
    Given value type: <class 'jsonargparse._util.NestedArg'>
    Given value: NestedArg(key='features', val='abc')"""

NOT_A_CLASS = """Parser key "model.schedule":
  Not a valid subclass of Schedule. Got value: 3
  Subclass types expect one of:
  - a class path (str)
  - a dict with class_path entry
  - a dict without class_path but with init_args entry (class path given previously)
  - a dict with parameters accepted by the base class (implicit class_path)"""

NO_SUCH_FACTORY = """Parser key "model.optimizer":
  Type collections.abc.Callable[[typing.Any], torch.optim.optimizer.Optimizer] expects a function or a callable class: \
module 'torch.optim' has no attribute 'Adamm'. Got value: Namespace(class_path='torch.optim.Adamm')"""

CASES = {
    "plain": ("MLP: width must be at least 1, got -3", "MLP: width must be at least 1, got -3"),
    "lines": ("first\n  second\n\nthird", "first second third"),
    "type": ("Parser key \"steps\":\n  Expected a <class 'int'>. Got value: abc", "steps: expected int, got abc"),
    "depth": (
        'Parser key "model.sampler":\n  Parser key "grid":\n    Parser key "steps":\n      '
        "Expected a <class 'int'>. Got value: abc",
        "model.sampler.grid.steps: expected int, got abc",
    ),
    "a number is no class": (UNION, "model.optimizer.lr: expected float, got abc"),
    "a branch with keys": (NESTED, "model.network.input_embedding.features: expected int, got abc"),
    "no class": (NOT_A_CLASS, "model.schedule: expected class_path of a Schedule, got 3"),
    "unknown class": (
        'Parser key "model.schedule":\n  Expected a dot import path string: VPX',
        "model.schedule: there is no class VPX; did you mean VP?",
    ),
    "unknown class in a module": (
        NO_SUCH_FACTORY,
        "model.optimizer: there is no class torch.optim.Adamm; did you mean Adam?",
    ),
    "class of another kind": (
        'Parser key "model.schedule":\n  Expected a dot import path string: Heun',
        "model.schedule: Heun is a class of another kind, expected a Schedule such as",
    ),
    "dotted class of another kind": (
        'Parser key "model.schedule":\n\n  - Expected a path but diffusion_pl.samplers.Heun either not accessible or '
        "invalid\n  - Import path diffusion_pl.samplers.Heun does not correspond to a subclass of Schedule",
        "model.schedule: diffusion_pl.samplers.Heun is no Schedule",
    ),
    "unknown key of a class": (
        "Parser key \"model.network\":\n  Option 'widht' is not accepted",
        "model.network.widht: unknown key; did you mean width?",
    ),
    "unknown key on the way": (
        "Group 'model' does not accept option 'netwrok.init_args.width'",
        "model.netwrok: unknown key; did you mean network?",
    ),
    "unknown section": (
        "Option 'modell.loss' is not accepted",
        "modell: unknown key; did you mean model?",
    ),
    "unknown option": (
        "unrecognized arguments: --trainer.max_epoch 3",
        "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs?",
    ),
    "nothing near": ("unrecognized arguments: --qqq", "unknown option --qqq"),
    "missing": (
        "the following arguments are required: model.network, data",
        "missing: model.network, data (give a --config, or these options)",
    ),
    "missing of a class": (
        'Parser key "data":\n  the following arguments are required: path, columns',
        "data: missing: path, columns",
    ),
    "parameters next to class_path": (
        'Parser key "model.schedule":\n  Expected an instantiatable class, but schedules.Schedule is abstract',
        "model.schedule: expected class_path and init_args only",
    ),
    "seed": (
        "-1 is not in bounds, numpy accepts from 0 to 4294967295",
        "seed_everything must be in [0, 4294967295], got -1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_message_becomes_one_line_that_names_key_and_cure(case: str) -> None:
    message, start = CASES[case]
    assert one_line(message, types=TYPES).startswith(start)


def test_the_place_is_the_option_of_the_command_line() -> None:
    message = 'Parser key "model.network":\n  Parser key "width":\n    Expected a <class \'int\'>. Got value: abc'
    for args in (
        ["fit", "--model.network.width", "abc"],
        ["fit", "--model.network.width=abc"],
        ["fit", "--data.width", "3", "--model.network.init_args.width", "abc"],
    ):
        option = next(arg for arg in args if "network" in arg).split("=")[0]
        assert one_line(message, args) == f"{option}: expected int, got abc"


def test_the_place_is_the_line_of_the_file_if_there_is_but_one(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    message = 'Parser key "model.network":\n  Parser key "width":\n    Expected a <class \'int\'>. Got value: abc'
    config.write_text(
        "model:\n  network:\n    # the width: a comment\n    class_path: MLP\n    init_args: {width: abc}\n"
    )
    message_end = "model.network.width: expected int, got abc"
    assert one_line(message, ["fit", "--config", str(config)]) == f"{config}:5: {message_end}"
    config.write_text("model:\n  network:\n    init_args: {width: abc}\n")
    assert one_line(message, ["fit", "--config", str(config)]) == f"{config}:3: {message_end}"
    assert one_line(message, ["fit", f"--config={config}"]) == f"{config}:3: {message_end}"
    config.write_text("data:\n  width: 3\nmodel:\n  network:\n    init_args: {width: abc}\n")
    assert one_line(message, ["fit", "--config", str(config)]) == f"{config}:5: {message_end}"  # by the whole path
    assert one_line(message, ["fit", "--config", str(tmp_path / "gone.yaml")]) == message_end


def test_of_several_files_the_last_that_sets_the_key_is_named(tmp_path: Path) -> None:
    message = "Parser key \"trainer.max_steps\":\n  Expected a <class 'int'>. Got value: abc"
    args = ["fit"]
    for name, value in (("a.yaml", 3), ("b.yaml", "abc")):
        (tmp_path / name).write_text(f"trainer:\n  max_steps: {value}\n")
        args += ["--config", str(tmp_path / name)]
    assert one_line(message, args).startswith(f"{tmp_path / 'b.yaml'}:2: trainer.max_steps")
    first = ["fit", "--config", args[4], "--config", args[2]]  # the first file has the value that is refused
    assert one_line(message, first).startswith(f"{tmp_path / 'b.yaml'}:2: trainer.max_steps")
    assert one_line(message, [*args, "--trainer.max_steps", "abc"]).startswith("--trainer.max_steps: ")


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


def test_init_args_of_init_args_is_an_unknown_key() -> None:
    """Of a checkpoint's description, whose keys the message does not begin with."""
    message = "a.ckpt: its configuration cannot be used: Option 'init_args' is not accepted"
    assert one_line(message) == "a.ckpt: its configuration cannot be used: unknown key init_args"
