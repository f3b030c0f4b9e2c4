"""What a process takes of its machine."""

import resource
import sys

import torch


def peak_memory() -> dict[str, int | None]:
    """Of this process since it began, in bytes: resident, and allocated on the current CUDA device."""
    unit = 1 if sys.platform == "darwin" else 1024
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"rss": rss, "cuda": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None}
