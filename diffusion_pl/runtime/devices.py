"""Devices by their names, and memory of a training loop on the CPU."""

import contextlib
import ctypes

import torch

from .limits import check_accelerator
from .parsing import wrong

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step instead of giving it back to the system.

    A training step frees and asks again for the same tensors.  By default those of more than a few hundred kilobytes
    come as fresh pages each time, whose faults cost a small network on the CPU up to a third of its step.  Up to 1 GiB
    is kept, tensors of up to 32 MiB (glibc's limit) are concerned.  Does nothing where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def device_of(accelerator: str) -> torch.device:
    """The torch device of "cpu", "gpu" (or "cuda"), "mps", or "auto": a GPU of CUDA where there is one, else cpu.

    Apple's GPUs (mps) have no float64, in which beta schedules are kept.
    """
    device = check_accelerator(accelerator, "accelerator")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise wrong("accelerator", f"{accelerator} cannot be used: {str(error).splitlines()[0]}") from error
