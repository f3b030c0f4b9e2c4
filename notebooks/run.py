"""Execute notebooks from beginning to end and say how long each took; the first error ends it with status 1.

    python notebooks/run.py [NOTEBOOK ...]      all of this folder unless some are named

What is executed is a copy in build/notebooks, with its outputs; the notebooks themselves stay without.
"""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
EXECUTED = HERE.parent / "build" / "notebooks"
LIMIT = 600  # seconds for one cell, on a busy machine


def execute(path: Path) -> float:
    """Seconds that the notebook took; the copy with its outputs is written in any case.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:  # what the notebook writes goes there
        client = NotebookClient(
            notebook, timeout=LIMIT, resources={"metadata": {"path": folder}}, extra_arguments=["--log-level=ERROR"]
        )
        try:
            client.execute()
        finally:
            EXECUTED.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, EXECUTED / path.name)
    return time.monotonic() - start


def main(names: list[str]) -> int:
    """Run the command line; the exit status."""
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        if not path.is_file():
            print(f"notebooks/run.py: error: {path}: no such notebook", file=sys.stderr)
            return 2
        print(f"{path.name:32}", end="", flush=True)
        try:
            print(f"{execute(path):6.0f} s", flush=True)
        except CellExecutionError as error:
            print(f"failed\n{error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
