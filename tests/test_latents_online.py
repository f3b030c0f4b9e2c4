"""Latents that are encoded in training: the same as stored ones, and everything after them."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latents_folder import small_kl, write_latents
from PIL import Image
from shell import cli, fit
from torch import Tensor

from diffusion_pl.autoencoders import KL, Moments
from diffusion_pl.commands import encoding
from diffusion_pl.data import Digits, Folder, Latents
from diffusion_pl.data.loader import Batch, Loader

NETWORK = {
    "class_path": "diffusion_pl.networks.UNet",
    "init_args": {"nf": 8, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Digits and their mirror images, stored and encoded in training, by the same autoencoder."""
    root = tmp_path_factory.mktemp("both")
    stored = write_latents(root / "stored", small_kl(), mirrors=True, dtype="float32")
    return stored, write_latents(root / "online", small_kl(), mirrors=True, online=True)


@pytest.fixture(scope="module")
def online(folders: tuple[Path, Path]) -> Path:
    return folders[1]


def ready(path: Path, **options: Any) -> Latents:
    data = Latents(str(path), **options)
    data.setup()
    return data


def seen(data: Latents) -> Iterator[Batch]:
    """What training sees."""
    return (data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader())


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "latents.json").read_text())
    return record


def moments_of(images: Tensor) -> Moments:
    """Mean and std, in float64, of images and their mirror images."""
    codec = small_kl().eval().requires_grad_(False)
    return Moments(*(part.double() for part in codec.encode(torch.cat((images, images.flip(-1))))))


def mean_and_variance(moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel: Var(mean) + E[std²]."""
    mean, std = (part.movedim(1, 0).flatten(1) for part in moments)
    return mean.mean(1), mean.var(1, unbiased=False) + std.square().mean(1)


def images_of(split: str) -> Tensor:
    digits = Digits(conditional=True)
    digits.setup()
    return torch.cat([batch["x"] for batch in digits.batches(split, 500)])


def test_only_statistics_are_written(folders: tuple[Path, Path]) -> None:
    stored, online = folders
    assert sorted(path.name for path in online.iterdir() if path.name[0] != ".") == [
        "autoencoder",
        "latents.json",
        "original.pt",
    ]
    ours, theirs = record_of(online), record_of(stored)
    assert ours["statistics_from"] == ours["splits"]["train"] and ours["sha256"] == {}
    for name in ("mean", "std"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6)
    for name in ("conditions", "class_counts", "shape", "image_shape", "levels", "data", "views", "moments"):
        assert ours[name] == theirs[name]
    assert ours["autoencoder"]["sha256"] == theirs["autoencoder"]["sha256"]


def test_training_and_validation_see_the_stored_latents(folders: tuple[Path, Path]) -> None:
    """For the same draws of mirror image and noise; and z is mean + std ε of one of both views."""
    stored, online = (ready(path, batch_size=100, repeats=1, seed=3) for path in folders)
    for _, expected, got in zip(range(3), seen(stored), seen(online), strict=False):
        assert got.keys() == expected.keys() == {"x", "label"}
        assert torch.equal(got["label"], expected["label"])
        torch.testing.assert_close(got["x"], expected["x"], rtol=0, atol=2e-5)
        assert got["x"].grad_fn is None
    for split in ("val", "test"):
        pairs = zip(stored.batches(split, 64), online.batches(split, 64), strict=True)
        for expected, got in pairs:
            torch.testing.assert_close(got["x"], expected["x"], rtol=0, atol=2e-5)
    torch.testing.assert_close(online.training_examples(300), stored.training_examples(300), rtol=0, atol=2e-5)


def test_variance_is_of_the_mean_plus_that_of_noise(online: Path) -> None:
    moments = moments_of(images_of("train"))
    mean, variance = mean_and_variance(moments)
    assert (variance > 1.05 * moments.mean.var((0, 2, 3))).all()  # else this proves nothing of the noise
    data = ready(online, batch_size=400, repeats=2)
    x = torch.cat([batch["x"] for batch in seen(data)]).double()
    z = data.units.unscale(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), mean, rtol=0, atol=0.05 * float(variance.sqrt().max()))
    torch.testing.assert_close(z.var((0, 2, 3)), variance, rtol=0.03, atol=0)


def test_statistics_are_of_so_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spread over all; an interrupted call continues with the sums that it had."""
    monkeypatch.setattr(encoding, "_SAVED_EVERY", 2)
    calls, encode = [0], KL.encode

    def failing(self: KL, x: Tensor) -> Moments:
        calls[0] += 1
        if calls[0] == 9:  # one for the number of moments, two for each batch
            raise KeyboardInterrupt
        return encode(self, x)

    monkeypatch.setattr(KL, "encode", failing)
    call: dict[str, Any] = {"mirrors": True, "online": True, "statistics_from": 100, "batch_size": 16}
    with pytest.raises(KeyboardInterrupt):
        write_latents(tmp_path / "some", small_kl(), **call)
    note = json.loads((tmp_path / "some/.unfinished/statistics.done.json").read_text())
    assert note["done"] == 32 and note["sums"]["n"] == 32 * 2 * 16
    record = record_of(write_latents(tmp_path / "some", small_kl(), **call))
    images = images_of("train")
    mean, variance = mean_and_variance(moments_of(images[torch.arange(100) * len(images) // 100]))
    assert record["statistics_from"] == 100
    torch.testing.assert_close(torch.tensor(record["mean"]).double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(record["std"]).double().square(), variance, rtol=1e-5, atol=0)
    whole = record_of(write_latents(tmp_path / "whole", small_kl(), **call))
    assert (whole["mean"], whole["std"]) == (record["mean"], record["std"])


@pytest.mark.parametrize("world_size", [2, 3])
def test_batches_do_not_depend_on_the_number_of_processes(online: Path, world_size: int) -> None:
    data = ready(online)

    def first(rank: int, size: int) -> Batch:
        whole = data.train_dataloader()
        options: dict[str, Any] = {"shuffle": True, "augmentation": whole.augmentation}
        batch = next(iter(Loader(whole.source, 30, rank=rank, world_size=size, **options)))
        return data.on_after_batch_transfer(batch, 0)

    alone = first(0, 1)
    for rank in range(world_size):
        for name, value in first(rank, world_size).items():
            assert torch.equal(value, alone[name][rank::world_size])


def test_a_loader_resumes_within_an_epoch(online: Path) -> None:
    data, again = (ready(online, batch_size=50, repeats=1) for _ in range(2))
    loader, other = data.train_dataloader(), again.train_dataloader()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    other.load_state_dict(loader.state_dict())
    expected, got = (
        owner.on_after_batch_transfer(next(source), 0) for owner, source in ((data, batches), (again, iter(other)))
    )
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_worker_processes_get_images_and_no_network(online: Path) -> None:
    rows = ready(online).rows("train")
    content = pickle.dumps(rows)
    assert b"autoencoder" not in content
    there, some = pickle.loads(content), torch.arange(5)
    assert torch.equal(there.__getitems__(some)["x"], rows.__getitems__(some)["x"])


def test_a_process_without_examples_has_an_empty_batch(online: Path) -> None:
    data = ready(online)
    empty = {name: value[:0] for name, value in data.part("val").__getitems__(torch.tensor([0])).items()}
    assert data.on_after_batch_transfer(empty, 0)["x"].shape == (0, 3, 4, 4)


def test_conditions_need_no_autoencoder(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready(online)
    monkeypatch.setattr(KL, "encode", lambda self, x: pytest.fail("encoded"))
    assert len(data.conditions_of("val")["label"]) > 10
    assert data.second_moment() == 1 and data.stored(torch.arange(3))["x"].shape == (3, 1, 8, 8)


def test_images_are_decoded_where_the_autoencoder_is(online: Path) -> None:
    """Nothing can be copied from the device `meta`: an error says that it was used."""
    for opened in (False, True):
        data = Latents(str(online))
        if opened:
            assert data.codec.device.type == "cpu"
        data.to(torch.device("meta"))
        assert data.codec.device.type == "meta"
        with pytest.raises(NotImplementedError, match="meta"):
            data.decode(torch.zeros(1, 3, 4, 4))


def test_another_autoencoder_is_refused_before_training(online: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(online, tmp_path / "copy"))
    torch.save({k: v + 1 for k, v in small_kl().state_dict().items()}, folder / "autoencoder/weights.pt")
    with pytest.raises(ValueError, match=r"other weights.*--data\.autoencoder"):
        ready(folder)


def test_images_that_were_moved_are_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    (tmp_path / "images").mkdir()
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"images/{k}.png")
    images = Folder(str(tmp_path / "images"), val_fraction=0.2)
    folder = write_latents(tmp_path / "latents", small_kl(), images, online=True)
    before = next(ready(folder).batches("train", 9))["x"]
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"--data\.images"):
        ready(folder)
    assert torch.equal(next(ready(folder, images=str(tmp_path / "moved")).batches("train", 9))["x"], before)


def test_data_in_no_folder_cannot_have_moved(online: Path) -> None:
    with pytest.raises(ValueError, match=r"--data\.images"):
        ready(online, images="elsewhere")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--statistics_from", 100), "--online"),
        (("--online", "--statistics_from", 1), "statistics_from"),
        (("--online", "--dtype", "float32"), "--dtype"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, args: tuple[Any, ...], named: str) -> None:
    done = cli(tmp_path, "latents", "--data", "Digits", "--autoencoder", "a", "--output", "out", *args)
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1 and named in done.err
    assert not (tmp_path / "out").exists()


def fitted(folder: Path, path: Path, *args: Any, **options: Any) -> Path:
    data = {"class_path": "Latents", "init_args": {"path": str(path), "batch_size": 32, "repeats": 1}}
    short: dict[str, Any] = {"trainer__limit_val_batches": 1, **options}
    return fit(folder, *args, model__network=NETWORK, data=data, **short)


def test_panels_show_decoded_images(online: Path, tmp_path: Path) -> None:
    panels = [{"class_path": "ImagePanels", "init_args": {"every_n_steps": 100, "num_samples": 4, "film": False}}]
    run = fitted(tmp_path, online, trainer__max_steps=2, trainer__callbacks=panels)
    panels_of = {path.name.split("_")[0] for path in (run / "panels").iterdir()}
    assert panels_of == {"forward", "samples", "neighbours"}


@pytest.mark.slow
def test_sample_evaluate_sweep_and_restore(online: Path, tmp_path: Path) -> None:
    run = fitted(tmp_path, online, trainer__max_steps=2)
    done = cli(tmp_path, "sample", "--ckpt_path", run, "--num_samples", 3, "--output", "s", "--film")
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "s/0.png").size == (8, 8)
    done = cli(tmp_path, "evaluate", "--ckpt_path", run, "--num_samples", 50, "--extractor", "DigitsClassifier")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "evaluation/evaluation.json").read_text())["figures"]
    assert {"fid", "rfid", "psnr", "ssim"} <= results.keys()
    assert results["fid"]["protocol"]["reference"]["data"] == "Digits"
    done = cli(tmp_path, "sweep", "--ckpt_path", run, "--samplers", "Heun", "--nfe", 4, "--num_samples", 8)
    assert done.code == 0, done.err
    assert "no distance" not in done.out
    image = Image.fromarray(np.full((8, 8), 100, np.uint8))
    image.save(tmp_path / "x.png")
    done = cli(tmp_path, "restore", "--ckpt_path", run, "--path", "x.png", "--method", "posterior")
    assert done.code == 0, done.err
