"""The offline counterparts of the published tables at a glance: a line per table, base, task and
setting.

    python -m paper_figures.counterparts [CSV ...]

Prints Markdown: what the trained adapter gains, and the share of it that each code keeps, in %,
with the bytes of its files (those of a trained head left out). Without a CSV all of
data/offline_*.csv. What else was measured stands in tables/NAME.md and .tex.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, tables
from paper_figures import rows as results

Point = Mapping[str, Any]


def _paper(kind: str, size: int) -> Callable[[Point], bool]:
    """The paper's form with all coefficients of so many vectors; of singular ones with the paper's
    kind of perturbation."""
    return lambda p: (
        p["codec"] == "solar" and p.get("basis") == kind and p.get("N") == size
        and p.get("keep") is None and p.get("eps") == (0.1 if kind == "singular" else 0)
    )  # fmt: skip


# Heading -> which points it is about; where several are, each is told.
CODES: dict[str, Callable[[Point], bool]] = {
    "compact": lambda p: p["codec"] == "compact",
    "weights": lambda p: p["codec"] == "weights",
    "2-bit, rank 1": lambda p: p["label"] == "2-bit, rank 1",
    "1-bit, rank 1": lambda p: p["label"] == "1-bit, rank 1",
    "paper, N = 48": _paper("singular", 48),
    "paper, N = 192": _paper("singular", 192),
    "random, N = 192": _paper("random", 192),
}


def share(point: Point) -> str:
    """What it keeps, in per cent, and in how many bytes."""
    kept = tables.cell(point, tables.Column("retained", ".0f", 100))
    size = point["without_head"] or point["bytes"]
    return f"{kept} in {size:,.0f}"


def line(name: str, panel: results.Panel) -> str:
    """A line of the table; `name` is that of the CSV."""
    seeds = max(point["seeds"] for point in panel.points)
    scores = [tables.reference(panel.points, name) or "-" for name in ("base", "adapter")]
    link = f"[{name.removeprefix('offline_')}](../paper_figures/tables/{name}.md)"
    cells = [link, panel.title, str(seeds), " to ".join(scores)]
    for chosen in CODES.values():
        own = sorted(filter(chosen, panel.points), key=lambda p: p["bytes"])
        cells.append("; ".join(map(share, own)) or "-")
    return tables.bar(*cells)


def markdown(sources: Iterable[str | os.PathLike]) -> str:
    """The table of some CSV files. Raises ValueError where a row of none tells what its file
    retains."""
    lines = [
        line(Path(source).stem, panel)
        for source in sources
        for panel in results.panels(results.read(source), lambda r: r.get("retained") is not None)
    ]
    if not lines:
        raise ValueError("no row has a retained gain: collect runs of compare")
    head = ["table", "base and task", "seeds", "score", *CODES]
    return "\n".join([tables.bar(*head), tables.bar(*["---"] * len(head)), *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("csv", nargs="*")
    given = parser.parse_args(arguments)
    sources = given.csv or sorted(program.DATA.glob("offline_*.csv"))
    with program.mistakes():
        print(markdown(sources))


if __name__ == "__main__":
    main()
