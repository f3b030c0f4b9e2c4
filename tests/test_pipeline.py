"""diffusion_pl.load and Pipeline: the first contact in Python."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import environment, tiny_data, tiny_module, tiny_trainer
from torch import Tensor

import diffusion_pl
from diffusion_pl.callbacks import EMA
from diffusion_pl.conditions import Condition, label
from diffusion_pl.denoisers import Denoiser, Gaussian, Prediction, Thresholded
from diffusion_pl.pipeline import Pipeline, slerp
from diffusion_pl.samplers import DDIM, Ancestral, DPMpp, Heun, UniformGrid
from diffusion_pl.schedules import VP

ASSETS = Path(__file__).parent / "assets" / "v0_1"


class Constant(Denoiser):
    """Of data that are the class number, or −1 without a class."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = VP()

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        kernel = self.schedule(t)
        x_0 = cond["label"].to(x_t.dtype)[:, None].expand_as(x_t)
        return Prediction(x_0, (x_t - kernel.alpha * x_0) / kernel.sigma)


def of_classes(**changes: Any) -> Pipeline:
    conditions = {"label": label(3, ["shirt", "dress", "bag"])}
    return Pipeline(Constant(), DDIM(UniformGrid(5)), (2,), conditions, **changes)


@cache
def gaussian() -> Pipeline:
    return Pipeline(Gaussian(VP(), torch.zeros(2), 0.25 * torch.eye(2)), Heun(UniformGrid(30, t_min=1e-3)), (2,))


def test_images_come_in_the_units_of_the_data() -> None:
    pipe = diffusion_pl.load(ASSETS / "unet")
    images = pipe(3, steps=5, label=3, scale=2.0, seed=1)
    assert images.shape == (3, 1, 8, 8)
    assert 0 <= images.min() < images.max() <= 16  # grey levels of the digits
    x_0 = pipe.with_sampler(steps=5).with_scale(2.0).with_cond(label=3).with_seed(1).samples(range(3)).x_0
    assert x_0.abs().max() < 3  # model units
    assert not torch.equal(pipe(3, steps=5, label=3, scale=2.0), images)  # another seed
    assert not torch.equal(pipe(3, steps=5, label=4, scale=2.0, seed=1), images)
    assert not torch.equal(pipe(3, steps=5, label=3, seed=1), images)


def test_points_come_in_the_units_of_the_table() -> None:
    pipe = diffusion_pl.load(ASSETS / "mlp")
    points = pipe(200)
    assert points.shape == (200, 2)
    assert 20 < points.mean() < 80  # the Datasaurus fills 0 … 100
    assert pipe.samples(range(200)).x_0.std() < 3
    assert "ema" in pipe.weights
    assert pipe.weights in repr(pipe)
    assert diffusion_pl.load(ASSETS / "mlp", "raw").weights == "raw"


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    pipe = gaussian().with_sampler(Ancestral(UniformGrid(5)))
    together = pipe.samples(range(6)).x_0
    torch.testing.assert_close(pipe.samples([4, 1]).x_0, together[[4, 1]])
    torch.testing.assert_close(pipe(3), together[:3])
    assert not torch.isclose(pipe.with_seed(1).samples(range(6)).x_0, together).any()


def test_samples_have_the_standard_deviation_of_the_data() -> None:
    assert gaussian()(4096).std(0).tolist() == pytest.approx([0.5, 0.5], rel=0.05)


def test_it_is_never_changed() -> None:
    pipe = gaussian()
    with pytest.raises(FrozenInstanceError):
        pipe.seed = 3  # type: ignore[misc]
    other = pipe.with_sampler(DPMpp(UniformGrid(4))).with_seed(5).with_latents(torch.ones(1, 2))
    assert (type(pipe.sampler), pipe.seed, pipe.latents) == (Heun, 0, None)
    assert (type(other.sampler), other.seed) == (DPMpp, 5)
    sampler = DDIM(UniformGrid(9))
    assert len(pipe.with_sampler(sampler, steps=3).sampler.grid(VP())) == 3
    assert len(sampler.grid(VP())) == 9  # the one that was given


def test_classes_come_in_turn_unless_one_is_asked_for() -> None:
    pipe = of_classes()
    assert pipe(4)[:, 0].tolist() == [0, 1, 2, 0]
    assert pipe(2, label=2)[:, 0].tolist() == pipe(2, label="bag")[:, 0].tolist() == [2, 2]
    assert pipe(2, label=None)[:, 0].tolist() == pipe.without_cond()(2)[:, 0].tolist() == [-1, -1]
    assert pipe.with_cond(label="dress")(1)[:, 0].tolist() == [1]
    assert of_classes(turns={"label": (0, 2)})(3)[:, 0].tolist() == [0, 2, 0]
    given = torch.tensor([1, 2])
    assert pipe.samples(range(2), label=given).x_0[:, 0].tolist() == [1, 2]


def test_guidance_extrapolates_from_the_estimate_without_class() -> None:
    """−1 + w (k + 1) for class k."""
    assert of_classes()(3, scale=2.0)[:, 0].tolist() == [1, 3, 5]
    assert of_classes(guidance=Thresholded)(3, scale=2.0).max() == 1  # clips outside of it


def test_latents_are_recovered() -> None:
    pipe = gaussian().with_sampler(Heun(UniformGrid(200)))
    eps = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    x_0 = pipe.with_latents(eps).samples(range(3)).x_0
    torch.testing.assert_close(pipe.encode(x_0), eps, rtol=0, atol=1e-3)


def test_slerp_keeps_the_norm() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    way = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(way, torch.tensor([[1, 0], [2**-0.5, 2**-0.5], [0, 1]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of_classes()(2, lable=3), "cond.lable: the model has no such condition; it has label"),
        (lambda: of_classes()(2, label="coat"), "expected a number in 0 … 2, or a name: 0 shirt, 1 dress, 2 bag"),
        (lambda: of_classes()(2, label="dres"), r"did you mean dress\?"),
        (lambda: of_classes()(2, label=3), "cond.label: expected a number in 0 … 2"),
        (lambda: gaussian()(2, label=3), "it is unconditional"),
        (lambda: gaussian()(2, scale=3), "scale 3 is for a model with conditions"),
        (lambda: gaussian()(0), "n must be at least 1, got 0"),
        (lambda: gaussian()(2, seed=-1), "seed must not be negative, got -1"),
        (lambda: gaussian()(2, steps=0), "0"),
        (lambda: gaussian().with_latents(torch.zeros(3, 4)), r"latents must be \(N, 2\), got \(3, 4\)"),
        (
            lambda: Pipeline(Constant(), DDIM(UniformGrid(2)), (2,), {"text": Condition((5, 8))})(1),
            r"cond.text: a value is missing, the model needs one \(sequence\)",
        ),
    ],
)
def test_bad_calls_are_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.ckpt", "no checkpoint at .*nothing.ckpt"),
        ("empty", "no checkpoint in .*empty: give a run's folder"),
        ("classifier", "is a NoisyClassifier, not a diffusion model: it can be given as --classifier"),
        ("theirs.pt", "has no state_dict. Fix: .* import"),
        ("theirs.safetensors", "Fix: .* import"),
        ("diffusers", "no checkpoint in .*Fix: .* import"),
        ("text.ckpt", "is damaged or not a checkpoint"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "theirs.safetensors").write_bytes(bytes(100))
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "model_index.json").write_text("{}")
    torch.save({"model": {"weight": torch.zeros(2)}, "step": 3}, tmp_path / "theirs.pt")
    path = ASSETS / name if name == "classifier" else tmp_path / name
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        diffusion_pl.load(path)
    assert "\n" not in str(caught.value)


def test_a_model_in_python_gives_its_ema_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, data = tiny_module(), tiny_data()
    tiny_trainer(tmp_path, EMA(decays=[0.9]), max_steps=5).fit(module, datamodule=data)
    pipe, raw = module.pipeline(), module.pipeline("raw")
    assert (pipe.weights, raw.weights) == ("ema0.9", "raw")
    assert "pipeline: ema0.9 weights" in capsys.readouterr().out
    shadow, own = module.averages.of("0.9"), dict(module.named_parameters())
    name = next(iter(shadow))
    inner = name.removeprefix("denoiser.")
    assert torch.equal(dict(pipe.denoiser.named_parameters())[inner], shadow[name])
    assert torch.equal(dict(raw.denoiser.named_parameters())[inner], own[name])
    before = pipe(4)
    assert before.mean() > 5  # in the units of the table
    with torch.no_grad():
        own[name].add_(1)
    assert torch.equal(pipe(4), before)  # a copy
    with pytest.raises(ValueError, match=r"has no weights 'ema:0\.5'"):
        module.pipeline("ema:0.5")


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, diffusion_pl; assert 'torch' not in sys.modules; diffusion_pl.load"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_a_pipeline_needs_no_lightning() -> None:
    code = "import sys, diffusion_pl.pipeline; assert not {'lightning', 'torchvision', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
