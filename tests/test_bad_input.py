"""Everything a person may get wrong on a command line: one line that says what and where, status 2, nothing changed."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from shell import cli, fit, no_files_change, tiny_config

CSV = "x,y,name\n" + "".join(f"{i},{i * i},a\n" for i in range(20))


def options(*args: Any) -> Any:
    """A good file, and these options after it."""

    def command(folder: Path) -> list[Any]:
        return ["fit", "--config", tiny_config(folder, trainer__max_steps=1).name, *args]

    return command


def file(**changes: Any) -> Any:
    """A file in which these keys are as given."""

    def command(folder: Path) -> list[Any]:
        return ["fit", "--config", tiny_config(folder, **({"trainer__max_steps": 1} | changes)).name]

    return command


def text(old: str, new: str) -> Any:
    """A file in which one text is replaced."""

    def command(folder: Path) -> list[Any]:
        path = tiny_config(folder, trainer__max_steps=1)
        content = path.read_text()
        assert content.count(old) == 1, (old, content)
        path.write_text(content.replace(old, new))
        return ["fit", "--config", path.name]

    return command


def table(content: str | bytes | None, columns: str = "xy", **arguments: Any) -> Any:
    """A file that trains on points.csv."""

    def command(folder: Path) -> list[Any]:
        if content is not None:
            (folder / "points.csv").write_bytes(content.encode() if isinstance(content, str) else content)
        arguments_ = {"path": "points.csv", "columns": list(columns)} | arguments
        data = {"class_path": "Table", "init_args": arguments_}
        return ["fit", "--config", tiny_config(folder, data=data, trainer__max_steps=1).name]

    return command


def command(*args: str) -> Any:
    """Just this."""
    return lambda folder: list(args)


def bomb(folder: Path) -> list[Any]:
    """A file of few lines that stand for 10^9 values."""
    lines = ["a0: &a0 [x]"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 10)]
    (folder / "bomb.yaml").write_text("\n".join(lines))
    return ["fit", "--config", "bomb.yaml"]


def foreign(content: Any, kind: str = "lucidrains") -> Any:
    """A file of torch.save that is to be imported."""

    def build(folder: Path) -> list[Any]:
        torch.save(content, folder / "a.pt")
        return ["import", "--from", kind, "a.pt", "--output", "o.ckpt"]

    return build


GRID = "--model.sampler.grid"
EXPLICIT = [GRID, "ExplicitGrid", f"{GRID}.t"]

#: What is typed -> a pattern that the one line must match.
CONV = "diffusion_pl.networks.ConvUNet"


def image_folder(more: Any, first: tuple[int, ...] | None = (8, 8, 3), **changes: Any) -> Any:
    """A file that trains on the folder p with a.png and more; an empty folder for first None, none for more None."""
    trainer = {key: changes.pop(key) for key in list(changes) if "__" in key}

    def build(folder: Path) -> list[Any]:
        if more is None:
            return settings(folder)
        (folder / "p").mkdir()
        for name, content in ({} if first is None else {"a.png": first} | more).items():
            if isinstance(content, bytes):
                (folder / "p" / name).write_bytes(content)
            else:
                Image.fromarray(np.zeros(content, np.uint8)).save(folder / "p" / name)
        return settings(folder)

    def settings(folder: Path) -> list[Any]:
        data = {"class_path": "Folder", "init_args": {"path": "p", **changes}}
        return file(data=data, model__network={"class_path": CONV}, **trainer)(folder)  # type: ignore[no-any-return]

    return build


def array(x: Any, labels: Any = None, classes: int | None = None) -> Any:
    """A file that trains on x.npy."""

    def build(folder: Path) -> list[Any]:
        np.save(folder / "x.npy", x, allow_pickle=True)
        arguments: dict[str, Any] = {"path": "x.npy"}
        if labels is not None:
            np.save(folder / "y.npy", labels)
            arguments |= {"labels": "y.npy", "classes": classes}
        data = {"class_path": "Arrays", "init_args": arguments}
        return file(data=data, model__network={"class_path": CONV})(folder)  # type: ignore[no-any-return]

    return build


def hdf5(dataset: str) -> Any:
    """A file that trains on x.hdf5, which holds imgs."""

    def build(folder: Path) -> list[Any]:
        with h5py.File(folder / "x.hdf5", "w") as content:
            content["imgs"] = np.zeros((9, 8, 8), np.uint8)
        data = {"class_path": "HDF5", "init_args": {"path": "x.hdf5", "dataset": dataset}}
        return file(data=data, model__network={"class_path": CONV})(folder)  # type: ignore[no-any-return]

    return build


CASES: dict[str, tuple[Any, str]] = {
    # Unknown names.
    "command": (command("fitt"), r"unknown command 'fitt': did you mean fit\?"),
    "option of trainer": (options("--trainer.max_epoch", 3), r"unknown option --trainer.max_epoch; .*max_epochs\?"),
    "abbreviation": (
        options("--trainer.max_step", 3),
        r"option --trainer.max_step; .*--trainer.max_steps\?",
    ),
    "option of model": (
        options("--model.optimzer.lr", 1),
        r"--model.optimzer.lr; .*--model.optimizer.lr\?",
    ),
    "option of class": (
        options("--model.network.widht", 8),
        r"option --model.network.widht of MLP; .*--model.network.width\?",
    ),
    "option of optimizer": (options("--model.optimizer.lrr", 1), r"option --model.optimizer.lrr of AdamW; .*lr\?"),
    "section": (file(modell={"compile": True}), r"tiny.yaml:\d+: modell: unknown key; did you mean model\?"),
    "key of trainer": (file(trainer__max_stepz=3), r"tiny.yaml:\d+: trainer.max_stepz: unknown key.*; .*max_steps\?"),
    "key of model": (
        text("network:", "netwrok:"),
        r"tiny.yaml:2: model.netwrok: unknown key.*; did you mean network\?",
    ),
    "key of class": (
        text("width:", "widht:"),
        r"tiny.yaml:5: model.network.widht: unknown key.*; did you mean width\?",
    ),
    "key of loss": (text("plus:", "puls:"), r"tiny.yaml:\d+: model.loss.weighting.puls: unknown key.*; .*plus\?"),
    "key of data": (text("repeats:", "repeat:"), r"tiny.yaml:\d+: data.repeat: unknown key.*; did you mean repeats\?"),
    "key of ema": (file(ema={"decay": 0.9}), r"tiny.yaml:\d+: ema.decay: unknown key.*; did you mean decays\?"),
    "class": (text("class_path: VP", "class_path: VPX"), r"model.schedule: there is no class VPX; did you mean VP\?"),
    "class by option": (options("--model.schedule", "Cosin"), r"--model.schedule: there is no class Cosin; .*Cosine\?"),
    "optimizer": (text("torch.optim.AdamW", "torch.optim.Adamm"), r"no class torch.optim.Adamm; did you mean Adam\?"),
    "network": (text("networks.MLP", "networks.MPL"), r"no class diffusion_pl.networks.MPL; did you mean MLP\?"),
    "module": (text("diffusion_pl.networks.MLP", "nowhere.MLP"), r"model.network: .*nowhere"),
    "data": (
        text("class_path: Datasaurus", "class_path: Datasuarus"),
        r"data: there is no class Datasuarus; .*saurus\?",
    ),
    "callback": (file(trainer__callbacks=[{"class_path": "PointPanel"}]), r"no class PointPanel; .*PointPanels\?"),
    "callback's key": (
        file(trainer__callbacks=[{"class_path": "PointPanels", "init_args": {"num_path": 3}}]),
        r"trainer.callbacks.num_path: unknown key.*; did you mean num_paths\?",
    ),
    # Classes and shapes of the file.
    "class of another kind": (
        text("class_path: VP", "class_path: Heun"),
        r"model.schedule: Heun is a class of another kind, expected a Schedule",
    ),
    "number for a class": (
        file(model__schedule=3),
        r"tiny.yaml:\d+: model.schedule: expected a Schedule such as",
    ),
    "no init_args": (
        file(model__schedule={"class_path": "VP", "beta_max": 9}),
        r"model.schedule.beta_max: .*init_args",
    ),
    "no file": (command("fit", "--config", "none.yaml"), r"--config none.yaml: no such file"),
    "syntax": (
        text("parameterization:", "parameterization: : :"),
        r"tiny.yaml:\d+:\d+: not valid YAML: mapping values",
    ),
    "unclosed": (text("class_path: VP", "class_path: [VP"), r"tiny.yaml:\d+:\d+: not valid YAML"),
    "no section data": (file(data=None), r"missing: data"),
    "no model.optimizer": (file(model__optimizer=None), r"missing: model.optimizer"),
    "nothing at all": (command("fit"), r"missing: model.network, .*model.loss.*data \(give a --config"),
    "required parameter": (
        options("--model.lr_scheduler", "WarmupCosine"),
        r"--model.lr_scheduler: missing: warmup_steps",
    ),
    # Types.
    "steps": (options("--trainer.max_steps", "abc"), r"--trainer.max_steps: expected int, got abc"),
    "steps in a file": (file(trainer__max_steps="abc"), r"tiny.yaml:\d+: trainer.max_steps: expected int, got abc"),
    "steps with a point": (options("--trainer.max_steps", "2.5"), r"--trainer.max_steps: expected int, got 2.5"),
    "learning rate": (options("--model.optimizer.lr", "abc"), r"--model.optimizer.lr: expected float, got abc"),
    "learning rate in a file": (
        text("lr: 0.01", "lr: abc"),
        r"tiny.yaml:\d+: model.optimizer.lr: expected float, got abc",
    ),
    "grid steps": (text("steps: 4", "steps: abc"), r"model.sampler.grid.steps: expected int, got abc"),
    "seed": (options("--seed_everything", "abc"), r"--seed_everything: expected int, got abc"),
    "negative seed": (options("--seed_everything", -1), r"--seed_everything: .*from 0 to 4294967295, got -1"),
    "precision": (options("--trainer.precision", 17), r"--trainer.precision: expected one of .*, got 17"),
    "columns": (table(CSV, columns="xy", columns_=1), r"data.columns_: unknown key.*; did you mean columns\?"),
    # Values.
    "width": (options("--model.network.width", -3), r"MLP: width and depth must be at least 1, got width -3"),
    "depth": (text("depth: 1", "depth: 0"), r"MLP: width and depth must be at least 1, .*depth 0"),
    "sigmas": (
        file(model__schedule={"class_path": "VE", "init_args": {"sigma_min": 5, "sigma_max": 1}}),
        r"need 0 < sigma_min < sigma_max < inf, got sigma_min=5.0, sigma_max=1.0",
    ),
    "betas": (options("--model.schedule.beta_max", 0.01), r"need 0 < beta_min < beta_max < inf, got beta_min=0.1"),
    "t above 1": (
        options(*EXPLICIT, "[1.5,0.5]"),
        r"ExplicitGrid: times must fall strictly within \[0, 1\], got \[1.5, 0.5",
    ),
    "t below 0": (options(*EXPLICIT, "[0.5,-0.5]"), r"ExplicitGrid: times must fall strictly within \[0, 1\]"),
    "t_max": (options(f"{GRID}.t_max", 1.5), r"need 0 <= t_min < t_max <= 1, got .*t_max=1.5"),
    "too many steps": (options(f"{GRID}.steps", 10**10), r"a sampling grid can have at most 1,000,000 steps"),
    "too long an epoch": (options("--data.repeats", 10**12), r"an epoch can have at most 1,000,000,000 examples"),
    "aliases of aliases": (bomb, r"bomb.yaml holds more than 100,000 values"),
    "no steps": (options(f"{GRID}.steps", 0), r"a sampling grid needs at least one step, got steps=0"),
    "t_min of training": (options("--model.loss.times.t_min", 2), r"t_min must be in \(0, 1\), got 2.0"),
    "warm-up": (
        options("--model.lr_scheduler", "WarmupCosine", "--model.lr_scheduler.warmup_steps", -1),
        r"warmup_steps must not be negative, got -1",
    ),
    "decay": (options("--ema.decays", "[1.5]"), r"EMA decays must be in \[0, 1\), got 1.5"),
    "saver": (options("--saver.every_n_steps", 0), r"every_n_steps must be at least 1, got 0"),
    "half-life": (options("--ema.half_lives", "[0]"), r"EMA half_lives must be at least 1 example, got 0"),
    "expected": (file(expected=7), r"tiny.yaml:\d+: expected: expected keys with values, got 7"),
    "unknown metric": (
        file(expected={"fit": {"band": [1, 2], "num_samples": 5, "source": "x"}}),
        r"expected: there is no metric 'fit', only nll, elbo, crps, spread, fid",
    ),
    "expected band": (
        file(expected={"fid": {"band": [3, 2], "num_samples": 5, "source": "x"}}),
        r"expected: band must be two finite numbers, the lower first, got \[3.0, 2.0\]",
    ),
    "expected samples": (
        file(expected={"fid": {"band": [1, 2], "num_samples": 0, "source": "x"}}),
        r"expected: num_samples must be at least 1, got 0",
    ),
    "expected key": (
        file(expected={"fid": {"band": [1, 2], "num_sampls": 5, "source": "x"}}),
        r"expected.fid.num_sampls: unknown key.*; did you mean num_samples\?",
    ),
    "expected without samples": (
        file(expected={"fid": {"band": [1, 2], "source": "x"}}),
        r"expected.fid: missing: num_samples",
    ),
    "no run to verify": (command("verify", "runs/none"), r"no run card at runs/none"),
    "prior": (options("--doctor.max_kl", 0), r"max_kl must be positive, got 0"),
    "batch": (options("--data.batch_size", 0), r"Datasaurus: batch_size must be at least 1, got 0"),
    "fraction": (options("--data.val_fraction", 2), r"Datasaurus: val_fraction must be in \[0, 1\), got 2.0"),
    "negative steps": (options("--trainer.max_steps", -5), r"max_steps.*-5"),
    "devices": (options("--trainer.devices", 0), r"devices='0'"),
    "fewer than no devices": (options("--trainer.devices", -3), r"--trainer.devices: .*got -3"),
    "accelerator": (
        options("--trainer.accelerator", "abacus"),
        r"accelerator: expected one of auto, cpu, gpu, .*abacus",
    ),
    "accumulation": (
        options("--trainer.accumulate_grad_batches", 0),
        r"--trainer.accumulate_grad_batches: must be at least 1, got 0",
    ),
    "validation": (options("--trainer.limit_val_batches", -1), r"limit_val_batches"),
    "run": (options("--run", "../elsewhere"), r"--run: must name a folder within runs, got ../elsewhere"),
    # Data.
    "no csv": (table(None), r"points.csv: no such file"),
    "text": (table(CSV + "one,2,b\n"), r"points.csv, line 22, column 'x': 'one' is not a finite number"),
    "NaN": (table(CSV + "1,nan,b\n"), r"points.csv, line 22, column 'y': 'nan' is not a finite number"),
    "empty cell": (table(CSV + "1,,b\n"), r"points.csv, line 22, column 'y': '' is not a finite number"),
    "short line": (table(CSV + "1,2\n"), r"points.csv, line 22: 2 fields where the header has 3"),
    "column": (table(CSV, "xz"), r"points.csv, line 1: no column 'z'; the columns are 'x', 'y', 'name'"),
    "no columns": (table(CSV, ""), r"Table: columns must be a list of one or more different column names, got \[\]"),
    "column twice": (table(CSV, "xx"), r"Table: columns must be a list of one or more different column names"),
    "one point": (table("x,y\n1,2\n"), r"points.csv: 1 point\(s\), but at least two are needed"),
    "no point": (table("x,y\n"), r"points.csv: no rows below the header"),
    "empty": (table(""), r"points.csv.*no column 'x'"),
    "no row matches": (table(CSV, where={"name": "b"}), r"none of 20 rows has name = 'b'.*the file has a"),
    "constant": (table("x,y\n" + "".join(f"{i},5\n" for i in range(9))), r"column 'y' is 5 in all"),
    "no text": (table(b"x,y\n\xff\xfe,1\n"), r"points.csv: not UTF-8 text"),
    # Images.
    "no folder": (image_folder(None), r"p: this folder does not exist\. Fix: give --data\.path"),
    "empty folder": (image_folder({}, None), r"p: no images in this folder"),
    "corrupt image": (image_folder({"b.png": b"no"}), r"p/b\.png: cannot be read \(.*\): repair or remove it"),
    "mixed sizes": (
        image_folder({"b.png": (9, 8, 3)}),
        r"p/b\.png: is 9x8 .*, p/a\.png is 8x8: give size, for .* size: 8",
    ),
    "mixed channels": (
        image_folder({"b.png": (8, 8)}),
        r"p: channels differ \(1 RGB, 1 L; p/b\.png .*\): give mode: RGB",
    ),
    "alpha": (image_folder({"a.png": (8, 8, 2)}), r"p/a\.png is grey with transparency: give mode RGB \(or L\)"),
    "size": (image_folder({}, (9, 8, 3)), r"ConvUNet: .* multiples of 8, got 9x8 .*: the nearest valid size is 8x8"),
    "crop": (image_folder({}, crop=0), r"Folder: crop must be at least 1, got 0"),
    "mode": (image_folder({}, mode="CMYK"), r"tiny.yaml:\d+: data.mode: expected one of L, RGB, RGBA"),
    "pickle": (array(np.array([{}])), r"x\.npy: holds Python objects, which can run code when read and are refused"),
    "floats": (array(np.zeros((9, 8, 8))), r"x\.npy: images must be uint8 or uint16, got float64: convert them"),
    "labels": (
        array(np.zeros((9, 8, 8), np.uint8), labels=np.arange(9), classes=5),
        r"x\.npy: label 5 of image 5 is outside 0 … 4",
    ),
    "dataset": (hdf5("images"), r"x\.hdf5: has no dataset 'images': it has imgs \(9, 8, 8\)"),
    "panels of points": (
        image_folder({}, trainer__callbacks=[{"class_path": "PointPanels"}]),
        r"PointPanels draws point data only: take it out",
    ),
    "panels of images": (file(trainer__callbacks=[{"class_path": "ImagePanels"}]), r"ImagePanels draws images only"),
    "network of images": (
        file(model__network={"class_path": "diffusion_pl.networks.UNet"}),
        r"UNet: needs data of shape \(C, L\), \(C, H, W\) or \(C, D, H, W\), got data of shape \(2,\)",
    ),
    "channels_last of points": (options("--model.channels_last", "true"), r"channels_last is for images \(C, H, W\)"),
    "times per sample": (options("--model.loss.times_per_sample", 0), r"times_per_sample must be at least 1, got 0"),
    "files that cannot be had": (
        options("--data", "CIFAR10", "--data.root", "none", "--data.download", "false", "--model.network", CONV),
        r"CIFAR10: its files are not in 'none' and download is false .*Fix: give --data.root",
    ),
    # Checkpoints.
    "no last": (options("--ckpt_path", "last"), r"no checkpoint at runs/.*last.ckpt: nothing to continue from"),
    "last of no run": (
        options("--run", "no", "--ckpt_path", "last"),
        r"no checkpoint at runs/no/checkpoints/last.ckpt",
    ),
    "no checkpoint": (options("--ckpt_path", "none.ckpt"), r"no checkpoint at none.ckpt: nothing to continue from"),
    "export of none": (
        command("export", "--ckpt_path", "none.ckpt", "--to", "onnx", "--output", "o"),
        r"no checkpoint at none.ckpt",
    ),
    "export to what there is not": (
        command("export", "--ckpt_path", "none.ckpt", "--to", "keras", "--output", "o"),
        r"--to: .*one of diffusers, safetensors, onnx, torch_export",
    ),
    "import of none": (command("import", "--from", "lucidrains", "no.pt", "--output", "o"), r"no.pt: file not found"),
    "import from what there is not": (
        command("import", "--from", "keras", "no.pt", "--output", "o"),
        r"from: .*one of diffusers, score_sde, lucidrains, openai",
    ),
    "import of another file": (foreign({"a": 1}), r"a\.pt is no model-N\.pt .*: it needs model .*, and has a"),
    "import of a pickle": (foreign({"a": Path()}), r"a\.pt holds more than tensors .* add --trust_pickle true"),
    "import of another package's": (foreign({"a": 1}, "score_sde"), r"a\.pt is no checkpoint of score_sde_pytorch"),
    "sample of none": (command("sample", "--ckpt_path", "none.ckpt"), r"no checkpoint at none.ckpt"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_command_line_is_one_clear_line(tmp_path: Path, case: str) -> None:
    build, message = CASES[case]
    args = build(tmp_path)
    with no_files_change(tmp_path):
        error = cli(tmp_path, *args).error
    assert re.search(message, error), error
    assert len(error) < 500
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_needs_a_checkpoint(tmp_path: Path, command: str) -> None:
    config = tiny_config(tmp_path).name
    error = cli(tmp_path, command, "--config", config).error
    assert error == f"{command} needs trained weights: add --ckpt_path last (or a checkpoint's path)"
    assert "no checkpoint at" in cli(tmp_path, command, "--config", config, "--ckpt_path", "last").error


def test_a_refused_run_leaves_those_before_it_as_they_were(tmp_path: Path) -> None:
    fit(tmp_path, trainer__max_steps=1)
    config = tiny_config(tmp_path).name
    wide = ["--model.network.width", -1]
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(b"no checkpoint")
    with no_files_change(tmp_path):
        for args in ([], ["--run", "run"], ["--run", "run", "--ckpt_path", "last"]):
            assert cli(tmp_path, "fit", "--config", config, *args, *wide).code == 2
        assert "is damaged" in cli(tmp_path, "fit", "--config", config, "--run", "run", "--ckpt_path", bad).error
    assert [run.name for run in (tmp_path / "runs").iterdir()] == ["run"]  # no empty folders pile up


def test_a_checkpoint_of_other_points_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, trainer__max_steps=1)
    (tmp_path / "points.csv").write_text("a,b,c\n" + "".join(f"{i},{i * i},{i**3}\n" for i in range(20)))
    data = {"class_path": "Table", "init_args": {"path": "points.csv", "columns": list("abc")}}
    config = tiny_config(tmp_path, data=data)
    for command in ("fit", "validate"):
        error = cli(tmp_path, command, "--config", config, "--run", "run", "--ckpt_path", "last").error
        assert "input.weight is 16x3 in the checkpoint, 16x4 here" in error
