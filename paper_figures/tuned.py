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

NEEDED = ("experiment", "seed", "rate", "steps", "validation_score", "validation_loss")


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """A line an adapter and number of steps. Raises ValueError for a missing column."""
    rows.check(found, NEEDED, "rate", "experiments.lora_tuned")
    rates = sorted({row["rate"] for row in found})
    lines = [tables.bar("adapter", "steps", *(f"{rate:g}" for rate in rates))]
    lines.append(tables.bar("---", *["---:"] * (1 + len(rates))))
    order = {name: place for place, name in enumerate(ADAPTERS)}
    runs = {(row["experiment"], row["steps"]) for row in found}
    for name, steps in sorted(runs, key=lambda run: (order.get(run[0], len(order)), run)):
        own = [row for row in found if (row["experiment"], row["steps"]) == (name, steps)]
        scores = {rate: _mean(own, rate, "validation_score") for rate in rates}
        best = max(score for score in scores.values() if score is not None)
        cells = []
        for rate, score in scores.items():
            if score is None:
                cells.append("-")
                continue
            text = f"{score:.3f}"
            cells.append(
                (f"**{text}**" if score == best else text)
                + f" ({_mean(own, rate, 'validation_loss'):.3f})"
            )
        lines.append(tables.bar(ADAPTERS.get(name, name), f"{steps}", *cells))
    return "\n".join(lines)


def _mean(own: Sequence[Mapping[str, Any]], rate: float, column: str) -> float | None:
    """Over the seeds."""
    values = [row[column] for row in own if row["rate"] == rate]
    return statistics.fmean(values) if values else None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("csv", nargs="?", type=Path, default=program.DATA / "lora_tuned.csv")
    given = parser.parse_args(arguments)
    with program.mistakes():
        print(markdown(rows.read(given.csv)))


if __name__ == "__main__":
    main()
