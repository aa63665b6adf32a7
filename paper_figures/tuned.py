"""LoRA's own learning rate: what validation says of each, as a table.

    python -m paper_figures.tuned [CSV]

Prints Markdown from the rows of `experiments.lora_tuned`, data/lora_tuned.csv unless another file
is named: a line an adapter, a column a rate, share of the validation examples that are answered and
loss on them. The best score of a line is bold.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, rows, tables
from paper_figures.limits import ADAPTERS

RUN = ("experiment", "steps", "rank", "test")  # what a line is of
NEEDED = (*RUN, "seed", "rate", "validation_score", "validation_loss")

Rows = Sequence[Mapping[str, Any]]


def markdown(found: Rows) -> str:
    """A line an adapter, number of steps, rank and deal of the examples. Raises ValueError for a
    missing column."""
    rows.check(found, NEEDED, "rate", "experiments.lora_tuned")
    rates = sorted({row["rate"] for row in found})
    lines = [tables.bar("adapter", "steps", *(f"{rate:g}" for rate in rates))]
    lines.append(tables.bar("---", *["---:"] * (1 + len(rates))))
    order = {name: place for place, name in enumerate(ADAPTERS)}
    runs = {tuple(row[column] for column in RUN) for row in found}
    for run in sorted(runs, key=lambda run: (order.get(run[0], 99), *run[:3], str(run[3]))):
        own = [row for row in found if tuple(row[column] for column in RUN) == run]
        seeds = [[row for row in own if row["rate"] == rate] for rate in rates]
        best = max(_mean(own, "validation_score") for own in seeds if own)
        cells = (_cell(own, best) if own else "-" for own in seeds)
        alike = [other for other in runs if other[:2] == run[:2]]  # ADAPTERS names the usual rank
        more = [f", {k} {v}" for k, v in zip(RUN[2:], run[2:], strict=True)] if alike[1:] else []
        name = ADAPTERS.get(run[0], run[0]) + "".join(more)
        lines.append(tables.bar(name, f"{run[1]}", *cells))
    return "\n".join(lines)


def _cell(own: Rows, best: float) -> str:
    score, loss = (_mean(own, f"validation_{what}") for what in ("score", "loss"))
    mark = "**" if score == best else ""
    return f"{mark}{score:.3f}{mark} ({loss:.3f})"


def _mean(own: Rows, column: str) -> float:
    return statistics.fmean(row[column] for row in own)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("csv", nargs="?", type=Path, default=program.DATA / "lora_tuned.csv")
    given = parser.parse_args(arguments)
    with program.mistakes():
        print(markdown(rows.read(given.csv)))


if __name__ == "__main__":
    main()
