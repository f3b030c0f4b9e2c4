"""FID, IS, KID, precision and recall: against torch-fidelity's own run on the same images, and closed forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffusion_pl.metrics import DigitsClassifier, FeatureStatistics, InceptionV3
from diffusion_pl.metrics.extractors import extract, identity
from diffusion_pl.metrics.frechet import Moments, frechet_distance
from diffusion_pl.metrics.generation import enough, scores


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the real InceptionV3 network, drawn at random."""

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return None

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    network = Unloaded("x", ["2048"], feature_extractor_weights_path=str(folder / "empty.pth"))
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


class Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def noise(n: int, seed: int, top: int = 256) -> Tensor:
    return torch.randint(top, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_values_equal_torch_fidelity_on_the_same_images(weights: Path) -> None:
    a, b = noise(14, 0), noise(12, 1, 200)
    extractor = InceptionV3(str(weights))
    both = []
    for images in (a, b):
        actual = FeatureStatistics(2048, keep=True)
        for first in range(0, len(images), 7):
            features, logits, _ = extract(extractor, images[first : first + 7])
            actual.update(features, torch.arange(first, first + len(features)), logits)
        both.append(actual)
    ours = scores(["fid", "is", "kid", "prc"], *both)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(a),
        input2=Images(b),
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        kid_subset_size=12,
        feature_extractor_weights_path=str(weights),
        feature_extractor="inception-v3-compat",
        feature_layer_prc="2048",
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        batch_size=8,
    )
    names = {
        "fid": "frechet_inception_distance",
        "is": "inception_score_mean",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for name, key in names.items():
        # KID of such similar images is a difference of numbers near one, taken in single precision.
        assert ours[name]["value"] == pytest.approx(theirs[key], rel=1e-6, abs=2e-6 if name == "kid" else 0), name
    assert ours["fid"]["value"] > 1e-6


def test_distance_is_0_to_itself_and_the_shift_of_shifted_sets() -> None:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64, generator=g)
    cov, shift = root @ root.T + torch.eye(6), torch.arange(6, dtype=torch.float64)
    here, there = Moments(9, torch.zeros(6, dtype=torch.float64), cov), Moments(9, shift, cov)
    assert frechet_distance(here, here) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(here, there) == pytest.approx(55.0)
    # Of commuting covariances Σ (√λ₁ − √λ₂)².
    assert frechet_distance(here, Moments(9, here.mean, 4 * cov)) == pytest.approx(float(torch.trace(cov)))


def test_moments_are_those_of_all_rows_however_they_come() -> None:
    rows = torch.randn(101, 5, generator=torch.Generator().manual_seed(0)) + 100
    for size in (101, 10, 1):
        result = FeatureStatistics(5)
        for part in torch.arange(101).split(size):
            result.update(rows[part], part)
        n, mean, cov = result.compute()
        assert n == 101
        np.testing.assert_allclose(mean, rows.double().mean(0), rtol=1e-12)
        np.testing.assert_allclose(cov, torch.cov(rows.double().T), rtol=1e-8, atol=1e-8)


def test_non_finite_rows_are_counted_and_skipped() -> None:
    rows = torch.randn(10, 3)
    with_nan = rows.clone()
    with_nan[4, 1] = float("nan")
    result, clean = FeatureStatistics(3, keep=True), FeatureStatistics(3)
    result.update(with_nan, torch.arange(10))
    clean.update(rows[[0, 1, 2, 3, 5, 6, 7, 8, 9]], torch.arange(9))
    assert int(result.bad) == 1
    assert torch.equal(result.compute().mean, clean.compute().mean)
    assert len(result.kept()[0]) == 9
    hopeless = FeatureStatistics(3)
    hopeless.update(with_nan[4:5], torch.arange(1))
    with pytest.raises(ValueError, match="1 of 1 samples are not finite"):
        hopeless.compute()


def test_kept_rows_are_in_index_order() -> None:
    result = FeatureStatistics(1, keep=True)
    for part in ([3, 1], [0, 2]):
        index = torch.tensor(part)
        result.update(index[:, None].float(), index, 10 * index[:, None].float())
    features, logits = result.kept()
    assert features.flatten().tolist() == [0, 1, 2, 3]
    assert logits.flatten().tolist() == [0, 10, 20, 30]


def test_few_samples_are_warned_of() -> None:
    assert "take more than 2,048" in str(enough(1000, 2048))
    assert enough(2049, 2048) is None


def test_the_digits_classifier_knows_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None]
    features, logits, _ = extract(DigitsClassifier(), images)
    assert features.shape == (1797, 64)
    assert (logits.argmax(1).numpy() == digits.target).mean() > 0.97


def test_an_extractor_is_known_by_its_weights() -> None:
    a, b = DigitsClassifier(), DigitsClassifier()
    assert identity(a) == identity(b)
    with torch.no_grad():
        b.logits.bias[0] += 1
    assert identity(a)["sha256"] != identity(b)["sha256"]


class Odd(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


def test_bad_extractors_and_images_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        InceptionV3(str(tmp_path / "none.pth"))
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights of another network than torch-fidelity's"):
        InceptionV3(str(tmp_path / "other.pth"))
    (tmp_path / "noise.pth").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match="is no file of weights"):
        InceptionV3(str(tmp_path / "noise.pth"))
    with pytest.raises(ValueError, match="uint8 images in 0 … 255, got torch"):
        extract(DigitsClassifier(), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="1 x 8 x 8, not 3"):
        extract(DigitsClassifier(), noise(1, 0))
    with pytest.raises(ValueError, match=r"must be \(B, F\)"):
        extract(Odd(), noise(1, 0))
    with pytest.raises(ValueError, match="InceptionV3 sees 1 or 3 channels"):
        extract(InceptionV3(str(weights)), torch.zeros(1, 4, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="there is no metric 'lpips'"):
        scores(["lpips"], FeatureStatistics(1), FeatureStatistics(1))


def test_weights_that_cannot_be_downloaded_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"no route to host.*give --extractor.weights FILE"):
        InceptionV3()


def test_spatial_features_are_those_of_adm(weights: Path) -> None:
    """mixed_6/conv of TensorFlow's graph is the 1x1 branch of Mixed_6d; of 192 channels the first 7, H x W x C."""
    extractor = InceptionV3(str(weights), spatial=True)
    plain, seen = extract(InceptionV3(str(weights)), noise(2, 0)), list[Tensor]()
    layers: Any = extractor.network
    hook = layers.Mixed_6c.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features, logits, spatial = extract(extractor, noise(2, 0))
    hook.remove()
    torch.testing.assert_close((features, logits), plain[:2], rtol=0, atol=0)
    assert (plain.spatial.shape, spatial.shape) == ((2, 0), (2, 2023))
    branch: Any = layers.Mixed_6d.branch1x1
    out = torch.relu(branch.bn(branch.conv(seen[0])))
    assert spatial[1, 5 * 17 * 7 + 3 * 7 + 6] == pytest.approx(float(out[1, 6, 5, 3]), rel=1e-5)


def test_sfid_needs_spatial_features() -> None:
    features, index = torch.randn(9, 4), torch.arange(9)
    plain, full = FeatureStatistics(4), FeatureStatistics(4, spatial=3)
    plain.update(features, index)
    full.update(features, index, spatial=torch.randn(9, 3))
    with pytest.raises(ValueError, match=r"the extractor has none.*--extractor.spatial true"):
        scores(["sfid"], plain, full)
    with pytest.raises(ValueError, match="the reference has none"):
        scores(["sfid"], full, plain)
    assert scores(["sfid"], full, full)["sfid"]["value"] == pytest.approx(0, abs=1e-9)
