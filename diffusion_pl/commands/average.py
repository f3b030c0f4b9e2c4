"""python -m diffusion_pl average: EMA weights of another width, after training."""

from pathlib import Path

from ..runtime.output import Report, next_command


def average(ckpt_path: Path, std: float, step: int | None = None, output: Path | None = None) -> Report:
    """Make the EMA weights of another width after training, and save them as a checkpoint.

    They are a sum of the power-function EMA weights (`fit --ema.stds '[0.05, 0.1]'`) that the checkpoint and the
    snapshots in the folder of its run hold: the least-squares fit of their profiles to the one of this width.  The
    checkpoint is for sample, evaluate, sweep, export and --init_from; the run is resumed from its own.

    Args:
        ckpt_path: Checkpoint, or folder of a run (its newest one).
        std: Width of the EMA weights as a fraction of the training, in (0, 0.288], such as 0.15; 0.288 is the mean.
        step: Optimizer step of a snapshot, at which the training is taken to end; None: the checkpoint's.
        output: File of the new checkpoint; None: averaged/stdWIDTH.ckpt in the folder of the run.
    """
    from ..checkpoints import snapshots
    from ..checkpoints.exported import is_exported, run_folder_of
    from ..checkpoints.io import checkpoint_at, read_hashed, write
    from ..checkpoints.loading import from_content

    choice = snapshots.parse(f"std:{std}" + ("" if step is None else f"@{step}"))
    if choice is None:
        raise ValueError(f"step must not be negative, got {step}")
    file = checkpoint_at(ckpt_path)
    content, _ = read_hashed(file)
    if is_exported(file) or "weights" in content:
        raise ValueError(f"{ckpt_path} holds one set of weights. Fix: give --ckpt_path the run that it was made from")
    made = snapshots.reconstruct(content, file, choice)
    name = made.name.removeprefix("ema")
    if output is None:
        run, here = run_folder_of(file), Path.cwd()
        output = (run.relative_to(here) if run.is_relative_to(here) else run) / "averaged" / f"{name}.ckpt"
    if output.exists():
        raise ValueError(f"{output} exists already: name another file with --output")
    of_training = ("averages", "optimizer_states", "lr_schedulers", "loops", "callbacks", "history")
    kept = {key: value for key, value in content.items() if key not in of_training}
    averaged = {
        **kept,
        **{key: type(content[key])() for key in of_training[1:] if key in content and key != "loops"},
        "global_step": choice.step or content.get("global_step"),
        "state_dict": {**content["state_dict"], **made.tensors},
        "weights": made.name,
    }
    from_content(averaged, output, "ema")  # raises if no model can be made of it
    write(averaged, output, replace=False)
    weights = made.fit.weights
    return Report(
        done=f"{name} of {ckpt_path}",
        facts={
            "sum of": f"{made.snapshots} sets of EMA weights",
            "error of the profile": f"{made.fit.residual:.2g}, relative",
            "rounding error": f"{float(weights.square().sum().sqrt()):.3g} times that of half precision",
        },
        notes=[made.warning] if made.warning else [],
        files=[output],
        next=[next_command("sample", "--ckpt_path", output)],
    )
