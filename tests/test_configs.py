"""Every file under configs/ (overlays change others and are not run alone) is sound, runs, and says what it is."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conditional_model import tiny_encoder
from fields_model import save_all
from latents_folder import write_latents
from shell import ROOT, accept_any_cifar10, cifar10, cli, no_files_change

from diffusion_pl import checks
from diffusion_pl.autoencoders import Orthogonal
from diffusion_pl.callbacks import EMA
from diffusion_pl.data import FashionMNIST, Folder, synthetic
from diffusion_pl.evaluation import Band, check_names

#: In place of sizes of 64 channels and more, and of two blocks and more, so that a published network runs in seconds;
#: the slow tests run it whole.
NARROW = {"nf": (64, 16), "width": (384, 48), "num_res_blocks": (2, 1), "head_channels": (64, 16)}
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name != "overlays")
OVERLAYS = sorted((ROOT / "configs" / "overlays").glob("*.yaml"))


#: Differ from others in sizes, data of one kind or numbers only: they run in the slow suite.
ALIKE = [
    "anime-ddpmpp",
    "celeba_male-vp",
    "church-ncsnpp",
    "cifar10-ddpm_vlb",
    "cifar10-dit",
    "cifar10-ect",
    "cifar10-edm2",
    "cifar10-edm_conditional",
    "cifar10-imf",
    "cifar10-improved_ddpm",
    "cifar10-improved_ddpm_vlb",
    "cifar10-jit",
    "cifar10-meanflow",
    "cifar10-ot_cfm",
    "cifar10-rectified_flow",
    "cifar10-subvp_ddpmpp",
    "cifar10-vp_ddpmpp",
    "datasaurus-attempt1",
    "datasaurus-attempt2",
    "datasaurus-attempt3",
    "digits-document2",
    "digits-improved",
    "fashion_mnist-ddpm",
    "fashion_mnist-dit",
    "fashion_mnist-ect",
    "fashion_mnist-latent_ect",
    "fashion_mnist-meanflow",
    "fashion_mnist-vp",
    "fields-residual",
    "folder-ddpm",
    "imagenet256-dit_xl2",
    "imagenet256-jit_b16",
    "imagenet256-lightningdit_xl1",
    "imagenet256-sit_xl2",
    "imagenet512-edm2_xs",
    "imagenet64-adm",
    "mnist-ddpm",
    "mnist_colored_2-document0",
    "moons-rectified_flow",
    "moons-vp",
    "shoes-vp",
]


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def marked(path: Path) -> Any:
    return pytest.param(path, marks=pytest.mark.slow) if name(path) in ALIKE else path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data that configurations name, as small stand-ins in the files of the real sets."""
    root = tmp_path_factory.mktemp("configs") / "data"
    for standing_in in synthetic.MAKERS:
        assert synthetic.main([standing_in, "--root", str(root), "--count", "20"]) == 0
    cifar10(root)
    save_all(root, 20)
    (root / "encoder").mkdir()
    tiny_encoder(root / "encoder")
    (root / "pairs").mkdir()
    for side in ("photos", "edges"):
        (root / "pairs" / side).symlink_to(root / "anime")
    (root / "imagenet64").mkdir()
    for number, standing_in in enumerate(("anime", "celeba_male")):
        (root / "imagenet64" / f"n0{number}").symlink_to(root / standing_in)
    write_latents(root / "latents", Orthogonal((1, 28, 28), 4), FashionMNIST(str(root)))
    (root / "imagenet").mkdir()
    for standing_in in ("anime", "church"):
        (root / "imagenet" / standing_in).symlink_to(root / standing_in)
    images = Folder(str(root / "imagenet"), conditional=True, size=32)
    for latents in ("imagenet256", "imagenet256-vavae"):
        write_latents(root / latents, Orthogonal((3, 32, 32), 4), images)
    patches = torch.nn.Conv2d(3, 768, 8, 8)  # 4 x 4 of images of 32 x 32
    torch.jit.trace(patches, torch.zeros(1, 3, 32, 32)).save(root / "patches.pt")
    small = Folder(str(root / "imagenet64"), conditional=True, size=64)
    write_latents(root / "imagenet512-latents", Orthogonal((3, 64, 64), 2), small)
    return root


@pytest.fixture
def folder(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to run: an empty folder, but for the data."""
    (tmp_path / "data").symlink_to(data)
    (tmp_path / "pictures").symlink_to(data / "anime")
    (tmp_path / "pairs").symlink_to(data / "pairs")
    for name in ("latents", "imagenet", "imagenet256", "imagenet256-vavae", "patches.pt"):
        (tmp_path / name).symlink_to(data / name)
    accept_any_cifar10(monkeypatch)
    return tmp_path


@pytest.fixture(params=CONFIGS, ids=name)
def config(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_they_are_found() -> None:
    assert set(ALIKE) < set(map(name, CONFIGS))
    assert {"datasaurus-vp", "datasaurus-ddpm", "datasaurus-edm", "datasaurus-attempt1"} <= set(map(name, CONFIGS))


def test_it_opens_with_a_comment_and_is_short(config: Path) -> None:
    lines = config.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 70
    header = [line for line in lines if line.startswith("#")]
    assert len(" ".join(header)) > 80  # paper, result, hardware, wall time


def test_it_has_a_band_or_a_reason(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    if "class_path" in content["model"]:  # an autoencoder or classifier, which `evaluate` does not measure alone
        assert "expected" not in content
        return
    expected = {metric: Band(**band) for metric, band in content["expected"].items()}
    check_names(expected)
    assert all(len(band.source) > 5 for band in expected.values())


def test_it_is_flat_and_has_no_tricks_of_yaml(config: Path) -> None:
    text = "\n".join(line.partition(" #")[0] for line in config.read_text().splitlines() if not line.startswith("#"))
    assert not any(sign in text for sign in ("&", "*", "<<:"))
    assert {"model", "data", "trainer"} <= yaml.safe_load(text).keys()


def narrow(config: Path) -> list[str]:
    """Options that make a wide network of a configuration narrow; none for the others."""
    given = yaml.safe_load(config.read_text())["model"].get("network", {}).get("init_args", {})
    sizes = {size: less for size, (wide, less) in NARROW.items() if given.get(size, 0) >= wide}
    if "size" in given:  # by name
        sizes = {"width": 48, "depth": 9, "heads": 4}
    return [option for size, less in sizes.items() for option in (f"--model.network.init_args.{size}", str(less))]


def few_steps(config: Path) -> list[str]:
    """Options that make a long grid of a configuration's sampler short; none for the others."""
    model = yaml.safe_load(config.read_text())["model"]
    where, model = ("model.init_args", model["init_args"]) if "class_path" in model else ("model", model)
    options, where = model.get("sampler", {}).get("init_args", {}), f"--{where}.sampler.init_args"
    while "grid" in options:
        options, where = options["grid"].get("init_args", {}), f"{where}.grid.init_args"
    return [f"{where}.steps", "3"] if options.get("steps", 0) > 3 else []


def own_extractor(config: Path) -> list[str]:
    """Options that replace the image encoder that a hidden layer is aligned with; none for the others."""
    if "alignment" not in yaml.safe_load(config.read_text())["model"].get("loss", {}):
        return []
    where = "--model.loss.init_args.alignment.init_args"
    encoder = f"{where}.extractor.init_args"
    return [f"{where}.width", "48", f"{encoder}.path", "patches.pt", f"{encoder}.size", "32"]


def own_encoder(config: Path) -> list[str]:
    """Options that replace the text encoder of a configuration, which is fetched; none for the others."""
    options = yaml.safe_load(config.read_text())["data"].get("init_args", {})
    return ["--data.init_args.text_encoder", "data/encoder"] if "text_encoder" in options else []


@cache
def printed(config: Path, folder: Path) -> str:
    """The configuration as the program saves it."""
    done = cli(folder, "fit", "--config", config, "--print_config")
    assert done.code == 0, done.err
    return done.out


WIDE = [config for config in CONFIGS if narrow(config) and config.parent.name != "imagenet256"]  # memory of 16 GB


@pytest.mark.slow
@pytest.mark.parametrize("wide", WIDE, ids=name)
def test_a_published_network_runs_at_its_size(wide: Path, folder: Path) -> None:
    cpu = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.init_args.batch_size", 4]
    done = cli(folder, "fit", "--config", wide, *cpu, *own_encoder(wide), "--trainer.fast_dev_run", "true")
    assert (done.code, done.err) == (0, "")
    assert "warning" not in done.out


@pytest.mark.parametrize("config", map(marked, CONFIGS), ids=map(name, CONFIGS))
def test_it_runs_and_its_saved_form_is_the_same_experiment(config: Path, folder: Path, data: Path) -> None:
    """Every key is known, every class is built, a batch is trained on and validated, samples are drawn."""
    small = [*narrow(config), *few_steps(config), *own_encoder(config), *own_extractor(config)]
    cpu = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.init_args.batch_size", 4]
    with no_files_change(folder):
        done = cli(folder, "fit", "--config", config, *cpu, *small, "--trainer.fast_dev_run", "true")
    assert (done.code, done.err) == (0, "")
    assert "warning" not in done.out  # of the doctor

    (folder / "saved.yaml").write_text(printed(config, data))
    again = cli(folder, "fit", "--config", "saved.yaml", "--print_config")
    assert without_paths(again.out) == without_paths(printed(config, data))


def test_its_average_fits_its_length(config: Path) -> None:
    """Which a trial run does not show."""
    content = yaml.safe_load(config.read_text())
    batch = content["data"]["init_args"].get("batch_size")
    limits = [average.limit(batch) for average in EMA(**content["ema"]).averages]
    findings = checks.ema([1 - limit for limit in limits if limit is not None], content["trainer"]["max_steps"])
    assert {finding.level for finding in findings} == {"fine"}


def without_paths(text: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(text)
    return {key: value for key, value in content.items() if key != "config"}


def test_every_key_is_used(config: Path, data: Path) -> None:
    """The saved form has every value that the file gives."""
    missing = list(unlike(yaml.safe_load(config.read_text()), yaml.safe_load(printed(config, data))))
    assert not missing


def unlike(ours: Any, theirs: Any, path: str = "") -> Any:
    """Where a value of the file is not that of the run; a class may be written short."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if "class_path" in theirs and "class_path" not in ours:  # the only class there is may be omitted
            theirs = theirs["init_args"]
        for key, value in ours.items():
            yield from unlike(value, theirs.get(key), f"{path}.{key}") if key in theirs else [f"{path}.{key}"]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from unlike(a, b, f"{path}[{index}]")
    elif path.endswith("class_path"):
        if str(ours).split(".")[-1] != str(theirs).split(".")[-1]:
            yield path
    elif ours != theirs and not (isinstance(theirs, (int, float)) and float(ours) == theirs):
        yield f"{path}: {ours} became {theirs}"


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name)
def test_an_overlay_is_merged_over_a_file(overlay: Path, tmp_path: Path) -> None:
    of_a_network = "network" in yaml.safe_load(overlay.read_text()).get("model", {})
    base = ROOT / "configs" / ("cifar10/vp_ddpmpp.yaml" if of_a_network else "datasaurus/vp.yaml")
    done = cli(tmp_path, "fit", "--config", base, "--config", overlay, "--print_config")
    assert done.code == 0, done.err
