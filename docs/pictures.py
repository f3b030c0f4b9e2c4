"""Make the images of docs/assets: run the commands of docs/pages/gallery.md and copy the files that they write.

    python docs/pictures.py           # all, about eight minutes on two CPU cores
    python docs/pictures.py sweep     # one section, whose title contains the word

A comment above a block of commands names what it makes: `<!-- field.png is runs/datasaurus-vp/panels/field_*.png -->`.
Commands run in build/pictures, from top to bottom, so that later ones can use the files of earlier ones.  What a
section wrote there before is deleted.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/pages/gallery.md"
ASSETS = ROOT / "docs/assets"
WORK = ROOT / "build/pictures"
LARGEST = 2_000_000  # bytes of all images together
SECTION = re.compile(r"^## (?P<title>.+)$\n(?P<text>(?:(?!^## ).*\n)*)", re.MULTILINE)
BLOCK = re.compile(r"^<!-- (?P<files>.+) -->\n```sh\n(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL)


class Section(NamedTuple):
    """A section of the gallery: its title, its command lines, and the file of each image, a glob pattern."""

    title: str
    commands: list[list[str]]
    files: dict[str, str]

    @property
    def folders(self) -> set[str]:
        """The folders that its commands write, within the work folder."""
        written = {words[words.index("--output") + 1] for words in self.commands if "--output" in words}
        paths = [pattern.split("/") for pattern in self.files.values()]
        return written | {"/".join(path[: 2 if path[0] == "runs" else 1]) for path in paths}


def sections(text: str) -> Iterator[Section]:
    """The sections of the gallery that make images.

    Raises:
        ValueError: a comment does not have the form NAME is PATH; NAME is PATH.
    """
    for section in SECTION.finditer(text):
        commands, files = [], {}
        for block in BLOCK.finditer(section["text"]):
            lines = block["commands"].replace("\\\n", " ").splitlines()
            commands += [words for line in lines if (words := shlex.split(line, comments=True))]
            for entry in block["files"].split("; "):
                name, separator, pattern = entry.partition(" is ")
                if not separator:
                    raise ValueError(f"{PAGE}: expected <!-- NAME is PATH; … -->, got {entry!r}")
                files[name] = pattern
        if commands:
            yield Section(section["title"], commands, files)


def run(words: Sequence[str]) -> None:
    """Run `python -m diffusion_pl …` in the work folder.

    Raises:
        ValueError: another command.
        subprocess.CalledProcessError: it failed.
    """
    if words[:3] != ["python", "-m", "diffusion_pl"]:
        raise ValueError(f"{PAGE}: expected `python -m diffusion_pl …`, got `{shlex.join(words)}`")
    print("$", shlex.join(words), flush=True)
    subprocess.run([sys.executable, *words[1:]], cwd=WORK, check=True)


def publish(name: str, pattern: str) -> Path:
    """Copy the newest file that the pattern names to docs/assets, PNGs with as few colours as look the same.

    Raises:
        ValueError: there is no such file.
    """
    from PIL import Image

    made = sorted(WORK.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not made:
        raise ValueError(f"{name}: {pattern} is missing in {WORK}")
    target = ASSETS / name
    shutil.copyfile(made[-1], target)
    if target.suffix == ".png":
        with Image.open(made[-1]) as image:
            few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(target, optimize=True)
    return target


def main(words: Sequence[str]) -> None:
    """Make all images, or those of the sections whose titles contain one of the words."""
    every = list(sections(PAGE.read_text(encoding="utf-8")))
    chosen = [s for s in every if not words or any(word.lower() in s.title.lower() for word in words)]
    if not chosen:
        raise SystemExit(f"no section of the gallery is named so; sections: {'; '.join(s.title for s in every)}")
    WORK.mkdir(parents=True, exist_ok=True)
    ASSETS.mkdir(parents=True, exist_ok=True)
    for section in chosen:
        for folder in section.folders:
            shutil.rmtree(WORK / folder, ignore_errors=True)
        for command in section.commands:
            run(command)
        for name, pattern in section.files.items():
            target = publish(name, pattern)
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB", flush=True)
    total = sum(path.stat().st_size for path in ASSETS.iterdir())
    print(f"docs/assets: {total / 1e6:.2f} MB")
    if total > LARGEST:
        raise SystemExit(f"docs/assets may have {LARGEST / 1e6:g} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
