"""What diffusers' pipelines sample, models from their files sample, step by step; and the other way round."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from conftest import by_class
from diffusers_model import HO, bring_in, pipeline
from shell import cli, tiny_config
from test_interop_diffusers import DDPM, export, sampler, unet
from torch import Tensor

from diffusion_pl.samplers import DDIM
from diffusion_pl.training import DiffusionModule

DDIM_SCHEDULER, DDPM_SCHEDULER = diffusers.DDIMScheduler, diffusers.DDPMScheduler


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1, theirs.abs().max().item()))


def calm(pipe: Any) -> Any:
    """With estimates so small that rounding does not grow along the way, as it does in untrained networks."""
    with torch.no_grad():
        for p in pipe.unet.conv_out.parameters():
            p.mul_(0.02)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(model: DiffusionModule, x: Tensor, steps: int | None = None, sampler: Any = None) -> Tensor:
    """x at every time and at the end, (N + 1, B, *)."""
    pipeline = model.live_pipeline()
    if sampler is not None:
        pipeline = pipeline.with_sampler(sampler)
    if steps is not None:
        pipeline = pipeline.with_sampler(grid=pipeline.sampler.grid.with_steps(steps))
    path = pipeline.sampler(pipeline.guided, x, path=True).path
    assert path is not None
    return path.x


def theirs(pipe: Any, x: Tensor, steps: int, **options: Any) -> Tensor:
    pipe.scheduler.set_timesteps(steps)
    actual = [x]
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            actual.append(pipe.scheduler.step(pipe.unet(actual[-1], t).sample, t, actual[-1], **options).prev_sample)
    return torch.stack(actual)


def noise() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DDIM_SCHEDULER, {}),
        (DDIM_SCHEDULER, {"clip_sample": False}),
        (DDIM_SCHEDULER, {"set_alpha_to_one": False, "clip_sample_range": 0.5}),
        (DDIM_SCHEDULER, {"timestep_spacing": "trailing"}),
        (DDIM_SCHEDULER, {"timestep_spacing": "trailing", "set_alpha_to_one": False, "clip_sample": False}),
        (DDIM_SCHEDULER, {"set_alpha_to_one": False, "clip_sample": False, **STABLE}),
        (DDIM_SCHEDULER, {"thresholding": True, "sample_max_value": 2.0, "prediction_type": "sample"}),
        (DDIM_SCHEDULER, {"thresholding": True}),
        (
            DDIM_SCHEDULER,
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        ),
        (DDIM_SCHEDULER, {"beta_schedule": "squaredcos_cap_v2", "steps_offset": 1}),
        (DDPM_SCHEDULER, {"variance_type": "fixed_large"}),
        (DDPM_SCHEDULER, {"timestep_spacing": "linspace", "beta_schedule": "sigmoid"}),
        (DDPM_SCHEDULER, {"timestep_spacing": "trailing", "clip_sample": False}),
    ],
)
def test_trajectory_is_that_of_diffusers(tmp_path: Path, kind: Any, options: dict[str, Any]) -> None:
    pipe = calm(pipeline(tmp_path, kind(**options)))
    model, _ = bring_in(pipe, tmp_path)
    for steps in (10, 20) if options.keys() & {"steps_offset", "variance_type", "clip_sample_range"} else (10,):
        torch.manual_seed(0)
        expected = theirs(pipe, noise(), steps)
        torch.manual_seed(0)
        close(ours(model, noise(), steps), expected)


@pytest.mark.parametrize(("steps", "to_one", "clip"), [(10, True, True), (10, False, False), (50, False, True)])
def test_linspace_is_theirs_where_it_visits_all_steps(tmp_path: Path, steps: int, to_one: bool, clip: bool) -> None:
    options = {"num_train_timesteps": steps, "beta_end": 0.2, "set_alpha_to_one": to_one, "clip_sample": clip}
    pipe = calm(pipeline(tmp_path, DDIM_SCHEDULER(timestep_spacing="linspace", **options)))
    model, notes = bring_in(pipe, tmp_path)
    close(ours(model, noise()), theirs(pipe, noise(), steps))
    assert not any("linspace" in note for note in notes)


def test_linspace_that_skips_steps_is_named(tmp_path: Path) -> None:
    scheduler = DDIM_SCHEDULER(timestep_spacing="linspace")
    pipe = diffusers.DDIMPipeline(pipeline(tmp_path, scheduler).unet, scheduler)
    assert any("timestep_spacing linspace" in note for note in bring_in(pipe, tmp_path)[1])


@pytest.mark.parametrize("kind", ["DDIMPipeline", "DDPMPipeline"])
def test_default_samples_are_those_of_the_pipeline(tmp_path: Path, kind: str) -> None:
    """A pipeline of 20 steps of its own; both classes take the scheduler that they know."""
    options = {"num_train_timesteps": 60, "beta_end": 0.2}
    scheduler = DDIM_SCHEDULER(**options) if kind == "DDIMPipeline" else DDPM_SCHEDULER(**options)
    pipe = calm(getattr(diffusers, kind)(pipeline(tmp_path, scheduler).unet, scheduler))
    model, notes = bring_in(pipe, tmp_path)
    steps = len(model.sampler.grid(model.schedule))
    assert steps == {"DDIMPipeline": 50, "DDPMPipeline": 60}[kind]
    assert any(f"{steps} steps, as {kind} does by default" in note for note in notes)
    generator = torch.Generator().manual_seed(3)
    images = pipe(batch_size=2, num_inference_steps=steps, generator=generator, output_type="pt").images
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 8, 8, generator=generator)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    result = model.sampler(model.live_pipeline().guided, x, drawn).x_0
    close((result / 2 + 0.5).clamp(0, 1), images)


def test_ddim_of_a_ddpm_file_is_ddim_pipeline(tmp_path: Path) -> None:
    """`sample --sampler DDIM` is `DDIMPipeline.from_pretrained` of a file of DDPMPipeline."""
    pipe = calm(pipeline(tmp_path, DDPM_SCHEDULER()))
    model, _ = bring_in(pipe, tmp_path)
    other = diffusers.DDIMPipeline.from_pretrained(tmp_path / "pipe")
    other.set_progress_bar_config(disable=True)
    close(ours(model, noise(), 10, DDIM), theirs(other, noise(), 10))


# Options of published files: google/ddpm-cifar10-32 and google/ddpm-cat-256, which keep all in one folder.
PUBLISHED = {
    "cifar10-32": (
        [128, 256, 256, 256],
        ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        {"sample_size": 32, "variance": "fixed_large", "length": 1.0},
    ),
    "cat-256": (
        [128, 128, 256, 256, 512, 512],
        ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
        ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
        {"sample_size": 256, "variance": "fixed_small", "length": 0.0},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_options_in_one_folder_are_read(tmp_path: Path, name: str) -> None:
    """With an eighth of the channels."""
    widths, down, up, more = PUBLISHED[name]
    options = {
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [width // 8 for width in widths],
        "center_input_sample": False,
        "down_block_types": down,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 4,
        "out_channels": 3,
        "sample_size": more["sample_size"],
        "time_embedding_type": "positional",
        "up_block_types": up,
    }
    network = diffusers.UNet2DModel(**options).eval()
    network.save_pretrained(tmp_path / "pipe")
    config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", **options}
    scheduler = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.1.1",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": more["variance"],
    }
    index: dict[str, Any] = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    files = {"config.json": config, "scheduler_config.json": scheduler, "model_index.json": index}
    for file, content in files.items():
        (tmp_path / "pipe" / file).write_text(json.dumps(content))
    model, notes = bring_in(None, tmp_path)
    assert model.sampler.variance == more["length"]  # type: ignore[attr-defined]
    assert notes == (
        "samples are drawn in 1000 steps, as DDPMPipeline does by default: sample --steps N takes another number",
    )
    x, step = torch.randn(1, 3, 32, 32), torch.tensor([400])
    with torch.no_grad():
        close(model.network(x, step.float()), network(x, step).sample)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"skip_prk_steps": True}, "not read: skip_prk_steps true"),
        ({"skip_prk_steps": False, "timestep_values": None}, None),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 2},
            "the sampler of DPMSolverMultistepScheduler is not read: samples are drawn with DDIM in 50 steps",
        ),
    ],
)
def test_scheduler_options_not_read_are_named(tmp_path: Path, changes: dict[str, Any], named: str | None) -> None:
    pipeline(tmp_path, DDIM_SCHEDULER())
    path = tmp_path / "pipe/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    _, notes = bring_in(None, tmp_path)
    if named is None:
        assert not any("not read" in note for note in notes)
    else:
        assert any(named in note for note in notes), notes


def test_pipeline_of_more_than_a_network_is_refused(tmp_path: Path) -> None:
    """Such as LDMPipeline, whose network knows latents only."""
    pipeline(tmp_path)
    path = tmp_path / "pipe/model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(ValueError, match=r"model_index.json: vqvae: expected a pipeline of unet and scheduler"):
        bring_in(None, tmp_path)


def spaced(kind: str, **options: Any) -> dict[str, Any]:
    return {"class_path": kind, "init_args": options}


@pytest.mark.parametrize(
    "changes",
    [
        sampler("Ancestral", "UniformGrid", {"variance": 1.0}, steps=20),
        sampler("Ancestral", "RespacedGrid", {"variance": 0.0}, length=20, steps=7),
        sampler("DDIM", "UniformGrid", steps=20) | {"model__guidance": spaced("Thresholded", keep_eps=True)},
        sampler("DDIM", "UniformGrid", steps=5) | {"model__guidance": spaced("Thresholded", low=-0.5, high=0.5)},
        sampler("DDIM", "LeadingGrid", {"eta": 0.5, "end": 0.05}, length=20, steps=6, offset=1),
        sampler("DDIM", "TrailingGrid", {"eta": 1.0}, length=20, steps=10)
        | {"model__guidance": spaced("Thresholded", quantile=0.9, max_r=1.5)},
        {"model__schedule": spaced("ZeroTerminalSNR", table=spaced("LinearBetas", steps=20, beta_max=0.3))}
        | {"model__parameterization": spaced("V")},
    ],
)
def test_exported_pipeline_samples_as_the_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = yaml.safe_load(tiny_config(tmp_path, **(DDPM | unet(groups=4, heads=1) | changes)).read_text())
    model = export(config, tmp_path / "pipe")
    kind = json.loads((tmp_path / "pipe/model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, kind).from_pretrained(tmp_path / "pipe")
    call = json.loads((tmp_path / "pipe/scheduler/scheduler_config.json").read_text())["_pipeline_call"]
    steps = call.pop("num_inference_steps")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    expected = theirs(pipe, x, steps, **(call if kind == "DDIMPipeline" else {}))
    torch.manual_seed(0)
    actual = ours(model, x)
    # Their rescaling of a table cancels in float32.
    close(actual, expected, 1e-4 if "ZeroTerminalSNR" in str(changes) else 1e-5)
    again, notes = bring_in(None, tmp_path)
    torch.manual_seed(0)
    assert torch.equal(ours(again, x), actual)
    assert not any("not read" in note or "by default" in note for note in notes)


def test_exported_classes_come_back(tmp_path: Path) -> None:
    config = yaml.safe_load(tiny_config(tmp_path, **DDPM).read_text())
    export(config, tmp_path / "pipe", classes=10)
    model, _ = bring_in(None, tmp_path)
    assert model.conditions == by_class(10)
    assert json.loads((tmp_path / "pipe/unet/config.json").read_text())["num_class_embeds"] == 11


def test_export_takes_another_sampler(tmp_path: Path) -> None:
    """And its card has the call that samples so."""
    changes = DDPM | sampler("DPMpp", "UniformGrid", steps=5) | {"trainer__max_steps": 1}
    fitted = cli(tmp_path, "fit", "--config", tiny_config(tmp_path, **changes), "--run", "r")
    assert fitted.code == 0, fitted.err
    given = ["--ckpt_path", "runs/r/checkpoints/last.ckpt", "--to", "diffusers", "--output", "out"]
    assert "not as DPMpp" in cli(tmp_path, "export", *given).error
    grid = ["--grid", "TrailingGrid", "--grid.length", 20, "--grid.steps", 5]
    done = cli(tmp_path, "export", *given, "--sampler", "DDIM", *grid)
    assert done.code == 0, done.err
    card = (tmp_path / "out/README.md").read_text()
    assert "num_inference_steps=5, eta=0.0, use_clipped_model_output=True" in card
    assert "| sampler | `DDIM(" in card


def test_hub_names_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = pipeline(tmp_path), {}

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(tmp_path / "pipe")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    done = cli(tmp_path, "import", "--from", "diffusers", "google/ddpm-tiny", "--output", "a.ckpt")
    assert done.code == 0, done.err
    assert "note: fetched from the Hugging Face hub: google/ddpm-tiny, revision pipe" in done.out
    assert made.unet.config.sample_size == HO["sample_size"]
    (files,) = asked.values()
    assert not any(file.endswith(".bin") for file in files)
    assert "unet/diffusion_pytorch_model.safetensors" in files

    # Without a network, and of a name that is a folder's.
    def offline(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    args = ["--output", "b.ckpt", "--trust_pickle", "true"]
    error = cli(tmp_path, "import", "--from", "diffusers", "google/ddpm-tiny", *args).error
    assert "google/ddpm-tiny" in error and "no route to host" in error and "hf download google/ddpm-tiny" in error
    assert "no config.json" in cli(tmp_path, "import", "--from", "diffusers", "/no/such/folder", *args).error


def test_samples_without_averages_are_of_raw_weights(tmp_path: Path) -> None:
    pipeline(tmp_path, DDIM_SCHEDULER())
    done = cli(tmp_path, "import", "--from", "diffusers", "pipe", "--output", "a.ckpt")
    assert "--weights" not in done.out
    drawn = cli(tmp_path, "sample", "--ckpt_path", "a.ckpt", "--num_samples", 1, "--steps", 2)
    assert drawn.code == 0, drawn.err
    assert "(raw weights)" in drawn.out
    error = cli(tmp_path, "sample", "--ckpt_path", "a.ckpt", "--weights", "ema:0.99", "--output", "o").error
    assert "ema:0.99" in error and "it holds raw" in error
