"""Run an evaluation: from a plan, a pipeline and data to results.

samples   -> features -> fid, sfid, is, kid, cmmd, precision, recall; of points energy, mmd, sliced, precision, recall
          -> fields   -> moments, marginals, spectrum, energy
examples  -> −log p (nll), its variational bound (elbo); ensembles of samples under their conditions (crps, spread)
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from torch import Tensor

from ..callbacks.sample_writer import Drawer, Drawn, draw, drawing_trainer, gathered
from ..data import DataModule
from ..metrics.extractors import identity
from ..pipeline import Pipeline
from ..runtime.devices import device_of
from ..runtime.processes import leave_group
from ..runtime.provenance import describe
from ..runtime.startup import say
from .classes import Classes, with_labels
from .features import Features, note_of
from .fields import (
    ENSEMBLES,
    UNITS,
    EnsembleRows,
    check_ensemble,
    ensemble_results,
    field_results,
)
from .floor import floor
from .likelihood import BoundRows, LikelihoodRows, bound_result, count, likelihood_result, refuse_missing, unit_of
from .outcome import Results, extractor_on, measure
from .plan import Plan
from .reference import Reference, read_reference
from .results import Result, SampleResult
from .samples import check_features, kind_of

MEMORY = 2**30  # bytes of the examples' conditions
CHAIN_STEPS = 1000  # of ChainBound, where neither it nor the schedule says how many


def run(
    pipeline: Pipeline,
    data: DataModule,
    plan: Plan | None = None,
    *,
    checkpoint: str | None = None,
    scale: float | None = None,
    accelerator: str = "auto",
) -> Results:
    """Measure a model on one device, keeping nothing on disk; see `Evaluation`."""
    evaluation = Evaluation(pipeline, data, plan or Plan(), checkpoint, scale, accelerator)
    with TemporaryDirectory(prefix="diffusion_pl-") as folder:
        results = evaluation.run(Path(folder))
    assert results is not None
    return results


class Evaluation:
    """A plan for a pipeline and its data, checked, so that what is wrong shows before anything is drawn.

    Args:
        pipeline: with sampler, guidance and conditions as they are to be measured.
        data: of the model; they are read (`setup`) if the plan needs them.
        plan: what is measured.
        checkpoint: name of the pipeline's checkpoint, for the record.
        scale: of the pipeline's guidance, for the record; None: none.
        accelerator: "cpu", "cuda", "mps", or "auto": cuda where there is one, else cpu.
        prepare: whether the data may fetch what they need first (`prepare_data`).
        cond: conditions of the pipeline that all samples have, for the record; None: none.

    Raises:
        ValueError: the plan does not suit the data or the conditions, a split is empty, or the reference was made
            otherwise.
        FileNotFoundError: the reference or the data are missing.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        data: DataModule,
        plan: Plan,
        checkpoint: str | None = None,
        scale: float | None = None,
        accelerator: str = "auto",
        prepare: bool = False,
        cond: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipeline, self.data, self.plan = pipeline.with_seed(plan.seed), data, plan
        self.device = device_of(accelerator)
        data.to(self.device)
        self.kind = kind_of(data)
        self.of_samples, self.of_data = plan.names(self.kind)
        if pipeline.cond and self.of_data:
            raise ValueError(
                f"cond: {', '.join(self.of_data)} take the conditions of their examples, and --cond gives all samples "
                "the same. Fix: remove --cond, or these from --metrics"
            )
        self.ensembles = [name for name in self.of_data if name in ENSEMBLES]
        self.features = Features(
            data.image_shape or data.shape,
            data.units,
            extractor_on(plan, self.device) if self.kind == "images" and self.of_samples else None,
        )
        check_features(self.of_samples, self.features)
        self.extractor = None if self.features.extractor is None else identity(self.features.extractor)
        splits = [plan.split] if self.of_samples and plan.reference is None else []
        splits += [plan.likelihood_split] if self.of_data else []
        if splits and prepare:
            data.prepare_data()
        if splits:
            data.setup("fit")
        if self.of_samples and plan.reference is None:
            data.originals.setup("fit")
        self.classes: Classes | None = None
        given = self._choose_conditions() if self.of_samples else {}
        for split in splits:
            next(data.batches(split, 1))  # an empty one is an error now, not after the sampling
        if self.of_data:
            refuse_missing(data, plan.likelihood_split)
        like = data.originals
        self.made_with = {"extractor": self.extractor, "shape": list(like.shape), "levels": like.units.levels}
        self.reference = None
        if plan.reference is not None and self.of_samples:
            self.reference = read_reference(
                plan.reference, self.made_with, self.features, self.of_samples, plan.trust_pickle
            )
        self.bound = plan.bound.on(pipeline.schedule, CHAIN_STEPS) if "elbo" in self.of_data else plan.bound
        self.examples = count(data, plan.likelihood_split, plan.likelihood_examples) if self.of_data else 0
        for name in self.ensembles:
            check_ensemble(name, pipeline, self.examples)
        self.model: dict[str, Any] = {"checkpoint": checkpoint, "sha256": pipeline.sha256, "weights": pipeline.weights}
        self.model |= {"scale": scale, "seed": plan.seed, **given, **({"cond": dict(cond)} if cond else {})}

    def _choose_conditions(self) -> dict[str, str]:
        """Give the samples conditions in turn, and labels; what they are, for the record."""
        plan, data, given = self.plan, self.data, dict[str, str]()
        in_turn = [n for n, c in self.pipeline.conditions.items() if c.shape and n not in self.pipeline.cond]
        if plan.reference is None and in_turn:
            turns = data.conditions_of(plan.split, plan.num_samples, MEMORY)
            given = {"conditions": f"{len(next(iter(turns.values()))):,} examples of the {plan.split} split in turn"}
            self.pipeline = self.pipeline.with_turns(turns)
        self.pipeline, labels = with_labels(self.pipeline, plan.labels, plan.repeats * self._padded, plan.seed)
        if plan.per_class:
            if self.kind != "images":
                raise ValueError(f"per_class is for images, and these data are {self.kind}. Fix: leave --per_class out")
            self.classes = Classes.of(self.pipeline, data, plan.split, (plan.repeats, self._padded))
        return given | labels

    @property
    def call(self) -> dict[str, Any]:
        """Everything that the results depend on, as plain values."""
        plan = self.plan
        likelihood, bound = "nll" in self.of_data, "elbo" in self.of_data
        return {
            **self.model,
            "metrics": [*self.of_samples, *self.of_data],
            "repeats": plan.repeats,
            "per_class": plan.per_class,
            "sampler": describe(self.pipeline.sampler) if self.of_samples or self.ensembles else None,
            "num_samples": plan.num_samples if self.of_samples else None,
            "extractor": self.extractor,
            "reference": plan.split if self.reference is None else self.reference.note,
            "likelihood": describe(plan.likelihood) if likelihood else None,
            "dequantizations": plan.dequantizations if likelihood else None,
            "bound": describe(self.bound) if bound else None,
            "ensemble": plan.ensemble if self.ensembles else None,
            "examples": {"split": plan.likelihood_split, "n": self.examples} if self.of_data else None,
        }

    def run(self, work: Path, devices: int = 1) -> Results | None:
        """Draw everything, on all devices, then measure it, on one.

        Args:
            work: folder for what is drawn, from which an interrupted call continues.
            devices: how many of them draw, a process each.

        Returns:
            None in all processes but the first, which measures alone.
        """
        tasks = self._tasks()
        first = True
        for name, task in tasks.items():
            trainer = drawing_trainer(self.device.type, devices)
            first = draw(task.drawer, task.n, work / name, trainer, task.batch, task.convert, task.size)
        leave_group()
        if not first:
            return None
        drawn = {name: gathered(work / name, task.n) for name, task in tasks.items()}
        metrics: dict[str, Result] = {}
        reference = None
        if "samples" in drawn:
            of_samples, reference = self._sample_results(drawn["samples"])
            metrics |= of_samples
        metrics |= self._data_results({name: rows for name, rows in drawn.items() if name != "samples"})
        return Results(metrics, reference, self.made_with)

    @property
    def _padded(self) -> int:
        """Samples drawn for a repeat: as many whole blocks as hold its samples."""
        return -(-self.plan.num_samples // self.pipeline.block) * self.pipeline.block

    def _tasks(self) -> dict[str, "_Task"]:
        """What is to be drawn, by the name of its folder."""
        plan, pipeline, split = self.plan, self.pipeline, self.plan.likelihood_split
        tasks = {}
        if self.of_samples:
            n, size = plan.repeats * self._padded, 4 * math.prod(pipeline.shape)
            convert = None if self.kind == "fields" else self.features
            tasks["samples"] = _Task(Drawer(pipeline), n, plan.batch_size, convert, size)
        if "nll" in self.of_data:
            options = {"repeats": plan.repeats, "dequantizations": plan.dequantizations, "seed": plan.seed}
            tasks["nll"] = _Task(LikelihoodRows(pipeline, self.data, split, plan.likelihood, **options), self.examples)
        if "elbo" in self.of_data:
            tasks["elbo"] = _Task(BoundRows(pipeline, self.data, split, self.bound, plan.seed), self.examples)
        if self.ensembles:
            rows = EnsembleRows(pipeline, self.data, split, plan.ensemble, plan.repeats)
            tasks["ensemble"] = _Task(rows, self.examples)
        return tasks

    def _sample_results(self, drawn: Drawn) -> tuple[Mapping[str, SampleResult], Reference | None]:
        """The results of samples, and the reference if fid was measured against the data."""
        say(f"computing {', '.join(self.of_samples)} …")
        samples = drawn.x.numpy().reshape(self.plan.repeats, self._padded, *drawn.x.shape[1:])
        samples = samples[:, : self.plan.num_samples]
        model = {**self.model, "sampler": describe(self.pipeline.sampler), "nfe": drawn.nfe}
        if self.kind == "fields":
            return field_results(self.of_samples, samples, self.data, self.plan.split, model), None
        against = self.data.originals if self.reference is None else self.reference
        results, made = measure(
            self.of_samples, samples, self.features, against, self.plan.split, self.made_with, model, self.classes
        )
        if isinstance(against, DataModule) and against is not self.data:
            results |= floor(self.data, self.features, self.plan, results, self.model)
        return results, made

    def _data_results(self, drawn: Mapping[str, Drawn]) -> dict[str, Result]:
        """The results of data from the rows of their examples, by metric."""
        if not drawn:
            return {}
        rows = {name: part.x.numpy() for name, part in drawn.items()}
        plan, data, unit = self.plan, self.data, unit_of(self.data)
        protocol: dict[str, Any] = {"examples": self.examples, "data": note_of(data, plan.likelihood_split)}
        protocol["levels"] = data.units.levels
        protocol["value_range"] = None if data.units.value_range is None else list(data.units.value_range)
        results: dict[str, Result] = {}
        if "nll" in rows:
            own = {"estimator": describe(plan.likelihood), "dequantizations": plan.dequantizations}
            results["nll"] = likelihood_result(rows["nll"], unit, {**protocol, **own}, self.model)
        if "elbo" in rows:
            own, t = {"bound": describe(self.bound)}, self.bound.visited(self.pipeline.schedule)
            results["elbo"] = bound_result(rows["elbo"], t, unit, {**protocol, **own}, self.model)
        if "ensemble" in rows:
            own = {"ensemble": plan.ensemble, "units": UNITS}
            model = {**self.model, "sampler": describe(self.pipeline.sampler), "nfe": drawn["ensemble"].nfe}
            each = rows["ensemble"].reshape(len(rows["ensemble"]), plan.repeats, data.shape[0], -1)
            made = ensemble_results(each, {**protocol, **own}, model)
            results |= {name: made[name] for name in self.ensembles}
        return results


class _Task(NamedTuple):
    """n rows that a drawer makes, `batch` of them between two savings; convert and size: see `draw`."""

    drawer: LightningModule
    n: int
    batch: int = 1
    convert: Callable[[Tensor], Tensor] | None = None
    size: int = 4
