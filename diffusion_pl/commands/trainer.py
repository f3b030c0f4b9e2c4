"""The commands of the Trainer: run one, and say how it ended."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ..callbacks.curves import CURVES
from ..checkpoints.io import last_checkpoint
from ..checkpoints.warm_start import warm_started
from ..checks import rows, summary
from ..cli import DiffusionCLI
from ..runtime.devices import keep_freed_memory
from ..runtime.errors import quiet
from ..runtime.loggers import quiet_threads
from ..runtime.output import Report, next_command, show, stdout_for
from ..runtime.processes import end_with_parent, is_connection_lost, leave_group, rank_label, report_from_rank_zero
from ..runtime.run_card import CARD
from ..runtime.run_folder import RunFolder
from ..runtime.startup import say
from ..runtime.stopping import Stopped, output_may_break, stoppable
from .predict import predict


def run_trainer(args: Sequence[str]) -> None:
    """Run fit, validate, test or predict and say where the run is saved.

    Raises:
        SystemExit: 143 if a signal stopped the run (after saving); 128 + its number if it stopped another command.
    """
    quiet()
    keep_freed_memory()
    # Squares of tiny gradients are denormal, above all in a warm-up behind layers that start at zero, and the CPU takes
    # twice as long over an optimizer step of such values.  Before any thread is started, since threads inherit it.
    torch.set_flush_denormal(True)
    run = RunFolder()
    if run.inherited or "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    kept = "finished samples are kept. Repeat the command to continue"
    message = {"fit": "nothing was trained yet", "predict": kept}.get(
        args[0], "nothing is kept. Repeat the command to start over"
    )
    try:
        with stoppable(message), output_may_break() if args[0] == "fit" else nullcontext(), quiet_threads():
            cli = _run(args[0], args[1:], run)
    finally:
        run.close()
        torch.set_flush_denormal(False)
    if cli.trainer.fast_dev_run:
        run.discard()
    elif cli.trainer.is_global_zero:
        outputs = {
            "card": cli.folder / CARD,
            "checkpoint": last_checkpoint(cli.folder),
            "curves": cli.folder / CURVES,
            "images": cli.folder / "panels",
            "film": max((cli.folder / "panels").glob("film_*.gif"), default=cli.folder / "film"),
        }
        facts = {name: str(path) for name, path in outputs.items() if path.exists()}
        if any(isinstance(logger, TensorBoardLogger) for logger in cli.trainer.loggers):
            facts["dashboard"] = f"tensorboard --logdir {run.root}"
        ready = args[0] == "fit" and outputs["checkpoint"].is_file()
        following = cli.model.next_arguments(cli.folder, cli.datamodule) if ready else []
        show(
            Report(done=f"run saved to {cli.folder}", facts=facts, next=[next_command(*following)] if following else [])
        )


def _run(command: str, args: Sequence[str], run: RunFolder) -> DiffusionCLI:
    """Run the command, and print how to resume it when something ends it."""
    try:
        with warm_started(args) if command == "fit" else nullcontext(list(args)) as options:
            cli = DiffusionCLI(command, options, run)
        if not rank_label():
            say("reading data …")
        if command == "predict":
            predict(cli, leader=not rank_label() and not run.inherited)
        else:
            getattr(cli.trainer, command)(cli.model, datamodule=cli.datamodule, **cli.options)
        leave_group()
    except SIGTERMException:
        leave_group()
        if run.inherited:
            raise SystemExit(0) from None  # Lightning would take any other for a failure, and kill the first process
        if rank_label():
            report_from_rank_zero()
        else:
            assert run.path is not None
            saved = last_checkpoint(run.path)
            resume = f"{saved} is saved. Resume with --ckpt_path {saved}"
            broken = getattr(sys.stdout, "broken", False)
            message = f"stopped; {resume if saved.is_file() else 'there was nothing to save yet'}"
            print(message, file=sys.stderr if broken else sys.stdout)
        raise SystemExit(143) from None
    except Stopped:
        run.discard()
        raise
    except Exception as error:
        run.discard()
        resume = "the last checkpoint is intact. Resume with --ckpt_path last"
        reason = str(error).partition("\n")[0].split(". ")[0]
        if isinstance(error, RuntimeError) and is_connection_lost(error):
            raise ConnectionError(f"lost connection to another process of the run; {resume} ({reason})") from error
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise OSError(
                f"a process that reads data was ended by the system, mostly because memory ran out ({reason}). Fix: "
                f"lower data.init_args.workers or data.init_args.batch_size; {resume}"
            ) from error
        raise
    return cli


def run_doctor(args: Sequence[str]) -> None:
    """Print what is wrong with the run that `fit` would make of these options.

    Raises:
        SystemExit: 2 if there is an error.
    """
    quiet()
    run = RunFolder()
    as_json = "--json" in args
    with stdout_for(as_json) as stream:
        try:
            with warm_started(args) as options:
                findings = DiffusionCLI("fit", options, run, diagnose=True).diagnose()
        finally:
            run.close()
    following = [next_command("fit", *(arg for arg in args if arg != "--json"))]
    errors = any(finding.level == "error" for finding in findings)
    report = Report(
        done=summary(findings), rows=rows(findings), next=[] if errors else following, status=2 if errors else 0
    )
    show(report, stream, as_json)
