"""What all formats share: names and shapes, the checkpoint that comes of them, the command."""

import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from shell import cli, no_files_change
from torch import nn

from diffusion_pl.checkpoints.loading import load_model
from diffusion_pl.commands import named
from diffusion_pl.interop.foreign import complete, read_tensors
from diffusion_pl.interop.keys import Source, needs, sources, take

OPTIONS = ["--from", "diffusers", "pipe", "--output", "a.ckpt"]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """The folder around a pipeline of diffusers with a tiny network of 20 steps."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "pipe")
    return tmp_path


def test_mismatched_names_and_shapes_are_listed_up_to_ten() -> None:
    network = nn.Sequential(*(nn.Linear(2, 3) for _ in range(8)))
    needed = sources({f"{i}": f"layers.{i}" for i in range(8)}, network)
    tensors = {source.name: torch.full_like(network.state_dict()[name], 2.0) for name, source in needed.items()}
    taken = take(tensors, needed, network, "f")
    assert taken.keys() == network.state_dict().keys()
    assert all((tensor == 2).all() for tensor in taken.values())
    # Axes of length 1 say nothing; converted tensors are as our network needs them.
    turned = {**needed, "0.weight": Source("layers.0.weight", lambda w: w.T)}
    square = {
        **tensors,
        "layers.0.weight": torch.arange(6.0).view(2, 3, 1, 1).squeeze(),
        "layers.1.bias": torch.ones(1, 3),
    }
    assert take(square, turned, network, "f")["0.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]

    bad = {f"odd.{name}" if "weight" in name else name: tensor for name, tensor in tensors.items()}
    bad["layers.0.bias"] = torch.zeros(5)
    with pytest.raises(ValueError) as caught:
        take(bad, needed, network, "f", "module.")
    message = str(caught.value)
    assert message.startswith("f: 17 of 16 tensors do not match the inferred network: module.layers.0.weight is ")
    assert message.count(" is missing") == 8
    assert message.count(" is unexpected") == 2
    assert message.endswith(" … and 7 more")
    with pytest.raises(ValueError, match=r"^f: 1 of 16 .*: module\.layers\.0\.bias is 5, expected 3$"):
        take({**tensors, "layers.0.bias": torch.zeros(5)}, needed, network, "f", "module.")


@pytest.mark.parametrize(
    ("args", "given"),
    [
        (["A", "B", "--metrics", "fid", "is"], ["--a", "A", "--b", "B", "--metrics", "fid", "is"]),
        (["--x", "1", "A", "--b", "B"], ["--x", "1", "--a", "A", "--b", "B"]),
        (["--x=1", "A"], ["--x=1", "--a", "A"]),
        (["--metrics", "fid", "A", "--a", "1", "--b", "2"], ["--metrics", "fid", "A", "--a", "1", "--b", "2"]),
        (["--a", "1", "--b", "2", "more"], ["--a", "1", "--b", "2", "more"]),
        (["-h"], ["-h"]),
    ],
)
def test_bare_values_fill_what_is_required(args: list[str], given: list[str]) -> None:
    assert named(args, ["a", "b"], ["metrics"]) == given


def test_from_is_an_option_though_a_word_of_python(tmp_path: Path) -> None:
    help_ = cli(tmp_path, "import", "--help").out
    assert "--from " in help_
    assert "from_" not in help_ and "import_" not in help_
    assert "missing: --from" in cli(tmp_path, "import", "--path", "x", "--output", "y").error
    assert "--from" in cli(tmp_path, "import", "x", "--from", "keras", "--output", "y").error
    assert "no config.json" in cli(tmp_path, "import", "x", "--from=diffusers", "--output", "y").error


@pytest.mark.slow
def test_sweep_takes_what_came_in(pipe: Path) -> None:
    assert cli(pipe, "import", *OPTIONS).code == 0
    options = ["--ckpt_path", "a.ckpt", "--weights", "raw", "--samplers", "DDIM", "--nfe", 2, "--num_samples", 2]
    assert cli(pipe, "sweep", *options).code == 0


def test_sample_evaluate_export_and_fit_take_what_came_in(pipe: Path) -> None:
    (pipe / "pictures").mkdir()
    for i in range(12):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(pipe / f"pictures/{i}.png")
    data = ["--data", "Folder", "--data.path", "pictures", "--data.batch_size", 4]
    done = cli(pipe, "import", *OPTIONS, *data)
    assert done.code == 0, done.err
    assert "python -m diffusion_pl sample --ckpt_path a.ckpt" in done.out
    assert "guess" not in done.out
    raw = ["--ckpt_path", "a.ckpt", "--weights", "raw"]
    assert cli(pipe, "sample", *raw, "--num_samples", 2, "--steps", 3).code == 0
    assert (pipe / "samples/1.png").is_file()
    elbo = ["--metrics", "elbo", "--likelihood_examples", 2, "--bound", "ChainBound", "--bound.steps", 20]
    assert cli(pipe, "evaluate", *raw, *elbo, "--data.path", "pictures").code == 0
    assert cli(pipe, "export", *raw, "--to", "safetensors", "--output", "out").code == 0
    card = (pipe / "out/README.md").read_text()
    assert "* imported from files of diffusers:\n  * `pipe/model_index.json`, SHA-256" in card
    assert "## Training" in card and "optimizer" not in card  # of which nothing is known

    # Training continues with the model as described, from its weights.
    before, _ = load_model(pipe / "a.ckpt", "raw")
    description = torch.load(pipe / "a.ckpt", weights_only=True)["diffusion_pl"]
    trainer = {"max_steps": 1, "accelerator": "cpu", "limit_val_batches": 0, "enable_progress_bar": False}
    config = {"model": description["model"], "data": description["data"], "trainer": trainer}
    (pipe / "go_on.yaml").write_text(yaml.safe_dump(config))
    fit = ["fit", "--config", "go_on.yaml", "--ckpt_path", "a.ckpt", "--run", "r", "--doctor.ignore", "[prior]"]
    done = cli(pipe, *fit)
    assert done.code == 0, done.err
    after, _ = load_model(pipe / "runs/r/checkpoints/last.ckpt", "raw")
    moved = [(a - b).abs().max().item() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
    assert 0 < max(moved) < 1e-3  # one step of Adam at 1e-4


def test_available_data_must_match_the_model(pipe: Path) -> None:
    (pipe / "pictures").mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(pipe / "pictures/a.png")
    wrong = ["--data", "Folder", "--data.path", "pictures"]
    error = cli(pipe, "import", *OPTIONS, *wrong).error
    assert error == "data: Folder has (3, 16, 16) and no classes, the model (3, 8, 8) and no"
    done = cli(pipe, "import", *OPTIONS, "--data", "Folder", "--data.path", "elsewhere")
    assert done.code == 0, done.err
    assert load_model(pipe / "a.ckpt", "raw")[1].source == "elsewhere"


def test_options_of_other_formats_and_existing_files_are_refused(pipe: Path) -> None:
    with no_files_change(pipe):
        for option, value in (("objective", "pred_v"), ("variant", "vp"), ("ema_decay", "0.9")):
            assert (
                cli(pipe, "import", *OPTIONS, f"--{option}", value).error == f"--{option} is not for --from diffusers"
            )
        assert "x.pt: file not found" in cli(pipe, "import", "--from", "lucidrains", "x.pt", "--output", "b").error


class Code:
    """What a pickle can hold: a call."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("was_run"),)


@pytest.mark.parametrize("kind", ["lucidrains", "score_sde"])
def test_a_pickle_is_not_run_unless_trusted(tmp_path: Path, kind: str) -> None:
    torch.save({"model": Code()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"model": Code()}))
    for file in ("a.pt", "b.pt"):
        options = ["--from", kind, file, "--output", "out.ckpt"]
        error = cli(tmp_path, "import", *options).error
        message = r"it was not read; .*--trust_pickle true"
        assert re.search(message, error), error
        assert not (tmp_path / "was_run").exists()
    assert cli(tmp_path, "import", "--from", kind, "a.pt", "--output", "o", "--trust_pickle", "true").code == 2
    assert (tmp_path / "was_run").exists()


def test_unknown_files_and_pickles_are_distinguished(tmp_path: Path) -> None:
    for name, content, message in (
        ("empty", b"", "damaged, or no file of torch.save"),
        ("text", b"hello", "damaged, or no file of torch.save"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_tensors(tmp_path / name, trust_pickle=False)
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain")
    with (
        zipfile.ZipFile(tmp_path / "plain") as plain,
        zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    with pytest.raises(ValueError, match=r"damaged, or no file of torch.save \(it would unpack to 4,"):
        read_tensors(tmp_path / "bomb", trust_pickle=False)
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(ValueError, match="holds a list, not a dictionary of tensors"):
        read_tensors(tmp_path / "list", trust_pickle=False)


def test_a_missing_package_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert needs("json", "x").loads("1") == 1
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"^this needs the package onnx: pip install 'diffusion_pl\[onnx\]'$"):
        needs("onnx", "onnx")


def test_a_configuration_is_completed_as_fit_keeps_it() -> None:
    from diffusion_pl.interop.foreign import discrete, spec

    network, schedule = spec("networks.UNet", nf=8), spec("schedules.LinearBetas", steps=10)
    sampler = spec("samplers.DDIM", grid=spec("samplers.UniformGrid", steps=10))
    v, snr = spec("denoisers.V"), spec("losses.SNR", plus=1.0)
    result = complete(discrete(network, schedule, 10, v, snr, sampler))
    assert result["schedule"]["init_args"] == {"steps": 10, "beta_min": 1e-4, "beta_max": 0.02}
    assert result["network"]["init_args"]["ch_mult"] == [1, 2, 2, 2]
    assert "shape" not in result and "classes" not in result
    assert result == complete(result)
