"""From a checkpoint alone to a model that samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from shell import LAST, checkpoint, differences, fit, tiny_config, weights

from diffusion_pl.checkpoints.loading import load_model, rebuild, select
from diffusion_pl.networks import MLP
from diffusion_pl.samplers import DDIM
from diffusion_pl.schedules import VP


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps with two averages; its configuration is deleted."""
    folder = tmp_path_factory.mktemp("run")
    run = fit(folder, "--ema.decays", "[0.9,0.5]", trainer__max_steps=5)
    (folder / "run.yaml").unlink()
    (run / "config.yaml").unlink()
    return run


def test_the_checkpoint_alone_gives_model_and_data(run: Path) -> None:
    model, data = load_model(run / LAST)
    assert isinstance(model.network, MLP)
    assert model.network.input.out_features == 16
    assert isinstance(model.schedule, VP)
    assert isinstance(model.sampler, DDIM)
    assert not model.training
    assert model.shape == data.shape == (2,)
    # The units are those of training, without reading the data.
    assert data.decode(torch.zeros(1, 2))[0].tolist() == pytest.approx(checkpoint(run)["Datasaurus"]["mean"], rel=1e-5)
    model.live_pipeline(data).samples(range(2))


@pytest.mark.parametrize(
    ("choice", "name", "decay"), [("ema", "ema0.9", "0.9"), ("ema:0.5", "ema0.5", "0.5"), ("ema:0.9", "ema0.9", "0.9")]
)
def test_an_average_is_chosen_by_its_decay(run: Path, choice: str, name: str, decay: str) -> None:
    model, _ = load_model(run / LAST, choice)
    assert model.weights_name == name
    network = {f"denoiser.network.{key}": p for key, p in weights(model).items()}
    assert not list(differences(network, checkpoint(run)["averages"]["shadows"][decay]))


def test_the_raw_weights_are_those_of_the_optimizer(run: Path) -> None:
    model, _ = load_model(run / LAST, "raw")
    assert model.weights_name == "raw"
    assert not list(differences(dict(model.state_dict()), checkpoint(run)["state_dict"]))


def test_buffers_come_with_every_choice(tmp_path: Path) -> None:
    network = {
        "class_path": "diffusion_pl.networks.MLP",
        "init_args": {"width": 8, "input_embedding": {"class_path": "Fourier", "init_args": {"features": 4}}},
    }
    run = fit(tmp_path, model__network=network, trainer__max_steps=1)
    name = "denoiser.network.input_embedding.frequencies"
    for choice in ("ema", "raw"):
        assert torch.equal(load_model(run / LAST, choice)[0].state_dict()[name], checkpoint(run)["state_dict"][name])


@pytest.mark.parametrize("choice", ["ema:0.99", "ema:", "best", ""])
def test_missing_weights_are_answered_with_the_available_ones(run: Path, choice: str) -> None:
    if choice == "ema:":
        assert load_model(run / LAST, choice)[0].weights_name == "ema0.9"
        return
    with pytest.raises(ValueError, match=rf"has no weights '{choice}': it holds raw, ema:0.9, ema:0.5"):
        load_model(run / LAST, choice)


def test_a_run_without_averages_offers_the_raw_weights(tmp_path: Path) -> None:
    run = fit(tmp_path, "--ema.decays", "[]", trainer__max_steps=1)
    assert load_model(run / LAST)[0].weights_name == "raw"
    with pytest.raises(ValueError, match=r"has no weights 'ema:0\.9': it holds raw"):
        load_model(run / LAST, "ema:0.9")
    assert load_model(run / LAST, "raw")[0].weights_name == "raw"


def test_a_file_that_fit_did_not_write_is_refused(run: Path, tmp_path: Path) -> None:
    content = checkpoint(run)
    del content["diffusion_pl"]
    torch.save(content, tmp_path / "anonymous.ckpt")
    with pytest.raises(
        ValueError, match=r"carries no configuration: it was not written by `python -m diffusion_pl fit`"
    ):
        load_model(tmp_path / "anonymous.ckpt")


def test_weights_that_do_not_fit_the_configuration_are_refused(run: Path, tmp_path: Path) -> None:
    content = checkpoint(run)
    content["diffusion_pl"]["model"]["network"]["init_args"]["width"] = 8
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"another network: .* 16 in the checkpoint, 8 here"):
        load_model(tmp_path / "odd.ckpt")


def test_a_configuration_is_rebuilt_as_files_spell_it(tmp_path: Path) -> None:
    import yaml

    config: dict[str, Any] = yaml.safe_load(tiny_config(tmp_path).read_text())
    model, data = rebuild(config, {})
    assert (model.shape, data.batch_size) == ((2,), 32)
    assert model.optimizer_factory(model.parameters()).defaults["lr"] == 0.01
    with pytest.raises(Exception, match="VPX"):
        rebuild(config | {"model": config["model"] | {"schedule": {"class_path": "VPX"}}}, {})


def test_selection_does_not_touch_the_checkpoint(run: Path) -> None:
    content = checkpoint(run)
    before = {name: value.clone() for name, value in content["state_dict"].items()}
    state, _ = select(content, "ema", "x")
    assert not list(differences(content["state_dict"], before))
    assert list(differences(state, before))
