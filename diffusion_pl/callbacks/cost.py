"""Measure a training step of a few examples: its time, and the memory that it keeps for the backward pass."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ..checks.cost import Length, Need, Speed
from ..data import DataModule
from ..runtime.usage import free_memory
from ..training import Trainable

#: Seconds of a step of one example from which on no more than two are measured.
SLOW = 0.5


def examples(data: DataModule, count: int, device: torch.device) -> dict[str, Tensor]:
    """The first training examples in model units, with all that their augmentation adds: {"x": (B, *), …}.

    Its draws are not training's, whose order they would change.
    """
    split, change = data.part("train"), data.augmentation
    stored = split.__getitems__(torch.arange(min(count, len(split))))
    if change is not None:
        stored = change(stored, torch.full((len(stored["x"]), change.draws), 0.5))
    return {name: value.to(device) for name, value in data.on_after_batch_transfer(stored, 0).items()}


def length_of(trainer: Trainer, data: DataModule) -> Length:
    """How long a run is."""
    accumulated = trainer.accumulate_grad_batches
    return Length(trainer.max_steps, data.batch_size, accumulated, trainer.world_size, len(data.part("train")))


def measure_step(trainer: Trainer, module: Trainable, data: DataModule) -> tuple[Need, Speed | str, int | None]:
    """Memory and time of a training step, and the free memory of its device, in bytes.

    The model's weights, and the state of its loss, are changed: it is not trained afterwards.

    Args:
        trainer: of the run, for its device and precision.
        module: is moved to that device.
        data: set up.
    """
    parameters = list(module.trained_parameters().values())
    optimizer = module.optimizer_factory(parameters)
    weights = sum(p.numel() * p.element_size() for p in parameters)
    kept = 2 if "betas" in optimizer.defaults else 1
    need = Need(weights, weights, kept * weights, len(module.averages.tracked) * weights)
    device, length = trainer.strategy.root_device, length_of(trainer, data)
    free = free_memory(device)
    if free is not None and need.state > free:
        return need, "the weights and what training keeps of them do not fit", free
    module.to(device).train()
    optimizer = module.optimizer_factory(parameters)

    def step(count: int) -> float:
        """Seconds of a step."""
        batch = examples(data, count, device)
        _wait(device)
        start = time.perf_counter()
        with trainer.precision_plugin.train_step_context():
            loss = module.losses(batch).loss.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        return time.perf_counter() - start

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            saved = [_saved(lambda: step(1)), _saved(lambda: step(2))]
            need = need._replace(example=max(0, saved[1] - saved[0]))
            first, most = min(step(1) for _ in range(2)), min(length.share, length.examples)
            if device.type != "cuda" or (free is not None and need.state + (need.example or 0) * most > free):
                most = min(most, 2 if first > SLOW else 8)  # a GPU is not busy with a few examples
            further = (min(step(most) for _ in range(2)) - first) / (most - 1) if most > 1 else 0.0
        except (RuntimeError, ValueError, NotImplementedError) as error:
            return need, " ".join(str(error).split())[:120], free
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return need, Speed(first, max(0.0, further), name, most), free


def _saved(step: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass in a call, each storage once."""
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # or the memory of one could be used again for another

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        held.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        step()
    return sum(sizes.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
