"""Private or undocumented API of torch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threading import Thread

    from torch import Tensor, device, dtype
    from torch.optim import Optimizer
    from torch.utils.tensorboard import SummaryWriter

_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def version(tensor: "Tensor") -> int:
    """How many times a tensor was changed in place: `Tensor._version`.  Read: torch 2.15."""
    return tensor._version


def norms(tensors: "list[Tensor]", kind: "dtype") -> "tuple[Tensor, ...]":
    """The L2 norm of each tensor, a scalar of the dtype `kind`, in a few kernels: `torch._foreach_norm`.

    `torch.nn.utils.get_total_norm` gives the norm of all of them only, summed on the device.  Read: torch 2.15.
    """
    import torch

    return tuple(torch._foreach_norm(tensors, 2, kind))


def lerp_(tensors: "list[Tensor]", ends: "list[Tensor]", weight: float) -> None:
    """tensors += weight · (ends − tensors), pair by pair, in place and in a few kernels: `torch._foreach_lerp_`.

    Read: torch 2.15.
    """
    import torch

    torch._foreach_lerp_(tensors, ends, weight)


def unscales_gradients(optimizer: "Optimizer") -> bool:
    """Whether the step of an optimizer divides the gradients by the scale of the loss itself, as fused ones do.

    `Optimizer._step_supports_amp_scaling`, which GradScaler asks for too.  Read: torch 2.15.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def tensor_makers() -> "dict[tuple[str, str], Any]":
    """What pickles of tensors and parameters call, by module and name: functions of `torch._utils`.

    They make a view of a storage, and run nothing else.  Read: torch 2.15.
    """
    from torch import _utils

    names = ("_rebuild_tensor_v2", "_rebuild_parameter")
    return {("torch._utils", name): getattr(_utils, name) for name in names}


def compile_modes() -> list[str]:
    """The modes of `torch.compile`: `torch._inductor.list_mode_options`, which its help names.  Read: torch 2.15."""
    from torch._inductor import list_mode_options

    return list(list_mode_options())


def seed_generators(seed: int, device: "device") -> None:
    """Seed torch's global generators of the CPU and of one device, fifty times as fast as `torch.manual_seed`.

    That one also queues a call for every absent accelerator.  `torch.cuda.default_generators` is not documented.  Read:
    torch 2.15.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def add_event(writer: "SummaryWriter", step: int | None = None, **content: Any) -> None:
    """Write an event that SummaryWriter has no method for, such as a GIF as it is: `SummaryWriter._get_file_writer`.

    Args:
        writer: of a TensorBoardLogger, its `experiment`.
        step: of the event.
        content: fields of tensorboard's Event, such as summary or session_log.

    Read: torch 2.15, tensorboard 2.21.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    files: Any = writer._get_file_writer()
    files.add_event(Event(**content), step)


def event_file(writer: "SummaryWriter") -> Path:
    """The file that a SummaryWriter writes to: `event_writer._file_name`.  Read: torch 2.15, tensorboard 2.21."""
    files: Any = writer._get_file_writer()
    return Path(files.event_writer._file_name)


def writes_events(thread: "Thread | None") -> bool:
    """Whether a thread is one that writes a SummaryWriter's events: tensorboard's class `_AsyncWriterThread`.

    Read: tensorboard 2.21.
    """
    return type(thread).__name__ == "_AsyncWriterThread"


def has_agent_store() -> bool:
    """Whether torchrun's agent hosts the store at which processes meet: TORCHELASTIC_USE_AGENT_STORE.

    Read: torch 2.15.
    """
    return os.environ.get(_AGENT_STORE) == str(True)


def meet_at_own_store(port: int) -> None:
    """Let torch bring the processes together at another port, where no agent hosts a store.

    MASTER_PORT, and TORCHELASTIC_USE_AGENT_STORE, by which torch would wait for the agent's.  Read: torch 2.15.
    """
    os.environ |= {"MASTER_PORT": str(port), _AGENT_STORE: str(False)}


def memory_asked(error: BaseException) -> str | None:
    """How much memory was asked for that is not there, "" if it is not said; None of any other error.

    The allocator of the CPU raises a RuntimeError, and neither it nor `OutOfMemoryError` has an attribute for the size.
    Read: torch 2.15.
    """
    text = str(error)
    if "can't allocate memory" in text:
        return ""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return text.partition("Tried to allocate ")[2].split(". ")[0]
    return None
