"""UNet2DModel and its schedulers, in both directions, against the package."""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from conftest import by_class
from diffusers_model import pipeline
from shell import Outcome, cli, tiny_config
from torch import Tensor

from diffusion_pl.checkpoints.loading import load_model, rebuild
from diffusion_pl.conditions import to_plain
from diffusion_pl.denoisers import Data, Epsilon, V
from diffusion_pl.interop import to_diffusers
from diffusion_pl.interop.foreign import complete
from diffusion_pl.networks import UNet
from diffusion_pl.samplers import DDIM, Ancestral
from diffusion_pl.samplers.base import Run
from diffusion_pl.schedules import CosineBetas, LinearBetas, QuadraticBetas, ZeroTerminalSNR
from diffusion_pl.training import DiffusionModule


def come_in(folder: Path, path: str = "pipe", *args: Any) -> Outcome:
    return cli(folder, "import", "--from", "diffusers", path, "--output", "a.ckpt", *args)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_out_channels": (128, 128), "norm_num_groups": 32},
        {"flip_sin_to_cos": True, "freq_shift": 0, "attention_head_dim": 4, "norm_eps": 1e-3, "downsample_padding": 1},
        {"freq_shift": 0.5, "sample_size": (8, 16), "in_channels": 1, "out_channels": 1, "layers_per_block": 2},
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
        {"num_class_embeds": 5, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
    ],
)
def test_it_denoises_as_theirs(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = pipeline(tmp_path, **options).unet
    done = come_in(tmp_path)
    assert done.code == 0, done.err
    model, data = load_model(tmp_path / "a.ckpt", "raw")
    assert isinstance(model.network, UNet)
    assert data.shape == model.shape
    x, steps = torch.randn(3, *model.shape), torch.tensor([0, 300, 998])
    label = {} if not data.conditions else {"label": torch.tensor([0, 4, 2])}
    labels = {} if not data.conditions else {"class_labels": label["label"]}
    with torch.no_grad():
        ours = model.denoiser(x, ((steps + 1) / 1000).view(-1, 1, 1, 1), **label)
        close(ours.eps, theirs(x, steps, **labels).sample)


@pytest.mark.parametrize("large", [False, True])
def test_a_step_of_its_sampler_is_theirs(tmp_path: Path, large: bool) -> None:
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=50,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        variance_type="fixed_large" if large else "fixed_small",
    )
    unet = pipeline(tmp_path, scheduler).unet
    assert come_in(tmp_path).code == 0
    model, _ = load_model(tmp_path / "a.ckpt", "raw")
    x_t, drawn = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    scheduler.set_timesteps(50)
    clipped = 0.0
    for step in (49, 20, 1):
        run = Run(
            model.live_pipeline().guided, lambda x: drawn, {}, torch.tensor([step + 1, step], dtype=torch.float64) / 50
        )
        t, s = torch.tensor([step + 1, step], dtype=torch.float64) / 50
        with torch.no_grad():
            ours, _ = model.sampler.step(run, x_t, t, s, None)
            clipped = max(clipped, model.denoiser(x_t, t).x_0.abs().max().item())
            output = unet(x_t, step).sample
        module = diffusers.schedulers.scheduling_ddpm
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "randn_tensor", lambda *args, **kwargs: drawn)
            theirs = scheduler.step(output, step, x_t).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert clipped > 1  # or the range of clip_sample was not tested


@pytest.mark.parametrize(
    ("scheduler", "kinds"),
    [
        (diffusers.DDPMScheduler(), (LinearBetas, Epsilon, Ancestral)),
        (diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_end=0.012), (QuadraticBetas, Epsilon, Ancestral)),
        (
            diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
            (CosineBetas, V, DDIM),
        ),
        (
            diffusers.DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="sample", clip_sample=False),
            (ZeroTerminalSNR, Data, Ancestral),
        ),
    ],
)
def test_its_schedule_is_theirs(tmp_path: Path, scheduler: Any, kinds: tuple[type, ...]) -> None:
    pipeline(tmp_path, scheduler)
    assert come_in(tmp_path).code == 0
    model, _ = load_model(tmp_path / "a.ckpt", "raw")
    result = tuple(map(type, (model.schedule, model.denoiser.parameterization, model.sampler)))
    assert result == kinds
    assert (model.guidance is not None) == scheduler.config.clip_sample
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    kept = model.schedule(t).alpha.square().float()
    torch.testing.assert_close(kept, scheduler.alphas_cumprod, rtol=2e-4, atol=1e-6)


def test_a_network_alone_gets_the_default_schedule_with_a_note(tmp_path: Path) -> None:
    pipeline(tmp_path)
    (tmp_path / "pipe/unet").rename(tmp_path / "alone")
    done = come_in(tmp_path, "alone")
    assert "note: there is no scheduler_config.json: the noise schedule is that of DDPMScheduler's defaults" in done.out
    assert isinstance(load_model(tmp_path / "a.ckpt", "raw")[0].schedule, LinearBetas)


def test_weights_of_old_releases_and_in_torch_files_are_read(tmp_path: Path) -> None:
    theirs = pipeline(tmp_path).unet
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = dict(theirs.state_dict())
    for name in list(state):
        for new, before in old.items():
            if f"attentions.0.{new}." in name:
                state[name.replace(new, before)] = state.pop(name)
    assert "mid_block.attentions.0.query.weight" in state
    torch.save(state, tmp_path / "pipe/unet/diffusion_pytorch_model.bin")
    (tmp_path / "pipe/unet/diffusion_pytorch_model.safetensors").unlink()
    assert come_in(tmp_path).code == 0
    x, steps = torch.randn(2, 3, 8, 8), torch.tensor([3, 500])
    with torch.no_grad():
        close(load_model(tmp_path / "a.ckpt", "raw")[0].network(x, steps.float()), theirs(x, steps).sample)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, r"down_block_types: expected a list of DownBlock2D"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, r"up_block_types: expected attention where down_block_types"),
        (
            {
                "attention_head_dim": 4,
                "down_block_types": ["AttnDownBlock2D"] * 2,
                "up_block_types": ["AttnUpBlock2D"] * 2,
            },
            r"attention_head_dim: expected .*\[8, 16\] channels, got 4",
        ),
        ({"attention_head_dim": 3}, r"attention_head_dim: expected .* got 3"),
        ({"downsample_padding": 2}, r"downsample_padding: expected 1 or 0, got 2"),
        ({"resnet_time_scale_shift": "scale_shift"}, r"attn_norm_num_groups: expected 4, got null"),
        ({"norm_num_groups": 5}, r"8 channels cannot be shared by 5 groups of a norm"),
        ({"resnet_time_scale_shift": "ada_group"}, r'resnet_time_scale_shift: expected "default" or "scale_shift"'),
        ({"time_embedding_type": "fourier"}, r'time_embedding_type: expected "positional", got "fourier"'),
        ({"time_embedding_dim": 64}, r"time_embedding_dim: expected null or 32, got 64"),
        ({"act_fn": "relu"}, r'act_fn: expected "silu" or "swish", got "relu"'),
        ({"mid_block_scale_factor": True}, r"mid_block_scale_factor: expected 1, got true"),
        ({"center_input_sample": True}, r"center_input_sample: expected false, got true"),
        ({"add_attention": False}, r"add_attention: expected true, got false"),
        ({"class_embed_type": "timestep"}, r"class_embed_type: expected null"),
        ({"downsample_type": "resnet"}, r'downsample_type: expected "conv"'),
        ({"out_channels": 5}, r"out_channels: expected 3 or 6, got 5"),
        ({"out_channels": 6}, r"variance_type fixed_small does not match a network that predicts a variance"),
        ({"sample_size": None}, r"sample_size is null: add --size"),
        ({"depth_scale": 3}, r"unknown option of UNet2DModel: depth_scale 3"),
        ({"_class_name": "UNet2DConditionModel"}, r"a UNet2DConditionModel; only UNet2DModel can be held"),
        ({"layers_per_block": 2}, r"layers_per_block: expected 1, as the weights have, got 2"),
        ({"layers_per_block": 1_000_000}, r"layers_per_block: expected a whole number from 1 to 64"),
        ({"block_out_channels": [8, 8]}, r"is 16(x\d+)*, expected 8.* … and \d+ more"),
    ],
)
def test_an_unsupported_network_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    pipeline(tmp_path)
    edit(tmp_path / "pipe/unet/config.json", **changes)
    error = come_in(tmp_path).error
    assert re.search(message, error), error
    assert error.count(";") <= 10
    assert not (tmp_path / "a.ckpt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "laplace"}, r'beta_schedule: expected "linear" or "scaled_linear" or'),
        ({"prediction_type": "flow"}, r'prediction_type: expected "epsilon"'),
        ({"predict_epsilon": False}, r"predict_epsilon: expected true .*prediction_type epsilon"),
        ({"variance_type": "learned"}, r'variance_type: expected "fixed_small"'),
        ({"variance_type": "learned_range"}, r"learned_range does not match a network that predicts no variance"),
        ({"thresholding": True, "sample_max_value": 0.5}, r"sample_max_value: expected a number from 1 on, got 0.5"),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas: expected .*num_train_timesteps, 1000"),
        ({"num_train_timesteps": 10**9}, r"num_train_timesteps: expected a whole number from 1 to 100000"),
        ({"beta_end": 1e-5}, r"expected 0 < beta_start <= beta_end < 1"),
        ({"timestep_spacing": "karras"}, r'timestep_spacing: expected "leading"'),
        ({"_class_name": "KarrasVeScheduler"}, r'_class_name: expected "DDPMScheduler" or "DDIMScheduler"'),
    ],
)
def test_an_unsupported_schedule_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    pipeline(tmp_path)
    edit(tmp_path / "pipe/scheduler/scheduler_config.json", **changes)
    error = come_in(tmp_path).error
    assert re.search(message, error), error


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no config.json of a UNet2DModel" in come_in(tmp_path, "empty").error
    pipeline(tmp_path)
    weights = tmp_path / "pipe/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"nothing")
    assert "is damaged, or no safetensors" in come_in(tmp_path).error
    weights.rename(weights.with_suffix(".bin"))
    assert "is damaged, or no file of torch.save" in come_in(tmp_path).error
    torch.save({"weights": Path("x")}, weights.with_suffix(".bin"))
    assert come_in(tmp_path).error.endswith("if you trust who made it, add --trust_pickle true")
    assert "weights: expected a tensor" in come_in(tmp_path, "pipe", "--trust_pickle", "true").error
    weights.with_suffix(".bin").unlink()
    assert "there is no diffusion_pytorch_model.safetensors, only config.json" in come_in(tmp_path).error
    (tmp_path / "pipe/unet/config.json").write_text("{")
    assert "config.json is no JSON" in come_in(tmp_path).error


UNET: dict[str, Any] = {
    "class_path": "diffusion_pl.networks.UNet",
    "init_args": {
        "nf": 8,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.0,
        "groups": 4,
        "heads": 2,
        "padding": "around",
        "norm_eps": 1e-4,
        "time_scales": True,
    },
}


def unet(**changes: Any) -> dict[str, Any]:
    """A configuration with another network."""
    return {"model__network": {**UNET, "init_args": {**UNET["init_args"], **changes}}}


def sampler(name: str, grid: str, options: dict[str, Any] | None = None, **of_grid: Any) -> dict[str, Any]:
    """A configuration with another sampler."""
    init_args = {**(options or {}), "grid": {"class_path": grid, "init_args": of_grid}}
    return {"model__sampler": {"class_path": name, "init_args": init_args}}


DDPM: dict[str, Any] = {
    "model__network": UNET,
    "model__schedule": {"class_path": "CosineBetas", "init_args": {"steps": 20}},
    "model__parameterization": {"class_path": "Epsilon"},
    "model__noise_input": {"class_path": "StepIndex"},
    "model__loss": {
        "class_path": "DenoisingLoss",
        "init_args": {"times": {"class_path": "GridTimes"}, "weighting": {"class_path": "SNR"}},
    },
    "model__sampler": {
        "class_path": "Ancestral",
        "init_args": {"variance": 1.0, "grid": {"class_path": "UniformGrid", "init_args": {"steps": 20}}},
    },
    "model__guidance": {"class_path": "Thresholded"},
    "data": {"class_path": "Digits", "init_args": {"batch_size": 4}},
    "trainer__max_steps": 2,
    "trainer__limit_val_batches": 0,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of DDPM on digits."""
    folder = tmp_path_factory.mktemp("ddpm")
    done = cli(folder, "fit", "--config", tiny_config(folder, **DDPM), "--run", "r", "--ema.decays", "[0.5]")
    assert done.code == 0, done.err
    return folder


CKPT = Path("runs/r/checkpoints/last.ckpt")


def test_what_goes_out_is_loaded_by_the_package_and_comes_back(trained: Path) -> None:
    done = cli(trained, "export", "--ckpt_path", CKPT, "--to", "diffusers", "--output", "out")
    assert done.code == 0, done.err
    theirs = diffusers.DDPMPipeline.from_pretrained(trained / "out")
    alone = diffusers.UNet2DModel.from_pretrained(trained / "out/unet")
    ours, _ = load_model(trained / CKPT)
    x, steps = torch.randn(2, 1, 8, 8), torch.tensor([3, 19])
    with torch.no_grad():
        eps = ours.network(x, steps.float())
        for unet in (theirs.unet, alone):
            close(eps, unet(x, steps).sample)
    assert type(theirs.scheduler) is diffusers.DDPMScheduler
    assert theirs.scheduler.config.variance_type == "fixed_large"
    t = torch.arange(1, 21, dtype=torch.float64) / 20
    torch.testing.assert_close(ours.schedule(t).alpha.square().float(), theirs.scheduler.alphas_cumprod)
    theirs.set_progress_bar_config(disable=True)
    images = theirs(batch_size=2, num_inference_steps=20, output_type="np").images
    assert images.shape == (2, 8, 8, 1)

    back = cli(trained, "import", "out", "--from", "diffusers", "--output", "back.ckpt", "--data", "Digits")
    assert back.code == 0, back.err
    again, data = load_model(trained / "back.ckpt", "raw")
    assert type(data).__name__ == "Digits"
    for (name, one), two in zip(ours.network.named_parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert again.sampler.variance == 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__schedule": {"class_path": "VP"}}, r"DDPMScheduler needs a beta schedule.* VP"),
        (
            {"model__noise_input": {"class_path": "ScaledTime", "init_args": {"scale": 19}}},
            r"be StepIndex\(20\), or ScaledTime\(20, -1\)",
        ),
        (unet(groups=None), r"groups .*UNet 2 for 8 channels"),
        (unet(attn_resolutions=[4, 8]), r"heads .*\[8, 16\] channels"),
        (unet(activation="relu"), r"activation relu is not supported"),
        (unet(up_attention="once_per_level"), r"up_attention once_per_level is not supported"),
        ({"model__network": {"class_path": "diffusion_pl.networks.ConvUNet"}}, r"can hold a UNet only, not a ConvUNet"),
        (
            {"model__guidance": {"class_path": "Thresholded", "init_args": {"low": 0.0}}},
            r"guidance Thresholded is not supported",
        ),
        (sampler("DPMpp", "UniformGrid", steps=20), r"not as DPMpp\. Fix: add --sampler DDIM --grid TrailingGrid"),
        (sampler("DDIM", "UniformGrid", steps=7), r"DDIM cannot visit the times of this UniformGrid.* Fix: "),
        (sampler("DDIM", "RespacedGrid", length=20, steps=5), r"DDIM cannot visit the times of this RespacedGrid"),
        (sampler("DDIM", "TrailingGrid", length=20, steps=6), r"DDIM cannot visit the times of this TrailingGrid"),
        (sampler("Ancestral", "UniformGrid", {"variance": 1.0}, steps=5), r"adds noise .* Fix: add --steps 20"),
        (sampler("Ancestral", "UniformGrid", {"variance": 0.5}, steps=20), r"variance: expected 0 or 1, got 0.5"),
        (sampler("DDIM", "UniformGrid", {"end": 0.1}, steps=20), r"ends at 0 or 1/20, this model's sampler at 0.1"),
        (
            unet(learned_variance=True) | sampler("DDIM", "UniformGrid", steps=20),
            r"DDIMScheduler cannot take a network that predicts a variance",
        ),
        ({"model__parameterization": {"class_path": "Velocity"}}, r"diffusers knows no parameterization Velocity"),
    ],
)
def test_unsupported_models_are_not_exported(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = yaml.safe_load(tiny_config(tmp_path, **(DDPM | changes)).read_text())
    with pytest.raises(ValueError, match=message):
        export(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def export(config: dict[str, Any], folder: Path, classes: int | None = None) -> DiffusionModule:
    """Write an untrained model of 8x8 images, as `export --to diffusers` does."""
    described = {"model": complete(config["model"]), "data": config["data"]}
    model, data = rebuild(described, {"shape": [1, 8, 8], "conditions": to_plain(by_class(classes)), "levels": 16})
    assert isinstance(model, DiffusionModule)
    to_diffusers.write(model.eval().requires_grad_(False).live_pipeline(data), data, described, folder)
    return model
