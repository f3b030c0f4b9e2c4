"""Untrusted numpy files: the header is compared with the file before anything is read."""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .opening import regular


class NumpyFile:
    """A .npy, which stays on the disk, or the arrays of an .npz, each read when asked for.

    Args:
        path: The file; what it is follows from its first bytes.

    Attributes:
        names: Of the arrays in an .npz; None: it is a .npy, which has one without a name.

    Raises:
        ValueError: it is neither, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] | None = None
        try:
            with regular(path).open("rb") as file:
                single = file.read(6) == b"\x93NUMPY"
            if not single:
                with zipfile.ZipFile(path) as members:
                    self.names = [name.removesuffix(".npy") for name in members.namelist() if name.endswith(".npy")]
        except Exception as error:  # zipfile raises nearly anything
            raise self._damaged(error) from None

    def array(self, name: str | None = None) -> NDArray[Any]:
        """The array of this name; None for that of a .npy.

        Raises:
            ValueError: its header declares more than the file holds or than fits in memory, or Python objects.
        """
        try:
            if name is None:
                with self.path.open("rb") as file:
                    self._check(file, self.path.stat().st_size)
                array: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
                return array
            with zipfile.ZipFile(self.path) as members:
                member = members.getinfo(f"{name}.npy")
                with members.open(member) as file:
                    self._check(file, member.file_size)
                if (free := _free_memory()) is not None and member.file_size > free:
                    raise _Refused(
                        f"array {name!r} needs {member.file_size / 2**30:,.1f} GiB of memory, {free / 2**30:,.1f} GiB "
                        "are free: save it as .npy, which is read from the disk as needed"
                    )
                with members.open(member) as file:
                    read: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
                    return read
        except _Refused as refused:
            raise ValueError(f"{self.path}: {refused}") from None
        except Exception as error:  # zipfile and numpy raise nearly anything
            raise self._damaged(error) from None

    def _check(self, file: Any, size: int) -> None:
        """Compare the header at the beginning of a file with the file's size in bytes."""
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise _Refused("holds Python objects, which can run code when read and are refused: save it as plain uint8")
        needed = math.prod(shape) * dtype.itemsize
        if min(shape, default=1) < 0 or needed > size:
            raise _Refused(
                f"not a numpy file, or damaged: its header declares {shape} of {dtype}, {needed:,} bytes, the file "
                f"holds {size:,}: create it again"
            )

    def _damaged(self, error: Exception) -> ValueError:
        reason = str(error).partition("\n")[0][:80] or type(error).__name__
        return ValueError(f"{self.path}: not a numpy file, or damaged ({reason}): create it again")


class _Refused(Exception):
    """Why an array is not read."""


def _free_memory() -> int | None:
    """Bytes of memory that can be had, or that there are; None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
