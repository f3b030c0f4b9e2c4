"""Mark synthetic stand-in data by a note next to the files."""

from pathlib import Path

NOTE = "Drawings made by python -m diffusion_pl.data.synthetic {name}. They are not the real data set.\n"


def note_of(path: Path) -> Path:
    """Where the note of a file or folder is: next to it."""
    return path.with_name(f"{path.name}.STAND-IN.txt")


def tell_if_stand_in(path: Path) -> None:
    """Say so, once, on the first process, if these are not the real data."""
    if note_of(path).is_file():
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        rank_zero_only(print)(f"{path} is a synthetic stand-in, not the real data: its results mean nothing")


def stand_in_hint(path: Path) -> str:
    """How to do without the data of the VP-SDE seminar."""
    name = path.name.partition(".")[0].partition("_64")[0]
    known = {"shoes", "celeba_male", "anime", "church"}
    return f", or make a stand-in: python -m diffusion_pl.data.synthetic {name}" if name in known else ""
