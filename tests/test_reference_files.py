"""Reference statistics: reference.npz, and files in the layouts of ADM, EDM, EDM2, JiT and torch-fidelity."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_pl.data.units import Levels
from diffusion_pl.evaluation import Features, Reference, read_reference, write_reference
from diffusion_pl.metrics import FeatureStatistics
from diffusion_pl.metrics.generation import GivenStatistics, scores

NAMES = ("fid",)


class Small(nn.Module):
    """Three features, two logits and four spatial features: fixed projections of the pixels."""

    part = "fid"

    def __init__(self, spatial: bool = True) -> None:
        super().__init__()
        self.spatial = spatial
        weights = torch.randn(3 * 4 * 4, 9, generator=torch.Generator().manual_seed(0))
        self.weights = nn.Parameter(weights / 4, requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        rows = images.flatten(1).float() / 255 @ self.weights
        return rows[:, :3], rows[:, 3:5], rows[:, 5:][:, : 4 * self.spatial]


def images(count: int, seed: int) -> Tensor:
    return torch.randint(256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def features(spatial: bool = True, side: int = 4) -> Features:
    return Features((3, side, side), Levels(256), Small(spatial))


def rows(count: int, seed: int) -> Any:
    return torch.cat(Small()(images(count, seed)), 1).double().numpy()


def moments_of(part: Any, suffix: str = "") -> dict[str, Any]:
    """As numpy computes them, which all these packages do."""
    return {f"mu{suffix}": np.mean(part, axis=0), f"sigma{suffix}": np.cov(part, rowvar=False)}


def adm(path: Path, keep: int = 20, **changes: Any) -> Path:
    """As VIRTUAL_*.npz: moments of 50 images, and some of them, channels last."""
    made = rows(50, 1)
    kept = images(50, 1)[:keep].permute(0, 2, 3, 1).numpy()
    arrays = {"arr_0": kept, **moments_of(made[:, :3]), **moments_of(made[:, 5:], "_s"), **changes}
    np.savez(path, **arrays)
    return path


def against(path: Path, names: Any = NAMES, **options: Any) -> dict[str, Any]:
    """Metrics of 30 other images by a reference file."""
    own = features()
    reference = read_reference(path, {}, own, names, **options)
    return scores(names, own.statistics(rows(30, 2).astype(np.float32), keep=True), reference.statistics(own, names))


def expected(names: Any = NAMES, kept: int = 50) -> dict[str, Any]:
    """The same from all 50 images."""
    own = features()
    sets = [own.statistics(rows(n, seed).astype(np.float32), keep=True) for n, seed in ((30, 2), (kept, 1))]
    return scores(names, *sets)


def test_adm_file_gives_all_image_metrics(tmp_path: Path) -> None:
    names = ("fid", "sfid", "is", "kid", "prc")
    measured = against(adm(tmp_path / "VIRTUAL_a.npz"), names)
    for name in ("fid", "sfid", "is"):
        assert measured[name]["value"] == pytest.approx(expected(names)[name]["value"], rel=1e-4), name
    for name in ("kid", "precision", "recall"):  # of the images that the file holds
        assert measured[name]["value"] == pytest.approx(expected(names, 20)[name]["value"], rel=1e-4), name
    assert measured["sfid"]["value"] != measured["fid"]["value"]


@pytest.mark.parametrize("suffix", ["npz", "float32.npz", "pt", "pkl"])
def test_files_of_moments_give_fid(tmp_path: Path, suffix: str) -> None:
    path, made = tmp_path / f"a.{suffix}", moments_of(rows(50, 1)[:, :3])
    if suffix == "pt":
        torch.save(made, path)
    elif suffix == "pkl":
        other = {"mu": np.zeros(7), "sigma": np.eye(7)}
        path.write_bytes(pickle.dumps({"num_images": 50, "fid": made, "fd_dinov2": other}))
    else:
        np.savez(
            path, **{name: value.astype("float32" if "float" in suffix else "float64") for name, value in made.items()}
        )
    measured = against(path, trust_pickle=suffix in ("pt", "pkl"))
    assert measured["fid"]["value"] == pytest.approx(expected()["fid"]["value"], rel=1e-4)


def test_what_is_known_of_a_foreign_file_is_recorded(tmp_path: Path) -> None:
    path = adm(tmp_path / "VIRTUAL_a.npz")
    note = read_reference(path, {}, features(), NAMES).note
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert note.pop("extractor").startswith("Inception")
    assert note == {"data": "VIRTUAL_a.npz", "split": "foreign", "n": None, "sha256": sha256, "layout": "ADM"}
    pickled = tmp_path / "a.pkl"
    pickled.write_bytes(pickle.dumps({"num_images": 50, "fid": moments_of(rows(50, 1)[:, :3])}))
    note = read_reference(pickled, {}, features(), NAMES, trust_pickle=True).note
    assert (note["layout"], note["n"], note["extractor"]) == ("EDM2", 50, "fid")
    np.savez(tmp_path / "edm.npz", **moments_of(rows(50, 1)[:, :3]))
    note = read_reference(tmp_path / "edm.npz", {}, features(), NAMES).note
    assert (note["layout"], note["extractor"]) == ("mu, sigma", "not stated by the file")


def test_a_pickle_runs_nothing_unless_trusted(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    for name, write in (
        ("a.pkl", lambda p, c: p.write_bytes(pickle.dumps(c))),
        ("a.pt", lambda p, c: torch.save(c, p)),
    ):
        write(tmp_path / name, {"fid": Touch()})
        with pytest.raises(ValueError, match=r"is a pickle.*Fix: .*--trust_pickle true"):
            read_reference(tmp_path / name, {}, features(), NAMES)
    assert not (tmp_path / "touched").exists()


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def pickled(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


CASES: dict[str, tuple[Any, str]] = {
    "unknown": (
        lambda p: save(p, means=np.zeros(3), covs=np.eye(3)),
        "has the keys means, covs, expected mu and sigma",
    ),
    "width": (lambda p: save(p, mu=np.zeros(5), sigma=np.eye(5)), "of 5 features, Small makes 3"),
    "shape": (lambda p: save(p, mu=np.zeros(3), sigma=np.eye(4)), r"moments of shape \(3,\) and \(4, 4\)"),
    "negative": (lambda p: save(p, mu=np.zeros(3), sigma=-np.eye(3)), "negative eigenvalue"),
    "not_finite": (lambda p: save(p, mu=np.zeros(3), sigma=np.full((3, 3), np.nan)), "not finite"),
    "size": (lambda p: adm(p, arr_0=np.zeros((2, 8, 8, 3), np.uint8)), "images of 8 x 8, the samples are of 4 x 4"),
    "floats": (lambda p: adm(p, arr_0=np.zeros((2, 4, 4, 3))), "arr_0 is float64"),
    "text": (lambda p: p.write_text("statistics") and p, "no file of reference statistics"),
    "other_part": (
        lambda p: pickled(p, {"fd_dinov2": {"mu": np.zeros(3), "sigma": np.eye(3)}}),
        "of fd_dinov2, not of fid",
    ),
    "no_part": (lambda p: pickled(p, {"num_images": 3}), "has the keys num_images"),
    "list": (lambda p: pickled(p, [1]), "holds a list"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_files_are_refused_in_a_line(tmp_path: Path, case: str) -> None:
    make, message = CASES[case]
    path = make(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=message) as error:
        read_reference(path, {}, features(), NAMES, trust_pickle=True)
    assert "a.npz" in str(error.value) and "\n" not in str(error.value)


def test_metrics_that_a_file_cannot_give_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **moments_of(rows(50, 1)[:, :3]))
    with pytest.raises(ValueError, match=r"holds moments only, and sfid, kid need.*--metrics fid is"):
        read_reference(tmp_path / "a.npz", {}, features(), ("fid", "sfid", "kid", "is"))
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_reference(tmp_path / "none.npz", {}, features(), NAMES)


def test_own_reference_keeps_spatial_moments(tmp_path: Path) -> None:
    own, note = features(), {"data": "D", "split": "train", "n": 50, "sha256": ""}
    statistics: FeatureStatistics = own.statistics(rows(50, 1).astype(np.float32), keep=False)
    assert statistics.spatial is not None
    made_with = {"extractor": {"class": "Small"}}
    path = tmp_path / "reference.npz"
    write_reference(path, Reference(statistics.compute(), note, statistics.spatial.compute()), made_with)
    read = read_reference(path, made_with, own, ("fid", "sfid"))
    assert read.note == note
    assert isinstance(read.statistics(own, ("fid",)), GivenStatistics)
    assert read.spatial is not None
    torch.testing.assert_close(read.spatial.cov, statistics.spatial.compute().cov, rtol=0, atol=0)
    with pytest.raises(ValueError, match="was made with another extractor"):
        read_reference(path, {"extractor": {"class": "Large"}}, own, ("fid",))
