"""What a process takes of its machine, and what is left."""

import os
import resource
import sys
from pathlib import Path

import torch


def peak_memory() -> dict[str, int | None]:
    """Of this process since it began, in bytes: resident, and allocated on the current CUDA device."""
    unit = 1 if sys.platform == "darwin" else 1024
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"rss": rss, "cuda": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None}


def free_memory(device: torch.device) -> int | None:
    """Free memory of a device in bytes, of the machine for a CPU; None: not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
