"""Trains the models of diffusion_pl/zoo and replaces their folders: python benchmarks/make_zoo.py [NAME ...].

Each folder holds the EMA weights in half precision (model.safetensors), the configuration of model and data
(config.json), the card of the run (card.json: command, seed, versions, hardware, all options) and what `evaluate`
measured of the shipped weights (evaluation.json).
"""

import shutil
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import diffusion_pl
from diffusion_pl.__main__ import main
from diffusion_pl.checkpoints.io import read_hashed
from diffusion_pl.checkpoints.loading import diffusion_model, from_content
from diffusion_pl.interop import safetensors

ZOO = Path(diffusion_pl.__file__).parent / "zoo"
#: Of each model, the options of `fit` and of `evaluate`.
MODELS: dict[str, tuple[list[str], list[str]]] = {
    "datasaurus": (
        ["--config", "datasaurus/vp", "--trainer.max_steps", "5000"],
        ["--metrics", "energy", "sliced", "--num_samples", "4000"],
    ),
    "digits": (
        ["--config", "digits/conditional", "--trainer.max_steps", "2000"],
        ["--metrics", "fid", "prc", "--num_samples", "1000", "--extractor", "DigitsClassifier"],
    ),
}


def make(name: str) -> None:
    """Train a model in the working directory, and replace its folder."""
    fit, evaluate = MODELS[name]
    began = time.perf_counter()
    run(["fit", *fit, "--run", name, "--trainer.logger", "false", "--trainer.callbacks", "[]"])
    path = Path("runs") / name
    content, _ = read_hashed(path)
    model, data = from_content(content, path, "ema")
    pipeline = diffusion_model(model, path).requires_grad_(False).live_pipeline(data)
    description = {key: content["diffusion_pl"][key] for key in ("version", "model", "data")}
    shutil.rmtree(ZOO / name, ignore_errors=True)
    safetensors.write(pipeline, data, description, ZOO / name, half=True)
    shutil.copyfile(path / "card.json", ZOO / name / "card.json")
    run(["evaluate", "--ckpt_path", f"zoo:{name}", "--output", f"{name}-evaluation", *evaluate])
    shutil.copyfile(f"{name}-evaluation/evaluation.json", ZOO / name / "evaluation.json")
    size = sum(file.stat().st_size for file in (ZOO / name).iterdir())
    print(f"{ZOO / name}: {size / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s")


def run(args: list[str]) -> None:
    """Run a command of the package; a failed one ends the program."""
    if main(args):
        sys.exit(1)


if __name__ == "__main__":
    names = sys.argv[1:] or list(MODELS)
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        sys.exit(f"benchmarks/make_zoo.py: no model {unknown[0]}, only {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for name in names:
            make(name)
