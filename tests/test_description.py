"""Description: a checkpoint says what it is, and is not loaded into another model."""

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from shell import checkpoint, fit

from diffusion_pl import __version__
from diffusion_pl.callbacks import Description
from diffusion_pl.callbacks.description import first_difference
from diffusion_pl.networks import MLP

MODEL: dict[str, Any] = {
    "network": {"class_path": "diffusion_pl.networks.MLP", "init_args": {"width": 16, "depth": 1}},
    "schedule": {"class_path": "diffusion_pl.schedules.VP", "init_args": {"beta_min": 0.1, "beta_max": 20.0}},
    "parameterization": {"class_path": "diffusion_pl.denoisers.V"},
    "noise_input": None,
    "optimizer": {"class_path": "Adam", "init_args": {"lr": 0.1}},
}
ANY: Any = None  # trainer and module, which are not looked at


def description(model: dict[str, Any]) -> Description:
    return Description({"model": model, "data": {}}, save=lambda path: None)


def loaded(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Load a checkpoint of `theirs` into a run of `ours`."""
    content: dict[str, Any] = {}
    description(theirs).on_save_checkpoint(ANY, ANY, content)
    description(ours).on_load_checkpoint(ANY, ANY, content)


def test_every_checkpoint_stores_model_and_data_configuration(tmp_path: Path) -> None:
    described = checkpoint(fit(tmp_path, trainer__max_steps=1))["diffusion_pl"]
    assert described["version"] == __version__
    # With the defaults: what they were is part of what the weights mean.
    assert described["model"]["schedule"]["init_args"] == {"beta_min": 0.1, "beta_max": 20.0}
    assert described["model"]["network"]["init_args"]["width"] == 16
    assert described["data"]["class_path"] == "diffusion_pl.data.Datasaurus"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schedule": {"class_path": "diffusion_pl.schedules.VP", "init_args": {"beta_min": 0.1, "beta_max": 15.0}}},
            "model.schedule.init_args.beta_max is 20.0 in the checkpoint, 15.0 here",
        ),
        (
            {"schedule": {"class_path": "diffusion_pl.schedules.Cosine", "init_args": {}}},
            "model.schedule.class_path is diffusion_pl.schedules.VP in the checkpoint, diffusion_pl.schedules.Cosine"
            " here",
        ),
        (
            {"parameterization": {"class_path": "diffusion_pl.denoisers.Epsilon"}},
            "model.parameterization.class_path is diffusion_pl.denoisers.V in the",
        ),
        ({"noise_input": {"class_path": "LogSNR"}}, "model.noise_input is None in the checkpoint, {'class_path"),
    ],
    ids=["number", "class", "parameterization", "from none"],
)
def test_resume_refuses_options_that_change_the_weights_meaning(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        loaded(MODEL, MODEL | change)
    assert "the checkpoint is of another configuration" in str(refusal.value)
    assert message in str(refusal.value)
    assert "use the config it was made with" in str(refusal.value)


def test_resume_allows_options_that_keep_the_weights_meaning() -> None:
    for change in ({}, {"optimizer": {"class_path": "SGD"}}, {"sampler": {"class_path": "Heun"}}):
        assert refusal(MODEL, MODEL | change) is None


def refusal(saved: dict[str, Any], current: dict[str, Any]) -> str | None:
    """Why a checkpoint is refused; None: it is not."""
    try:
        loaded(saved, current)
    except ValueError as error:
        return str(error)
    return None


def test_an_option_that_a_class_did_not_have_yet_had_its_default() -> None:
    """A run can be resumed after the package has learned something new."""
    older = MODEL | {"network": {"class_path": "diffusion_pl.networks.MLP", "init_args": {"width": 16}}}
    depth = signature(MLP).parameters["depth"].default
    same = MODEL["network"] | {"init_args": {"width": 16, "depth": depth}}
    assert refusal(older, MODEL | {"network": same}) is None
    other = MODEL["network"] | {"init_args": {"width": 16, "depth": depth + 1}}
    with pytest.raises(ValueError, match=f"depth is {depth} in the checkpoint, {depth + 1} here"):
        loaded(older, MODEL | {"network": other})


def test_a_checkpoint_without_description_is_checked_by_shape() -> None:
    description(MODEL).on_load_checkpoint(ANY, ANY, {"state_dict": {}})


def test_the_first_difference_is_reported_at_any_depth() -> None:
    assert first_difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}, "x") is None
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}, "x") == "x.a.b is 1 in the checkpoint, 2 here"
    assert first_difference({"a": 1}, {}, "x") == "x.a is 1 in the checkpoint, None here"
    assert first_difference({"a": 1}, None, "x") == "x is {'a': 1} in the checkpoint, None here"
