"""Result rows as a table: in the terminal, and in Markdown for the README.

Takes tidy rows (`experiments.collect.tidy`). Several seeds of a setting become mean ± standard
deviation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from paper_figures.rows import over_seeds

Point = Mapping[str, Any]


def _figure(measure: str, form: str, factor: float = 1.0) -> Callable[[Point], str]:
    """How a measure is shown: mean, and ± standard deviation where there are several seeds."""

    def show(point: Point) -> str:
        mean, spread = point.get(measure), point.get(f"{measure}_std")
        if mean is None:
            return "-"
        text = format(mean * factor, form)
        # Sizes that are the same for every seed need no ± 0.
        return f"{text} ± {format(spread * factor, form)}" if spread else text

    return show


# Heading -> cell. `ratio` is the LoRA safetensors file over this file; `retained` is in per cent;
# `error` is relative.
_COLUMNS: dict[str, Callable[[Point], str]] = {
    "bytes": _figure("bytes", ",.0f"),
    "ratio": _figure("ratio", ".1f"),
    "score": _figure("score", ".3f"),
    "retained %": _figure("retained", ".1f", factor=100),
    "error": _figure("relative_error", ".3f"),
    "slack": _figure("slack", ".3f"),
}

# In the terminal a line has 80 places: these show their mean alone.
_MEAN_ONLY = ("error", "slack")


def show(rows: Iterable[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the rows, a table per base, task and configuration, to the terminal or `console`."""
    console = console or Console()
    for title, points in _parts(rows):
        console.print(title, style="bold", highlight=False)
        gap = 2 if console.width >= 100 else 0
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
        table.add_column("code", overflow="fold", min_width=16)
        for name in _COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for before, point in zip([points[0], *points], points, strict=False):
            codec = point.get("codec")
            if before.get("codec") != codec and codec in ("compact", "solar"):
                table.add_section()
            cells = {name: cell(point) for name, cell in _COLUMNS.items()}
            cells |= {name: cells[name].split(" ±")[0] for name in _MEAN_ONLY}
            table.add_row(_label(point), *cells.values())
        console.print(table)


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """The same as Markdown: a bold line and a table per base, task and configuration."""
    parts = []
    for title, points in _parts(rows):
        lines = [
            f"**{title}**",
            "",
            _bar("code", *_COLUMNS),
            _bar("---", *["---:"] * len(_COLUMNS)),
        ]
        lines += [_bar(_label(p), *(cell(p) for cell in _COLUMNS.values())) for p in points]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _bar(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _label(point: Point) -> str:
    return str(point.get("label") or point.get("codec"))


def _parts(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, Sequence[Point]]]:
    """Title and points for each base, task and configuration."""
    parts: dict[tuple, list[Point]] = {}
    for point in over_seeds(rows):
        parts.setdefault(tuple(point.get(k) for k in ("base", "task", "group")), []).append(point)
    found = []
    for (base, task, _), points in parts.items():
        seeds = max(point["seeds"] for point in points)
        facts = [str(part) for part in (base, task) if part]
        for measure, name in (("score_base", "base"), ("score_adapter", "adapter")):
            # Every row repeats the score of its seed, so a point with all seeds has their mean.
            full = next(p for p in points if p["seeds"] == seeds)
            if full.get(measure) is not None:
                facts.append(f"{name} {_figure(measure, '.3f')(full)}")
        facts.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
        found.append((", ".join(facts), points))
    return found
