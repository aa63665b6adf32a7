"""Result rows as a table in the terminal; columns and numbers are `paper_figures.tables`'."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from paper_figures import tables

# A line has 80 places: these show their mean alone.
_MEAN_ONLY = ("error", "slack")


def show(rows: Iterable[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print tidy rows, a table per base, task and configuration, to the terminal or `console`."""
    console = console or Console()
    for title, points in tables.parts(rows):
        console.print(title, style="bold", highlight=False)
        gap = 2 if console.width >= 100 else 0
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
        table.add_column("code", overflow="fold", min_width=16)
        # What goes beyond the usual columns needs a wider line.
        columns = tables.columns(points) if console.width >= 100 else tables.COLUMNS
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for before, point in zip([points[0], *points], points, strict=False):
            codec = point.get("codec")
            if before.get("codec") != codec and codec in ("compact", "weights", "solar"):
                table.add_section()
            cells = {name: tables.cell(point, column) for name, column in columns.items()}
            cells |= {name: cells[name].split(" ±")[0] for name in _MEAN_ONLY}
            table.add_row(tables.label(point), *cells.values())
        console.print(table)
