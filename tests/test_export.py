"""Exports: files that other packages read, and their model card, whose code runs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from images_model import fit_digits
from shell import LAST, cli, fit, no_files_change

import diffusion_pl
from diffusion_pl.checkpoints import io as checkpoints
from diffusion_pl.checkpoints.io import sha256_of
from diffusion_pl.checkpoints.loading import load_model, load_pipeline, rebuild
from diffusion_pl.conditions import Condition
from diffusion_pl.data.unknown import not_given
from diffusion_pl.denoisers import Epsilon, NetworkDenoiser
from diffusion_pl.interop import WRITERS
from diffusion_pl.interop.graphs import example
from diffusion_pl.interop.model_card import model_card
from diffusion_pl.networks import UNet
from diffusion_pl.pipeline import Pipeline
from diffusion_pl.samplers import DDIM, UniformGrid
from diffusion_pl.schedules import VP

TARGETS = ("safetensors", "onnx", "torch_export")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def digits(folder: Path) -> Path:
    """A conditional model of digits, by its path in the folder."""
    return fit_digits(folder)


@pytest.fixture(scope="module")
def out(folder: Path, digits: Path) -> dict[str, Path]:
    """The folders of its exports."""
    (folder / digits).parent.joinpath("evaluation.json").write_text(json.dumps({"figures": results(folder / digits)}))
    for target in TARGETS:
        done = cli(folder, "export", "--ckpt_path", digits, "--to", target, "--output", target, "--license", "mit")
        assert done.code == 0, done.err
        assert f"  {target}/README.md" in done.out.splitlines()
    return {target: folder / target for target in TARGETS}


def results(ckpt_path: Path, **model: Any) -> dict[str, Any]:
    about = {"sha256": sha256_of(ckpt_path), "weights": "ema0.999", "sampler": {"class": "DDIM"}, "nfe": 4} | model
    fid = {
        "value": 12.3456,
        "std": 0.5,
        "unit": "",
        "protocol": {"num_samples": 1000, "reference": {"data": "Digits", "split": "train"}},
        "model": about,
    }
    return {"fid": fid}


@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_denoises_any_number_of_examples(folder: Path, digits: Path, out: dict[str, Path], batch: int) -> None:
    import onnxruntime

    model, _ = load_model(folder / digits)
    session = onnxruntime.InferenceSession(out["onnx"] / "model.onnx", providers=["CPUExecutionProvider"])
    x_t, t, label = example(model.live_pipeline(), batch)
    label[0] = -1  # any class
    result = session.run(["x_0", "eps"], {"x_t": x_t.numpy(), "t": t.numpy(), "label": label.numpy()})
    with torch.no_grad():
        ours = model.denoiser(x_t, t.view(-1, 1, 1, 1), label=label)
    torch.testing.assert_close(torch.from_numpy(result[0]), ours.x_0, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(result[1]), ours.eps, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 5])
def test_a_program_denoises_any_number(folder: Path, digits: Path, out: dict[str, Path], batch: int) -> None:
    model, _ = load_model(folder / digits)
    x_t, t, label = example(model.live_pipeline(), batch)
    x_0, eps = torch.export.load(out["torch_export"] / "model.pt2").module()(x_t, t, label)
    with torch.no_grad():
        ours = model.denoiser(x_t, t.view(-1, 1, 1, 1), label=label)
    torch.testing.assert_close(x_0, ours.x_0, rtol=0, atol=1e-5)
    torch.testing.assert_close(eps, ours.eps, rtol=0, atol=1e-5)


def test_safetensors_rebuild_the_model(folder: Path, digits: Path, out: dict[str, Path]) -> None:
    from safetensors.torch import load_file

    config = json.loads((out["safetensors"] / "config.json").read_text())
    model, data = rebuild(config, config["data_state"])
    model.network.load_state_dict(load_file(out["safetensors"] / "model.safetensors"))
    theirs, _ = load_model(folder / digits)
    for (name, one), two in zip(model.network.named_parameters(), theirs.network.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert data.shape == (1, 8, 8)
    assert config["weights"] == "ema0.999"


def test_the_grid_is_that_of_the_sampler(folder: Path, digits: Path, out: dict[str, Path]) -> None:
    model, _ = load_model(folder / digits)
    t, alpha, sigma = np.loadtxt(out["onnx"] / "grid.csv", delimiter=",", skiprows=1).T
    np.testing.assert_array_equal(t, model.sampler.grid(model.schedule).numpy())
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_the_code_in_the_card_draws_samples(
    folder: Path, digits: Path, out: dict[str, Path], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out[target])
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    samples = torch.as_tensor(names["samples"])
    assert samples.shape == (4, 1, 8, 8)
    model, data = load_model(folder / digits)
    if target == "safetensors":
        torch.testing.assert_close(samples, data.decode(model.live_pipeline().samples(range(4)).x_0))
        return
    # DDIM from the same noise, all of class 0.
    x = np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)
    prior = model.sampler.prior(model.schedule, torch.from_numpy(x))
    with torch.no_grad():
        ours = model.sampler(model.denoiser, prior, label=torch.zeros(4, dtype=torch.int64)).x_0
    torch.testing.assert_close(samples, ours, rtol=0, atol=1e-3)


def test_the_card_says_what_is_known_and_nothing_else(folder: Path, digits: Path, out: dict[str, Path]) -> None:
    text = (out["onnx"] / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head == {"library_name": "onnx", "license": "mit", "tags": ["diffusion", "diffusion_pl", "onnx"]}
    card = json.loads((folder / "runs/digits/card.json").read_text())
    for fact in (
        "A diffusion model of Digits (1x8x8, 10 classes): the EMA weights of decay 0.999",
        sha256_of(folder / digits),
        card["data"]["sha256"]["x"],
        "20 steps",
        "640 examples seen",
        "| schedule | `VP(beta_min=0.1, beta_max=20.0)` |",
        "| fid | 12.346 ± 0.5 | 1,000 samples | ema0.999 | DDIM, 4 |",
        f"val_loss/ema0.999: {card['metrics']['values']['val_loss/ema0.999']:.4g}",
    ):
        assert fact in body, fact
    assert "None" not in body
    assert "raw" not in body  # results of other weights than these


def test_a_checkpoint_outside_a_run_gets_a_card(tmp_path: Path, folder: Path, digits: Path) -> None:
    (tmp_path / "alone.ckpt").write_bytes((folder / digits).read_bytes())
    given = ["--ckpt_path", "alone.ckpt", "--to", "safetensors"]
    assert cli(tmp_path, "export", *given, "--output", "out", "--weights", "raw").code == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "the raw weights" in text
    assert "## Evaluation" not in text
    assert "examples seen" not in text
    assert "license" not in text

    (tmp_path / "evaluation.json").write_text(json.dumps({"figures": results(folder / digits)}))
    more = ["--evaluation", "evaluation.json", "--output"]
    assert cli(tmp_path, "export", *given, *more, "out2").code == 0
    assert "| fid | 12.346 ± 0.5 |" in (tmp_path / "out2/README.md").read_text()
    (tmp_path / "evaluation.json").write_text(json.dumps({"figures": results(folder / digits, sha256="0")}))
    error = cli(tmp_path, "export", *given, *more, "out3").error
    assert error == "evaluation.json has results of another checkpoint than alone.ckpt"
    assert not (tmp_path / "out3").exists()


def test_points_go_out_too(tmp_path: Path) -> None:
    """And of a beta schedule, which keeps copies of itself that a tracing must not leave behind."""
    table = {"class_path": "LinearBetas", "init_args": {"steps": 1000}}
    run = fit(tmp_path, model__schedule=table, trainer__max_steps=2, model__guidance={"class_path": "Thresholded"})
    ckpt = run / "checkpoints/last.ckpt"
    done = cli(tmp_path, "export", "--ckpt_path", ckpt, "--to", "torch_export", "--output", "out")
    assert done.code == 0, done.err
    fit(tmp_path, model__guidance={"class_path": "Thresholded"}, trainer__max_steps=1)  # the name is still of one class
    model, _ = load_model(ckpt)
    x_t, t = example(model.live_pipeline(), 7)
    x_0, _ = torch.export.load(tmp_path / "out/model.pt2").module()(x_t, t)
    with torch.no_grad():
        ours = model.live_pipeline().guided(x_t, t.view(-1, 1)).x_0
    torch.testing.assert_close(x_0, ours, rtol=0, atol=1e-5)
    assert ours.abs().max() <= 1  # guidance is part of it
    assert model.live_pipeline().samples(range(2)).x_0.isfinite().all()


def test_a_folder_that_is_not_empty_is_left_alone(folder: Path, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with no_files_change(folder), no_files_change(tmp_path):
        for target in (*TARGETS, "diffusers"):
            done = cli(folder, "export", "--ckpt_path", digits, "--to", target, "--output", tmp_path)
            assert done.error.startswith(f"{tmp_path} is not empty (it holds note.txt)")
    assert "expected one of" in cli(folder, "export", "--ckpt_path", digits, "--to", "x", "--output", "o").error.lower()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raw", "the raw weights"),
        ("ema0.999", "of decay 0.999"),
        ("ema500000examples", "of half-life 500,000 examples"),
    ],
)
def test_a_card_states_the_kind_of_average(folder: Path, digits: Path, name: str, message: str) -> None:
    pipeline = replace(diffusion_pl.load(folder / digits), weights=name)
    description = checkpoints.read(folder / digits)["diffusion_pl"]
    assert f"{message}, as safetensors" in model_card("safetensors", pipeline, description, {"name": "last.ckpt"}, "0")


@pytest.mark.parametrize("old", [False, True], ids=["0.2", "0.1"])
def test_an_exported_model_keeps_the_split_of_its_data(tmp_path: Path, old: bool) -> None:
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).numpy()
    np.savetxt(tmp_path / "p.csv", x, delimiter=",", header="x,y", comments="")
    table = {"class_path": "Table", "init_args": {"path": "p.csv", "columns": ["x", "y"]}}
    run = fit(tmp_path, data=table)
    path = run / LAST
    if old:  # which recorded no split
        content = torch.load(path, weights_only=True)
        content["Table"] = {name: content["Table"][name] for name in ("mean", "std")}
        torch.save(content, path)
    assert cli(tmp_path, "export", "--ckpt_path", path, "--to", "safetensors", "--output", "out").code == 0
    held_out = []
    for checkpoint in (path, tmp_path / "out"):
        _, data = load_pipeline(checkpoint, data={"path": str(tmp_path / "p.csv")})
        data.setup("fit")
        held_out.append(data.part("val").__getitems__(torch.arange(20))["x"])
    assert torch.equal(*held_out)


@pytest.mark.parametrize(
    ("shape", "conditions", "named"),
    [((1, 8, 8), {"size": Condition((2,))}, "size"), ((1, 8), {}, r"\(1, 8\)")],
    ids=["vector", "1-D"],
)
def test_diffusers_refuses_what_its_unet_cannot_take(
    tmp_path: Path, shape: tuple[int, ...], conditions: dict[str, Condition], named: str
) -> None:
    unet = UNet(shape, conditions=conditions, nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    denoiser = NetworkDenoiser(unet, VP(), Epsilon(), None)
    pipeline = Pipeline(denoiser, DDIM(UniformGrid(4)), shape, conditions)
    with pytest.raises(ValueError, match=f"{named}.*Fix: set --to safetensors"):
        WRITERS["diffusers"](pipeline, not_given(shape, conditions), {"model": {"network": {}}}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
