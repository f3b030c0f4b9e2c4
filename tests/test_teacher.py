"""A trained model as the teacher of a flow map: what it predicts, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from shell import checkpoint, cli, fit, tiny_config
from test_flow_map_training import JUMPING, MEAN_FLOW

from diffusion_pl.checkpoints.loading import load_pipeline
from diffusion_pl.checkpoints.teacher import OPTION, Teacher, with_teacher
from diffusion_pl.conditions import label

STUDENT: dict[str, Any] = {"model__loss": MEAN_FLOW, "model__network": JUMPING}
CLASS = f"{Teacher.__module__}.{Teacher.__qualname__}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a short run of points."""
    path = tmp_path_factory.mktemp("teacher")
    fit(path, run="plain", trainer__max_steps=2)
    return path


def run_of(folder: Path) -> Path:
    """The folder of the teacher's run."""
    return folder / "runs" / "plain"


def refused(folder: Path, teacher: Any, **changes: Any) -> str:
    config = tiny_config(folder, "student.yaml", **(STUDENT | changes))
    return cli(folder, "fit", "--config", config, OPTION, teacher, "--run", "no", "--trainer.max_steps", 1).error


def test_a_teacher_is_the_denoiser_of_its_checkpoint(folder: Path) -> None:
    teacher, x, t = Teacher(str(run_of(folder))), torch.randn(4, 2), torch.tensor(0.4)
    pipeline, _ = load_pipeline(str(run_of(folder)), "ema")
    expected = pipeline.denoiser.eval()(x, t)
    torch.testing.assert_close(teacher(x, t).x_0, expected.x_0)
    assert not teacher.flow_map
    assert not list(teacher.parameters())


def test_a_run_with_a_teacher_is_independent_of_it(folder: Path) -> None:
    """Its checkpoint has none of the teacher's weights, and loads when the teacher is gone."""
    config = tiny_config(folder, "student.yaml", **STUDENT)
    args = ("--config", config, OPTION, run_of(folder), "--run", "student", "--trainer.max_steps", 2)
    done = cli(folder, "fit", *args)
    assert done.code == 0, done.err
    student = folder / done.run
    assert not any("teacher" in name for name in checkpoint(student)["state_dict"])
    place = run_of(folder)
    moved = place.rename(folder / "moved")
    try:
        pipeline, _ = load_pipeline(str(student), "raw")
        assert pipeline(3, steps=1).shape == (3, 2)
    finally:
        moved.rename(place)


def test_a_missing_teacher_is_one_line(folder: Path) -> None:
    assert "nowhere" in refused(folder, "runs/nowhere")


def test_a_teacher_of_another_schedule_is_one_line(folder: Path) -> None:
    message = refused(folder, run_of(folder), model__schedule={"class_path": "Cosine"})
    assert "the teacher has another noise schedule" in message
    assert "Fix: give the model the same model.schedule" in message


def test_a_teacher_of_other_data_is_refused(folder: Path) -> None:
    teacher = Teacher(str(run_of(folder)))
    with pytest.raises(ValueError, match=r"is a model of shape .*, the data have \(3,\)"):
        teacher.check_data((3,), {})
    with pytest.raises(ValueError, match="does not have the condition label"):
        teacher.check_data((2,), {"label": label(3)})
    teacher.check_data((2,), {})


def test_a_negative_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be at least 0"):
        Teacher("runs/plain", scale=-1.0)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([OPTION, "runs/a"], [OPTION, CLASS, f"{OPTION}.path", "runs/a"]),
        ([f"{OPTION}=a.ckpt"], [OPTION, CLASS, f"{OPTION}.path", "a.ckpt"]),
        ([OPTION, "null"], [OPTION, "null"]),
        ([OPTION, CLASS], [OPTION, CLASS]),
        (["--model.loss.rule", "MeanFlow"], ["--model.loss.rule", "MeanFlow"]),
    ],
)
def test_a_path_is_the_class_with_this_path(args: list[str], expected: list[str]) -> None:
    assert with_teacher(args) == expected
