"""What is typed or written -> what the one line says: where, and how to fix it.  Most fail while they are parsed."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from shell import ROOT, TINY, cli, environment, fit, no_files_change, tiny_config

from diffusion_pl.cli import DiffusionCLI
from diffusion_pl.commands import run_tool
from diffusion_pl.interop.model_card import _scalar
from diffusion_pl.runtime import provenance, vocabulary
from diffusion_pl.runtime.config_walk import Walk
from diffusion_pl.runtime.diagnosis import find_in_arguments
from diffusion_pl.runtime.limits import name_of_config
from diffusion_pl.runtime.masking import MASK, masked, masked_arguments
from diffusion_pl.runtime.parsing import UsageError
from diffusion_pl.runtime.run_folder import RunFolder

FILE = yaml.safe_dump(TINY, sort_keys=False)

#: Options after a good file -> a pattern.
OPTIONS: dict[str, str] = {
    "--model.network TinyCon": r"no class TinyCon; choose one of ConvUNet, .*MLP",
    "--model.network torch.nn.Linear": r"model.network: Linear cannot be built from the shape",
    "--model.schedule Schedule": r"--model.schedule: Schedule is abstract: choose one of .*VP",
    "configs/x.yaml": r"unexpected argument configs/x.yaml; did you mean --config configs/x.yaml\?",
    "--lr 1e-3": r"did you mean --model.optimizer.lr\?",
    "--trainer.accelerator tpu": r"--trainer.accelerator: expected one of auto, cpu, gpu, cuda, mps, got tpu",
    "--trainer.precision transformer-engine": r"--trainer.precision: .* use bf16-mixed",
    "--trainer.strategy dpp": r"--trainer.strategy: expected auto, ddp",
    "--trainer.max_steps 0": r"--trainer.max_steps: must be at least 1, or -1",
    "--trainer.max_epochs 0": r"--trainer.max_epochs: must be at least 1",
    "--trainer.min_steps 5": r"--trainer.min_steps: must be at most max_steps",
    "--trainer.limit_train_batches 0": r"--trainer.limit_train_batches: must be above 0",
    "--trainer.val_check_interval 0": r"--trainer.val_check_interval: must be above 0; .*limit_val_batches",
    "--trainer.val_check_interval 0.5": r"--trainer.val_check_interval: expected a whole number of steps",
    "--trainer.check_val_every_n_epoch 0": r"--trainer.check_val_every_n_epoch: must be at least 1",
    "--trainer.gradient_clip_val -1": r"--trainer.gradient_clip_val: must be at least 0",
    "--trainer.gradient_clip_val .nan": r"--trainer.gradient_clip_val: must be at least 0",
    "--trainer.devices 1000": r"--trainer.devices: must be at most \d+ on a CPU of \d+ core.* got 1000",
    "--model.optimizer.lr 0": r"--model.optimizer.lr: must be above 0",
    "--model.optimizer.lr 1e30": r"--model.optimizer.lr: .*at most 1000, got 1e\+30",
    "--model.optimizer SparseAdam": r"--model.optimizer: SparseAdam needs sparse gradients",
    "--model.network.width null": r"--model.network.width: expected int, got null",
    "--data.batch_size null": r"--data.batch_size: expected int, got null",
    "--seed_everything true": r"--seed_everything: expected a number",
    "--run .": r"--run: expected the name of a folder within runs",
    "--run ../runs": r"--run: must name a folder within runs",
    "--run a\nb": r"--run: must not hold line breaks",
    "--trainer.callbacks+ LearningRateFinder": r"LearningRateFinder needs .*--model.optimizer.lr",
    "--trainer.max_steps -1 --model.lr_scheduler WarmupCosine --model.lr_scheduler.warmup_steps 3": (
        r"--trainer.max_steps: must be set, since WarmupCosine needs the length"
    ),
    f"--trainer.logger CSVLogger --trainer.logger.prefix {MASK}": r"--trainer.logger.prefix: the secret was masked",
    "--ema.decays [1.5]": r"--ema.decays: .*1.5",
    "--ema.decays 0.9": r"--ema.decays: .*mean \[0.9\]\?",
    "--data.batch_size 0": r"--data.batch_size: Datasaurus: .*got 0",
    "--trainer.max_time 3h": r"--trainer.max_time: .*got 3h",
    "--trainer.devices many": r"--trainer.devices: .*got many",
    "--model.optimizer.learning_rate 3": r"--model.optimizer.learning_rate of AdamW; .*--model.optimizer.lr\?",
}


@pytest.mark.parametrize("typed", OPTIONS)
def test_an_option_is_named_with_its_remedy(tmp_path: Path, typed: str) -> None:
    config = tiny_config(tmp_path, trainer__max_steps=1).name
    with no_files_change(tmp_path):
        error = cli(tmp_path, "fit", "--config", config, *typed.split(" ")).error
    assert re.search(OPTIONS[typed], error), error
    assert not (tmp_path / "runs").exists()


#: A file -> a pattern.
FILES: dict[str, tuple[str | bytes, str]] = {
    "number for ema": (FILE + "ema: 0.999\n", r"a.yaml:\d+: ema: expected keys .* false to switch it off"),
    "number for saver": (FILE + "saver: 500\n", r"a.yaml:\d+: saver: .*did you mean \{every_n_steps: 500\}"),
    "no saver": (FILE + "saver: false\n", r"a.yaml:\d+: saver: .*cannot be switched off"),
    "no trainer": ("trainer: null\n", r"a.yaml:1: trainer: expected keys such as max_steps, got null"),
    "section": (FILE + "modle: {compile: true}\n", r"a.yaml:\d+: modle: unknown key; did you mean model\?"),
    "dots": (FILE + "model.optimizer.lr: 3\n", r"a.yaml:\d+: model.optimizer.lr: .*nested"),
    "case": (FILE.replace("model:", "Model:"), r"a.yaml:1: Model: .*mean model\?"),
    "no date": (FILE + "run: 2026-13-45\n", r"a.yaml:\d+: 2026-13-45 .*quotes"),
    "no steps": (FILE.replace("max_steps: 40", "max_steps:"), r"a.yaml:\d+: trainer.max_steps: .*null"),
    "key twice": (FILE + "trainer: {max_steps: 1}\n", r"a.yaml:\d+: trainer: set twice, also on line \d+"),
    "empty": ("", r"a.yaml is empty"),
    "comment": ("# nothing\n", r"a.yaml is empty"),
    "list": ("- a\n", r"a.yaml: expected sections .* got a list"),
    "tab in a value": (FILE + "ema:\n  decays: [0.9]\n\tfoo: 3\n", r"a.yaml:\d+:\d+: .*tabs"),
    "tab": ("model:\n\tnetwork: 3\n", r"a.yaml:2:1: .*tabs. Fix: use spaces"),
    "UTF-16": (FILE.encode("utf-16"), r"a.yaml is UTF-16 or UTF-32 text. Fix: save it as UTF-8"),
    "Latin-1": ("run: café\n".encode("latin-1"), r"a.yaml:1: not UTF-8 text"),
    "module": (
        FILE.replace("diffusion_pl.networks.MLP", "diffusion_pl.netwroks.MLP"),
        r"a.yaml:3: model.network: .*no module diffusion_pl.netwroks; did you mean MLP\?",
    ),
    "expected": (FILE + "expected: {fid: 3.2}\n", r"a.yaml:\d+: expected.fid: .*the keys band, num_samples"),
}


#: What is typed -> the option that is named, and words of the remedy.  Found in the types of the command's options.
TYPED: dict[str, tuple[str, ...]] = {
    "fit configs/x.yaml": ("configs/x.yaml", "--config configs/x.yaml?"),
    "fit model.optimizer.lr=1e-3": ("model.optimizer.lr=1e-3", "--model.optimizer.lr 1e-3?"),
    "fit --lr 1e-3": ("--lr", "--model.optimizer.lr?"),
    "fit -lr 1e-3": ("-lr", "--model.optimizer.lr?"),
    "fit --learning_rate 1e-3": ("--learning_rate", "--model.optimizer.lr?"),
    "fit --max_steps 3": ("--max_steps", "--trainer.max_steps?"),
    "fit --max-steps 3": ("--max-steps", "--trainer.max_steps?"),
    "fit --batch_size 3": ("--batch_size", "--data.batch_size?"),
    "fit --epochs 3": ("--epochs", "--trainer.max_epochs?"),
    "fit --gpus 1": ("--gpus", "--trainer.devices?"),
    "fit --seed 1": ("--seed", "--seed_everything?"),
    "fit --checkpoint x": ("--checkpoint", "--ckpt_path?"),
    "fit --resume x": ("--resume", "--ckpt_path?"),
    "fit --logger wandb": ("--logger", "--trainer.logger?"),
    "fit --precision 16": ("--precision", "--trainer.precision?"),
    "fit --output x": ("--output",),
    "fit --modle.network MLP": ("--modle.network", "--model.network?"),
    "fit --trainer.maxsteps 3": ("--trainer.maxsteps", "--trainer.max_steps?"),
    "fit --trainer.epochs 3": ("--trainer.epochs", "max_epochs?"),
    "fit --run": ("--run", "--run VALUE"),
    "fit --model.compile": ("--model.compile", "--model.compile true"),
    "fit --model.schedule Vp": ("--model.schedule:", "VP?"),
    "fit --model.schedule cosin": ("--model.schedule:", "Cosine?"),
    "fit --model.schedule Heun": ("--model.schedule:", "another kind", "a Schedule", "VP"),
    "fit --model.schedule diffusion_pl.shedules.VP": ("--model.schedule:", "no module diffusion_pl.shedules", "VP?"),
    "fit --model.sampler DPM++": ("--model.sampler:", "DPMpp?"),
    "fit --model.sampler DDPM-Solver": ("--model.sampler:", "no class DDPM-Solver"),
    "fit --model.loss.weighting snr": ("--model.loss.weighting:", "SNR?"),
    "fit --model.loss.weighting Heun": ("--model.loss.weighting:", "another kind", "a Weighting"),
    "fit --model.network TinyCon": ("--model.network:", "no class TinyCon", "ConvUNet", "MLP"),
    "fit --model.network UNET": ("--model.network:", "UNet?"),
    "fit --model.schedule {class_pth:VP}": ("class_pth", "class_path"),
    "fit --model.optimizer adamw": ("--model.optimizer:", "AdamW?"),
    "fit --model.optimizer.lr 1e-3x": ("--model.optimizer.lr:", "expected float,", "1e-3x"),
    "fit --trainer.logger wandb": ("--trainer.logger:", "WandbLogger?"),
    "fit --trainer.callbacks+ imagepanels": ("--trainer.callbacks+:", "ImagePanels?"),
    "fit --trainer.max_steps abc": ("--trainer.max_steps:", "expected int", "abc"),
    "fit --trainer.precision 17": ("--trainer.precision:", "bf16-mixed", "got 17"),
    "fit --data Foldr": ("--data:", "Folder?"),
    "fit --data Folder --data.path p --data.crop center": ("--data.crop:", "int", "center"),
    "fit --ema 0.999": ("--ema:", "--ema.decays", "0.999"),
    "fit --guard 3": ("--guard:", "--guard.", "3"),
    "fit --expected {fid:3.2}": ("--expected:",),
    "sample x.ckpt": ("x.ckpt", "--ckpt_path x.ckpt?"),
    "sample --checkpoint x": ("--checkpoint", "--ckpt_path?"),
    "sample --ckpt x": ("--ckpt", "--ckpt_path?"),
    "sample --n 9": ("--n", "--num_samples?"),
    "sample -n 9": ("-n", "--num_samples?"),
    "sample --num-samples 9": ("--num-samples", "--num_samples?"),
    "sample --num_samples many": ("--num_samples:", "int", "many"),
    "sample --gpus 1": ("--gpus", "--devices?"),
    "sample --seed_everything 1": ("--seed_everything", "--seed?"),
    "sample --lr 1e-3": ("--lr", "fit", "--model.optimizer.lr"),
    "sample --epochs 3": ("--epochs", "fit", "--trainer.max_epochs"),
    "sample --cfg_scale 3": ("--cfg_scale", "--scale?"),
    "sample --outdir x": ("--outdir", "--output?"),
    "sample --label 3": ("--label", "--cond.label?"),
    "sample --scheduler DDIM": ("--scheduler", "--sampler?"),
    "sample --sampler ddim": ("--sampler:", "DDIM?"),
    "sample --sampler DPM++": ("--sampler:", "DPMpp?"),
    "sample --sampler VP": ("--sampler:", "another kind", "a Sampler"),
    "sample --sampler.order 3": ("--sampler.order:", "--sampler CLASS first"),
    "sample --sampler DPMpp --sampler.ordr 3": ("--sampler.ordr", "--sampler.order?"),
    "sample --grid Karras": ("--grid:", "KarrasGrid?"),
    "sample --num_samples 3": ("missing", "--ckpt_path"),
    "evaluate --film true": ("--film",),
    "evaluate --fid true": ("--fid", "--metrics?"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, UsageError]:
    """The error of an unknown option by its command: it knows the command's options."""
    config = tiny_config(tmp_path_factory.mktemp("refusals"))
    errors = {}
    for command in ("fit", "sample", "evaluate"):
        with pytest.raises(UsageError) as caught:
            if command == "fit":
                DiffusionCLI("fit", ["--config", str(config), "--zzz", "1"], RunFolder())
            else:
                run_tool(command, ["--zzz", "1"])
        errors[command] = caught.value
    return errors


def mistake(refusals: dict[str, UsageError], command: str, args: list[str]) -> str | None:
    error = refusals[command]
    return find_in_arguments(args, Walk(error.types, error.required, error.defaults))


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed_first_gets_the_option_meant(refusals: dict[str, UsageError], typed: str) -> None:
    command, *args = (word.replace(":", ": ") if "{" in word else word for word in typed.split(" "))
    option, *words = TYPED[typed]
    config = refusals["fit"].args_parsed[:2] if command == "fit" else []
    line = mistake(refusals, command, [*config, *args]) or ""
    assert re.search(rf"(^|\s){re.escape(option)}", line), line
    assert all(word in line for word in words), line
    assert "\n" not in line


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_no_shipped_configuration_has_a_mistake(refusals: dict[str, UsageError], path: Path) -> None:
    if "class_path" in (yaml.safe_load(path.read_text()).get("model") or {}):
        pytest.skip("another model, of which the parser has other options")
    base = ["--config", str(ROOT / "configs/digits/vp.yaml")] if path.parent.name == "overlays" else []
    assert mistake(refusals, "fit", [*base, "--config", str(path)]) is None


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    content, message = FILES[case]
    (tmp_path / "a.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    error = cli(tmp_path, "fit", "--config", "a.yaml").error
    assert re.search(message, error), error


#: Another command -> a pattern.
COMMANDS: dict[str, str] = {
    "train --config x.yaml": r"unknown command 'train': did you mean fit\?",
    "sample --checkpoint x.ckpt": r"unknown option --checkpoint; did you mean --ckpt_path\?",
    "sample --ckpt_path x.ckpt --film": r"no checkpoint at x.ckpt",
    "sample --ckpt_path x.ckpt --sampler DPM++": r"--sampler: there is no class DPM\+\+; did you mean DPMpp\?",
    "sample --ckpt_path x.ckpt --sampler.order 3": r"--sampler.order: set --sampler CLASS first",
    "sample": r"missing: --ckpt_path",
    "configs/x.yaml": r"did you mean fit --config configs/x.yaml\?",
    "--config x.yaml": r"command before --config; did you mean fit --config x.yaml\?",
    "generate": r"did you mean sample\?",
    "Eval": r"did you mean evaluate\?",
    "resume": r"did you mean fit\?",
    "trian": r"did you mean fit\?",
    "--versoin": r"did you mean --version\?",
    "sweep --ckpt_path x.ckpt --samplers DDIM --nfe 5 --seed -1": r"seed must not be negative, got -1",
    "fit --config nope.yaml": r"--config nope.yaml: no such file",
}


@pytest.mark.parametrize("typed", COMMANDS)
def test_another_command_is_suggested_too(tmp_path: Path, typed: str) -> None:
    error = cli(tmp_path, *typed.split()).error
    assert re.search(COMMANDS[typed], error), error


def test_of_two_files_the_one_with_the_mistake_is_named(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    for second, message in (
        ("model:\n  optimizer:\n    init_args: {lr: abc}\n", "b.yaml:3: model.optimizer.lr"),
        ("trainer:\n  max_steps: abc\n", "b.yaml:2: trainer.max_steps"),
        ("a: [1\n", "b.yaml:2:1"),
    ):
        (tmp_path / "b.yaml").write_text(second)
        assert cli(tmp_path, "fit", "--config", "tiny.yaml", "--config", "b.yaml").error.startswith(message)


def test_our_short_name_wins_over_another_package_s(tmp_path: Path) -> None:
    import torchvision  # which has an MLP too

    assert torchvision.ops.MLP
    network = {"class_path": "MLP", "init_args": {"width": 8, "depth": 1}}
    run = fit(tmp_path, model__network=network, trainer__max_steps=1)
    assert "diffusion_pl.networks.MLP" in (run / "config.yaml").read_text()


def test_sections_are_switched_off_by_false_and_null(tmp_path: Path) -> None:
    import torch

    run = fit(tmp_path, "--guard", "false", trainer__max_steps=1, ema=False, doctor=False)
    callbacks = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert not {"EMA", "Guard"} & set(callbacks)


def test_what_sample_is_given_is_bounded_before_it_starts(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=1)
    last = run / "checkpoints/last.ckpt"
    for option, value, message in (
        ("--devices", "1000", r"--devices: must be at most"),
        ("--accelerator", "tpu", r"--accelerator: expected one of auto, cpu, gpu, cuda, mps"),
        ("--sampler", "Sampler", r"--sampler: Sampler is abstract"),
    ):
        error = cli(tmp_path, "sample", "--ckpt_path", last, "--num_samples", 2, option, value).error
        assert re.search(message, error), error
    monitor = ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "foo"]
    config = tiny_config(tmp_path, trainer__max_steps=4, trainer__val_check_interval=2)
    error = cli(tmp_path, "fit", "--config", config, *monitor).error
    assert re.search(r"EarlyStopping: there is no metric foo .*val_loss/", error), error
    (last.parent / "other.ckpt").write_bytes(b"PK")
    last.write_bytes(b"no")
    assert "other.ckpt" not in cli(tmp_path, "sample", "--ckpt_path", last).error


def test_a_missing_login_is_reported_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    error = cli(tmp_path, "fit", "--config", tiny_config(tmp_path), "--trainer.logger", "WandbLogger").error
    assert "wandb login" in error
    assert "offline true" in error


def test_secrets_are_masked() -> None:
    config: dict[str, Any] = {"tracking_uri": "https://ada:pw@host/x", "api_key": "k", "logger": [{"token": "t"}]}
    config |= {"save_dir": "a/b", "tokens": 5}
    result = masked(config)
    assert result == {
        "tracking_uri": f"https://ada:{MASK}@host/x",
        "api_key": MASK,
        "logger": [{"token": MASK}],
        "save_dir": "a/b",
        "tokens": 5,
    }
    assert masked(result) == result
    args = ["fit", "--a.api_key", "k", "--b.password=p", "--run", "r"]
    assert masked_arguments(args) == ["fit", "--a.api_key", MASK, f"--b.password={MASK}", "--run", "r"]


def test_a_licence_cannot_add_lines_to_a_card() -> None:
    assert _scalar("mit") == "mit"
    assert yaml.safe_load("license: " + _scalar("a\nb: c")) == {"license": "a\nb: c"}


def test_a_run_is_named_after_its_files_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my exp" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my exp" / "sub")
    assert name_of_config([Path("../x.yaml")]) == "my-exp-x"
    assert name_of_config([Path("../../configs/datasaurus/vp.yaml")]) == "datasaurus-vp"
    assert name_of_config([]) == "run"


@pytest.mark.parametrize("redirect", ["", ">&-", "2>&-", ">&- 2>&- <&-"])
def test_output_never_fails_for_its_encoding_or_a_closed_stream(tmp_path: Path, redirect: str) -> None:
    command = f"{sys.executable} -m diffusion_pl --help {redirect}; echo status $? > status"
    variables = {**environment(), "PYTHONIOENCODING": "ascii", "LANG": "C"}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, timeout=60, check=True)
    assert (tmp_path / "status").read_text() == "status 0\n"


def test_text_files_name_their_encoding() -> None:
    unnamed = []
    for path in sorted((ROOT / "diffusion_pl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            text = name in ("read_text", "write_text") or (name == "open" and any(m in ("r", "w", "a") for m in modes))
            if text and "read_text(path)" not in ast.unparse(node):
                unnamed.append(f"{path.name}:{node.lineno}: {ast.unparse(node)[:60]}")
    assert not [u for u in unnamed if "read_text(other)" not in u]


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = [*project["dependencies"], *extras]
    known = {re.split(r"[<>=\[ ;]", line)[0].lower().replace("_", "-") for line in declared}
    known |= {"mlflow"}  # of mlflow-skinny
    imported = set()
    for path in (ROOT / "diffusion_pl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    distributions = packages_distributions()
    for name in imported - set(sys.stdlib_module_names) - {"diffusion_pl"}:
        names = {n.lower().replace("_", "-") for n in distributions.get(name, [name])}
        assert names & known, f"{name} is of {names}, which pyproject.toml does not name"


def test_a_home_is_not_needed(tmp_path: Path) -> None:
    code = "from diffusion_pl.runtime.startup import prepare_home; prepare_home(); import getpass, pathlib; "
    code += "print(pathlib.Path.home().is_dir(), bool(getpass.getuser()))"
    variables = {k: v for k, v in environment().items() if k not in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME")}
    variables["HOME"] = str(tmp_path / "none")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True\n", done.stderr
    assert done.stderr.count("warning") == 1
    assert provenance.versions()


@pytest.mark.parametrize("path", ["..", "..VP", "...a.b", "."])
def test_a_relative_path_names_no_class(path: str) -> None:
    assert vocabulary.imported(path) is None


def test_a_function_of_the_standard_library_is_not_called(tmp_path: Path) -> None:
    optimizer = {"class_path": "os.system", "init_args": {"command": "touch trap"}}
    config = tiny_config(tmp_path, model__optimizer=optimizer)
    assert "model.optimizer: os.system is refused" in cli(tmp_path, "doctor", "--config", config).error
    assert not (tmp_path / "trap").exists()
