"""Loggers: everything a run logs reaches each of them, in the run's folder; read back from what each wrote."""

import csv
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from images_model import digits_changes
from lightning.pytorch.loggers import MLFlowLogger
from lightning_utilities.core.imports import RequirementCache
from shell import Outcome, cli, fit, images, scalars, tiny_config

from diffusion_pl.runtime.run_card import read_card

FIRST, ALL = 20, 30  # steps of the first session, and of both
LOGGERS: list[dict[str, Any]] = [
    {"class_path": "TensorBoardLogger"},
    {"class_path": "CSVLogger"},
    {"class_path": "WandbLogger", "init_args": {"offline": True}},
    {"class_path": "MLFlowLogger"},
]
#: step -> value, by tag
Series = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with all loggers, stopped after FIRST steps and resumed; the run's folder."""
    import wandb

    folder = tmp_path_factory.mktemp("loggers")
    panels = {"class_path": "ImagePanels", "init_args": {"every_n_steps": 10, "num_samples": 4}}
    changes = digits_changes(conditional=False, trainer__logger=LOGGERS, trainer__callbacks=[panels])
    config = tiny_config(folder, ema__decays=[0.5], trainer__val_check_interval=10, **changes)
    for steps, more in ((FIRST, []), (ALL, ["--ckpt_path", "last"])):
        args = ["--config", config, "--run", "mine", "--trainer.max_steps", steps, *more]
        done = cli(folder, "fit", *args)
        wandb.finish()  # as the process would at its end
        assert done.run == "runs/mine"
    return folder / "runs" / "mine"


def from_csv(run: Path) -> Series:
    result: Series = {}
    for session in sorted(run.glob("csv/version_*/metrics.csv")):
        with session.open(newline="") as file:
            for row in csv.DictReader(file):
                for tag, value in row.items():
                    if tag != "step" and value:
                        result.setdefault(tag, {})[int(row["step"])] = float(value)
    return result


def wandb_records(run: Path) -> Iterator[Any]:
    """Of all sessions: the files of W&B are logs in LevelDB's format, behind 7 bytes of their own."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for session in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        content, place, message = session.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if 32768 - place % 32768 < 7:  # no header fits into the rest of the block
                place += 32768 - place % 32768
                continue
            length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
            place += 7 + length
            message += content[place - length : place]
            if kind in (1, 4):  # whole, or the last part
                yield Record.FromString(message)
                message = b""


def wandb_rows(run: Path) -> list[dict[str, Any]]:
    histories = (record.history.item for record in wandb_records(run) if record.HasField("history"))
    return [{e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in items} for items in histories]


def from_wandb(run: Path) -> Series:
    result: Series = {}
    for row in wandb_rows(run):
        for tag, value in row.items():
            if not tags_of([row]) and not tag.startswith(("_", "trainer/")):
                result.setdefault(tag, {})[row["trainer/global_step"]] = value
    return result


def mlflow_run(run: Path) -> Any:
    """The one run of the store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"file:{run}/mlruns")
    experiment = client.get_experiment_by_name("diffusion_pl")
    assert experiment is not None
    (result,) = client.search_runs([experiment.experiment_id])
    return client, result


def from_mlflow(run: Path) -> Series:
    client, result = mlflow_run(run)
    histories = {tag: client.get_metric_history(result.info.run_id, tag) for tag in result.data.metrics}
    return {tag: {metric.step: metric.value for metric in history} for tag, history in histories.items()}


def tags_of(rows: list[dict[str, Any]]) -> set[str]:
    """Of images and films."""
    return {key.removesuffix("/_type") for row in rows for key in row if key.endswith("/_type")}


def test_every_scalar_reaches_every_logger_at_its_step(run: Path) -> None:
    logged = {tag: dict(series) for tag, series in scalars(run).items()}
    assert {10, 20, 30} <= logged["train_loss/raw"].keys()
    assert {"val_loss/ema0.5", "learning_rate", "samples_ema0.5/mean_0", "neighbours_ema0.5/distance"} <= logged.keys()
    for read in (from_csv, from_wandb, from_mlflow):
        other = read(run)
        assert other.keys() == logged.keys(), read.__name__
        for tag, series in logged.items():
            assert other[tag] == pytest.approx(series, rel=1e-6), (read.__name__, tag)


def test_images_and_films_reach_every_logger_that_supports_them(run: Path) -> None:
    tags = {"forward_process", "samples/ema0.5", "neighbours/ema0.5", "film/ema0.5"}
    assert images(run).keys() == tags_of(wandb_rows(run)) == tags
    contents = {path.read_bytes() for path in (run / "panels").iterdir()}
    assert {content for series in images(run).values() for _, content in series} == contents
    assert {path.read_bytes() for path in run.glob("wandb/*/files/media/**/*") if path.is_file()} == contents
    client, result = mlflow_run(run)
    artifacts = {Path(file.path).name for file in client.list_artifacts(result.info.run_id, "panels")}
    assert artifacts == {path.name for path in (run / "panels").iterdir()}


def test_wandb_images_and_films_have_the_steps_of_the_scalars(run: Path) -> None:
    shown = [row for row in wandb_rows(run) if "film/ema0.5/_type" in row or "samples/ema0.5/_type" in row]
    steps = {kind: [r["trainer/global_step"] for r in shown if f"{kind}/_type" in r] for kind in tags_of(shown)}
    assert steps == {"samples/ema0.5": [10, 20, 30], "film/ema0.5": [20, 30]}
    kinds = {row[f"{tag}/_type"] for row in shown for tag in tags_of([row])}
    assert kinds == {"images/separated", "videos"}


def test_a_resumed_run_is_one_run_in_wandb_and_mlflow(run: Path) -> None:
    ids = {record.run.run_id for record in wandb_records(run) if record.HasField("run")}
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    _, result = mlflow_run(run)
    assert read_card(run)["logged_to"] == {"WandbLogger": ids.pop(), "MLFlowLogger": result.info.run_id}
    assert not ids
    assert result.info.status == "FINISHED"


def test_every_logger_knows_the_configuration_and_the_runs_name(run: Path) -> None:
    _, result = mlflow_run(run)
    assert result.info.run_name == "mine"
    assert result.data.params["model/schedule/class_path"] == "diffusion_pl.schedules.VP"
    (config,) = (r.config for r in wandb_records(run) if r.HasField("config") and len(r.config.update) > 1)
    options = {entry.key: json.loads(entry.value_json) for entry in config.update}
    assert options["model"]["schedule"]["class_path"] == "diffusion_pl.schedules.VP"
    assert {r.run.display_name for r in wandb_records(run) if r.HasField("run")} == {"mine"}
    assert "diffusion_pl.schedules.VP" in (run / "csv/version_0/hparams.yaml").read_text()


def test_the_saved_configuration_does_not_name_its_run(run: Path) -> None:
    loggers = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"]
    places = [logger["init_args"]["save_dir"] for logger in loggers]
    assert places == ["{folder}", "{folder}", "{folder}", "{folder}/mlruns"]
    assert [loggers[2]["init_args"]["version"], loggers[3]["init_args"]["run_id"]] == [None, None]


def test_csv_has_late_columns_and_one_file_per_session(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "trainer__logger": "CSVLogger",
        "trainer__val_check_interval": 30,
        "trainer__max_steps": 30,
    }
    run = fit(tmp_path, **options)
    logged = from_csv(run)
    assert {10, 20, 30} <= logged["train_loss/raw"].keys()
    assert [step for step in logged["val_loss/ema0.999"]] == [30]
    before = (run / "csv/version_0/metrics.csv").read_bytes()
    more = ["--ckpt_path", "last", "--trainer.max_steps", 40]
    assert cli(tmp_path, "fit", "--config", "run.yaml", "--run", "run", *more).run == "runs/run"
    assert (run / "csv/version_0/metrics.csv").read_bytes() == before
    assert {10, 20, 30, 40} <= from_csv(run)["train_loss/raw"].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "runs"]
    assert not list(run.glob("events.*"))


def test_on_the_command_line_a_name_and_options_suffice(tmp_path: Path) -> None:
    args = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "{folder}/tables"]
    run = fit(tmp_path, *args, trainer__max_steps=10)
    assert (run / "tables/csv/version_0/metrics.csv").is_file()


def test_a_trial_run_and_the_doctor_leave_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__logger=[LOGGERS[3]])
    assert cli(tmp_path, "fit", "--config", config, "--trainer.fast_dev_run", "true").code == 0
    assert cli(tmp_path, "doctor", "--config", config).code == 0
    assert not [path for path in (tmp_path / "runs").rglob("*")]


def test_a_refused_run_leaves_no_files(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__logger=[LOGGERS[1], LOGGERS[3]])
    refused = cli(tmp_path, "fit", "--config", config, "--trainer.callbacks", "ImagePanels")
    assert "ImagePanels draws images only" in refused.error
    assert not [path for path in (tmp_path / "runs").rglob("*")]


@pytest.mark.parametrize(("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_missing_package_is_one_line(
    logger: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"lightning.pytorch.loggers.{package}"
    monkeypatch.setattr(f"{module}._{package.upper()}_AVAILABLE", RequirementCache("no-such-package>=1"))
    refused: Outcome = cli(tmp_path, "fit", "--config", tiny_config(tmp_path), "--trainer.logger", logger)
    expected = f"trainer.logger: {logger} needs the package {package}: pip install 'diffusion_pl[{package}]'"
    assert refused.error == expected
    assert not (tmp_path / "runs").exists()


def test_a_store_elsewhere_is_taken_as_given(tmp_path: Path) -> None:
    logger = {"class_path": "MLFlowLogger", "init_args": {"tracking_uri": f"file:{tmp_path}/store"}}
    run = fit(tmp_path, trainer__logger=[logger], trainer__max_steps=10)
    assert not (run / "mlruns").exists()
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = MLFlowLogger("diffusion_pl", tracking_uri=f"file:{tmp_path}/store").experiment
    result = client.get_run(read_card(run)["logged_to"]["MLFlowLogger"])
    assert result.data.metrics["train_loss/raw"] > 0
