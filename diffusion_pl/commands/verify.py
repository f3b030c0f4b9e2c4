"""python -m diffusion_pl verify: did a run come out as its configuration expects?"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation import Band


def verify(run: Path, evaluation: list[Path] | None = None) -> None:
    """Hold the figures of a finished run against the bands that its configuration states in the section expected.

    Prints a line for each; exit status 0 if all lie inside, 2 if one lies outside, is missing, or was measured on
    another number of samples, another split or by other features than its band.  The evaluation must be of one of the
    run's checkpoints as they are now.

    Args:
        run: Folder of the run, such as runs/digits-vp.
        evaluation: evaluation.json of the run, one or more; None: RUN/evaluation/evaluation.json.
    """
    from ..checkpoints.io import sha256_of
    from ..evaluation import Band, error_of, incomparable, read_figures
    from ..runtime.run_card import read_card
    from ..runtime.run_folder import was_killed

    expected = {name: Band(**told) for name, told in (read_card(run).get("config", {}).get("expected") or {}).items()}
    if not expected:
        raise ValueError(f"{run}: the run's configuration has no section expected to hold it against")
    files = evaluation or [run / "evaluation" / "evaluation.json"]
    checkpoint, folder = run / "checkpoints" / "last.ckpt", run / "evaluation"
    how = f"python -m diffusion_pl evaluate --ckpt_path {checkpoint} --output {folder}"
    lacking = next((file for file in files if not file.is_file()), None)
    if lacking is not None:
        raise FileNotFoundError(f"no evaluation at {lacking}: make one with {how} {_options(expected)}")
    checkpoints = {sha256_of(path) for path in sorted((run / "checkpoints").rglob("*.ckpt"))}
    figures = {name: figure for file in files for name, figure in read_figures(file).items()}

    bad = []
    if was_killed(run):
        print(f"{run}: the run was killed before its end; then resume with --ckpt_path last")
    print(f"{'':<10} {'measured':>20} {'band':>20}")
    for name, band in expected.items():
        figure, (lower, upper) = figures.get(name), band.band
        told, verdict = "", "missing"
        if figure is not None:
            error = error_of(figure)
            told = f"{figure['value']:.5g}" + ("" if error is None else f" ± {error:.2g}")
            why = incomparable(name, band, figure)
            if figure["model"]["sha256"] not in checkpoints:
                why.append("of a checkpoint that is not the run's")
            inside = lower <= figure["value"] <= upper
            verdict = f"not comparable: {'; '.join(why)}" if why else "inside" if inside else "outside"
        print(f"{name:<10} {told:>20} {f'{lower:g} … {upper:g}':>20}  {verdict}   ({band.source})")
        if verdict != "inside":
            bad.append(f"{name} {verdict}")
    for figure in list(figures.values())[:1]:
        model = figure["model"]
        print(f"  {model['checkpoint']}, {model['weights']} weights, NFE {model['nfe']:.4g}")
    if bad:
        missing = {name: band for name, band in expected.items() if name not in figures}
        remedy = f"; to measure it: {how} {_options(missing)}" if missing else ""
        raise ValueError(f"{run} does not come out as expected: {', '.join(bad)}{remedy}")


def _options(bands: "dict[str, Band]") -> str:
    """What `evaluate` must be told to measure these figures as their bands say."""
    names = ["prc" if name in ("precision", "recall") else name for name in bands]
    options = f"--metrics {' '.join(dict.fromkeys(names))}"
    of_samples = [band for name, band in bands.items() if name not in ("nll", "elbo")]
    for band in of_samples[:1]:
        options += f" --num_samples {band.num_samples}"
        options += "" if band.split in (None, "train") else f" --split {band.split}"
        options += "" if band.by is None else f" --extractor {band.by}"
    return options
