"""Result rows as tables: what the columns are and how a number is shown, and the Markdown form that
stands in docs/results.md. Several seeds of a setting become mean ± standard deviation.

Takes tidy rows (`experiments.collect` describes them). `latex.py` sets the same in LaTeX.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paper_figures import rows as results

Point = Mapping[str, Any]


class Column(NamedTuple):
    """A measure as a column: format and factor of its numbers, and whether much or little of it is
    good, for marking the best (None: neither)."""

    measure: str
    form: str
    factor: float = 1.0
    best: Any = None


# Heading -> column. `ratio` is the LoRA safetensors file over this file; `retained` is in per cent;
# `error` is relative.
COLUMNS = {
    "bytes": Column("bytes", ",.0f", best=min),
    "ratio": Column("ratio_fp32", ".1f", best=max),
    "score": Column("score", ".3f", best=max),
    "retained %": Column("retained", ".1f", 100, best=max),
    "error": Column("relative_error", ".3f", best=min),
    "slack": Column("slack", ".3f"),
}
# Where any row has them: bytes less those of a trained head, the mean loss and the
# KL divergence from the uncompressed adapter in nats, and what is measured on written text.
EXTRA = {
    "w/o head": Column("without_head", ",.0f", best=min),
    "KL": Column("kl", ".4f", best=min),
    "loss": Column("loss", ".3f", best=min),
    "BLEU": Column("bleu", ".1f", best=max),
    "NIST": Column("nist", ".2f", best=max),
    "METEOR": Column("meteor", ".1f", best=max),
    "ROUGE-L": Column("rouge_l", ".1f", best=max),
    "CIDEr": Column("cider", ".2f", best=max),
}
LANGUAGE = "kl"  # measured where the loss is what a table is read for


def columns(points: Iterable[Point]) -> dict[str, Column]:
    """Heading -> column of a table of these points: COLUMNS, those of EXTRA that any of them has,
    and the score of every further task under its name."""
    points = list(points)
    has = {k for point in points for k, value in point.items() if value is not None}
    also = sorted(k for k in has if k.startswith(results.ALSO) and not k.endswith("_std"))
    extra = {k: c for k, c in EXTRA.items() if (LANGUAGE if k == "loss" else c.measure) in has}
    extra |= {k.removeprefix(results.ALSO): Column(k, ".3f", best=max) for k in also}
    found = {}
    for heading, column in COLUMNS.items():
        found[heading] = column
        if heading == "bytes" and "w/o head" in extra:
            found["w/o head"] = extra.pop("w/o head")
        if heading == "retained %":
            found |= extra
    return found


def mean(point: Point, column: Column) -> str | None:
    """The mean as it is shown; None where nothing was measured."""
    value = point.get(column.measure)
    return None if value is None else format(value * column.factor, column.form)


def spread(point: Point, column: Column) -> str | None:
    """The standard deviation as it is shown; None for one seed, and where all seeds agree: sizes
    that are the same for every seed need no ± 0."""
    value = point.get(f"{column.measure}_std")
    return format(value * column.factor, column.form) if value else None


def cell(point: Point, column: Column) -> str:
    """Mean and, where there is one, ± standard deviation."""
    shown, more = mean(point, column), spread(point, column)
    if shown is None:
        return "-"
    return f"{shown} ± {more}" if more else shown


def label(point: Point) -> str:
    """The name of a point as the run gave it."""
    return str(point.get("label") or point.get("codec"))


def reference(points: Sequence[Point], name: str) -> str | None:
    """The score of the `base` or of the `adapter`; None where no row has it. Every row repeats that
    of its seed, so a point with all seeds has their mean."""
    full = max(points, key=lambda point: point["seeds"])
    column = Column(f"score_{name}", ".3f")
    return None if mean(full, column) is None else cell(full, column)


def parts(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Point]]]:
    """Title and points for each base, task and configuration."""
    found = []
    panels = results.panels(rows, lambda row: True)
    for title, _, points in panels:
        seeds = max(point["seeds"] for point in points)
        facts = [title]
        for name in ("base", "adapter"):
            score = reference(points, name)
            if score is not None:
                facts.append(f"{name} {score}")
        facts.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
        found.append((", ".join(facts), points))
    return found


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A bold line and a Markdown table per base, task and configuration."""
    found = []
    for title, points in parts(rows):
        shown = columns(points)
        lines = [f"**{title}**", "", bar("code", *shown)]
        lines.append(bar("---", *["---:"] * len(shown)))
        lines += [bar(label(p), *(cell(p, c) for c in shown.values())) for p in points]
        found.append("\n".join(lines))
    return "\n\n".join(found)


def bar(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write(folder: str | os.PathLike, name: str, **texts: str) -> list[Path]:
    """Write `folder`/tables/`name` with every ending and its text, whole or not at all."""
    place = Path(folder) / "tables"
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in texts.items():
        path = place / f"{name}.{ending}"
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)
        paths.append(path)
    return paths
