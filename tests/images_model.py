"""A tiny conditional model of the digits, a weaker one and a classifier, trained for some steps by the command line."""

from pathlib import Path
from typing import Any

from shell import cli, tiny_config

NETWORK: dict[str, Any] = {
    "class_path": "diffusion_pl.networks.UNet",
    "init_args": {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0},
}
ENCODER = {**NETWORK, "class_path": "diffusion_pl.networks.UNetEncoder"}
TIME = {"class_path": "ScaledTime", "init_args": {"scale": 999}}
DIGITS: dict[str, Any] = {"class_path": "Digits", "init_args": {"batch_size": 32, "conditional": True}}


def fit_digits(folder: Path, run: str = "digits", conditional: bool = True, **changes: Any) -> Path:
    """The checkpoint of a diffusion model."""
    return _fit(folder, run, **digits_changes(conditional, **changes))


def digits_changes(conditional: bool = True, **changes: Any) -> dict[str, Any]:
    """What makes the tiny configuration one of the digits."""
    grid = {"class_path": "LogSNRGrid", "init_args": {"steps": 4}}
    changed: dict[str, Any] = {
        "model__network": NETWORK,
        "model__noise_input": TIME,
        "model__sampler": {"class_path": "DDIM", "init_args": {"grid": grid}},
        "model__loss__dropout": {"label": 0.2} if conditional else {},
        "data": {**DIGITS, "init_args": {**DIGITS["init_args"], "conditional": conditional}},
        "trainer__max_steps": 20,
    }
    return changed | changes


def fit_classifier(folder: Path, run: str = "classifier", **changes: Any) -> Path:
    """The checkpoint of a classifier of noisy digits."""
    model = {
        "class_path": "NoisyClassifier",
        "init_args": {
            "network": ENCODER,
            "schedule": {"class_path": "VP"},
            "noise_input": TIME,
            "times": {"class_path": "UniformTimes"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.005}},
        },
    }
    return _fit(folder, run, **({"model": model, "data": DIGITS, "trainer__max_steps": 60} | changes))


def _fit(folder: Path, run: str, **changes: Any) -> Path:
    config = tiny_config(folder, f"{run}.yaml", **changes)
    done = cli(folder, "fit", "--config", config, "--run", run)
    assert done.code == 0, done.err
    return Path("runs") / run / "checkpoints/last.ckpt"
