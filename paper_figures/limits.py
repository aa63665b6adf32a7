"""What the codecs reach beside the rate-distortion limit, as a table.

    python -m paper_figures.limits [CSV]

Prints Markdown from the rows of `experiments.reach`, data/reach.csv unless another file is named:
payload over limit at three errors, all seeds, and every file of the first seed, codes by name and
files by size.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, rows, tables

ADAPTERS = {  # by experiment, in the order in which they are shown
    "smollm2_budgets": "SmolLM2, film reviews, q and v, r = 4",
    "smollm2_budgets_all": "SmolLM2, film reviews, all projections, r = 8",
    "smollm2_budgets_glosses": "SmolLM2, nouns, q and v, r = 4",
    "smollm2_budgets_all_glosses": "SmolLM2, nouns, all projections, r = 8",
    "gpt2_mini_budgets": "gpt2-mini, packages, c_attn, r = 4",
    "gpt2_mini_budgets_all": "gpt2-mini, packages, all projections, r = 8",
    "dinov2_budgets": "DINOv2 ViT-S/14, images, q and v, r = 4",
    "dinov2_budgets_all": "DINOv2 ViT-S/14, images, all projections, r = 8",
}
HEAD = {
    "adapter": "---", "code": "---", "bytes": "---:", "relative error": "---:",
    "limit for that error, bytes": "---:", "payload / limit": "---:",
    "limit with profile": "---:", "payload / limit with profile": "---:",
}  # fmt: skip
ERRORS, CLOSE = (0.7, 0.5, 0.3), 0.003  # at which codes are compared, and how near a file's is
AIMS = (  # code, which of its limits, and what was aimed at
    ("absolute weights", "ratio", "`absolute weights`", "1.10"),
    ("compact", "ratio", "`compact`, limit of its metric", "1.15"),
    ("compact", "profiled_ratio", "`compact`, limit with profile", "1.15"),
)
LIMITS = ("limit", "ratio", "profiled_limit", "profiled_ratio")
CODES = ("compact", "absolute weights", "weights")  # then the others as they come


Rows = Sequence[Mapping[str, Any]]


def _place(row: Mapping[str, Any]) -> tuple:
    code = row["code"]
    return CODES.index(code) if code in CODES else len(CODES), row["bytes"]


def adapters_of(found: Rows) -> list[str]:
    """The experiments whose adapters rows are about, those that have no name here at the end."""
    own = dict.fromkeys(row["adapter"] for row in found)
    return [*(name for name in ADAPTERS if name in own), *(n for n in own if n not in ADAPTERS)]


def first_of(found: Rows) -> Rows:
    """The rows of every adapter's first seed."""
    least = {name: min(r["seed"] for r in found if r["adapter"] == name)
             for name in adapters_of(found)}  # fmt: skip
    return [row for row in found if row["seed"] == least[row["adapter"]]]


def _check(found: Rows) -> None:
    needed = ("adapter", "seed", "code", "bytes", "relative_error", *LIMITS)
    rows.check(found, needed, "limit", "experiments.reach")


def _ratios(found: Rows, column: str, error: float) -> str:
    """Mean, and where seeds differ least to most, of the files of an error; `-` where there is
    none."""

    def far(row: Mapping[str, Any]) -> float:
        return abs(row["relative_error"] / error - 1)

    seeds = dict.fromkeys(row["seed"] for row in found)
    nearest = [min((r for r in found if r["seed"] == seed), key=far) for seed in seeds]
    own = [row[column] for row in nearest if far(row) < CLOSE]
    if not own:
        return "-"
    low, high = f"{min(own):.2f}", f"{max(own):.2f}"
    return f"{statistics.fmean(own):.2f}" + (f" ({low} to {high})" if low != high else "")


def aims(found: Rows) -> str:
    """Payload over limit, a line a limit and an adapter. Raises ValueError for a missing column."""
    _check(found)
    lines = [tables.bar("", "aim", "adapter", *(f"{error}" for error in ERRORS))]
    lines.append(tables.bar("---", "---:", "---", *["---:"] * len(ERRORS)))
    for code, column, label, aim in AIMS:
        for place, adapter in enumerate(adapters_of(found)):
            own = [r for r in found if (r["adapter"], r["code"]) == (adapter, code)]
            lines.append(tables.bar(
                *("", "") if place else (label, aim), ADAPTERS.get(adapter, adapter),
                *(_ratios(own, column, error) for error in ERRORS),
            ))  # fmt: skip
    return "\n".join(lines)


def markdown(found: Rows) -> str:
    """A line a file of the first seed. Raises ValueError for a missing column."""
    _check(found)
    lines = [tables.bar(*HEAD), tables.bar(*HEAD.values())]
    found = first_of(found)
    for adapter in adapters_of(found):
        own = {  # a budget and an error may ask for one and the same file
            (row["code"], row["bytes"]): row for row in found if row["adapter"] == adapter
        }
        for place, row in enumerate(sorted(own.values(), key=_place)):
            lines.append(tables.bar(
                "" if place else ADAPTERS.get(adapter, adapter), row["code"],
                f"{row['bytes']:,}", f"{row['relative_error']:.3f}",
                *("-" if row[x] is None else f"{row[x]:{form}}"
                  for x, form in zip(LIMITS, (",", ".2f") * 2, strict=True)),
            ))  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("csv", nargs="?", type=Path, default=program.DATA / "reach.csv")
    given = parser.parse_args(arguments)
    with program.mistakes():
        found = rows.read(given.csv)
        print(aims(found), markdown(found), sep="\n\n")


if __name__ == "__main__":
    main()
