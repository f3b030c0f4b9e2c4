"""python -m diffusion_pl evaluate: how good a model is, in figures that say how they were measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from .. import metrics as _metrics  # noqa: F401  short names
from ..elbo import ChainBound, ContinuousBound
from ..grids import Grid
from ..likelihood import FlowLikelihood
from ..samplers import Sampler


def evaluate(
    ckpt_path: Path,
    metrics: list[str] | None = None,
    num_samples: int = 1000,
    repeats: int = 1,
    output: Path = Path("evaluation"),
    seed: int = 0,
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    scale: float | None = None,
    extractor: nn.Module | None = None,
    reference: Path | None = None,
    split: str = "train",
    likelihood: FlowLikelihood | None = None,
    likelihood_split: str = "test",
    likelihood_examples: int | None = None,
    dequantizations: int = 1,
    bound: ChainBound | ContinuousBound | None = None,
    weights: str = "ema",
    batch_size: int = 250,
    accelerator: str = "auto",
    devices: int = 1,
) -> None:
    """Measure a model: samples against the data, and the likelihood of the data under it.

    Writes evaluation.json, in which every figure says how many samples, which features and weights, which data and
    split, which sampler it is of, and prints a table.  `compare` sets two of them side by side.  A call that was
    interrupted goes on where it stopped when it is repeated.

    Args:
        ckpt_path: A checkpoint of a run.
        metrics: Of pictures fid, is, kid, prc (precision and recall); of points energy, mmd, sliced, prc; of both nll
            (probability-flow ODE) and elbo (variational bound).  None: all but the last two.
        num_samples: In each repeat; published figures of pictures take 50,000.
        repeats: Sets of other samples (and other noise of the likelihood), for a mean and a spread.
        output: Folder for the files.
        seed: Of samples and noise.
        sampler: Another rule than the checkpoint's, such as DPMpp; its own options as --sampler.order 3.
        grid: Another grid of times; its own options as --grid.rho 7.
        steps: Number of points of the grid.
        scale: Guidance w of a model of classes.
        extractor: Network of features: InceptionV3 (the default; with --extractor.weights FILE where no network is),
            DigitsClassifier, or any module by class path that maps uint8 pictures to rows.
        reference: reference.npz of another evaluation, where the data are not at hand; for fid alone.
        split: Of the data, that samples are measured against.
        likelihood: How nll is integrated, such as FlowLikelihood; its options as --likelihood.probes 4.
        likelihood_split: Of the data, for nll and elbo.
        likelihood_examples: The first so many only; None: all.
        dequantizations: K noises for each example of quantised data; more than 1 is the tighter, importance-weighted.
        bound: ContinuousBound or ChainBound (--bound.steps 1000, --bound.variance 1); None: ContinuousBound.
        weights: "ema" (the run's first average), "raw", or "ema:0.999" for one of several averages.
        batch_size: Samples between two savings.
        accelerator: "cpu", "cuda", "mps", or "auto" for the best there is.
        devices: On how many of them the samples are drawn, a process each.
    """
    numbers: dict[str, int | None] = {"num_samples": num_samples - 1, "repeats": repeats, "batch_size": batch_size}
    numbers |= {"dequantizations": dequantizations, "devices": devices, "steps": steps}
    numbers["likelihood_examples"] = likelihood_examples
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least {2 if name == 'num_samples' else 1}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if (output / "evaluation.json").exists():
        raise ValueError(f"{output / 'evaluation.json'} exists already: name another folder with --output")
    import json
    import shutil
    import sys

    import numpy as np
    import torch

    from .. import __version__, evaluation
    from ..callbacks.sample_writer import UNFINISHED, SampleWriter, draw, resume
    from ..console import quiet
    from ..data import Images
    from ..drawing import choose_sampler, describe, device_of, fingerprint, guide
    from ..loading import load
    from ..metrics import InceptionV3, SlicedWasserstein, points
    from ..metrics.extractors import identity
    from ..metrics.generation import check_names, enough, fid, scores

    quiet()
    model, data = load(ckpt_path, weights)
    model.sampler = choose_sampler(model, sampler, grid, steps)
    guide(model, scale)
    model.requires_grad_(False)
    pictures = isinstance(data, Images)
    of_samples = ["fid", "is", "kid", "prc"] if pictures else ["energy", "mmd", "sliced", "prc"]
    wanted = of_samples if metrics is None else list(dict.fromkeys(metrics))
    wrong = next((name for name in wanted if name not in (*of_samples, "nll", "elbo")), None)
    if wrong is not None or not wanted:
        kind = "pictures" if pictures else "points"
        raise ValueError(f"there is no metric {wrong!r} of {kind}, only {', '.join([*of_samples, 'nll', 'elbo'])}")
    generated = [name for name in wanted if name in of_samples]
    if reference is not None and generated not in ([], ["fid"]):
        raise ValueError("reference holds moments only: --metrics fid (and nll, elbo); the others need the data")
    if generated and pictures and extractor is None:
        extractor = InceptionV3()
    if not pictures:
        extractor = None
    if extractor is not None:
        extractor = extractor.eval().requires_grad_(False).to(device_of(accelerator))
    told = None if extractor is None else identity(extractor)
    likelihood, bound = likelihood or FlowLikelihood(), bound or ContinuousBound()
    if reference is None or not generated or len(wanted) > len(generated):
        data.setup("fit")
        for name in ([split] if reference is None and generated else []) + (
            [likelihood_split] if len(wanted) > len(generated) else []
        ):
            next(data.batches(name, 1))  # told now, not after the sampling
    moments, reference_note = None, {}
    if reference is not None:
        reference_note, moments = _read_reference(reference, told, list(data.shape), data.levels or 0)
    judged: dict[str, Any] = {
        "checkpoint": str(ckpt_path),
        "sha256": fingerprint(ckpt_path),
        "weights": model.weights_name,
        "scale": scale,
        "seed": seed,
    }
    call = {**judged, "sampler": describe(model.sampler), "extractor": told, "num_samples": num_samples}
    call |= {
        "repeats": repeats,
        "split": likelihood_split,
        "likelihood": describe(likelihood),
        "bound": describe(bound),
    }
    call |= {"dequantizations": dequantizations, "likelihood_examples": likelihood_examples}
    rows, nfe = np.zeros((0, 1)), 0
    if generated:
        # Of each repeat as many whole blocks as hold its samples.
        padded = -(-num_samples // model.block) * model.block
        data.predict_samples, data.predict_batch, model.sample_seed = repeats * padded, batch_size, seed

        def keep(x: torch.Tensor, folder: Path) -> list[Path]:
            np.save(folder / "rows.npy", x.numpy())
            return [folder / "rows.npy"]

        drawn = output / "samples"
        writer = SampleWriter(keep, drawn, repeats * padded, evaluation.to_features(data, extractor))
        if not (drawn / "rows.npy").is_file():
            data.predict_done = resume(drawn, call, "name another folder with --output")
            if not draw(model, data, writer, accelerator, devices):
                return
            (drawn / "call.json").write_text(json.dumps({**call, "nfe": writer.nfe}))
        before = json.loads((drawn / "call.json").read_text())
        nfe = before.pop("nfe")
        if before != json.loads(json.dumps(call)):
            raise ValueError(f"{output} holds the samples of another call: name another folder with --output")
        rows = np.load(drawn / "rows.npy", mmap_mode="r").reshape(repeats, padded, -1)[:, :num_samples]
    figures: dict[str, evaluation.Figure] = {}
    bad = 0
    if generated:
        sampled = {**judged, "sampler": describe(model.sampler), "nfe": nfe}
        protocol: dict[str, Any] = {"num_samples": num_samples}
        if pictures:
            protocol |= {"extractor": told, "quantisation": f"uint8, lossless, from {data.levels} levels"}
        else:
            protocol["units"] = "model units: unit variance per axis"
        theirs = None
        if moments is not None:
            protocol["reference"] = reference_note
        else:
            theirs, protocol["reference"] = evaluation.reference_rows(data, split, extractor)
        dim = evaluation.width_of(extractor, data)
        warning = enough(num_samples, dim) if "fid" in generated else None
        if warning:
            print(f"diffusion_pl: warning: {warning}", file=sys.stderr)
        found: dict[str, list[float]] = {}
        notes: dict[str, dict[str, Any]] = {}
        keep_rows = generated != ["fid"]
        real = None if theirs is None else evaluation.statistics(theirs, dim, keep_rows)
        for repeat in range(repeats):
            own = evaluation.statistics(rows[repeat], dim, keep_rows)
            bad += int(own.bad)
            if pictures:
                check_names(generated)
                if moments is not None:
                    measured = {"fid": {"value": fid(own.compute(), moments)}}
                else:
                    assert real is not None
                    measured = scores(generated, own, real)
            else:
                assert theirs is not None
                x, y = own.kept()[0], torch.from_numpy(np.array(theirs))
                measured = {}
                if "energy" in generated:
                    measured["energy"] = {"value": points.energy_distance(x, y)}
                if "mmd" in generated:
                    measured["mmd"] = {"value": points.mmd(x, y)}
                if "sliced" in generated:
                    measured["sliced"] = {"value": SlicedWasserstein(y)(x)}
                if "prc" in generated:
                    precision, recall = points.precision_recall(x, y)
                    measured["precision"] = {"value": precision, "neighbours": 3}
                    measured["recall"] = {"value": recall, "neighbours": 3}
            for name, result in measured.items():
                found.setdefault(name, []).append(result.pop("value"))
                notes[name] = {k: v for k, v in result.items() if not k.startswith("std")}
        for name, values in found.items():
            figures[name] = evaluation.figure(values, "", {**protocol, **notes[name]}, sampled, not_finite=bad)
    if "nll" in wanted or "elbo" in wanted:
        model.to(device_of(accelerator))
        kept = evaluation.Kept(output / UNFINISHED)
        resume(output, call, "name another folder with --output")
        _, data_note = evaluation.reference_rows(data, likelihood_split, None)
        count = evaluation.count(data, likelihood_split, likelihood_examples)
        common = {"examples": count, "data": data_note, "levels": data.levels, "value_range": data.value_range}
        common["value_range"] = None if data.value_range is None else list(data.value_range)
        if "nll" in wanted:
            options: dict[str, Any] = {"repeats": repeats, "dequantizations": dequantizations, "seed": seed}
            each, spent = evaluation.likelihood(
                model, data, likelihood_split, likelihood_examples, likelihood, kept=kept, **options
            )
            error = float(each.mean(0).std()) / count**0.5 if count > 1 else None
            figures["nll"] = evaluation.figure(
                each.mean(1).tolist(),
                evaluation.unit_of(data),
                {**common, "estimator": describe(likelihood), "dequantizations": dequantizations},
                {**judged, "nfe": float(spent.mean())},
                standard_error=error,
                interval_95=None if error is None else [float(each.mean()) + side * 1.96 * error for side in (-1, 1)],
            )
        if "elbo" in wanted:
            parts, t, terms, spent_bound = evaluation.bound(
                model, data, likelihood_split, likelihood_examples, bound, seed=seed, kept=kept
            )
            total = sum(parts.values(), torch.zeros(()))
            error = float(total.std()) / count**0.5 if count > 1 else None
            figures["elbo"] = evaluation.figure(
                [float(total.mean())],
                evaluation.unit_of(data),
                {**common, "bound": describe(bound)},
                {**judged, "nfe": spent_bound},
                standard_error=error,
                parts={name: float(value.mean()) for name, value in parts.items()},
                terms={"t": t.tolist(), "value": terms.tolist()},
            )
    output.mkdir(parents=True, exist_ok=True)
    files = [output / "evaluation.json"]
    if "fid" in generated and real is not None:
        m = real.compute()
        note = {**protocol["reference"], "extractor": told, "shape": list(data.shape), "levels": data.levels}
        np.savez(output / "reference.npz", n=m.n, mean=m.mean.numpy(), cov=m.cov.numpy(), note=json.dumps(note))
        files.append(output / "reference.npz")
    (output / "evaluation.json").write_text(json.dumps({"version": __version__, "figures": figures}, indent=2) + "\n")
    for folder in (output / "samples", output / UNFINISHED):
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{ckpt_path} ({model.weights_name} weights)")
    print(table(figures))
    for file in files:
        print(f"  {file}")
    if bad:
        raise ValueError(
            f"{bad} of {repeats * num_samples} samples are not finite and were left out of the figures: the model or "
            "its sampler diverges (look at `sample`, or take more --steps)"
        )


def table(figures: dict[str, Any]) -> str:
    """The figures in lines: name, value ± what is known of its error, unit, and what it is of."""
    lines = []
    for name, f in figures.items():
        error = f["std"] if f["std"] is not None else f.get("standard_error")
        number = f"{f['value']:.5g}" + (f" ± {error:.2g}" if error is not None else "")
        protocol = f["protocol"]
        told = (
            f"{protocol['num_samples']:,} samples"
            if "num_samples" in protocol
            else f"{protocol['examples']:,} examples"
        )
        data = protocol.get("reference") or protocol["data"]
        lines.append(
            f"  {name:<10} {number:<20} {f['unit']:<9} {told}, {data['data']} {data['split']}, "
            f"NFE {f['model']['nfe']:.4g}"
        )
    return "\n".join(lines)


def _read_reference(path: Path, extractor: dict[str, Any] | None, shape: list[int], levels: int) -> Any:
    """What a reference.npz is of, and its moments; ValueError if they are of other features or other pictures."""
    import json

    import numpy as np
    import torch

    from ..metrics.generation import Moments

    try:
        with np.load(path, allow_pickle=False) as file:
            moments = Moments(int(file["n"]), torch.from_numpy(file["mean"]), torch.from_numpy(file["cov"]))
            note = json.loads(str(file["note"]))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no reference.npz that `evaluate` wrote: {error}") from error
    now = {"extractor": extractor, "shape": shape, "levels": levels}
    for name, value in now.items():
        theirs = note.pop(name)
        if theirs != value:
            raise ValueError(
                f"{path} was made with another {name} ({theirs}, here {value}): make it anew from the data"
            )
    return note, moments
