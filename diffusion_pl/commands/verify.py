"""python -m diffusion_pl verify: did a run come out as its configuration expects?"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.output import Report, next_command

if TYPE_CHECKING:
    from ..evaluation import Band, Result


NO_BAND = "no band"


def verify(run: Path, evaluation: list[Path] | None = None) -> Report:
    """Compare the results of a finished run with the bands that its configuration states in the section expected.

    A line for each, with the paper's value next to ours; exit status 0 if all are inside, 2 if one is outside, is
    missing, or was measured on another number of samples, another split or with other features than its band, or if the
    configuration gives no band but a reason.  The evaluation must be of one of the run's checkpoints as they are now.

    Args:
        run: Folder of the run, such as runs/digits-vp.
        evaluation: Files evaluation.json of the run, one or more; None: RUN/evaluation/evaluation.json.
    """
    from ..checkpoints.io import sha256_of
    from ..evaluation import Band, paper_columns, read_results
    from ..runtime.run_card import read_card
    from ..runtime.run_listing import state_of

    card = read_card(run)
    section = card.get("config", {}).get("expected") or {}
    expected = {name: Band(**band) for name, band in section.items()}
    if not expected:
        raise ValueError(f"{run}: the run's configuration has no section expected to compare it with")
    if all(band.band is None for band in expected.values()):
        reasons = "; ".join(f"{name}: {band.source}" for name, band in expected.items())
        raise ValueError(f"{run}: the run's configuration has no band to compare it with ({reasons})")
    files = evaluation or [run / "evaluation" / "evaluation.json"]
    checkpoint, folder = run / "checkpoints" / "last.ckpt", run / "evaluation"
    how = f"python -m diffusion_pl evaluate --ckpt_path {checkpoint} --output {folder}"
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise FileNotFoundError(f"no evaluation at {missing}: make one with {how} {_options(expected)}")
    checkpoints = {sha256_of(path) for path in sorted((run / "checkpoints").rglob("*.ckpt"))}
    results = {name: result for file in files for name, result in read_results(file).items()}

    bad, rows = [], []
    if state_of(run, card) == "dead":
        print(f"{run}: the run was killed before its end; then resume with --ckpt_path last")
    for name, band in expected.items():
        result, (lower, upper) = results.get(name), band.band or (None, None)
        verdict = _verdict(name, band, result, checkpoints)
        rows.append(
            {
                "metric": name,
                "measured": None if result is None else result.value,
                "error": None if result is None else result.error,
                **paper_columns(name, result, expected),
                "from": lower,
                "to": upper,
                "verdict": verdict,
                "source": band.source,
            }
        )
        if verdict not in ("inside", NO_BAND):
            bad.append(f"{name} {verdict}")
    facts: dict[str, Any] = {}
    for result in list(results.values())[:1]:
        model = result.model
        measured = model.get("checkpoint") or model.get("images")
        facts = {"checkpoint": measured, "weights": model.get("weights"), "nfe": result.nfe}
    error = ""
    if bad:
        unmeasured = {name: band for name, band in expected.items() if name not in results}
        fix = f"; to measure it: {how} {_options(unmeasured)}" if unmeasured else ""
        error = f"{run} does not come out as expected: {', '.join(bad)}{fix}"
    compared = sum(band.band is not None for band in expected.values())
    export = next_command("export", "--ckpt_path", run, "--to", "safetensors", "--output", run / "export")
    return Report(
        done=f"{run}: {compared - len(bad)} of {compared} metrics as expected",
        facts=facts,
        rows=rows,
        error=error,
        next=[] if bad else [export],
    )


def _verdict(name: str, band: "Band", result: "Result | None", checkpoints: Collection[str]) -> str:
    """Of a result and its band, in words; checkpoints: the hashes of the run's."""
    from ..evaluation import incomparable

    if band.band is None:
        return NO_BAND
    if result is None:
        return "missing"
    why = incomparable(name, band, result)
    if result.model["sha256"] not in checkpoints:
        why.append("of a checkpoint that is not the run's")
    if why:
        return f"not comparable: {'; '.join(why)}"
    return "inside" if band.contains(result.value) else "outside"


def _options(bands: "dict[str, Band]") -> str:
    """The options with which `evaluate` measures these metrics as their bands say."""
    from ..evaluation.foreign import FOREIGN

    names = ["prc" if name in ("precision", "recall") else name for name in bands]
    options = f"--metrics {' '.join(dict.fromkeys(names))}"
    of_samples = [band for name, band in bands.items() if name not in ("nll", "elbo")]
    for band in of_samples[:1]:
        options += f" --num_samples {band.num_samples}"
        options += "" if band.split in (None, "train", FOREIGN) else f" --split {band.split}"
        options += " --reference FILE" if band.split == FOREIGN else ""
        options += "" if band.by is None else f" --extractor {band.by}"
    return options
