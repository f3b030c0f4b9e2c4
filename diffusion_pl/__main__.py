"""python -m diffusion_pl: answers at once what needs no torch, then runs the command."""

import difflib
import os
import sys
from collections.abc import Sequence

from . import __version__
from .runtime.startup import discard_output, prepare_home, prepare_streams, say_loading

TRAINER_COMMANDS = {
    "fit": "train a model from a configuration, or resume a run",
    "doctor": "check a configuration before training",
    "validate": "compute the losses of a checkpoint on the validation split",
    "test": "compute the losses of a checkpoint on the test split",
    "predict": "draw 64 images or 1,000 points into the folder of a run",
}
TOOLS = {
    "sample": "draw samples from a checkpoint",
    "evaluate": "compute metrics (FID, IS, KID, likelihood, …) of a checkpoint",
    "verify": "check whether the metrics of a run are in the ranges that its configuration expects",
    "compare": "show the metrics of two or more evaluations side by side",
    "sweep": "compare samplers at equal numbers of function evaluations (NFE)",
    "encode": "compute the noise that images or points come from, and interpolate",
    "restore": "fill in missing parts of images or fields: inpaint, colorize, upscale",
    "latents": "encode a data set of images once, for models that are trained on latents",
    "average": "make EMA weights of another width after training, from the snapshots of a run",
    "import": "convert a model of another package into a checkpoint",
    "export": "write a model for another package: diffusers, safetensors, ONNX, torch.export",
    "replay": "re-run the step at which training stopped on non-finite values",
    "completion": "print a completion script for bash, zsh or tcsh",
}
#: Tools that answer at once: they need no torch.
LISTINGS = {
    "configs": "the configurations that come with the package, by name",
    "runs": "the runs in a folder: state, step, size and last metrics",
}
COMMANDS = TRAINER_COMMANDS | TOOLS | LISTINGS

#: Names that other programs use for our commands.
_SYNONYMS = {
    "fit": "train training trainer resume continue finetune fine-tune run start",
    "sample": "generate draw infer inference sampling synthesize",
    "evaluate": "eval metrics fid score measure benchmark",
    "doctor": "check lint debug",
    "restore": "inpaint colorize upscale repair",
    "encode": "invert latents interpolate",
    "latents": "encode a data set of images once, for models that are trained on latents",
    "average": "ema mean phema posthoc",
    "import": "convert load",
    "export": "save upload",
    "compare": "diff",
}

USAGE = "usage: python -m diffusion_pl COMMAND [--OPTION VALUE …]    (or diffusion_pl COMMAND …)"
EXAMPLES = """examples:
  python -m diffusion_pl fit --config datasaurus/vp         # a name of `configs`, or a file
  python -m diffusion_pl fit --config datasaurus/vp --trainer.max_steps 2000
  python -m diffusion_pl fit --config datasaurus/vp --ckpt_path last      # resume
  python -m diffusion_pl sample --ckpt_path runs/datasaurus-vp --num_samples 4000 --output samples
  tensorboard --logdir runs

options:
  COMMAND --help        examples and common options of a command
  COMMAND --help-all    all its options
  COMMAND --json        one JSON document on stdout in place of a table (not of fit, validate, test)
  --debug               traceback of an error (or set DIFFUSION_PL_DEBUG=1)
  --version             version of diffusion_pl"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status: 0 done, 2 something is wrong with the input,
    1 an unexpected error, 130 Ctrl-C, 141 the reader of the output has gone, 143 stopped by a signal."""
    args = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    debug = "--debug" in args or bool(os.environ.get("DIFFUSION_PL_DEBUG"))
    args = [a for a in args if a != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(f"{USAGE}\n\ncommands:")
        for name, what in COMMANDS.items():
            print(f"  {name:<11} {what}")
        print(f"\n{EXAMPLES}")
        return 0
    if args[0] == "--version":
        print(f"diffusion_pl {__version__}")
        return 0
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        print(f"diffusion_pl: error: {_unknown(command, rest)}", file=sys.stderr)
        return 2
    if command not in LISTINGS:
        say_loading()
        prepare_home()
    # Imported here: most bring torch.
    from .checkpoints.migrations import migrate_text
    from .runtime.errors import guard

    args, rest = [migrate_text(arg) for arg in args], [migrate_text(arg) for arg in rest]
    with guard(debug, args) as status:
        if command in TOOLS or command in LISTINGS:
            from .commands import run_tool

            run_tool(command, rest)
        else:
            from .commands.trainer import run_doctor, run_trainer

            if command == "doctor":
                run_doctor(rest)
            else:
                run_trainer(args)
    return status.code


def _unknown(command: str, rest: Sequence[str]) -> str:
    """The line about a first word that is no command."""
    if command.endswith((".yaml", ".yml")):
        return f"expected a command, got the file {command}; did you mean fit --config {command}?"
    if command.endswith(".ckpt"):
        return f"expected a command, got the file {command}; did you mean sample --ckpt_path {command}?"
    if command.startswith("-"):
        if own := difflib.get_close_matches(command, ("--help", "--version", "--debug"), n=1, cutoff=0.7):
            return f"unknown option {command}; did you mean {own[0]}?"
        near = next((word for word in rest if word in COMMANDS), "fit" if "config" in command else "sample")
        options = " ".join([command, *(word for word in rest if word != near)])
        return f"expected a command before {command}; did you mean {near} {options}?"
    names = {word: known for known, words in _SYNONYMS.items() for word in words.split()}
    names |= {known: known for known in COMMANDS}
    close = difflib.get_close_matches(command.lower(), names, n=1, cutoff=0.76)
    hint = f"did you mean {names[close[0]]}?" if close else f"choose one of {', '.join(COMMANDS)}"
    return f"unknown command {command!r}: {hint}"


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        discard_output()
        code = 0
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
