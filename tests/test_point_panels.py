"""PointPanels: which images are written, when, of which weights, and that they change only with the model."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from shell import cli, fit, images, tiny_config, tiny_data, tiny_module, tiny_trainer, weights
from torch import Tensor

from diffusion_pl.callbacks import EMA, PointPanels
from diffusion_pl.pipeline import Pipeline
from diffusion_pl.schedules import VE

SMALL: dict[str, Any] = {"num_samples": 50, "num_paths": 5, "field_times": [0.1, 0.5], "film": False}
AT_THE_END = {"film/ema0.9", "schedule", "forward_process", "trajectories/ema0.9", "field/ema0.9", "samples/ema0.9"}


def panels(**changes: Any) -> PointPanels:
    return PointPanels(**(SMALL | changes))


def files(folder: Path) -> dict[str, np.ndarray]:
    """Every image as pixels; of a film the first."""
    return {file.stem: np.asarray(Image.open(file).convert("RGB")) for file in sorted((folder / "panels").iterdir())}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps with a panel every 10, through the command line."""
    callback = {"class_path": "PointPanels", "init_args": {**SMALL, "every_n_steps": 10, "film": True}}
    folder = tmp_path_factory.mktemp("panels")
    return fit(folder, "--ema.decays", "[0.9]", trainer__max_steps=30, trainer__callbacks=[callback])


def test_which_panels_are_drawn_when(run: Path) -> None:
    steps: dict[str, list[int]] = {}
    for name in files(run):
        tag, step = name.rsplit("-", 1)
        steps.setdefault(tag, []).append(int(step))
    assert steps.pop("samples_ema0.9") == [10, 20, 30]
    assert steps == {tag.replace("/", "_"): [30] for tag in AT_THE_END - {"samples/ema0.9"}}


def test_the_logger_has_the_same_images_by_weights(run: Path) -> None:
    logged = images(run)
    assert set(logged) == AT_THE_END
    assert [step for step, _ in logged["samples/ema0.9"]] == [10, 20, 30]
    for tag, shown in logged.items():
        for step, png in shown:
            ending = "gif" if tag.startswith("film/") else "png"
            assert (run / "panels" / f"{tag.replace('/', '_')}-{step:08d}.{ending}").read_bytes() == png


def test_the_film_ends_with_the_samples(run: Path) -> None:
    with Image.open(run / "panels/film_ema0.9-00000030.gif") as film:
        assert isinstance(film, GifImageFile)
        assert film.n_frames == 5  # four grid times and the samples
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)
    left, right = np.split(last[60:], 2, axis=1)  # without the titles
    blue = [(part[..., 2] - part[..., 0] > 100).sum() for part in (left, right)]
    assert blue[0] == pytest.approx(blue[1], rel=0.2) and blue[0] > 100  # x_t is the estimate


def test_every_image_shows_something(run: Path) -> None:
    for name, image in files(run).items():
        assert image.ndim == 3 and min(image.shape[:2]) >= 100, name
        assert len(np.unique(image.astype(np.int64) @ [65536, 256, 1])) > 20, name  # colours


def test_the_latents_stay_so_only_the_model_changes_images(tmp_path: Path) -> None:
    class Frozen(Callback):
        """Keeps the weights where they are, and draws noise that must not matter."""

        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            torch.randn(trainer.global_step + 1)
            for p in pl_module.parameters():
                p.grad = None

    trainer = tiny_trainer(tmp_path, panels(every_n_steps=2), Frozen(), max_steps=4)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    shown = [image for name, image in files(tmp_path).items() if name.startswith("samples_raw")]
    assert len(shown) == 2
    # All but the title, which gives the step.
    differ = np.argwhere((shown[0] != shown[1]).any(2))
    assert differ[:, 0].max() < 0.12 * shown[0].shape[0]


def test_a_model_that_learned_gives_another_image(run: Path) -> None:
    shown = [image for name, image in files(run).items() if name.startswith("samples_ema0.9")]
    assert np.argwhere((shown[0] != shown[2]).any(2))[:, 0].max() > 0.5 * shown[0].shape[0]


def test_drawing_leaves_training_alone(tmp_path: Path) -> None:
    """Weights and averages are the same bits with panels and without."""
    ends = []
    for callbacks in ([], [panels(every_n_steps=3)]):
        module = tiny_module()
        torch.manual_seed(5)
        tiny_trainer(tmp_path, EMA((0.9,)), *callbacks, max_steps=1).fit(module, datamodule=tiny_data())
        assert module.weights_name == "raw"
        ends.append((weights(module), module.averages.state()["shadows"]["0.9"]))
    for ours, theirs in zip(*ends, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_averages_the_images_say_raw(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, panels(), max_steps=1).fit(tiny_module(), datamodule=tiny_data())
    assert {name.rsplit("-", 1)[0] for name in files(tmp_path)} == {
        tag.replace("/", "_").replace("ema0.9", "raw") for tag in AT_THE_END - {"film/ema0.9"}
    }


def test_accumulated_gradients_draw_one_panel_a_step(tmp_path: Path) -> None:
    drawn: list[int] = []

    class Counting(PointPanels):
        def draw_samples(self, trainer: Trainer, pipeline: Pipeline) -> Tensor:
            drawn.append(trainer.global_step)
            return torch.empty(0, 2)

        def draw_end(self, trainer: Trainer, pipeline: Pipeline, x: Tensor) -> None:
            pass

    trainer = tiny_trainer(tmp_path, Counting(every_n_steps=2, film=False), max_steps=5, accumulate_grad_batches=3)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    assert drawn == [2, 4, 5]


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, panels(every_n_steps=1), fast_dev_run=True)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    assert not (tmp_path / "panels").exists()


def test_one_dimension_has_what_can_be_drawn_of_it(tmp_path: Path) -> None:
    (tmp_path / "line.csv").write_text("height\n" + "".join(f"{i * 0.37 % 3}\n" for i in range(50)))
    data = {"class_path": "Table", "init_args": {"path": "line.csv", "columns": ["height"], "batch_size": 16}}
    callback = {"class_path": "PointPanels", "init_args": SMALL}
    run = fit(tmp_path, data=data, trainer__callbacks=[callback], trainer__max_steps=2)
    assert {name.rsplit("-", 1)[0] for name in files(run)} == {"samples_ema0.999", "schedule"}


def test_three_dimensions_are_drawn_in_two(tmp_path: Path) -> None:
    rows = "".join(f"{i % 5},{i % 7},{i % 3}\n" for i in range(60))
    (tmp_path / "space.csv").write_text("x,y,z\n" + rows)
    data = {"class_path": "Table", "init_args": {"path": "space.csv", "columns": list("xyz"), "batch_size": 16}}
    callback = {"class_path": "PointPanels", "init_args": SMALL}
    run = fit(tmp_path, data=data, trainer__callbacks=[callback], trainer__max_steps=2)
    names = {name.rsplit("-", 1)[0] for name in files(run)}
    assert names == {"samples_ema0.999", "schedule", "forward_process", "trajectories_ema0.999"}


def test_a_variance_exploding_schedule_is_drawn_too(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, panels(), max_steps=1)
    trainer.fit(tiny_module(schedule=VE()), datamodule=tiny_data())
    assert len(files(tmp_path)) == 5


def test_other_data_than_points_are_refused(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        data={"class_path": "Digits"},
        model__network={"class_path": "diffusion_pl.networks.ConvUNet"},
        trainer__callbacks=[{"class_path": "PointPanels"}],
    )
    error = cli(tmp_path, "fit", "--config", config).error
    assert re.search(r"PointPanels draws point data only: take it out of trainer.callbacks", error), error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "PointPanels: every_n_steps must be at least 1, got 0"),
        ({"num_samples": 0}, "PointPanels: num_samples must be at least 1, got 0"),
        ({"num_paths": -1}, "PointPanels: num_paths must be at least 1, got -1"),
        ({"field_times": (0.5, 1.5)}, "PointPanels: field_times must be in (0, 1], got [0.5, 1.5]"),
        ({"field_times": (0.0,)}, "PointPanels: field_times must be in (0, 1], got [0.0]"),
    ],
)
def test_bad_numbers_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PointPanels(**arguments)
