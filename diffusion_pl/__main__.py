"""python -m diffusion_pl: answers at once what needs no torch, then runs the command."""

import difflib
import os
import sys
from collections.abc import Sequence

from . import __version__
from .runtime.startup import discard_output, prepare_home, prepare_streams, say_loading

TRAINER_COMMANDS = {
    "fit": "train a model from a configuration",
    "doctor": "what is wrong with a configuration, before it is trained",
    "validate": "loss on the validation split, of a checkpoint",
    "test": "loss on the test split, of a checkpoint",
    "predict": "1,000 samples of a run, into its folder",
}
TOOLS = {
    "sample": "any number of samples of a checkpoint, which needs nothing else",
    "evaluate": "metrics of a checkpoint, with how they were measured: FID and others, likelihood, its bound",
    "verify": "whether a run's metrics are in the bands that its configuration expects",
    "compare": "two evaluations side by side, where they can be compared",
    "sweep": "quality of samplers against their number of function evaluations (NFE)",
    "encode": "the noise that images or points come from, and interpolation between them",
    "restore": "images of which only a part is known: inpaint, colorize, upscale",
    "import": "a model that was trained with another package",
    "export": "a model for another package: diffusers, safetensors, ONNX, torch.export",
    "replay": "repeat of the step at which a run stopped because loss or gradients were not finite",
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
    "import": "convert load",
    "export": "save upload",
    "compare": "diff",
}

USAGE = "usage: python -m diffusion_pl COMMAND [options]    (COMMAND --help lists them)"
EXAMPLES = """examples:
  python -m diffusion_pl fit --config configs/datasaurus/vp.yaml
  python -m diffusion_pl fit --config configs/datasaurus/vp.yaml --trainer.max_steps 2000 --model.optimizer.lr 1e-3
  python -m diffusion_pl fit --config configs/datasaurus/vp.yaml --ckpt_path last      # resume where it stopped
  python -m diffusion_pl sample --ckpt_path runs/datasaurus-vp/checkpoints/last.ckpt --num_samples 4000 --output samples
  tensorboard --logdir runs

--debug, before or after the command, shows the traceback of an error (or set DIFFUSION_PL_DEBUG=1)."""


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
            print(f"  {name:<10} {what}")
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
        near = next((word for word in rest if word in COMMANDS), "fit" if "config" in command else "sample")
        return f"expected a command before {command}; did you mean {near} {command}?"
    name = command.lower()
    meant = next((known for known, words in _SYNONYMS.items() if name in words.split()), None)
    close = [meant] if meant else difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
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
