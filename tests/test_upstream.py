"""What the package uses of other libraries without their promise: each piece is there, and does what it did."""

import csv
import pickle
import pickletools
import signal
import subprocess
import sys
import threading
from argparse import ArgumentParser as PlainParser
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from shell import tiny_data, tiny_module, tiny_trainer
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from diffusion_pl.runtime.upstream import jsonargparse as arguments
from diffusion_pl.runtime.upstream import lightning as pl
from diffusion_pl.runtime.upstream import torch as tensors
from diffusion_pl.runtime.upstream.loops import count_steps

# torch


def test_version_counts_changes_in_place() -> None:
    x = torch.zeros(2)
    before = tensors.version(x)
    x.add_(1)
    x.mul_(2)
    assert tensors.version(x) == before + 2
    _ = x + 1
    assert tensors.version(x) == before + 2


def test_norms_are_summed_in_the_wider_type() -> None:
    x = [torch.full((4,), 300.0, dtype=torch.float16), torch.tensor([3.0, 4.0])]
    small, other = tensors.norms(x, torch.float32)
    assert small.dtype == torch.float32
    assert (small.item(), other.item()) == (600.0, 5.0)  # 300² alone is more than float16 holds


def test_lerp_moves_a_list_in_place() -> None:
    x, ends = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.zeros(3)]
    places = [part.data_ptr() for part in x]
    tensors.lerp_(x, ends, 0.25)
    assert [part.tolist() for part in x] == [[0.25] * 2, [0.75] * 3]
    assert [part.data_ptr() for part in x] == places


def test_memory_that_is_missing_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert tensors.memory_asked(caught.value) == ""
    of_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    assert tensors.memory_asked(of_gpu) == "2.00 GiB"
    assert tensors.memory_asked(RuntimeError("something else")) is None


def test_fused_optimizer_unscales_gradients() -> None:
    weight = [nn.Parameter(torch.zeros(1))]
    assert tensors.unscales_gradients(torch.optim.AdamW(weight, fused=True))
    assert not tensors.unscales_gradients(torch.optim.AdamW(weight, fused=False))


def test_pickled_parameters_call_what_is_listed() -> None:
    calls = {
        (argument.partition(" ")[0], argument.partition(" ")[2])
        for opcode, argument, _ in pickletools.genops(pickle.dumps(nn.Parameter(torch.ones(2)), protocol=2))
        if opcode.name == "GLOBAL" and argument is not None
    }
    others = {("torch.storage", "_load_from_bytes"), ("collections", "OrderedDict")}
    assert calls - others - {("_codecs", "encode")} == set(tensors.tensor_makers())


def test_compile_modes_are_those_of_torch() -> None:
    assert {"default", "reduce-overhead", "max-autotune"} <= set(tensors.compile_modes())


def test_seed_generators_seeds_as_manual_seed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    tensors.seed_generators(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_seed_generators_seeds_the_gpu() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    tensors.seed_generators(5, torch.device("cuda", torch.cuda.current_device()))
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_events_reach_the_file_that_is_named(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary

    writer = SummaryWriter(str(tmp_path))
    path = tensors.event_file(writer)
    assert path.parent == tmp_path
    gif = Summary.Image(height=1, width=1, colorspace=3, encoded_image_string=b"GIF")
    tensors.add_event(writer, 3, summary=Summary(value=[Summary.Value(tag="film", image=gif)]))
    tensors.add_event(writer, 4, session_log=SessionLog(status=SessionLog.START))
    writer.close()
    read = [event for event in EventFileLoader(str(path)).Load() if event.step]
    assert [event.step for event in read] == [3, 4]
    assert read[1].session_log.status == SessionLog.START


def test_thread_of_event_writer_is_known(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    writer = SummaryWriter(str(tmp_path))
    (started,) = set(threading.enumerate()) - before
    assert tensors.writes_events(started)
    assert not tensors.writes_events(threading.main_thread())
    writer.close()


def test_processes_meet_where_no_agent_hosts_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself decides by the variable: with it, the first process would wait for an agent's store."""
    from torch.distributed.rendezvous import rendezvous

    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert tensors.has_agent_store()
    own = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, multi_tenant=True, wait_for_workers=False)  # type: ignore[attr-defined]
    tensors.meet_at_own_store(own.port)
    assert not tensors.has_agent_store()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    store, rank, size = next(iter(rendezvous("env://")))
    store.set("found", "yes")
    assert (own.get("found") or own.get("/found"), rank, size) == (b"yes", 0, 1)


# Lightning


class Notes(Callback):
    """What the functions return, at each hook of a fit."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.trained: list[int] = []
        self.epochs: list[int] = []
        self.validated: list[str] = []
        self.hook = ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.numbers.append(pl.batch_number(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained.append(pl.batches_trained(trainer))
        self.hook = vars(pl_module)["_current_fx_name"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = pl.validated_names(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append(pl.epochs_trained(trainer))


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Notes:
    """Of a fit of two epochs of two batches each, with a validation after the last."""
    result = Notes()
    options = {"max_steps": 4, "val_check_interval": 4, "check_val_every_n_epoch": None, "logger": False}
    trainer = tiny_trainer(tmp_path_factory.mktemp("notes"), result, **options)
    trainer.fit(tiny_module(), datamodule=tiny_data(batch_size=50, repeats=1))
    return result


def test_batch_number_counts_over_epochs(notes: Notes) -> None:
    assert notes.numbers == [0, 1, 2, 3]


def test_batches_trained_include_the_one_that_ended(notes: Notes) -> None:
    assert notes.trained == [1, 2, 3, 4]


def test_epochs_trained_include_the_one_that_ends(notes: Notes) -> None:
    assert notes.epochs == [1, 2]


def test_validated_names_are_those_of_the_validation(notes: Notes) -> None:
    assert "val_loss/raw" in notes.validated
    assert not any(name.startswith("train_loss") for name in notes.validated)


def test_hook_notes_bypass_the_search_for_parameters(notes: Notes) -> None:
    assert notes.hook == "on_train_batch_end"

    class Counted(nn.Module):
        searches = 0

        def __setattr__(self, name: str, value: Any) -> None:
            type(self).searches += name == "_current_fx_name"
            super().__setattr__(name, value)

    class Quick(pl.QuickHookNotes, Counted):
        pass

    quick = Quick()
    quick._current_fx_name = "training_step"
    quick.weight = nn.Parameter(torch.zeros(1))
    assert Counted.searches == 0
    assert quick._current_fx_name == "training_step"
    assert [name for name, _ in quick.named_parameters()] == ["weight"]


def test_global_seed_is_that_of_seed_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert pl.global_seed() is None
    seed_everything(17, verbose=False)
    assert pl.global_seed() == 17


@pytest.mark.parametrize("now", [True, False])
def test_stop_after_batch_ends_a_fit(tmp_path: Path, now: bool) -> None:
    """After the second of three batches, unless it is taken back."""

    class Stop(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == 2:
                pl.stop_after_batch(trainer)
                pl.stop_after_batch(trainer, now)

    trainer = tiny_trainer(tmp_path, Stop(), max_steps=3, logger=False)
    module, data = tiny_module(), tiny_data()
    if now:
        with pytest.raises(SIGTERMException):
            trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == (2 if now else 3)


def test_signal_broadcast_is_the_one_that_is_skipped(tmp_path: Path) -> None:
    """Lightning calls the method in every batch of a run in several processes, and by this name."""
    import inspect

    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    trainer = tiny_trainer(tmp_path, logger=False)
    loop: Any = trainer.fit_loop.epoch_loop
    assert callable(loop._broadcast_sigterm_tensor)
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop)
    pl.skip_signal_broadcast(trainer)
    assert loop._broadcast_sigterm_tensor() is None


def test_signal_reaches_started_processes() -> None:
    trainer = Trainer(accelerator="cpu", devices=2, strategy=DDPStrategy(), logger=False, enable_checkpointing=False)
    launcher: Any = trainer.strategy.launcher
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        launcher.procs.append(child)
        pl.signal_started_processes(trainer, signal.SIGTERM)
        assert child.wait(30) == -signal.SIGTERM
    alone = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    pl.signal_started_processes(alone, signal.SIGTERM)  # there is none


def ask(seen: list[int], judge: Any, trainer: Trainer, *args: Any) -> None:
    """Notes that it was asked, and lets the callback judge at even steps only."""
    seen.append(trainer.global_step)
    if trainer.global_step % 2 == 0:
        judge(trainer, *args)


def test_judges_are_asked_through(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss/raw", save_top_k=-1, filename="{step}")
    stopper = EarlyStopping("val_loss/raw", patience=100)
    asked: dict[str, list[int]] = {"best": [], "stopper": []}
    pl.judge_through(best, ask, asked["best"])
    pl.judge_through(stopper, ask, asked["stopper"])
    options = {"max_steps": 3, "val_check_interval": 1, "check_val_every_n_epoch": None, "logger": False}
    trainer = tiny_trainer(tmp_path, best, stopper, enable_checkpointing=True, **options)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    assert set(asked["best"]) == set(asked["stopper"]) == {1, 2, 3}
    assert [file.name for file in (tmp_path / "best").iterdir()] == ["step=2.ckpt"]
    assert stopper.wait_count == 0 and stopper.best_score.isfinite()


def test_checkpoint_is_saved_after_the_next_validation(tmp_path: Path) -> None:
    """A ModelCheckpoint that saves every step compares again when a validation ends."""
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss/raw", every_n_train_steps=1, save_top_k=-1)
    asked: list[str] = []

    def note(judge: Any, trainer: Trainer, *args: Any) -> None:
        asked.append("validation" if trainer.validating else "training")
        if not trainer.validating:
            pl.save_after_validation(best)

    pl.judge_through(best, note)
    options = {"max_steps": 1, "val_check_interval": 1, "check_val_every_n_epoch": None, "logger": False}
    tiny_trainer(tmp_path, best, enable_checkpointing=True, **options).fit(tiny_module(), datamodule=tiny_data())
    assert "validation" in asked


def test_values_are_logged_under_the_steps_that_were_done(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), "", "")
    trainer = tiny_trainer(tmp_path, logger=logger, max_steps=10, val_check_interval=10)
    count_steps(trainer)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    with (tmp_path / "metrics.csv").open(newline="") as file:
        logged = [*csv.DictReader(file)]
    assert {row["step"] for row in logged if row["train_loss/raw"]} == {"5", "10"}
    assert {row["step"] for row in logged if row["val_loss/raw"]} == {"10"}
    assert all(row["epoch"] == "0" for row in logged)


def test_loops_take_the_place_of_lightnings(tmp_path: Path) -> None:
    """What they are derived from is there; tests/test_loops.py says what they do."""
    trainer = tiny_trainer(tmp_path, logger=False)
    theirs = trainer.fit_loop
    count_steps(trainer)
    ours: Any = trainer.fit_loop
    assert isinstance(ours, type(theirs)) and isinstance(ours.epoch_loop, type(theirs.epoch_loop))
    for owner, names in {
        ours: ("_load_combined_loader_states", "_combined_loader", "_data_fetcher", "is_resuming", "epoch_progress"),
        ours.epoch_loop: ("_should_check_val_fx", "_should_check_val_epoch", "_should_accumulate", "batch_progress"),
    }.items():
        for name in (*names, "restarting"):
            assert hasattr(owner, name), name
    for name in ("done", "skip", "restarting"):
        assert isinstance(getattr(type(theirs), name), property), name
    assert vars(ours.epoch_loop)["_batches_that_stepped"] == 0


def test_hook_that_is_none_is_not_called(tmp_path: Path) -> None:
    """`LeanHooks` takes the empty hooks of a step away by it."""

    class Lean(Callback):
        on_train_batch_start: Any = None
        on_before_zero_grad: Any = None
        on_after_backward: Any = None

    trainer = tiny_trainer(tmp_path, Lean(), max_steps=1, logger=False)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    assert trainer.global_step == 1


# jsonargparse


class Base:
    """A kind of part."""


class Slow(Base):
    """Has a scale.

    Args:
        scale: 1 by default.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale


class Fast(Base):
    """Has another scale.

    Args:
        scale: 2 by default.
    """

    def __init__(self, scale: float = 2.0) -> None:
        self.scale = scale


def parser(kind: type = Base) -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(kind, "part")
    made.add_argument("--number", type=int, required=True)
    return made


def scale(*args: str) -> float:
    """The scale of a Fast that replaces a Slow of scale 9."""
    slow = ["--part", f"{__name__}.Slow", "--part.scale", "9", "--number", "1"]
    result: float = parser().parse_args([*slow, *args]).part.init_args.scale
    return result


def test_replaced_class_keeps_options_unless_changed() -> None:
    """The second is why the first is there: should jsonargparse change its mind, this can go."""
    with arguments.own_defaults():
        assert scale("--part", f"{__name__}.Fast") == 2.0
        assert scale("--part", f"{__name__}.Slow") == 9.0
    assert scale("--part", f"{__name__}.Fast") == 9.0


def test_short_names_are_those_of_the_package() -> None:
    """torchvision has an MLP too."""
    import torchvision.ops

    import diffusion_pl.networks
    from diffusion_pl.runtime import parsing

    assert issubclass(torchvision.ops.MLP, nn.Module) and issubclass(diffusion_pl.networks.MLP, nn.Module)
    assert parsing.RaisingParser is not None  # which asks for it when it is imported
    taken = parser(nn.Module).parse_args(["--part", "MLP", "--part.shape", "[2]", "--number", "1"])
    assert taken.part.class_path == "diffusion_pl.networks.MLP"


def test_imports_only_refuses_and_lets_go() -> None:
    path = ["--part", f"{__name__}.Fast", "--number", "1"]
    with arguments.imports_only(["torch.nn"]), pytest.raises(ArgumentError, match="not allowed"):
        parser().parse_args(path)
    with arguments.imports_only([__name__]):
        assert parser().parse_args(path).part.class_path.endswith("Fast")
    assert parser().parse_args(path).number == 1


def test_option_types_are_those_of_the_signature() -> None:
    result = arguments.option_types(parser())
    assert result["number"] is int
    assert Base in get_args(result["part"])
    assert result["help"] is arguments.SWITCH


def test_required_options_and_default_classes_are_known() -> None:
    made = parser()
    assert set(arguments.required_options(made)) >= {"number"}
    assert arguments.default_classes(made) == {}
    made.set_defaults({"part": {"class_path": f"{__name__}.Fast"}})
    assert arguments.default_classes(made) == {"part": f"{__name__}.Fast"}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, ["3", 3], ["abc", "2.5", [3]]),
        (float | None, ["1e-3", "null", 2], ["abc", [1.0]]),
        (Literal["L", 16], ["L", "16"], ["17", "l"]),
        (list[int], [[1, 2], "[1, 2]"], ["abc", ["a"]]),
    ],
)
def test_accepts_reads_values_as_the_parsers_do(kind: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(arguments.accepts(kind, value) for value in good)
    assert not any(arguments.accepts(kind, value) for value in bad)


def test_options_with_a_default_are_not_required() -> None:
    made = parser()
    with pytest.raises(ArgumentError, match="number"):
        made.parse_args(["--part", f"{__name__}.Fast"])
    made.set_defaults({"number": 3})
    arguments.make_optional(made, ["number"])
    assert made.parse_args(["--part", f"{__name__}.Fast"]).number == 3
    assert isinstance(made, PlainParser)


def test_options_of_a_parser_are_read_for_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    class Short(ArgumentParser):
        def format_help_all(self) -> str:
            return "all of it\n"

    made = Short(exit_on_error=False)
    made.add_argument("--number_", type=int, default=3, help="Number.")
    made.add_argument("--part", type=Base, required=True)
    made.add_argument("--help-all", action=arguments.HelpAll, help="All.")
    made.add_argument("--json", action=arguments.Switch)
    arguments.set_help(made, {"number": "Another text."})
    options = {option.name: option for option in arguments.options_of(made)}
    number, part = options["--number"], options["--part"]
    assert (number.help, number.kind, number.default, number.takes_value) == ("Another text.", int, 3, True)
    assert (part.required, options["--part.help"].is_class_help, options["--json"].takes_value) == (True, True, False)
    assert made.parse_args(["--json", "--part", f"{__name__}.Fast"]).number_ == 3
    with pytest.raises(SystemExit):
        made.parse_args(["--help-all"])
    assert capsys.readouterr().out == "all of it\n"


@pytest.mark.slow
def test_completion_offers_the_chosen_classes() -> None:
    pytest.importorskip("shtab")
    with arguments.completed_classes(lambda kind: [Fast], depth=1):
        script = parser().get_completion_script("shtab-bash")
    assert f"{__name__}.Fast" in script
    assert f"{__name__}.Slow" not in script
