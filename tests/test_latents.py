"""Latents: the command, the files, what training sees, and decoded images of their models."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latents_folder import small_kl, write_latents
from shell import cli, fit, tiny_config
from torch import Tensor

from diffusion_pl import load
from diffusion_pl.autoencoders import KL, Moments, Orthogonal
from diffusion_pl.commands import encoding
from diffusion_pl.conditions import Condition
from diffusion_pl.data import Digits, Latents, Loader
from diffusion_pl.data.latent_draws import Drawn
from diffusion_pl.data.latent_files import Rows
from diffusion_pl.data.units import Latent, Levels
from diffusion_pl.denoisers import Gaussian
from diffusion_pl.likelihood import FlowLikelihood
from diffusion_pl.pipeline import Pipeline
from diffusion_pl.samplers import Heun, LogSNRGrid
from diffusion_pl.schedules import VP
from diffusion_pl.tensors import SampleNoise

NETWORK = {
    "class_path": "diffusion_pl.networks.UNet",
    "init_args": {"nf": 8, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []},
}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents without loss, of digits and their mirror images."""
    return write_latents(tmp_path_factory.mktemp("exact") / "latents", mirrors=True, dtype="float32")


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents with a std above 0, by a KL autoencoder that was not trained."""
    return write_latents(tmp_path_factory.mktemp("random") / "latents", small_kl())


def ready(path: Path, **options: Any) -> Latents:
    data = Latents(str(path), **options)
    data.setup()
    return data


def copied(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "copy"))


def test_the_files_hold_both_views_and_decode_to_the_images(exact: Path) -> None:
    data, images = ready(exact), Digits(conditional=True)
    images.setup()
    record = json.loads((exact / "latents.json").read_text())
    assert data.shape == (4, 4, 4) and data.image_shape == (1, 8, 8) and data.is_image
    assert (record["views"], record["moments"]) == (2, 1)
    for split in ("train", "val", "test"):
        real, own = next(images.batches(split, 50)), next(data.batches(split, 50))
        assert torch.equal(own["label"], real["label"])
        assert torch.equal(data.decode(own["x"]), images.units.decode(real["x"]))
        rows = data.rows(split).__getitems__(torch.arange(50))["x"]
        mirrored = data.codec.decode(rows[:, 1, 0])
        torch.testing.assert_close(mirrored, real["x"].flip(-1), rtol=0, atol=1e-5)
    assert data.conditions == images.conditions and data.class_counts == images.class_counts


def test_the_originals_are_the_images_that_were_encoded(exact: Path) -> None:
    originals = ready(exact).originals
    originals.setup("fit")
    images = Digits(conditional=True)
    images.setup()
    assert torch.equal(originals.stored(torch.arange(9))["x"], images.stored(torch.arange(9))["x"])


def test_statistics_are_var_of_mean_plus_mean_of_variance(random: Path) -> None:
    """Also what the loader gives: unit variance in every channel, mean 0."""
    data = ready(random, batch_size=500, repeats=4)
    moments = torch.from_numpy(np.load(random / "train.npy")).double()[:, 0]
    mean, std = moments[:, 0].movedim(1, 0).flatten(1), moments[:, 1].movedim(1, 0).flatten(1)
    variance = mean.var(1, unbiased=False) + std.square().mean(1)
    record = data.record
    torch.testing.assert_close(torch.tensor(record["mean"], dtype=torch.float64), mean.mean(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.tensor(record["std"], dtype=torch.float64).square(), variance, rtol=1e-9, atol=0)
    assert (std.square().mean(1) > 0.05 * variance).all()  # else this proves nothing
    seen = torch.cat([data.on_after_batch_transfer(batch, 0)["x"] for batch in data.train_dataloader()]).double()
    n = len(seen) * 16
    assert (seen.mean((0, 2, 3)).abs() < 0.05).all()
    torch.testing.assert_close(seen.square().mean((0, 2, 3)), torch.ones(3).double(), rtol=0, atol=8 / math.sqrt(n))
    assert data.second_moment() == pytest.approx(float(seen.square().mean()), abs=0.05)


def test_training_draws_mirror_images_and_new_noise(exact: Path, random: Path) -> None:
    data = ready(exact, batch_size=1000, repeats=1)
    batch = next(iter(data.train_dataloader()))
    plain = torch.cat([part["x"] for part in data.batches("train", 2000)])
    x = data.on_after_batch_transfer(batch, 0)["x"]
    same = (torch.cdist(x.flatten(1), plain.flatten(1)).amin(1) < 1e-3).double().mean()
    assert 0.42 < same < 0.6  # the others are mirror images
    data = ready(random, batch_size=50, repeats=1)
    loader = data.train_dataloader()
    first = {int(i): x for i, x in zip(loader.order(0)[:50], loader.read(0, 0)["x"], strict=True)}
    for batch_number in range(len(loader)):
        places = loader.order(1)[50 * batch_number : 50 * batch_number + 50].tolist()
        for place, x in zip(places, loader.read(1, batch_number)["x"], strict=False):
            assert place not in first or not torch.equal(first[place], x)
    assert torch.equal(next(data.batches("val", 20))["x"], next(data.batches("val", 20))["x"])


@pytest.mark.parametrize("world_size", [2, 3])
def test_draws_do_not_depend_on_the_number_of_processes(random: Path, world_size: int) -> None:
    def loader(rank: int, size: int) -> Loader:
        rows = ready(random).rows("train")
        return Loader(rows, 30, shuffle=True, augmentation=Drawn(rows), rank=rank, world_size=size)

    alone = next(iter(loader(0, 1)))
    for rank in range(world_size):
        share = next(iter(loader(rank, world_size)))
        for name, value in alone.items():
            assert torch.equal(share[name], value[rank::world_size])


@pytest.mark.slow
def test_workers_read_the_same(random: Path) -> None:
    here, there = (ready(random, batch_size=64, workers=n).train_dataloader() for n in (0, 2))
    for _, a, b in zip(range(5), here, there, strict=False):
        assert torch.equal(a["x"], b["x"])


def test_image_conditions_are_mirrored_with_their_latents(tmp_path: Path) -> None:
    x = torch.arange(8.0).reshape(2, 2, 1, 1, 1, 2)
    low = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])
    np.save(tmp_path / "x.npy", x.numpy())
    drawn = Drawn(Rows({"x": tmp_path / "x.npy"}, ["low"]))(
        {"x": x, "low": low}, torch.tensor([[0.1, 0.5, 0.5], [0.9, 0.5, 0.5]])
    )
    assert drawn["x"].flatten().tolist() == [0.0, 1.0, 6.0, 7.0]
    assert drawn["low"].flatten().tolist() == [1.0, 2.0, 4.0, 3.0]
    assert Condition((1, 1, 2)).kind == "image"


@pytest.fixture
def gaussian() -> tuple[Tensor, Tensor, Latent]:
    """Mean and covariance of images of 2 x 2 pixels, and the units of their latents in an orthonormal basis."""
    generator = torch.Generator().manual_seed(0)
    mean = 0.3 * torch.randn(4, generator=generator, dtype=torch.float64)
    factor = 0.4 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    cov, auto = factor @ factor.T + 0.05 * torch.eye(4), Orthogonal((1, 2, 2), 2)
    center = auto.encode(mean.reshape(1, 1, 2, 2)).mean[0]
    std = (auto.basis @ cov @ auto.basis.T).diagonal().sqrt()
    return mean, cov, Latent(lambda: auto, center, std[:, None, None], Levels(256))


def scaled(units: Latent, x: Tensor) -> Tensor:
    """Images (N, 4) as standardized latents (N, 4)."""
    return units.scale(units.codec().encode(x.reshape(-1, 1, 2, 2)).mean).flatten(1)


def test_log_p_differs_by_the_log_determinant(gaussian: tuple[Tensor, Tensor, Latent]) -> None:
    """log p(x) = log p(standardized z) − Σ log std, since |det Q| = 1: the flow's likelihoods, and the exact one."""
    mean, cov, units = gaussian
    law = torch.distributions.MultivariateNormal(mean, cov)
    x = mean + torch.randn(10, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ cov
    codec: Any = units.codec()
    basis, std = codec.basis, units.std.flatten()
    inner = basis @ cov @ basis.T / std / std[:, None]
    schedule, flow = VP(beta_max=40.0), FlowLikelihood(probes=0, rtol=1e-9, atol=1e-9)
    of_latents = flow(Gaussian(schedule, torch.zeros(4).double(), inner), scaled(units, x), SampleNoise(0, range(10)))
    log_p = of_latents.log_p - std.log().sum()
    torch.testing.assert_close(log_p, law.log_prob(x), rtol=0, atol=1e-6)
    of_pixels = flow(Gaussian(schedule, 0 * mean, cov), x - mean, SampleNoise(0, range(10))).log_p
    torch.testing.assert_close(log_p, of_pixels, rtol=0, atol=1e-6)


def test_decoded_samples_have_the_distribution_of_the_data(gaussian: tuple[Tensor, Tensor, Latent]) -> None:
    """The sampler's map from ε to decoded images is affine: its matrix gives their covariance without noise."""
    mean, cov, units = gaussian
    codec: Any = units.codec()
    basis, std = codec.basis, units.std.flatten()
    inner = basis @ cov @ basis.T / std / std[:, None]
    denoiser = Gaussian(VP(), torch.zeros(4).double(), inner)
    pipeline = Pipeline(denoiser, Heun(LogSNRGrid(200)), (4,))
    eps = torch.cat((torch.zeros(1, 4), torch.eye(4))).double()
    z = units.unscale(pipeline.with_latents(eps).samples(range(5)).x_0.double().unflatten(1, (4, 1, 1)))
    x = units.codec().decode(z).flatten(1)
    matrix = x[1:] - x[0]
    torch.testing.assert_close(x[0], mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(matrix.T @ matrix, cov, rtol=0, atol=1e-3 * cov.max().item())


def test_blocks_do_not_change_an_image(random: Path) -> None:
    """Each decoded image is the same to the last bit, alone and among others; leading axes are kept."""
    units = ready(random).units
    x = torch.randn(41, 3, 4, 4)
    whole = units.to_uint8(x)
    assert whole.shape == (41, 1, 8, 8) and whole.dtype == torch.uint8
    assert torch.equal(units.images(x)[7], units.images(x[7]))
    assert torch.equal(units.to_uint8(x[:40].unflatten(0, (4, 10))).flatten(0, 1), whole[:40])
    with pytest.raises(ValueError, match="levels"):
        Latent(lambda: Orthogonal((1, 8, 8)), torch.zeros(1), torch.ones(1), Levels(1))


def test_an_interrupted_encoding_ends_with_the_same_files(
    tmp_path: Path, random: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_SAVED_EVERY", 3)
    calls, encode = [0], KL.encode

    def failing(self: KL, x: Tensor) -> Moments:
        calls[0] += 1
        if calls[0] == 12:
            raise KeyboardInterrupt
        return encode(self, x)

    monkeypatch.setattr(KL, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        write_latents(tmp_path / "again", small_kl())
    assert json.loads((tmp_path / "again/.unfinished/train.done.json").read_text()) == {"done": 576}
    with pytest.raises(FileNotFoundError, match="repeat"):
        ready(tmp_path / "again")
    calls[0] = 100
    write_latents(tmp_path / "again", small_kl())
    assert calls[0] < 100 + 40  # not all of them again
    for name in ("train.npy", "val.npy", "test.npy", "train.label.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (random / name).read_bytes()
    assert not (tmp_path / "again/.unfinished").exists()


def test_splits_may_be_empty(tmp_path: Path) -> None:
    data = ready(write_latents(tmp_path / "all", data=Digits(val_fraction=0)))
    assert [len(data.part(split)) for split in ("train", "val", "test")] == [1797, 0, 0]
    assert data.val_dataloader() == [] and not data.conditions
    assert next(iter(data.train_dataloader()))["x"].shape == (128, 4, 4, 4)


def test_nothing_is_overwritten(exact: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_latents(mine)
    assert (mine / "notes.txt").read_text() == "mine" and [p.name for p in mine.iterdir()] == ["notes.txt"]


def test_damaged_folders_are_one_line(random: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"latents\.json"):
        ready(tmp_path)
    folder = copied(random, tmp_path)
    with (folder / "train.npy").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(ValueError, match="truncated"):
        ready(folder)
    np.save(folder / "train.npy", np.zeros((3, 1, 2, 3, 4, 4), np.float16))
    with pytest.raises(ValueError, match="expected"):
        ready(folder)
    (folder / "train.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.npy"):
        ready(folder)
    (folder / "latents.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        ready(folder)


def test_an_autoencoder_that_is_missing_or_another_is_refused(random: Path, tmp_path: Path) -> None:
    folder = copied(random, tmp_path)
    data, state = ready(folder), ready(folder).state_dict()
    torch.save({k: v + 1 for k, v in small_kl().state_dict().items()}, folder / "autoencoder/weights.pt")
    with pytest.raises(ValueError, match="other weights"):
        data.decode(torch.zeros(1, 3, 4, 4))
    shutil.rmtree(folder / "autoencoder")
    data = ready(folder, autoencoder=str(random / "autoencoder"))
    assert data.decode(torch.zeros(1, 3, 4, 4)).shape == (1, 1, 8, 8)
    record = json.loads((folder / "latents.json").read_text())
    record["autoencoder"]["name"] = str(tmp_path / "gone")
    (folder / "latents.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"--data\.autoencoder"):
        ready(folder).decode(torch.zeros(1, 3, 4, 4))
    for change, named in (
        ({"mean": [0.0, 0.0, 0.0]}, "mean"),
        ({"std": [1.0, 1.0, 1.0]}, "std"),
        ({"autoencoder": {"name": "x", "sha256": "0" * 64}}, "autoencoder"),
        ({"shape": [3, 4, 5]}, "shape"),
    ):
        with pytest.raises(ValueError, match=named):
            ready(random).load_state_dict({**state, **change})


def test_the_state_rebuilds_units_without_the_files(random: Path, tmp_path: Path) -> None:
    state = ready(random).state_dict()
    elsewhere = Latents(str(tmp_path / "nowhere"), autoencoder=str(random / "autoencoder"))
    elsewhere.load_state_dict(json.loads(json.dumps(state)))
    x = torch.randn(3, 3, 4, 4)
    assert torch.equal(elsewhere.decode(x), ready(random).decode(x))
    assert (elsewhere.shape, elsewhere.image_shape) == ((3, 4, 4), (1, 8, 8))
    (tmp_path / "out").mkdir()
    elsewhere.write(x, tmp_path / "out")
    assert elsewhere.read(tmp_path / "out").shape == (3, 3, 4, 4)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--data", "Datasaurus", "--autoencoder", "a"), "images"),
        (("--data", "FashionMNIST", "--data.horizontal_flip", "true", "--autoencoder", "a"), "--mirrors"),
        (("--data", "Digits", "--autoencoder", "nowhere"), "nowhere"),
        (("--data", "Digits", "--autoencoder", "a", "--dtype", "float8"), "dtype"),
    ],
)
def test_bad_calls_are_one_line(tmp_path: Path, args: tuple[str, ...], named: str) -> None:
    done = cli(tmp_path, "latents", *args, "--output", "out")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1 and named in done.err
    assert not (tmp_path / "out").exists()


def test_a_model_of_latents_ends_in_images(exact: Path, tmp_path: Path) -> None:
    """fit, resume, sample, evaluate, restore and Python."""
    latents = {"class_path": "Latents", "init_args": {"path": str(exact), "batch_size": 64, "repeats": 1}}
    short: dict[str, Any] = {"model__network": NETWORK, "data": latents}
    panels = [{"class_path": "ImagePanels", "init_args": {"every_n_steps": 100, "num_samples": 10, "film": False}}]
    small: dict[str, Any] = {"trainer__max_steps": 4, "trainer__limit_val_batches": 1, "trainer__callbacks": panels}
    run = fit(tmp_path, **short, **small)
    assert sorted(p.name.split("-")[0] for p in (run / "panels").iterdir())
    done = cli(tmp_path, "sample", "--ckpt_path", run, "--num_samples", 10, "--output", "s", "--film")
    assert done.code == 0, done.err
    from PIL import Image

    assert Image.open(tmp_path / "s/0.png").size == (8, 8)
    images = load(run)(4)
    assert images.shape == (4, 1, 8, 8) and images.dtype == torch.uint8
    shown = np.asarray(Image.open(tmp_path / "s/3.png"))
    assert np.abs(shown - 255 / 16 * images[3, 0].numpy()).max() <= 8  # 17 levels, shown in 256
    done = cli(tmp_path, "evaluate", "--ckpt_path", run, "--num_samples", 50, "--extractor", "DigitsClassifier")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "evaluation/evaluation.json").read_text())["figures"]
    assert results["ssim"]["value"] == pytest.approx(1, abs=1e-6) and results["psnr"]["value"] > 90  # rounding
    assert results["fid"]["protocol"]["reference"]["data"] == "Digits"
    assert results["fid"]["protocol"] == {**results["rfid"]["protocol"]}
    done = cli(
        tmp_path, "restore", "--ckpt_path", run, "--path", "s/1.png", "--num_samples", 2, "--sampler", "Ancestral"
    )
    assert done.code == 0, done.err
    real, restored = (np.asarray(Image.open(tmp_path / name)) for name in ("s/1.png", "restored/0.png"))
    assert np.abs(real[:, :4].astype(int) - restored[:, :4]).max() <= 1
    done = cli(tmp_path, "restore", "--ckpt_path", run, "--path", "s/1.png", "--task", "upscale", "--output", "r")
    assert done.code == 2 and "Fix: --method posterior or dps" in done.error


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
def test_a_resumed_run_trains_the_same_steps(random: Path, tmp_path: Path, online: bool) -> None:
    path = write_latents(tmp_path / "online", small_kl(), online=True, mirrors=True) if online else random
    data = {"class_path": "Latents", "init_args": {"path": str(path), "batch_size": 32, "repeats": 1}}
    options: dict[str, Any] = {"model__network": NETWORK, "data": data, "trainer__limit_val_batches": 0}
    whole = fit(tmp_path / "whole", **options, trainer__max_steps=8)
    fit(tmp_path / "parts", **options, trainer__max_steps=3)
    parts = fit(tmp_path / "parts", "--ckpt_path", "last", **options, trainer__max_steps=8)
    a, b = (torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)


AUTO = {
    "model": {
        "class_path": "AutoencoderModule",
        "init_args": {
            "autoencoder": {"class_path": "KL", "init_args": {"nf": 8, "ch_mult": [1, 2]}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.002}},
            "adversarial": 0.5,
            "adversarial_start": 2,
        },
    },
    "data": {"class_path": "Digits", "init_args": {"batch_size": 32, "repeats": 1}},
}


OWN: dict[str, Any] = {
    "model": AUTO["model"],
    "data": AUTO["data"],
    "trainer__val_check_interval": 4,
    "trainer__limit_val_batches": 1,
    "trainer__callbacks": [{"class_path": "ReconstructionPanels", "init_args": {"every_n_steps": 4}}],
}


def test_an_own_autoencoder_is_trained_and_used(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **OWN, trainer__max_steps=4)
    trained, run = cli(tmp_path, "fit", "--config", config, "--run", "run"), tmp_path / "runs/run"
    assert any((run / "panels").iterdir())
    assert trained.next == ["latents", "--data", "Digits", "--autoencoder", "runs/run"]
    done = cli(tmp_path, *trained.next, "--output", "lat")
    assert done.code == 0, done.err
    assert ready(tmp_path / "lat").shape == (4, 4, 4)
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    averaged = {**content["state_dict"], **next(iter(content["averages"]["shadows"].values()))}
    stored = torch.load(tmp_path / "lat/autoencoder/weights.pt", weights_only=True)
    assert all(torch.equal(value, averaged[f"autoencoder.{name}"]) for name, value in stored.items())


@pytest.mark.slow
def test_a_resumed_autoencoder_trains_the_same_steps(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", **OWN, trainer__max_steps=8)
    fit(tmp_path / "parts", **OWN, trainer__max_steps=4)
    parts = fit(tmp_path / "parts", "--ckpt_path", "last", **OWN, trainer__max_steps=8)
    a, b = (torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a) and any("discriminator" in name for name in a)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = fit(tmp_path, trainer__max_steps=1)
    done = cli(tmp_path, "latents", "--data", "Digits", "--autoencoder", other, "--output", "no")
    assert done.code == 2 and "DiffusionModule" in done.err


def test_latents_can_be_multiplied_by_a_number(tmp_path: Path) -> None:
    """In place of statistics; the mean square that they then have is noted, and is in a checkpoint."""
    write_latents(tmp_path / "scaled", scale=0.3)
    write_latents(tmp_path / "plain")
    scaled, plain = (Latents(str(tmp_path / name)) for name in ("scaled", "plain"))
    assert scaled.record["mean"] == [0.0] * 4
    assert scaled.record["std"] == pytest.approx([1 / 0.3] * 4)
    scaled.setup("fit")
    x = scaled.training_examples(10_000)
    assert scaled.second_moment() == pytest.approx(float(x.square().mean()), rel=1e-3)
    assert plain.second_moment() == 1
    torch.testing.assert_close(x, 0.3 * plain.units.unscale(examples(plain)), rtol=1e-3, atol=1e-3)
    other = Latents(str(tmp_path / "scaled"))
    other.load_state_dict(scaled.state_dict())
    assert other.second_moment() == scaled.second_moment()
    assert "second_moment" not in plain.state_dict()
    with pytest.raises(ValueError, match="mean of the latents differ"):
        plain.check_state(scaled.state_dict())
    with pytest.raises(ValueError, match="scale must be positive and finite, got 0"):
        write_latents(tmp_path / "bad", scale=0.0)


def examples(data: Latents) -> Tensor:
    data.setup("fit")
    return data.training_examples(10_000)
