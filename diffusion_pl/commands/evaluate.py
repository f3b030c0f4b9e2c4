"""python -m diffusion_pl evaluate: how good a model is, in figures that say how they were measured."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..likelihood import ChainBound, ContinuousBound, FlowLikelihood
from ..metrics import InceptionV3
from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from numpy.typing import NDArray

    from ..data import DataModule
    from ..evaluation import Figure
    from ..metrics import FeatureStatistics

OF_DATA = ("nll", "elbo")


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
    extractor: InceptionV3 | nn.Module | None = None,
    reference: Path | None = None,
    split: str = "train",
    likelihood: FlowLikelihood | None = None,
    likelihood_split: str = "test",
    likelihood_examples: int | None = None,
    dequantizations: int = 1,
    bound: ChainBound | ContinuousBound | None = None,
    data_: dict[str, str | list[Any]] | None = None,
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
        steps: Number of points of the grid; without --grid they have equal shares of t (docs/pages/howto/sampler.md).
        scale: Guidance w of a model of classes.
        extractor: Network of features: InceptionV3 (the default; --extractor.weights FILE where no network is),
            DigitsClassifier, or any module by class path that maps uint8 pictures to rows.
        reference: reference.npz of another evaluation, where the data are not at hand; for fid alone.
        split: Of the data, that samples are measured against.
        likelihood: How nll is integrated, such as FlowLikelihood; its options as --likelihood.probes 4.
        likelihood_split: Of the data, for nll and elbo.
        likelihood_examples: The first so many only; None: all.
        dequantizations: K noises for each example of quantised data; more than 1 is the tighter, importance-weighted.
        bound: ContinuousBound or ChainBound (--bound.steps 1000, --bound.variance 1); None: ContinuousBound.
        data_: Options of the checkpoint's data in place of its own, as --data.path FOLDER or --data.download true.
        weights: "ema" (the run's first average), "raw", or "ema:0.999" for one of several averages.
        batch_size: Samples between two savings.
        accelerator: "cpu", "cuda", "mps", or "auto": cuda where there is one, else cpu.
        devices: On how many of them, a process each.
    """
    numbers: dict[str, int | None] = {"num_samples": num_samples - 1, "repeats": repeats, "batch_size": batch_size}
    numbers |= {"dequantizations": dequantizations, "devices": devices, "steps": steps}
    numbers["likelihood_examples"] = likelihood_examples
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least {2 if name == 'num_samples' else 1}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    from .. import __version__, evaluation
    from ..checkpoints.loading import load
    from ..evaluation.features import write_reference
    from ..metrics.extractors import identity
    from ..runtime.drawing import choose_sampler, describe, device_of, guide, not_finite_error
    from ..runtime.errors import quiet
    from ..runtime.limits import check_devices
    from ..runtime.output_folder import OutputFolder
    from ..runtime.processes import part, place
    from ..runtime.storage import write_json

    quiet()
    check_devices(devices, device_of(accelerator).type, "devices")
    model, data = load(ckpt_path, weights, data_)
    model.sampler = choose_sampler(model, sampler, grid, steps)
    guide(model, scale)
    model.requires_grad_(False)
    pictures = data.is_image
    generated, of_data = _plan(metrics, pictures, reference)
    extractor = (extractor or InceptionV3()) if pictures and generated else None
    if extractor is not None:
        extractor = extractor.eval().requires_grad_(False).to(device_of(accelerator))
    told = None if extractor is None else identity(extractor)
    likelihood, bound = likelihood or FlowLikelihood(), bound or ContinuousBound()
    splits = ([split] if generated and reference is None else []) + ([likelihood_split] if of_data else [])
    if splits:
        if data_:
            data.prepare_data()  # fetches them if --data.download says so
        data.setup("fit")
    for name in splits:
        next(data.batches(name, 1))  # told now, not after the sampling
    made_with = {"extractor": told, "shape": list(data.shape), "levels": data.units.levels}
    given = None if reference is None else evaluation.read_reference(reference, made_with)
    judged: dict[str, Any] = {"checkpoint": str(ckpt_path), "sha256": model.sha256}
    judged |= {"weights": model.weights_name, "scale": scale, "seed": seed}
    examples = evaluation.count(data, likelihood_split, likelihood_examples) if of_data else 0

    call: dict[str, Any] = {
        **judged,
        "metrics": [*generated, *of_data],
        "repeats": repeats,
        "sampler": describe(model.sampler) if generated else None,
        "num_samples": num_samples if generated else None,
        "extractor": told,
        "reference": split if given is None else given.note,
        "likelihood": describe(likelihood) if "nll" in of_data else None,
        "dequantizations": dequantizations if "nll" in of_data else None,
        "bound": describe(bound) if "elbo" in of_data else None,
        "examples": {"split": likelihood_split, "n": examples} if of_data else None,
        "data": data_ or None,
    }
    with OutputFolder(output, call, leader=not place()) as folder:
        if folder.published is None:
            # First everything that is drawn, on all devices, then the metrics, on one.
            drawn = _Drawn(data, folder.work, device_of(accelerator).type, devices)
            rows: dict[str, tuple[Any, float]] = {}
            if generated:
                # Of each repeat as many whole blocks as hold its samples.
                padded = -(-num_samples // model.block) * model.block
                model.sample_seed = seed
                convert = evaluation.to_features(data, extractor)
                found, nfe = drawn("samples", model, repeats * padded, batch_size, convert)
                rows["samples"] = (found if found is None else found.reshape(repeats, padded, -1)[:, :num_samples], nfe)
            options = {"repeats": repeats, "dequantizations": dequantizations, "seed": seed}
            makers: dict[str, Callable[[], LightningModule]] = {
                "nll": lambda: evaluation.LikelihoodRows(model, data, likelihood_split, likelihood, **options),
                "elbo": lambda: evaluation.BoundRows(model, data, likelihood_split, bound, seed),
            }
            for name in of_data:
                rows[name] = drawn(name, makers[name](), examples, 1)
            part()
            if not drawn.first:
                return
            figures: dict[str, Figure] = {}
            real: FeatureStatistics | None = None
            if generated:
                protocol: dict[str, Any] = {"num_samples": num_samples, "units": "model units: unit variance per axis"}
                if pictures:
                    quantised = f"uint8, lossless, from {data.units.levels} levels"
                    protocol = {"num_samples": num_samples, "extractor": told, "quantisation": quantised}
                sampled = {**judged, "sampler": describe(model.sampler), "nfe": rows["samples"][1]}
                dim = evaluation.width_of(extractor, data)
                figures, real = evaluation.of_samples(
                    generated, rows["samples"][0], data, extractor, dim, split, given, protocol, sampled
                )
            if of_data:
                _, data_note = evaluation.reference_rows(data, likelihood_split, None)
                common = {"examples": examples, "data": data_note, "levels": data.units.levels}
                common["value_range"] = None if data.units.value_range is None else list(data.units.value_range)
                if "nll" in of_data:
                    about = {**common, "estimator": describe(likelihood), "dequantizations": dequantizations}
                    figures["nll"] = evaluation.nll(rows["nll"][0], evaluation.unit_of(data), about, judged)
                if "elbo" in of_data:
                    t = bound.visited(model.schedule)
                    about = {**common, "bound": describe(bound)}
                    figures["elbo"] = evaluation.elbo(rows["elbo"][0], t, evaluation.unit_of(data), about, judged)

            def write(stage: Path) -> list[Path]:
                write_json(stage / "evaluation.json", {"version": __version__, "figures": figures})
                if real is None or "fid" not in generated:
                    return [stage / "evaluation.json"]
                noted = evaluation.Reference(real.compute(), figures["fid"]["protocol"]["reference"])
                write_reference(stage / "reference.npz", noted, made_with)
                return [stage / "evaluation.json", stage / "reference.npz"]

            summary = f"{ckpt_path} ({model.weights_name} weights)\n{evaluation.table(figures)}"
            bad = max((f.get("not_finite", 0) for f in figures.values()), default=0)
            folder.publish(write, summary, not_finite_error(bad, repeats * num_samples))
        folder.show()


def _plan(metrics: list[str] | None, pictures: bool, reference: Path | None) -> tuple[list[str], list[str]]:
    """The metrics of samples and those of data that are asked for; ValueError for one that there is not."""
    from ..metrics import generation, points

    of_samples = generation.NAMES if pictures else points.NAMES
    wanted = list(of_samples) if metrics is None else list(dict.fromkeys(metrics))
    wrong = next((name for name in wanted if name not in (*of_samples, *OF_DATA)), None)
    if wrong is not None or not wanted:
        kind = "pictures" if pictures else "points"
        raise ValueError(f"there is no metric {wrong!r} of {kind}, only {', '.join([*of_samples, *OF_DATA])}")
    generated = [name for name in wanted if name in of_samples]
    if reference is not None and generated not in ([], ["fid"]):
        raise ValueError("reference holds moments only: --metrics fid (and nll, elbo); the others need the data")
    return generated, [name for name in wanted if name in OF_DATA]


class _Drawn:
    """Rows of numbers, drawn on all devices into a folder each, once: an interrupted call goes on from them.

    Attributes:
        first: whether this is the first process, which computes metrics of them; the others get None for rows.
    """

    def __init__(self, data: "DataModule", folder: Path, accelerator: str, devices: int) -> None:
        self.data, self.folder = data, folder
        self.accelerator, self.devices = accelerator, devices
        self.first = True

    def __call__(
        self,
        name: str,
        module: "LightningModule",
        n: int,
        batch: int,
        convert: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple["NDArray[Any] | None", float]:
        """n rows that the module makes, and the evaluations of the denoiser that a sample took."""
        from ..callbacks.sample_writer import draw, gathered

        self.data.predict_samples, self.data.predict_batch = n, batch
        parts = self.folder / name
        self.first = draw(module, self.data, parts, self.accelerator, self.devices, convert)
        if not self.first:
            return None, 0
        drawn = gathered(parts, n)
        return drawn.x.numpy(), drawn.nfe
