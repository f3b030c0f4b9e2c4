"""NoisyClassifier: it learns the posterior of labels, and is evaluated by noise level."""

from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import by_class
from images_model import fit_classifier
from shell import cli, fit, scalars
from torch import Tensor, nn

from diffusion_pl.conditions import Condition, Conditions
from diffusion_pl.losses import UniformTimes
from diffusion_pl.networks import UNetEncoder
from diffusion_pl.schedules import VP
from diffusion_pl.training import NoisyClassifier


class Linear(nn.Module):
    """Logits linear in x, with weights of the noise level's own: enough for two Gaussians."""

    def __init__(self, shape: tuple[int, ...], conditions: Conditions) -> None:
        super().__init__()
        number = conditions["label"].classes or 0
        self.hidden = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, number))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        out: Tensor = self.hidden(torch.cat((x, c_noise[:, None]), 1))
        return out


def test_it_learns_the_posterior_of_two_gaussians() -> None:
    """x_0 ~ N(±1, 0.25): log p(1 | x_t) − log p(0 | x_t) = 2 α x_t/(0.25 α² + σ²)."""
    torch.manual_seed(0)
    model = NoisyClassifier(
        Linear, VP(), UniformTimes(), partial(torch.optim.Adam, lr=3e-3), shape=(1,), conditions=by_class(2)
    )
    optimizer = model.optimizer_factory(model.network.parameters())
    for _ in range(1500):
        label = torch.randint(2, (512,))
        x_0 = (2.0 * label - 1)[:, None] + 0.5 * torch.randn(512, 1)
        loss = model.losses({"x": x_0, "label": label}).loss
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    for time in (0.1, 0.3, 0.6):
        t = torch.tensor(time)
        alpha, sigma, *_ = VP()(t)
        x = torch.linspace(-1, 1, 9)[:, None]
        with torch.no_grad():
            share = torch.softmax(model(x, t), 1)[:, 1]
        exact = 2 * alpha * x[:, 0] / (0.25 * alpha**2 + sigma**2)
        assert (share - torch.sigmoid(exact)).abs().max() < 0.06
        assert exact.abs().max() > 0.3  # so that the bound can fail


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a trained classifier."""
    path = tmp_path_factory.mktemp("classifier")
    fit_classifier(path)
    return path


def test_fit_logs_cross_entropy_and_accuracy_by_noise_level(folder: Path) -> None:
    logged = scalars(folder / "runs/classifier")
    for name in ("val_loss", "val_accuracy"):
        tags = {tag for tag in logged if tag.startswith(f"{name}/")}
        assert {f"{name}/ema0.999", f"{name}/ema0.999_t0.00-0.25", f"{name}/ema0.999_t0.75-1.00"} <= tags
    assert {"train_loss/raw", "train_accuracy/raw", "learning_rate"} <= logged.keys()
    # With little noise more of the digit is visible.
    clear, noisy = (logged[f"val_accuracy/ema0.999_{span}"][-1][1] for span in ("t0.00-0.25", "t0.75-1.00"))
    assert clear > noisy + 0.05


def test_it_can_be_tested_and_resumed(folder: Path) -> None:
    args = ("--config", "classifier.yaml", "--run", "classifier", "--ckpt_path", "last")
    assert cli(folder, "test", *args).code == 0
    resumed = cli(folder, "fit", *args, "--trainer.max_steps", 70)
    assert resumed.code == 0
    # Of a diffusion model that the reader names.
    assert resumed.next == ["sample", "--ckpt_path", "MODEL", "--classifier", "runs/classifier", "--scale", "1"]


def test_data_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="NoisyClassifier: the data have no labels"):
        fit_classifier(tmp_path, data={"class_path": "Digits"})


def test_panels_of_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ImagePanels needs a diffusion model, got a NoisyClassifier"):
        fit_classifier(tmp_path, trainer__callbacks=[{"class_path": "ImagePanels"}])


def test_the_encoder_takes_any_divisible_image_size() -> None:
    net = UNetEncoder((3, 16, 8), by_class(5), nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[8])
    assert net(torch.randn(4, 3, 16, 8), torch.rand(4)).shape == (4, 5)
    assert net(torch.randn(2, 3, 8, 12), torch.rand(2)).shape == (2, 5)
    with pytest.raises(ValueError, match="nearest valid size is 16x8"):
        UNetEncoder((3, 17, 8), by_class(5), nf=8, ch_mult=[1, 2], attn_resolutions=[])
    for conditions, message in (({"label": Condition((), 0)}, "at least 1, got 0"), ({}, "the data have none")):
        with pytest.raises(ValueError, match=message):
            UNetEncoder((3, 16, 8), conditions, nf=8, ch_mult=[1, 2], attn_resolutions=[])


def test_a_model_given_by_an_unknown_class_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="NoisyClasifier; did you mean NoisyClassifier"):
        fit(tmp_path, model={"class_path": "NoisyClasifier"})
