"""What one quantiser keeps in many frames, as two tables.

    python -m paper_figures.frames [CSV]

Prints Markdown from the rows of `experiments.frames_compared`, data/frames_compared.csv unless
another file is named: a line a frame; first the divergence from the adapter's predictions, in
nats, and the retained share of its gain in %, then the error of every kind of layer, of each
budget. Means of the seeds, with the standard deviation of what is retained.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, tables
from paper_figures import rows as results

COLUMNS = (
    "experiment", "base", "task", "seed", "frame", "budget", "layers", "bytes", "kl", "score",
    "retained", "error",
)  # fmt: skip
ALL = "all"  # layers
Rows = Sequence[Mapping[str, Any]]


def _kept(own: Rows) -> str:
    """KL, and what is retained."""
    told = f"{statistics.fmean(row['kl'] for row in own):.3f}"
    shares = [100 * row["retained"] for row in own if row["retained"] is not None]
    if shares:
        told += f", {statistics.fmean(shares):.0f}%"
    return told + (f" ± {statistics.stdev(shares):.0f}" if len(shares) > 1 else "")


def _error(own: Rows) -> str:
    return f"{statistics.fmean(row['error'] for row in own):.2f}"


def _table(found: Rows, parts: Iterable[tuple], cell: Callable[[Rows], str]) -> list[str]:
    """A line a frame, a column an experiment, kind of layer and budget; headings have the
    experiment's base, and its name where another has the same."""
    parts, names = list(dict.fromkeys(parts)), results.adapters(found)
    head = [
        f"{names[own]}{'' if kind == ALL else f', {kind}'}, {size:,} B" for own, kind, size in parts
    ]
    lines = [tables.bar("frame", *head), tables.bar("---", *["---:"] * len(parts))]
    for frame in dict.fromkeys(row["frame"] for row in found):
        cells = []
        for part in parts:
            own = [
                row for row in found
                if (row["frame"], row["experiment"], row["layers"], row["budget"]) == (frame, *part)
            ]  # fmt: skip
            cells.append(cell(own) if own else "-")
        lines.append(tables.bar(frame, *cells))
    return lines


def markdown(found: Rows) -> str:
    """Both tables. Raises ValueError for a missing column."""
    results.check(found, COLUMNS, "frame", "experiments.frames_compared")
    each = [(row["experiment"], row["layers"], row["budget"]) for row in found]
    kept = _table(found, (part for part in each if part[1] == ALL), _kept)
    errors = _table(found, (part for part in each if part[1] != ALL), _error)
    return "\n".join([*kept, "", *errors])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("csv", nargs="?", type=Path, default=program.DATA / "frames_compared.csv")
    given = parser.parse_args(arguments)
    with program.mistakes():
        print(markdown(results.read(given.csv)))


if __name__ == "__main__":
    main()
