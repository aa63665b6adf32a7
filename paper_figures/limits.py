"""What the codecs reach beside the rate-distortion limit, as a table.

    python -m paper_figures.limits [CSV]

Prints Markdown from the rows of `experiments.reach`, data/reach.csv unless another file is named:
codes by name, files by size.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, rows, tables

ADAPTERS = {  # by experiment, in the order in which they are shown
    "smollm2_sentiment": "SmolLM2, q and v, r = 4",
    "smollm2_budgets_all": "SmolLM2, all projections, r = 8",
    "gpt2_mini_budgets": "gpt2-mini, c_attn, r = 4",
    "dinov2_budgets": "DINOv2 ViT-S/14, q and v, r = 4, head apart",
}
HEAD = {
    "adapter": "---", "code": "---", "bytes": "---:", "relative error": "---:",
    "limit for that error, bytes": "---:", "payload / limit": "---:",
    "limit with profile": "---:", "payload / limit with profile": "---:",
}  # fmt: skip
CODES = ("compact", "absolute weights", "weights")  # then the others as they come


def _place(row: Mapping[str, Any]) -> tuple:
    code = row["code"]
    return CODES.index(code) if code in CODES else len(CODES), row["bytes"]


def adapters_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The experiments whose adapters rows are about, those that have no name here at the end."""
    own = dict.fromkeys(row["adapter"] for row in found)
    return [*(name for name in ADAPTERS if name in own), *(n for n in own if n not in ADAPTERS)]


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """A line a file. Raises ValueError for a missing column."""
    limits = ("limit", "ratio", "profiled_limit", "profiled_ratio")
    needed = ("adapter", "code", "bytes", "relative_error", *limits)
    rows.check(found, needed, "limit", "experiments.reach")
    lines = [tables.bar(*HEAD), tables.bar(*HEAD.values())]
    for adapter in adapters_of(found):
        own = {  # a budget and an error may ask for one and the same file
            (row["code"], row["bytes"]): row for row in found if row["adapter"] == adapter
        }
        for place, row in enumerate(sorted(own.values(), key=_place)):
            lines.append(tables.bar(
                "" if place else ADAPTERS.get(adapter, adapter), row["code"],
                f"{row['bytes']:,}", f"{row['relative_error']:.3f}",
                *("-" if row[x] is None else f"{row[x]:{form}}"
                  for x, form in zip(limits, (",", ".2f") * 2, strict=True)),
            ))  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("csv", nargs="?", type=Path, default=program.DATA / "reach.csv")
    given = parser.parse_args(arguments)
    with program.mistakes():
        print(markdown(rows.read(given.csv)))


if __name__ == "__main__":
    main()
