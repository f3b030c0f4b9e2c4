"""The randomness of a training step as a function of (seed, batch, rank).

So t, ε and dropout of a step do not depend on what happened before it: a resumed run draws what the uninterrupted one
would have drawn, no generator's state needs saving, and no two processes share their noise.
"""

import os

import torch

from ..tensors import mix


def run_seed() -> int:
    """The seed of the whole run."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))  # where seed_everything leaves it


def reseed(run_seed: int, batch: int, rank: int, device: torch.device) -> None:
    """Set torch's global generators to what a training step draws from.

    Args:
        run_seed: of the whole run.
        batch: number of the batch, counted over the run from 0.
        rank: of the process.
        device: of the step.
    """
    seed = mix(run_seed, batch, rank)
    # torch.manual_seed would do the same fifty times slower: it also queues a call for every absent accelerator.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
