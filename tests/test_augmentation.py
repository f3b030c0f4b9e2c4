"""Augmentations as inputs of the network: the right transform, the right parameters, and only in training."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import cli, fit
from torch import Tensor

from diffusion_pl.data import Arrays
from diffusion_pl.data.augmentation import NonLeaky, warped
from diffusion_pl.data.images import Format
from diffusion_pl.networks import NCSNpp

NOTHING = [0.6, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9]
#: Places of the uniform numbers.
MIRROR, DOWN, A, B, C, D, PHI, THETA, AXIS, ZOOM, TURN, STRETCH, SHIFT = range(13)


def drawn(**numbers: float) -> Tensor:
    """One row of uniform numbers that do nothing, but for these."""
    u = torch.tensor(NOTHING)
    for name, value in numbers.items():
        u[globals()[name]] = value
    return u[None]


def normal(a: float) -> float:
    """The uniform number that becomes a."""
    return 0.5 * (1 + math.erf(a / math.sqrt(2)))


def changed(x: Tensor, u: Tensor) -> tuple[Tensor, list[float]]:
    batch = NonLeaky(0.12)({"x": x}, u.expand(len(x), -1))
    return warped(x, batch["warp"]), batch["augment"][0].tolist()


def ramp(side: int = 16) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("numbers", "expected", "parameters"),
    [
        ({}, lambda x: x, [0] * 9),
        ({"MIRROR": 0.4}, lambda x: x.flip(-1), [1] + [0] * 8),
        ({"DOWN": 0.05}, lambda x: x.flip(-2), [0, 1] + [0] * 7),
        # A quarter turn from the axis across to the axis down: clockwise as images are shown.
        ({"TURN": 0.1, "PHI": 0.75}, lambda x: x.rot90(-1, (2, 3)), [0, 0, 0, -1, 1, 0, 0, 0, 0]),
        ({"TURN": 0.1, "PHI": 0.0}, lambda x: x.flip(2, 3), [0, 0, 0, -2, 0, 0, 0, 0, 0]),
        # Shifts by (2, −4) of 16 pixels.
        ({"SHIFT": 0.1, "C": normal(1), "D": normal(-2)}, None, [0] * 7 + [1, -2]),
    ],
    ids=["nothing", "mirrored", "upside down", "quarter turn", "half turn", "shift"],
)
def test_whole_pixel_shifts_move_pixels_exactly(
    numbers: dict[str, float], expected: Any, parameters: list[float]
) -> None:
    x = ramp()
    y, said = changed(x, drawn(**numbers))
    assert said == pytest.approx(parameters, abs=1e-5)
    if expected is not None:
        torch.testing.assert_close(y, expected(x), rtol=0, atol=2e-5)
    else:
        torch.testing.assert_close(y[:, :, :12, 2:], x[:, :, 4:, :14], rtol=0, atol=2e-4)
        torch.testing.assert_close(y[:, :, :12, 0], x[:, :, 4:, 2], rtol=0, atol=2e-4)  # mirrored at the edge


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_any_change_is_the_product_of_its_parts(size: tuple[int, int]) -> None:
    """A linear image shows where each pixel came from; the matrices are composed here from their definitions."""
    a, b, c, d, phi, theta = 0.7, -1.1, 0.4, -0.3, 0.9, -2.0
    angle = {"PHI": phi / (2 * math.pi) + 0.5, "THETA": theta / (2 * math.pi) + 0.5}
    normals = {"A": normal(a), "B": normal(b), "C": normal(c), "D": normal(d)}
    gates = {"MIRROR": 0.1, "DOWN": 0.01, "AXIS": 0.1, "ZOOM": 0.0, "TURN": 0.0, "STRETCH": 0.0, "SHIFT": 0.0}
    height, width = size
    across, down = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in (width, height))  # pixels from middle
    x = torch.stack((across.expand(height, -1), down[:, None].expand(-1, width)))[None]
    u = drawn(**normals, **angle, **gates)
    y, parameters = changed(x, u)
    warp = NonLeaky(0.12)({"x": x}, u)["warp"]
    expected = [1, 1, a, math.cos(phi) - 1, math.sin(phi), b * math.cos(theta), b * math.sin(theta), c, d]
    assert parameters == pytest.approx(expected, abs=1e-5)

    def rotation(angle: float) -> np.ndarray:
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    direction = np.array([math.cos(theta), math.sin(theta)])
    along = np.outer(direction, direction)
    stretch = 2 ** (b / 5) * along + 2 ** (-b / 5) * (np.eye(2) - along)
    change = stretch @ rotation(phi) * 2 ** (a / 5) @ np.diag([-1, -1])
    shift = np.array([c * width / 8, d * height / 8])
    compared = 0
    for i in range(height):
        for j in range(width):
            source = np.linalg.solve(change, np.array([across[j], down[i]]) - shift)
            if abs(source[0]) < width / 2 - 2 and abs(source[1]) < height / 2 - 2:  # where no edge is near
                # torch's cubic kernel (−0.75) bends a line by up to 0.04 of a pixel.
                np.testing.assert_allclose(y[0, :, i, j], source, atol=0.06)
                compared += 1
            place = torch.tensor([across[j] * 2 / width, down[i] * 2 / height, 1])
            np.testing.assert_allclose(warp[0] @ place * torch.tensor([width, height]) / 2, source, atol=1e-5)
    assert compared > 40


def test_each_change_comes_as_often_as_it_should() -> None:
    n, p = 200_000, 0.12
    u = torch.rand(n, 13, generator=torch.Generator().manual_seed(0))
    parameters = NonLeaky(p)({"x": torch.zeros(n, 1, 1, 1)}, u)["augment"]
    shares = [0.5, p / 2, p, p, p, p, p / 2, p, p]  # the axis of the stretch is turned one time in two
    for number, share in enumerate(shares):
        result = (parameters[:, number] != 0).double().mean().item()
        assert result == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / n)), number
    for number in (2, 7, 8):
        some = parameters[parameters[:, number] != 0, number]
        assert some.mean().abs() < 5 / math.sqrt(len(some))
        assert some.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * len(some)))
    both = (parameters[:, 7] != 0) == (parameters[:, 8] != 0)
    assert both.all()
    assert parameters.isfinite().all()
    assert NonLeaky(p)({"x": torch.zeros(2, 1, 1, 1)}, torch.zeros(2, 13))["augment"].isfinite().all()


def data(folder: Path, **options: Any) -> Arrays:
    np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    result = Arrays(str(folder / "x.npy"), batch_size=16, val_fraction=0.2, **options)
    result.augmentation = NonLeaky(0.5)
    result.setup()
    return result


def test_only_training_images_are_augmented(tmp_path: Path) -> None:
    images = data(tmp_path)
    assert images.format == Format((3, 8, 8))
    for loader, trained in ((images.train_dataloader(), True), (images.val_dataloader(), False)):
        raw = next(iter(loader))
        assert raw["x"].dtype == torch.uint8  # integers travel
        batch = images.on_after_batch_transfer(raw, 0)
        assert batch.keys() == ({"x", "augment"} if trained else {"x"})
        assert torch.equal(batch["x"], images.units.encode(raw["x"])) != trained
    for batch in images.batches("train", 16):
        assert batch.keys() == {"x"}


def network(**options: Any) -> NCSNpp:
    return NCSNpp((3, 8, 8), nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), dropout=0.0, **options)


def test_network_responds_to_augmentation_parameters() -> None:
    net = network(augment_dim=9, init_scale=1.0).double()
    x, c_noise = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(net(x, c_noise), net(x, c_noise, augment=torch.zeros(2, 9, dtype=torch.float64)))
    parameters = torch.zeros(2, 9, dtype=torch.float64)
    parameters[1, 4] = 1
    difference = (net(x, c_noise, augment=parameters) - net(x, c_noise)).abs().amax((1, 2, 3))
    assert difference[0] == 0 and difference[1] > 1e-3
    with pytest.raises(ValueError, match="got augmented images: give the network augment_dim: 9"):
        network()(x.float(), c_noise.float(), augment=parameters.float())
    with pytest.raises(ValueError, match=r"augment_dim .*time_conditional.*got 9"):
        network(augment_dim=9, time_conditional=False)


CHANGES: dict[str, Any] = {
    "model__network": {
        "class_path": "diffusion_pl.networks.NCSNpp",
        "init_args": {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "augment_dim": 9},
    },
    "data": {"class_path": "CIFAR10", "init_args": {"augment": 0.5, "horizontal_flip": False, "batch_size": 8}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from shell import accept_any_cifar10, cifar10

    cifar10(tmp_path / "data", 8)
    accept_any_cifar10(monkeypatch)
    return tmp_path


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(folder: Path) -> None:
    whole = fit(folder, run="whole", trainer__max_steps=6, **CHANGES)
    part = fit(folder, run="part", trainer__max_steps=4, **CHANGES)
    fit(folder, "--ckpt_path", "last", run="part", trainer__max_steps=6, **CHANGES)
    import shell

    keys = tuple(key for key in shell.STATE if key != "Datasaurus")
    ours, theirs = ({key: shell.checkpoint(run)[key] for key in keys} for run in (whole, part))
    assert not list(shell.differences(ours, theirs))


def test_network_without_augmentation_input_is_refused(folder: Path) -> None:
    from shell import tiny_config

    for network, message in (
        ({**CHANGES["model__network"]["init_args"], "augment_dim": 0}, "got augmented images: give the network augm"),
        (None, "UNet takes no augment"),
    ):
        net = {"class_path": "diffusion_pl.networks.NCSNpp", "init_args": network}
        if network is None:
            options = {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": []}
            net = {"class_path": "diffusion_pl.networks.UNet", "init_args": options}
        config = tiny_config(folder, **(CHANGES | {"model__network": net}))
        assert message in cli(folder, "fit", "--config", config).error


def test_mirrored_twice_is_refused(folder: Path) -> None:
    from shell import tiny_config

    data = {"class_path": "CIFAR10", "init_args": {"augment": 0.1}}
    error = cli(folder, "fit", "--config", tiny_config(folder, **(CHANGES | {"data": data}))).error
    assert "CIFAR10: augment" in error and "horizontal_flip: false" in error
    data["init_args"] = {"augment": 1.5, "horizontal_flip": False}
    error = cli(folder, "fit", "--config", tiny_config(folder, **(CHANGES | {"data": data}))).error
    assert "p must be in (0, 1], got 1.5" in error
