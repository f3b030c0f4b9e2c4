"""List the image files of a folder, each once even with links, and find copies."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from .base import say
from .opening import endings, in_parallel


class Listing(NamedTuple):
    """The files of a folder.

    files: image files, sorted;  others: files of other kinds by their endings;  links: links to files and folders that
    are listed already.
    """

    files: list[Path]
    others: Counter[str]
    links: int


def list_images(folder: Path) -> Listing:
    """Image files in a folder and the folders within, without hidden ones.

    Each real folder and each real file is taken once (by device and inode): real ones before links, so that a file
    keeps its own name.  A link to a folder around this one leads nowhere.

    Raises:
        ValueError: a folder within cannot be read.
    """
    seen = {_identity(parent) for parent in folder.resolve().parents}
    files: list[Path] = []
    linked: list[Path] = []
    others: Counter[str] = Counter()
    repeated = 0
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for top in sorted(waiting):
            for root, folders, names in os.walk(top, onerror=_refuse):  # does not follow links
                if (identity := _identity(Path(root))) in seen:
                    repeated += 1
                    folders.clear()
                    continue
                seen.add(identity)
                # Editors and systems put copies of images into hidden folders.
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                links += (path for name in folders if (path := Path(root, name)).is_symlink())
                for path in (Path(root, name) for name in sorted(names) if not name.startswith(".")):
                    if path.suffix.lower() not in endings():
                        others[path.suffix.lower() or "without an ending"] += 1
                    elif path.is_symlink():
                        linked.append(path)
                    elif _add(path, seen):
                        files.append(path)
                    else:
                        repeated += 1
        waiting = links
    for path in sorted(linked):
        if _add(path, seen):
            files.append(path)
        else:
            repeated += 1
    return Listing(sorted(files), others, repeated)


def list_flat(folder: Path, *but: str) -> list[Path]:
    """Image files directly in a folder, sorted, without those of the names ``but``; says what is skipped.

    Raises:
        ValueError: there are none.
    """
    there = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    files = [path for path in there if path.suffix.lower() in endings() and path.name not in but]
    others = Counter(p.suffix.lower() or "without an ending" for p in there if p.suffix.lower() not in endings())
    rest = describe_rest(Listing(files, others, 0))
    if not files:
        raise ValueError(f"{folder}: no images in this folder{f', {rest}' if rest else ''}")
    if rest:
        say(f"{folder}: {rest}")
    return files


def describe_rest(listing: Listing) -> str | None:
    """What was skipped, in words; None: nothing."""
    total = sum(listing.others.values())
    parts = []
    if total:
        ordered = sorted(listing.others.items(), key=lambda item: (-item[1], item[0]))
        kinds = ", ".join(f"{number} {ending}" for ending, number in ordered[:8])
        more = ", …" if len(listing.others) > 8 else ""
        parts.append(f"{total} file{'s' * (total > 1)} skipped for their endings ({kinds}{more})")
    if listing.links:
        parts.append(f"{listing.links} link{'s' * (listing.links > 1)} to what is in the folder already skipped")
    return "; ".join(parts) or None


def copies(files: Sequence[Path]) -> Tensor | None:
    """For each file the index of the first with the same bytes: (n,), int64; None if all differ.

    Only files whose sizes are equal are read, and only those whose beginnings and ends are equal are read whole.
    """
    keys: dict[int, tuple[object, ...]] = dict.fromkeys(range(len(files)), ())
    candidates = list(keys)
    steps: list[Callable[[Path], object]] = [_size, _edges, _digest]
    for step in steps:
        values = in_parallel(_or_path(step), [files[i] for i in candidates], "looking for copies")
        for i, value in zip(candidates, values, strict=True):
            keys[i] = (*keys[i], value)
        count = Counter(keys[i] for i in candidates)
        candidates = [i for i in candidates if count[keys[i]] > 1]
    if not candidates:
        return None
    groups, first = torch.arange(len(files)), dict[tuple[object, ...], int]()
    for i in candidates:
        groups[i] = first.setdefault(keys[i], i)
    return groups


def _or_path(step: Callable[[Path], object]) -> Callable[[Path], object]:
    """A file that cannot be read has no copies: its own path is its key, and opening it will say why."""

    def key(path: Path) -> object:
        try:
            return step(path)
        except OSError:
            return str(path)

    return key


def _size(path: Path) -> object:
    return (path.is_file() and path.stat().st_size) or str(path)


def _edges(path: Path) -> object:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = file.read(4096)
        file.seek(max(0, size - 4096))
        return begin, file.read(4096)


def _digest(path: Path) -> object:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _add(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Note a file; False if it has been seen under another name."""
    try:
        status = path.stat()
    except OSError:  # a dangling link: opening it will say so
        return True
    identity = status.st_dev, status.st_ino
    # A file of one name is never a repetition: some network file systems have inode numbers that repeat.
    repeated = identity in seen and (status.st_nlink > 1 or path.is_symlink())
    seen.add(identity)
    return not repeated


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    # Some file systems of Windows have no inode numbers.
    return status.st_dev, status.st_ino or hash(os.path.realpath(folder))


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(
        f"{error.filename}: this folder cannot be read ({error.strerror}): change its permissions or move it elsewhere"
    ) from None
