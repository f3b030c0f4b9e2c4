"""The configurations that come with the package, by name: digits/vp is configs/digits/vp.yaml.

In a clone and in an editable install they are in the folder configs/ next to the package, in a wheel within it.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
#: The paragraphs of a head are labelled; the first, without a label, says what the configuration is.
_LABEL = re.compile(r"\b(Source|Expected|Hardware|Corrected|Departs|Without the data|Use|Larger)\b[^.:]*: ")
_MOST_LINES = 40  # of a head


@dataclass(frozen=True)
class Heading:
    """What the head comment of a configuration says in short.

    what: the first sentence;  papers: arXiv numbers of its source;  cost: hardware and time of a run, "" of an overlay,
    which is used on top of another configuration.
    """

    what: str
    papers: tuple[str, ...]
    cost: str


def shipped_folder() -> Path:
    """The folder of the shipped configurations."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Each configuration by its name, in the order of the names; overlays come last."""
    root = shipped_folder()
    paths = sorted(root.glob("*/*.yaml"), key=lambda path: (path.parent.name == "overlays", path))
    return {f"{path.parent.name}/{path.stem}": path for path in paths}


def find_config(path: Path) -> Path:
    """The file that a --config names: the user's own if there is one, else the shipped one of this name.

    Args:
        path: as it was typed; of a shipped one digits/vp, digits/vp.yaml or configs/digits/vp.yaml.
    """
    if os.path.exists(path):  # not path.exists, which fails for a whole configuration as text
        return path
    return shipped_configs().get(_name(path), path)


def near_configs(path: Path) -> list[str]:
    """The names of shipped configurations that are most like a path, at most three, the nearest first."""
    name, known = _name(path), list(shipped_configs())
    if "/" in name:
        return difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    if inside := [other for other in known if other.partition("/")[0] == name]:
        return inside[:3]
    last = difflib.get_close_matches(name, [other.partition("/")[2] for other in known], n=3, cutoff=0.8)
    return [other for other in known if other.partition("/")[2] in last][:3]


def read_heading(path: Path) -> Heading:
    """The heading of a configuration file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not begin with a comment that says what it is.
    """
    lines: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#") or len(lines) == _MOST_LINES:
                break
            lines.append(line[1:].strip())
    parts = _LABEL.split(" ".join(lines))
    labelled = dict(zip(parts[1::2], parts[2::2], strict=True))
    what = re.split(r"\.(?: |$)|:? python -m ", parts[0].strip(), maxsplit=1)[0].rstrip(".:")
    if not what:
        raise ValueError(f"{path} does not begin with a comment that says what it is")
    papers = re.findall(r"arXiv (\d{4}\.\d{4,5})", labelled.get("Source", ""))
    cost = re.split(r";|\(|\.(?: |$)| for the | for \d", labelled.get("Hardware", "").strip(), maxsplit=1)[0]
    return Heading(what, tuple(papers), cost.strip(" ."))


def _name(path: Path) -> str:
    """configs/digits/vp.yaml -> digits/vp."""
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    return "/".join(parts).removesuffix(".yaml")
