"""Versions, revision, machine and fingerprint, against what git, the kernel, hashlib and the libraries say."""

import hashlib
import os
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import tiny_data, tiny_module, tiny_trainer
from sklearn.datasets import load_digits

from diffusion_pl import __version__
from diffusion_pl.data import Arrays, Datasaurus, Digits, Moons, Table
from diffusion_pl.runtime import provenance, usage

AUTHOR = "Ada Nobody"


def git(folder: Path, *args: str) -> str:
    command = ["git", "-c", f"user.name={AUTHOR}", "-c", "user.email=ada@example.org", "-C", str(folder), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With one commit of one file, named `file`."""
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_the_revision_is_gits_and_dirt_is_a_changed_tracked_file(repository: Path) -> None:
    (repository / "runs").mkdir()
    (repository / "runs" / "untracked").touch()
    clean = provenance.git_state(repository / "runs")
    assert clean == {"revision": git(repository, "rev-parse", "HEAD"), "dirty": False}
    (repository / "file").write_text("2")
    assert provenance.git_state(repository) == {**clean, "dirty": True}
    git(repository, "add", "file")
    assert provenance.git_state(repository) == {**clean, "dirty": True}


def test_without_a_repository_or_a_commit_there_is_no_revision(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert provenance.git_state(tmp_path) is None


def test_the_revision_needs_no_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = git(repository, "rev-parse", "HEAD")
    git(repository, "pack-refs", "--all")  # the branch is no file of its own any more
    git(repository, "worktree", "add", "-q", "--detach", "other")
    assert provenance.git_state(repository / "other") == {"revision": revision, "dirty": False}
    monkeypatch.setenv("PATH", str(repository))
    for folder in (repository, repository / "other"):
        assert provenance.git_state(folder) == {"revision": revision, "dirty": None}


def test_no_program_of_a_repository_is_run(repository: Path) -> None:
    ran = repository / "ran"
    trap = repository / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch '{ran}'\ncat\n")
    trap.chmod(0o755)
    (repository / ".gitattributes").write_text("* filter=trap diff=trap\n")
    git(repository, "add", ".gitattributes")
    git(repository, "commit", "-q", "-m", "two")
    for key in ("core.fsmonitor", "filter.trap.clean", "filter.trap.smudge", "diff.trap.textconv", "diff.external"):
        git(repository, "config", key, str(trap))
    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "fsmonitor-watchman"):
        (hooks / name).write_text(trap.read_text())
        (hooks / name).chmod(0o755)
    (repository / "file").write_text("3")  # of the same size: git has to look into it
    git(repository, "status")
    assert ran.exists()  # the trap works
    ran.unlink()
    state = provenance.git_state(repository)
    assert state is not None
    assert state["dirty"] is True
    assert not ran.exists()


def test_a_slow_git_is_not_waited_for(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = git(repository, "rev-parse", "HEAD")
    slow = repository / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{repository}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "_GIT_SECONDS", 0.2)
    clock = time.monotonic()
    assert provenance.git_state(repository) == {"revision": revision, "dirty": None}
    assert time.monotonic() - clock < 30


def test_an_untracked_package_in_a_repository_has_no_revision(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = repository / "venv" / "diffusion_pl"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert provenance.package_state() is None
    git(repository, "add", "venv")
    git(repository, "commit", "-q", "-m", "two")
    assert provenance.package_state() == {"revision": git(repository, "rev-parse", "HEAD"), "dirty": False}


def test_versions_are_those_of_the_modules() -> None:
    import lightning
    import torch_fidelity
    import torchmetrics
    import torchvision

    result = provenance.versions()
    modules = {"torch": torch, "lightning": lightning, "torchvision": torchvision, "torchmetrics": torchmetrics}
    for name, module in {**modules, "torch-fidelity": torch_fidelity, "numpy": np}.items():
        # The local part, such as +cu128, may be missing from the metadata.
        version = result[name]
        assert version is not None
        assert version.split("+")[0] == module.__version__.split("+")[0]
    assert result["python"] == ".".join(map(str, sys.version_info[:3]))
    assert result["diffusion_pl"] == __version__


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("no-such-package",))
    assert provenance.versions()["no-such-package"] is None


def sha256(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def fingerprint_of(data: Any) -> dict[str, Any]:
    data.setup()
    fingerprint = provenance.fingerprint(data)
    assert fingerprint is not None
    return fingerprint


def test_the_fingerprint_of_points_is_of_the_numbers_in_the_file() -> None:
    with (files("diffusion_pl.data") / "datasaurus.csv").open() as file:
        points = np.loadtxt(file, delimiter=",", skiprows=1)
    assert fingerprint_of(Datasaurus(val_fraction=0.0)) == {
        "class": "Datasaurus",
        "splits": {"train": 142, "val": 0, "test": 0},
        "shape": [2],
        "classes": None,
        "levels": None,
        "class_names": None,
        "class_counts": None,
        "examples": 142,
        "of": 142,
        "every": 1,
        "sha256": {"x": sha256(points)},
        "dtype": {"x": "float64"},
    }


def test_the_image_fingerprint_uses_at_most_1000_images() -> None:
    digits = load_digits()
    fingerprint = fingerprint_of(Digits(conditional=True, val_fraction=0.0))
    assert (fingerprint["examples"], fingerprint["of"], fingerprint["every"]) == (899, 1797, 2)
    assert (fingerprint["shape"], fingerprint["classes"], fingerprint["levels"]) == ([1, 8, 8], 10, 17)
    assert fingerprint["sha256"] == {
        "x": sha256(digits.images[::2].astype(np.uint8)),
        "label": sha256(digits.target[::2].astype(np.int64)),
    }
    held_out = sum(round(0.1 * count) for count in np.bincount(digits.target))
    assert fingerprint_of(Digits())["splits"] == {"train": 1797 - held_out, "val": held_out, "test": held_out}


def test_the_fingerprint_depends_on_data_values_only(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    plain = fingerprint_of(Arrays(str(tmp_path / "x.npy")))
    assert fingerprint_of(Arrays(str(tmp_path / "x.npy"), horizontal_flip=True, batch_size=7)) == plain
    x += 1
    np.save(tmp_path / "y.npy", x)
    assert fingerprint_of(Arrays(str(tmp_path / "y.npy")))["sha256"] != plain["sha256"]
    assert fingerprint_of(Arrays(str(tmp_path / "x.npy"), seed=1))["sha256"] != plain["sha256"]  # another split


def test_points_in_other_units_have_another_fingerprint(tmp_path: Path) -> None:
    """In model units they are the same."""
    points = np.random.default_rng(0).normal(size=(20, 2))
    prints = []
    for scale in (1, 4):
        np.savetxt(tmp_path / f"{scale}.csv", scale * points, delimiter=",", header="x,y", comments="")
        data = Table(str(tmp_path / f"{scale}.csv"), ["x", "y"])
        prints.append(fingerprint_of(data)["sha256"])
    assert prints[0] != prints[1]


def test_what_is_no_data_module_has_no_fingerprint() -> None:
    assert provenance.fingerprint(None) is None


def test_seeds_are_the_runs_and_the_datas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert provenance.seeds(Moons(seed=3)) == {"run": 7, "data": 3}
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert provenance.seeds(None) == {"run": None, "data": None}


def test_the_machine_is_described_as_by_the_kernel(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, fast_dev_run=True)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    hardware = provenance.hardware(trainer)
    kernel = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    # The kernel keeps some pages to itself.
    assert hardware["memory"] == pytest.approx(int(kernel["MemTotal"].split()[0]) * 1024, rel=0.05)
    assert (hardware["cores"], hardware["threads"]) == (os.cpu_count(), torch.get_num_threads())
    assert hardware["usable_cores"] == int(subprocess.run(["nproc"], capture_output=True, env={}).stdout)
    assert hardware["processor"] and hardware["processor"] in Path("/proc/cpuinfo").read_text()
    assert (hardware["device"], hardware["devices"], hardware["accelerators"]) == ("cpu", 1, [])


def test_the_peak_of_memory_is_the_kernels() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert usage.peak_memory()["rss"] == pytest.approx(int(status["VmHWM"].split()[0]) * 1024, rel=0.05)


def test_the_share_of_each_process_is_the_loaders(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, accumulate_grad_batches=3, precision="bf16-mixed", max_steps=1)
    trainer.fit(tiny_module(), datamodule=tiny_data(batch_size=16))
    parallel = provenance.parallel(trainer)
    assert (parallel["precision"], parallel["accumulate_grad_batches"]) == ("bf16-mixed", 3)
    assert (parallel["batch_per_process"], parallel["global_batch"], parallel["num_nodes"]) == (16, 16, 1)
