"""What configurations and documentation show is trained, not only built; the ordinary tests of the pages only parse it.

Every file under configs/ is a trial (see `trials`), and so is every `fit` of the README and the pages, on data that are
made here, and every configuration of a page: its loss has to fall below the bound in the mark above it.  The other
commands then run in the same folder.  What needs the files of others, or eight GPUs, is left to the parser.
"""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import test_docs
from fields_model import save_all
from PIL import Image
from shell import ROOT, accept_any_cifar10, cifar10, cli
from test_configs import CONFIGS
from test_docs import PAGES, README, Block, blocks, commands, name
from trials import TRIALS, ValLosses, key, options

from diffusion_pl.data import synthetic

pytestmark = pytest.mark.slow
page_folder = test_docs.folder  # the fixture

#: Words of commands that name what a reader has and the tests have not.
OF_THE_READER = (
    "NAME/",
    "PATH",
    "CKPT",
    "PIPELINE",
    "results/",
    "checkpoint.pth",
    "mine.ckpt",
    "other/",
    "cifar10-ddpm",
    "runs/photos",
    "MY_SAMPLES",
    "tuned-samples",  # of a model that was imported
)
#: Pages that show commands or configurations.
EXAMPLES = [page for page in (README, *PAGES) if {"sh", "yaml"} & {block.language for block in blocks(page)}]
#: Options that make a command cheap; the last of a repeated option counts.
SMALL = {
    "sample": "--num_samples 16",
    "sweep": "--num_samples 16",
    "evaluate": "--num_samples 64 --likelihood_examples 2",
    "restore": "--num_samples 1 --steps 10 --repeats 1",
}
#: Validation loss before the first step of the latest run from the start, by configuration.
UNTRAINED: dict[str, float] = {}
#: In place of the numbers of a page's configuration, where they are more than a trial's.
SMALLER = {"measured.yaml": {"500": "60", "1000": "64"}}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the pages name, and stand-ins for the data of the configurations."""
    import datasets
    import h5py

    root = tmp_path_factory.mktemp("trained")
    for standing_in in synthetic.MAKERS:
        assert synthetic.main([standing_in, "--root", str(root), "--count", "120"]) == 0
    cifar10(root, smooth=True)
    files = sorted((root / "anime").glob("*.png"))
    for k, file in enumerate(files):
        target = root / "BY_CLASS" / "ab"[k % 2] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    for link in ("MY_IMAGES", "pictures"):
        (root / link).symlink_to(root / "anime")
    (root / "picture.png").symlink_to(next((root / "celeba_male").glob("*.png")))
    images = np.stack([np.asarray(Image.open(file).convert("RGB").resize((32, 32))) for file in files])
    for archive in ("images.npz", "pictures.npz"):
        np.savez(root / archive, images)
    np.save(root / "labels.npy", np.arange(len(images)) % 3)
    with h5py.File(root / "pictures.h5", "w") as h5:
        h5["images"] = images
    datasets.Dataset.from_dict({"image": list(map(Image.fromarray, images))}).save_to_disk(root / "NAME_OR_FOLDER")
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 500)
    rows = [f"dino,{np.cos(a)},{np.sin(2 * a)}" for a in angle]
    (root / "points.csv").write_text("\n".join(["dataset,x,y", *rows]))
    (root / "all.tsv").write_text("\n".join(["dataset,x,y", *rows, "star,0,0"]).replace(",", "\t"))
    save_all(root, 200)
    return root


@pytest.fixture
def folder(page_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a page's commands run."""
    accept_any_cifar10(monkeypatch)
    for path in (data, *data.iterdir()):
        (page_folder / ("data" if path == data else path.name)).symlink_to(path)
    own = ("my_networks", "my_samplers", "my_schedules", "my_objective", "my_points", "my_pictures", "my_callbacks")
    monkeypatch.setenv("DIFFUSION_PL_TRUST", ",".join([os.environ["DIFFUSION_PL_TRUST"], *own]))
    return page_folder


def train(folder: Path, config: Path, *args: str, keep: bool = False, whole: bool = False) -> list[float]:
    """Run fit with the options of the configuration's trial; the losses before the first step and after the last."""
    trial = TRIALS[key(config)]
    done = cli(folder, "fit", *args, *options(config, trial, keep, "--ckpt_path" in args, whole))
    assert done.code == 0, f"{shlex.join(args)}\n{done.out}{done.err}"
    if "--ckpt_path" not in args:  # a resumed run begins with trained weights
        UNTRAINED[key(config)] = ValLosses.losses[0]
    return [UNTRAINED[key(config)], ValLosses.losses[-1]]


@pytest.mark.parametrize("config", CONFIGS, ids=key)
def test_a_configuration_trains(config: Path, folder: Path) -> None:
    losses = train(folder, config, "--config", str(config))
    assert losses[-1] < TRIALS[key(config)].factor * losses[0], losses


def test_every_trial_is_of_a_configuration() -> None:
    assert TRIALS.keys() == set(map(key, CONFIGS))


@pytest.mark.parametrize("page", EXAMPLES, ids=name)
def test_a_pages_commands_and_configurations_train(page: Path, folder: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and re.match(r"# \w+\.py\n", block.text):
            test_docs.run_python(block, {}, folder)
        elif block.language == "yaml":
            train_yaml(block, folder)
        elif block.language == "sh":
            for args in commands(block):
                run(block, args, folder)


def train_yaml(block: Block, folder: Path) -> None:
    file, base, bound = test_docs.configuration(block)
    text = block.text
    for number, smaller in SMALLER.get(file, {}).items():
        text = text.replace(number, smaller)
    (folder / file).write_text(text)
    losses = train(
        folder, ROOT / base, "--config", base, "--config", file, keep="callbacks" in text, whole="networks." in text
    )
    assert losses[-1] < bound < losses[0], f"{block.place}: {losses}"


def file_of(config: str) -> Path:
    """A shipped configuration by its path or by its name."""
    return ROOT / config if config.endswith(".yaml") else ROOT / "configs" / f"{config}.yaml"


def run(block: Block, args: list[str], folder: Path) -> None:
    place = f"{block.place}: {shlex.join(args)}"
    if "--trainer.devices" in args or any(word in arg for word in OF_THE_READER for arg in args):
        return
    if args[0] == "fit" and "--config" in args:  # without, the model and the data are those of `--init_from`
        args = [
            "32" if before == "--data.init_args.size" else arg for before, arg in zip(["", *args], args, strict=False)
        ]
        base = file_of(args[args.index("--config") + 1])
        files = [folder / arg for arg in args if arg.endswith(".yaml") and not arg.startswith("configs/")]
        whole = any("networks." in file.read_text() for file in files)  # another network has other sizes
        losses = train(folder, base, *args[1:], keep="quick.yaml" in args, whole=whole)
        assert losses[-1] < TRIALS[key(base)].factor * losses[0], f"{place}\n{losses}"
        return
    for run_name in {result for arg in args for result in re.findall(r"runs/(\w+-\w+)/checkpoints", arg)}:
        if not (folder / "runs" / run_name).exists():
            config = f"configs/{run_name.replace('-', '/')}.yaml"
            train(folder, ROOT / config, "--config", config)
    small = shlex.split("--num_samples 64" if "--images" in args else SMALL.get(args[0], ""))
    done = cli(folder, *args, *small)
    if args[0] == "verify":  # of a trial, whose model is poor: the results are shown, and refused
        assert "measured" in done.out, place + done.err
        assert done.code == 2
    elif args[0] == "compare":  # it says what differs
        assert done.code in (0, 2), place
    else:
        assert done.code == 0, f"{place}\n{done.out}{done.err}"
