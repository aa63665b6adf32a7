"""The notebooks run from start to end without a network, hold no logic, and keep their outputs."""

import ast

import nbformat
import pytest

from notebooks.run import FOLDER, executed

NAMES = ("01_quickstart", "02_inside_a_packet", "03_make_a_figure")
# What would have to be tested, and so belongs into a module.
LOGIC = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While),
    *(ast.If, ast.IfExp, ast.Try, ast.With, ast.Match),
    *(ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp),
)


def cells(name: str) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def raises(cell: nbformat.NotebookNode) -> bool:
    return "raises-exception" in cell.metadata.get("tags", ())


def outputs(found: list[nbformat.NotebookNode]) -> list[list[str]]:
    """Of every cell what it shows: kinds of data, or the name of an exception."""
    return [
        [
            output.ename if output.output_type == "error" else ",".join(sorted(output.data))
            for output in cell.outputs
            if output.output_type != "stream"
        ]
        for cell in found
    ]


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_cells_hold_no_logic_and_keep_their_outputs(name):
    found = cells(name)
    for cell in found:
        lines = [line for line in cell.source.splitlines() if not line.startswith("%")]
        for node in ast.walk(ast.parse("\n".join(lines))):
            assert not isinstance(node, LOGIC), f"{name}: {ast.unparse(node)}"
    assert [cell.execution_count for cell in found] == list(range(1, len(found) + 1))
    shown = outputs(found)
    assert any("image/png" in kinds or "text/html" in kinds for cell in shown for kinds in cell)
    for cell, kinds in zip(found, shown, strict=True):
        assert any(kind.endswith("Error") for kind in kinds) == raises(cell)


@pytest.mark.parametrize("name", NAMES)
def test_runs_from_start_to_end(name, tmp_path_factory, monkeypatch):
    # One cache for all: the second notebook opens what the first has trained.
    cache = tmp_path_factory.getbasetemp() / "notebooks"
    monkeypatch.setenv("SOLAR_CACHE", str(cache))
    again = executed(FOLDER / f"{name}.ipynb")
    assert outputs([c for c in again.cells if c.cell_type == "code"]) == outputs(cells(name))
