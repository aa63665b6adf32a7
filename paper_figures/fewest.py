"""The fewest bytes in which a code keeps 95% of LoRA's gain, in the mean of the seeds.

    python -m paper_figures.fewest [CSV ...]

Prints Markdown: a line per base, task and adapter, and for each code the smallest file that keeps
95% or more, with its share of the LoRA float32 file; where none does, what the best one keeps, in
how many bytes. Trained heads are left out on both sides. As fine as the sizes that were measured
are. Without a CSV all of data/*_budgets*.csv. (`experiments.collect --b95` asks every seed apart.)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, tables
from paper_figures import rows as results
from paper_figures.retained import float32_bytes, panels_of, share

ENOUGH = 0.95
CODES = ("compact", *results.TRAINED, "weights")


def _cell(points: Sequence[dict[str, Any]], whole: float | None, named: bool = False) -> str:
    """points: files of a code; whole: bytes of the LoRA float32 file; named: whether to tell
    which."""
    if not points:
        return "-"
    enough = [p for p in points if p["retained"] >= ENOUGH]
    if enough:
        best = min(enough, key=lambda p: p["bytes"])
        ratio = "" if whole is None else f", 1/{whole / best['bytes']:,.0f}"
        text = f"{best['bytes']:,.0f}{ratio}"
    else:
        best = max(points, key=lambda p: p["retained"])
        text = f"{share(best)}% in {best['bytes']:,.0f}"
    return text + (f" ({best['label']})" if named else "")


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line a panel. Raises ValueError where no row has bytes and a retained gain."""
    head = ("base and task", "LoRA, bytes", *CODES, "best other")
    lines = [tables.bar(*head), tables.bar("---", *["---:"] * (len(head) - 2), "---")]
    for panel in panels_of(rows):
        whole = float32_bytes(panel)
        others = [p for p in panel.points if p["codec"] not in CODES]
        lines.append(tables.bar(
            panel.title, "-" if whole is None else f"{whole:,.0f}",
            *(_cell([p for p in panel.points if p["codec"] == code], whole) for code in CODES),
            _cell(others, whole, named=True),
        ))  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("csv", nargs="*", type=Path)
    sources = parser.parse_args(arguments).csv or sorted(program.DATA.glob("*_budgets*.csv"))
    with program.mistakes():
        print(markdown([row for source in sources for row in results.read(source)]))


if __name__ == "__main__":
    main()
