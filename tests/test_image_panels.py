"""ImagePanels: what is drawn, when, of which weights, in which classes; the metrics; and the film."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import by_class
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from shell import images, scalars, tiny_data, tiny_module, tiny_trainer
from torch import Tensor, nn

from diffusion_pl.callbacks import EMA, ImagePanels
from diffusion_pl.callbacks.images import log_film
from diffusion_pl.conditions import Conditions
from diffusion_pl.data.images import Examples, Format, Images
from diffusion_pl.data.loader import Tensors
from diffusion_pl.samplers import DDIM, UniformGrid
from diffusion_pl.schedules import VE
from diffusion_pl.training import DiffusionModule


class Blobs(Images):
    """Sixty images of 3 x 4 x 6."""

    def __init__(self, classes: int | None = None) -> None:
        super().__init__("blobs", batch_size=8)
        self.number = classes

    def inspect(self) -> Format:
        return Format((3, 4, 6), by_class(self.number))

    def examples(self) -> Examples:
        x = torch.randint(0, 256, (60, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        x[:, 0] //= 4
        if self.number is None:
            return Examples(Tensors({"x": x}))
        label = torch.arange(60) % self.number
        return Examples(Tensors({"x": x, "label": label}), label)


class Tiny(nn.Module):
    """One convolution. It keeps the labels that it gets."""

    def __init__(self, shape: tuple[int, ...], conditions: Conditions | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], shape[0], 3, padding=1)
        self.labels: list[list[int]] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        if not self.training:
            self.labels.append([] if label is None else label.tolist())
        output: Tensor = self.conv(x)
        return output


SHORT: dict[str, Any] = {"num_samples": 6, "strip_times": (0.1, 0.5)}


def train(
    folder: Path, *, steps: int = 20, classes: int | None = None, ema: tuple[float, ...] = (0.5,), **options: Any
) -> DiffusionModule:
    module = tiny_module(network=Tiny, shape=(3, 4, 6), conditions=by_class(classes))
    callbacks = [EMA(ema), ImagePanels(**({"every_n_steps": 10} | SHORT | options))]
    logger = TensorBoardLogger(str(folder), "", "")
    trainer = tiny_trainer(folder, *callbacks, max_steps=steps, logger=logger)
    trainer.fit(module, datamodule=Blobs(classes))
    return module


def files(folder: Path) -> set[str]:
    return {file.name for file in (folder / "panels").iterdir()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panels")
    train(folder)
    return folder


def test_which_panels_are_drawn_when(run: Path) -> None:
    expected = {"forward_process-00000000.png", "film_ema0.5-00000020.gif", "neighbours_ema0.5-00000020.png"}
    expected |= {f"samples_ema0.5-{step:08d}.png" for step in (10, 20)}
    assert files(run) == expected


def test_the_logger_has_the_same_images_and_the_film(run: Path) -> None:
    logged = images(run)
    assert {tag: [step for step, _ in shown] for tag, shown in logged.items()} == {
        "forward_process": [0],
        "samples/ema0.5": [10, 20],
        "neighbours/ema0.5": [20],
        "film/ema0.5": [20],
    }
    gif = Image.open(io.BytesIO(logged["film/ema0.5"][0][1]))
    assert gif.format == "GIF"
    assert logged["film/ema0.5"][0][1] == (run / "panels/film_ema0.5-00000020.gif").read_bytes()


def test_the_same_latents_every_time(tmp_path: Path) -> None:
    """Two panels of weights that did not change are the same image, but for the title."""
    module = tiny_module(network=Tiny, shape=(3, 4, 6), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer = tiny_trainer(tmp_path, ImagePanels(every_n_steps=10, film=False, **SHORT))
    trainer.fit(module, datamodule=Blobs())
    first, second = (np.asarray(Image.open(tmp_path / f"panels/samples_raw-{step:08d}.png"))[60:] for step in (10, 20))
    assert np.array_equal(first, second)
    assert len(np.unique(first)) > 20


def test_raw_weights_are_shown_with_a_young_ema(tmp_path: Path) -> None:
    train(tmp_path, ema=(0.95,), steps=40, film=False)
    shown: dict[str, list[int]] = {name.split("-")[0]: [] for name in files(tmp_path)}
    for name in sorted(files(tmp_path)):
        tag, step = re.fullmatch(r"(.*)-0*(\d+).png", name).groups()  # type: ignore[union-attr]
        shown[tag].append(int(step))
    # 1/(1 - 0.95) = 20 steps: from then on the average has forgotten the start.
    assert shown.pop("neighbours_ema0.95") == [40]
    assert shown == {"forward_process": [0], "samples_ema0.95": [10, 20, 30, 40], "samples_raw": [10]}


def test_each_class_has_a_row_of_its_samples(tmp_path: Path) -> None:
    network: Any = train(tmp_path, classes=3, steps=10, film=False).network
    assert network.labels[-1] == [0, 0, 1, 1, 2, 2]


def test_more_than_ten_classes_have_ten_rows(tmp_path: Path) -> None:
    network: Any = train(tmp_path, classes=12, steps=10, film=False, num_samples=15).network
    assert network.labels[-1] == [k for k in range(10) for _ in range(2)]


def test_few_samples_of_many_classes_are_no_tower(tmp_path: Path) -> None:
    network: Any = train(tmp_path, classes=10, steps=10, film=False, num_samples=10).network
    assert network.labels[-1] == [*range(10)]
    with Image.open(tmp_path / "panels/samples_ema0.5-00000010.png") as panel:
        assert panel.width > panel.height  # a column for each class


def test_a_row_of_training_images_is_above_the_samples(run: Path) -> None:
    """Samples of Tiny are no bytes of the data; the first row of the panel is."""
    panel = np.asarray(Image.open(run / "panels/samples_ema0.5-00000020.png"))
    data = Blobs()
    data.setup()
    x = data.units.to_uint8(data.training_examples(12))[:, :, ::1].numpy().transpose(0, 2, 3, 1)
    scale = round(600 / (3 * 7))
    flat = panel.reshape(-1, 3)
    shown = [all((flat == pixel).all(1).sum() >= scale**2 for pixel in image.reshape(-1, 3)) for image in x]
    assert sum(shown) == 3  # as many as there are columns


def test_a_sampler_of_their_own(tmp_path: Path) -> None:
    network: Any = train(tmp_path, steps=10, film=False, sampler=DDIM(UniformGrid(7))).network
    assert len(network.labels) == 7  # once for both panels


def test_samples_are_above_their_nearest_training_images(tmp_path: Path) -> None:
    """Of samples that are training images both rows are equal, and the distances are those of copies."""
    module = tiny_module(network=Tiny, shape=(3, 4, 6), sampler=Copies(UniformGrid(2)))
    logger = TensorBoardLogger(str(tmp_path), "", "")
    options = {"max_steps": 1, "logger": logger}
    tiny_trainer(tmp_path, ImagePanels(film=False, **SHORT), **options).fit(module, datamodule=Blobs())
    logged = scalars(tmp_path)
    assert logged["neighbours_raw/distance"] == [(1, 0)]
    assert logged["neighbours_raw/memorisation"] == [(1, 0)]
    panel = np.asarray(Image.open(tmp_path / "panels/neighbours_raw-00000001.png"))
    above, below = panel[-2 * 63 :].reshape(2, 63, *panel.shape[1:])  # 4 pixels, 14 times enlarged, and a gap
    assert np.array_equal(above[:, 70:], below[:, 70:])
    assert len(np.unique(above)) > 50


class Copies(DDIM):
    """All samples are training images."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        samples = super().__call__(*args, **kwargs)
        data = Blobs()
        data.setup()
        x = next(data.batches("train", len(samples.x_0)))["x"]
        return samples._replace(x_0=x)


def test_channel_moments_are_logged_with_those_of_the_data(run: Path) -> None:
    logged = scalars(run)
    data = Blobs()
    data.setup()
    x = data.units.encode(data.splits[0].__getitems__(torch.arange(len(data.splits[0])))["x"])
    for channel in range(3):
        assert logged[f"data/mean_{channel}"][-1][1] == pytest.approx(x[:, channel].mean().item(), abs=1e-5)
        assert logged[f"data/std_{channel}"][-1][1] == pytest.approx(x[:, channel].std().item(), abs=1e-5)
        assert {f"samples_ema0.5/{what}_{channel}" for what in ("mean", "std")} <= logged.keys()
    assert [step for step, _ in logged["samples_ema0.5/constant"]] == [10, 20]
    assert [value for _, value in logged["samples_ema0.5/constant"]] == [0, 0]


def test_constant_samples_are_counted(tmp_path: Path) -> None:
    module = tiny_module(network=Tiny, shape=(3, 4, 6), sampler=Stuck(UniformGrid(2)))
    trainer = tiny_trainer(
        tmp_path,
        ImagePanels(every_n_steps=10, film=False, **SHORT),
        max_steps=1,
        logger=TensorBoardLogger(str(tmp_path), "", ""),
    )
    trainer.fit(module, datamodule=Blobs())
    assert scalars(tmp_path)["samples_raw/constant"] == [(1, 5.0)]


class Stuck(DDIM):
    """All samples but the first are one grey."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        samples = super().__call__(*args, **kwargs)
        x = samples.x_0.clone()
        x[1:] = 0.3
        return samples._replace(x_0=x)


def test_the_strip_keeps_the_scale_of_the_data(tmp_path: Path) -> None:
    """Under a variance-exploding schedule noise of 50 times the data's scale would only show black and white."""
    module = tiny_module(network=Tiny, shape=(3, 4, 6), schedule=VE())
    trainer = tiny_trainer(tmp_path, ImagePanels(film=False, **SHORT), max_steps=1)
    trainer.fit(module, datamodule=Blobs())
    strip = np.asarray(Image.open(tmp_path / "panels/forward_process-00000000.png"))
    assert ((strip > 40) & (strip < 215)).mean() > 0.3


def test_the_film_ends_with_the_samples(run: Path, tmp_path: Path) -> None:
    with Image.open(run / "panels/film_ema0.5-00000020.gif") as film:
        assert isinstance(film, GifImageFile)
        assert film.n_frames == 5  # four grid times and the samples
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)
    top, bottom = last[34:90, 95:], last[109:165, 95:]  # six images of x, and below them six of the estimate
    assert np.ptp(top) > 200
    assert abs(top - bottom).max() == 0


def test_a_film_keeps_its_colours_and_its_duration(tmp_path: Path) -> None:
    frames = [np.full((10, 20, 3), (250, 8 * k, 20), dtype=np.uint8) for k in range(10)]
    log_film(tiny_trainer(tmp_path), "film/x", frames, seconds=2.0)
    with Image.open(tmp_path / "panels/film_x-00000000.gif") as film:
        assert isinstance(film, GifImageFile)
        assert (film.n_frames, film.info["loop"]) == (10, 0)
        durations = []
        for k in range(10):
            film.seek(k)
            durations.append(film.info["duration"])
            assert abs(np.asarray(film.convert("RGB"))[5, 5].astype(int) - frames[k][5, 5]).max() <= 24
    assert durations == [200] * 9 + [1000]


def test_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ImagePanels draws images only: take it out of trainer\.callbacks"):
        tiny_trainer(tmp_path, ImagePanels()).fit(tiny_module(), datamodule=tiny_data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"strip_times": (0.0, 0.5)}, r"strip_times must be in \(0, 1\]"),
        ({"strip_times": ()}, r"strip_times must be in \(0, 1\]"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagePanels(**options)
