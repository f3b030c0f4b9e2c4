"""model-N.pt of denoising-diffusion-pytorch, against the package."""

import re
from pathlib import Path
from typing import Any

import denoising_diffusion_pytorch as peer
import pytest
import torch
from denoising_diffusion_pytorch import LearnedGaussianDiffusion
from denoising_diffusion_pytorch import classifier_free_guidance as guided
from denoising_diffusion_pytorch.v_param_continuous_time_gaussian_diffusion import VParamContinuousTimeGaussianDiffusion
from shell import Outcome, cli
from torch import nn

from diffusion_pl.checkpoints.loading import load_model
from diffusion_pl.denoisers import V
from diffusion_pl.interop.lucidrains import find_schedule, implied_objective
from diffusion_pl.losses import VarianceBound
from diffusion_pl.networks import LinearAttentionUNet
from diffusion_pl.schedules import BetaTable, CosineBetas, LinearBetas, SigmoidAlphaBars


def shaken(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


def save(
    folder: Path, unet: dict[str, Any] | None = None, kind: Any = peer.GaussianDiffusion, **diffusion: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """model-1.pt as their Trainer saves it; the model, its average, and the file's content."""
    torch.manual_seed(0)
    network = peer.Unet(dim=16, dim_mults=(1, 2), **({"full_attn": (False, True)} | (unet or {})))
    shaken(network, 0)
    return store(folder, kind(network, image_size=8, **({"timesteps": 100} | diffusion)))


def store(folder: Path, model: Any) -> tuple[Any, Any, dict[str, Any]]:
    from ema_pytorch import EMA

    network = model.net if hasattr(model, "net") else model.model
    ema = EMA(model, beta=0.995, update_every=1, update_after_step=0)
    ema.update()
    shaken(network, 1)
    ema.update()
    content = {
        "step": 5,
        "model": model.state_dict(),
        "opt": torch.optim.Adam(model.parameters()).state_dict(),
        "ema": ema.state_dict(),
        "scaler": None,
        "version": peer.__version__ if hasattr(peer, "__version__") else "2",
    }
    torch.save(content, folder / "model-1.pt")
    return model, ema.ema_model, content


def come_in(folder: Path, *args: Any) -> Outcome:
    options = ["--from", "lucidrains", "model-1.pt", "--output", "a.ckpt", "--size", 8, *args]
    return cli(folder, "import", *options)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], type]] = {
    "as it comes": ({}, {}, SigmoidAlphaBars),
    "noise": (
        {"self_condition": True, "attn_heads": 2},
        {"objective": "pred_noise", "beta_schedule": "linear"},
        LinearBetas,
    ),
    "data": ({"full_attn": (True, False)}, {"objective": "pred_x0", "beta_schedule": "cosine"}, CosineBetas),
    "min snr": (
        {"sinusoidal_pos_emb_theta": 500, "attn_dim_head": (8, 8)},
        {"min_snr_loss_weight": True, "schedule_fn_kwargs": {"tau": 0.7}},
        BetaTable,
    ),
    "for training only": (
        {"flash_attn": True, "dropout": 0.1},
        {"immiscible": True, "offset_noise_strength": 0.1},
        SigmoidAlphaBars,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_denoises_as_theirs(tmp_path: Path, case: str) -> None:
    unet, diffusion, schedule = CASES[case]
    raw, average, _ = save(tmp_path, unet, **diffusion)
    theta = unet.get("sinusoidal_pos_emb_theta")
    done = come_in(tmp_path, *(["--sinusoidal_pos_emb_theta", theta] if theta else []))
    assert done.code == 0, done.err
    x, i = torch.randn(3, 3, 8, 8), torch.tensor([0, 30, 98])
    outputs = []
    for weights, theirs in (("raw", raw), ("ema", average)):
        model, data = load_model(tmp_path / "a.ckpt", weights)
        assert type(model.schedule) is schedule
        assert data.shape == (3, 8, 8)
        with torch.no_grad():
            ours = model.denoiser(x, ((i + 1) / 100).view(-1, 1, 1, 1))
            noise, x_0 = theirs.eval().model_predictions(x, i)
        torch.testing.assert_close(ours.x_0, x_0, rtol=1e-5, atol=1e-5 * x_0.abs().max().item())
        torch.testing.assert_close(ours.eps, noise, rtol=1e-5, atol=1e-5 * noise.abs().max().item())
        outputs.append(ours.eps)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3  # the average is another model
    weighting: Any = model.loss.weighting
    assert (weighting.gamma == 5) if case == "min snr" else (weighting.plus == 0)  # of x_0, whatever is predicted


@pytest.mark.parametrize("objective", ["pred_v", "pred_noise"])  # the class ignores it: one network is two outputs
def test_a_learned_variance_comes_with_predicted_noise(tmp_path: Path, objective: str) -> None:
    raw, average, _ = save(tmp_path, {"learned_variance": True}, LearnedGaussianDiffusion, objective=objective)
    assert "two outputs a channel" in come_in(tmp_path, "--objective", "pred_x0").error
    done = come_in(tmp_path)
    assert done.code == 0, done.err
    x, i = torch.randn(3, 3, 8, 8), torch.tensor([1, 30, 98])
    t = ((i + 1) / 100).view(-1, 1, 1, 1)
    for weights, theirs in (("raw", raw), ("ema", average)):
        model, _ = load_model(tmp_path / "a.ckpt", weights)
        with torch.no_grad():
            ours = model.denoiser(x, t)
            mean, _, log_variance, x_0 = theirs.eval().p_mean_variance(x=x, t=i, clip_denoised=False)
        assert ours.v is not None
        torch.testing.assert_close(ours.x_0, x_0, rtol=1e-5, atol=1e-5 * x_0.abs().max().item())
        # Their reverse step from our schedule; v mixes the logarithms of the smaller and the larger variance.
        at_t, at_s = model.schedule(t), model.schedule(t - 0.01)
        alpha_sq = (at_t.alpha / at_s.alpha).square()
        small = (1 - alpha_sq) * at_s.sigma.square() / at_t.sigma.square()
        actual = (1 - ours.v) * small.log() + ours.v * (1 - alpha_sq).log()
        torch.testing.assert_close(actual.float(), log_variance, rtol=1e-5, atol=2e-5)
        actual = at_s.alpha * (1 - alpha_sq) * ours.x_0 + alpha_sq.sqrt() * at_s.sigma.square() * x
        torch.testing.assert_close((actual / at_t.sigma.square()).float(), mean, rtol=1e-5, atol=1e-4)
    assert isinstance(model.loss.variance, VarianceBound)
    assert model.loss.variance.weight == pytest.approx(0.001 / 100)  # theirs is of one step, not of the sum over all


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    small: dict[str, Any] = {"dim": 16, "dim_mults": (1, 2)}
    fourier = peer.Unet(**small, learned_sinusoidal_cond=True)
    cases = {
        "ElucidatedDiffusion": peer.ElucidatedDiffusion(fourier, image_size=8),
        "ContinuousTimeGaussianDiffusion": peer.ContinuousTimeGaussianDiffusion(fourier, image_size=8),
        "VParamContinuousTimeGaussianDiffusion": VParamContinuousTimeGaussianDiffusion(fourier, image_size=8),
        "WeightedObjectiveGaussianDiffusion": peer.WeightedObjectiveGaussianDiffusion(
            peer.Unet(**small, out_dim=8), image_size=8, timesteps=100
        ),
        "classifier_free_guidance": guided.GaussianDiffusion(guided.Unet(**small, num_classes=3), image_size=8),
        "Unet1D": peer.GaussianDiffusion1D(peer.Unet1D(**small), seq_length=8),
        "KarrasUnet": nn.ModuleDict({"model": peer.KarrasUnet(image_size=8, dim=8, num_downsamples=1)}),
        "init_dim 24": peer.GaussianDiffusion(peer.Unet(**small, init_dim=24), image_size=8),
    }
    for name, model in cases.items():
        state = model.state_dict()
        average = {f"ema_model.{key}": tensor for key, tensor in state.items()}
        torch.save({"step": 1, "model": state, "ema": average}, tmp_path / "model-1.pt")
        error = come_in(tmp_path).error
        assert name in error, (name, error)
        assert "not supported" in error


def test_every_tensor_of_the_file_is_used(tmp_path: Path) -> None:
    model, _, _ = save(tmp_path)
    done = come_in(tmp_path)
    assumed = "--sinusoidal_pos_emb_theta 10000 --ema_decay 0.995 (give"
    assert f"note: assumed, since the file does not show it: {assumed}" in done.out
    assert "auto_normalize" in done.out
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["global_step"] == 5
    assert content["averages"]["updates"] == 2
    ours = load_model(tmp_path / "a.ckpt", "raw")[0]
    assert isinstance(ours.denoiser.parameterization, V)
    assert sum(p.numel() for p in ours.network.parameters()) == sum(p.numel() for p in model.parameters())
    assert come_in(tmp_path).error == "a.ckpt exists already: name another file with --output"


def test_release_1_8_uses_group_norm_and_no_memory_tokens(tmp_path: Path) -> None:
    """Its tensors under its names; the numbers are compared with the package where that release is installed."""
    network = LinearAttentionUNet((3, 8, 8), dim=16, dim_mults=(1, 2), full_attention=[False, True])
    _, _, content = save(tmp_path)
    kept = {name: t for name, t in content["model"].items() if not name.startswith("model.") or "mem_kv" not in name}
    bare = dict(kept)
    for name in kept:
        if name.endswith((".block1.norm.g", ".block2.norm.g")):
            gain = bare.pop(name).flatten()
            bare |= {name[:-1] + "weight": gain, name[:-1] + "bias": torch.arange(len(gain)).float()}
    content["model"], content["ema"] = bare, {**{f"ema_model.{n}": t for n, t in bare.items()}, "step": torch.tensor(3)}
    torch.save(content, tmp_path / "model-1.pt")
    done = come_in(tmp_path)
    assert done.code == 0, done.err
    assert "--heads 4 --sinusoidal_pos_emb_theta 10000 --groups 8 --ema_decay 0.995" in done.out
    ours = load_model(tmp_path / "a.ckpt", "raw")[0].network
    assert ours.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(ours.state_dict()["final.norm_2.bias"], torch.arange(16.0))


@pytest.mark.parametrize("steps", [50, 1000])
def test_a_schedule_is_known_by_its_betas(steps: int) -> None:
    for table in (LinearBetas(steps, 5e-5, 0.01), CosineBetas(steps), SigmoidAlphaBars(steps)):
        betas = -torch.expm1(2 * table.log_alpha.diff())
        result = find_schedule(betas.float().double())
        assert result["class_path"] == f"diffusion_pl.schedules.{type(table).__name__}"
    other = torch.linspace(0.01, 0.2, steps, dtype=torch.float64).sqrt()
    result = find_schedule(other)
    assert result["class_path"] == "diffusion_pl.schedules.BetaTable"
    torch.testing.assert_close(torch.tensor(result["init_args"]["betas"], dtype=torch.float64), other)
    assert BetaTable(**result["init_args"]).steps == steps


def test_the_objective_is_inferred_from_loss_weights_or_required(tmp_path: Path) -> None:
    betas = -torch.expm1(2 * LinearBetas(100).log_alpha.diff())
    assert implied_objective(betas, None) is None
    assert implied_objective(betas, torch.rand(100)) is None
    _, _, content = save(tmp_path, objective="pred_x0")
    assert (
        "objective pred_v: the weights of the loss in model-1.pt are those of pred_x0"
        in come_in(tmp_path, "--objective", "pred_v").error
    )
    for state in (content["model"], content["ema"]):
        for name in [name for name in state if name.endswith("loss_weight")]:
            del state[name]
    torch.save(content, tmp_path / "model-1.pt")
    assert come_in(tmp_path).error.endswith("add --objective pred_noise, pred_x0 or pred_v")
    assert come_in(tmp_path, "--objective", "pred_v", "--ema_decay", 0.99).code == 0
    assert load_model(tmp_path / "a.ckpt")[0].weights_name == "ema0.99"


def lacking(content: dict[str, Any]) -> None:
    del content["model"]["model.downs.0.0.block1.proj.bias"]


def left_over(content: dict[str, Any]) -> None:
    content["model"]["model.downs.0.7.weight"] = torch.zeros(2)


def with_extra_tensor(content: dict[str, Any]) -> None:
    content["model"]["alphas"] = torch.zeros(2)


def misshaped(content: dict[str, Any]) -> None:
    content["ema"]["ema_model.model.mid_block1.block1.proj.bias"] = torch.zeros(2)


def another(content: dict[str, Any]) -> None:
    content["model"] = nn.Linear(2, 2).state_dict()


def headless(content: dict[str, Any]) -> None:
    del content["model"]["model.init_conv.weight"]


def with_wrong_options(content: dict[str, Any]) -> None:
    """A few numbers that promise a network of 10¹² parameters."""
    content["model"]["model.downs.1.3.weight"] = torch.zeros(16 * 10**5, 1, 1, 1)


def stretched(content: dict[str, Any]) -> None:
    content["model"]["model.init_conv.weight"] = torch.zeros(1).expand(10**6, 3, 7, 7)


def worded(content: dict[str, Any]) -> None:
    content["model"]["model.init_conv.bias"] = "zeros"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_wrong_options, "tensors do not match"),
        (stretched, "has 147,000,000 numbers and stores fewer"),
        (worded, "model.model.init_conv.bias is a str, not a dense tensor"),
        (lambda content: content.update(step="many"), "step must be a whole number"),
        (lambda content: content["model"].update(betas=torch.zeros(3, 3)), "betas must be two or more numbers"),
        (lacking, r"1 of \d+ tensors .*: model.downs.0.0.block1.proj.bias is missing"),
        (left_over, r"1 of \d+ tensors .*: model.downs.0.7.weight is unexpected"),
        (with_extra_tensor, r"1 tensors have no place: alphas"),
        (misshaped, r"average 0.995.*: model.mid_block1.block1.proj.bias is 2, expected 32"),
        (another, r"is no model-N.pt of denoising-diffusion-pytorch: it needs model \(with betas\)"),
        (headless, r"model.model.init_conv.weight is missing|model.init_conv.weight is missing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    _, _, content = save(tmp_path)
    damage(content)
    torch.save(content, tmp_path / "model-1.pt")
    error = come_in(tmp_path).error
    assert re.search(message, error), error
    assert not (tmp_path / "a.ckpt").exists()
