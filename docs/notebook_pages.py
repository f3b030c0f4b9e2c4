"""Notebooks as pages of the site, with the outputs that `make notebooks` has left in build/notebooks.

A build executes nothing.  A notebook that was not executed, or has changed since, is shown without outputs and says so.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOT_EXECUTED = """!!! note
    The outputs are missing. `make notebooks docs` executes the notebooks (some minutes) and shows them here.
"""
IMAGES = {"image/png": "png", "image/gif": "gif", "image/jpeg": "jpg"}


def on_config(config: Any) -> Any:
    """Add the notebooks to the entry "Notebooks" of the navigation."""
    for entry in config.nav:
        if "Notebooks" in entry:
            entry["Notebooks"] += [f"notebooks/{path.stem}.md" for path in _notebooks(config)]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook, and its images."""
    for path in _notebooks(config):
        text, images = page_of(path, path.parents[1] / "build/notebooks" / path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, data in images.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    return files


def page_of(notebook: Path, executed: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its images by name.

    Args:
        notebook: without outputs.
        executed: with outputs, if it exists; it is used if its cells are still those of the notebook.
    """
    cells = _cells(notebook)
    outputs = _cells(executed) if executed.is_file() else []
    fresh = [cell["source"] for cell in outputs] == [cell["source"] for cell in cells]
    images: dict[str, bytes] = {}
    parts = [text for cell in (outputs if fresh else cells) for text in _cell(cell, notebook.stem, images)]
    if not fresh:
        parts.insert(1, NOT_EXECUTED)
    return "\n".join(parts), images


def _notebooks(config: Any) -> list[Path]:
    return sorted((Path(config.config_file_path).parents[1] / "notebooks").glob("*.ipynb"))


def _cells(path: Path) -> list[dict[str, Any]]:
    return [{**cell, "source": _text(cell["source"])} for cell in json.loads(path.read_text())["cells"]]


def _text(value: str | list[str]) -> str:
    """A text of a notebook, which may be a list of its lines."""
    return value if isinstance(value, str) else "".join(value)


def _cell(cell: dict[str, Any], stem: str, images: dict[str, bytes]) -> Iterator[str]:
    """The Markdown of a cell and of its outputs; images are added to `images` by the names that it links to."""
    if cell["cell_type"] == "markdown":
        yield cell["source"] + "\n"
        return
    yield f"````python\n{cell['source']}\n````\n"
    for output in cell["outputs"]:
        data = output.get("data", {})
        kind = next((kind for kind in IMAGES if kind in data), None)
        if kind:
            name = f"{stem}-{len(images)}.{IMAGES[kind]}"
            images[name] = base64.b64decode(_text(data[kind]))
            yield f"![Output of the cell above]({name})\n"
        elif "application/vnd.jupyter.widget-view+json" in data:
            yield "*Here the notebook has controls; open it in Jupyter to use them.*\n"
        elif output.get("name") == "stdout" or "text/plain" in data:
            yield f"````text\n{_text(output.get('text') or data['text/plain']).rstrip()}\n````\n"
