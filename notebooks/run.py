"""Runs notebooks from start to end and keeps their outputs in them.

    python notebooks/run.py [NAME.ipynb ...]

All of this folder without a name. Stops at a cell that raises and is not meant to.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook under `path` with the outputs of a fresh run; the file stays as it is."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(FOLDER)}}
    # Times of every cell would differ in each commit.
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", record_timing=False, resources=resources
    )
    return client.execute()


def main(names: list[str]) -> None:
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
