"""Our LoRA beside PEFT's as a table: score of either on the same data and schedule, over seeds.

    python -m paper_figures.parity [CSV] [--out FOLDER]

Columns: setting, framework (solar or torch), seed, steps, test (examples), score. Writes
FOLDER/tables/NAME.md, as it stands in docs/results.md, and NAME.tex; NAME is the CSV's. The means
agree where they differ by at most two standard deviations, pooled over the two frameworks.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_figures import latex, program, tables
from paper_figures.rows import check

SETTINGS = {"text": "SmolLM2, movie snippets", "vision": "DINOv2 ViT-S/14, Fashion-MNIST"}
FRAMEWORKS = ("solar", "torch")
COLUMNS = ("setting", "framework", "seed", "steps", "test", "score")

PM = "\\pm"
CAPTION = (
    "Score of our LoRA and of PEFT's on the same base, arrays, batches, schedule and optimiser, "
    "mean and standard deviation over seeds."
)


def compared(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line per setting: what it is, score of solar, score of PEFT, their difference, verdict.

    Raises ValueError for a missing column or a setting without two seeds of either framework.
    """
    check(rows, COLUMNS, "parity", "benchmarks.peft_training")
    found = []
    runs = [(r["setting"], r["steps"], r["test"]) for r in rows]
    for run in dict.fromkeys(runs):
        own = [r for r, this in zip(rows, runs, strict=True) if this == run]
        setting, steps, test = run
        scores = [[r["score"] for r in own if r["framework"] == name] for name in FRAMEWORKS]
        if min(map(len, scores)) < 2:
            raise ValueError(f"{setting} needs two seeds of each framework to be compared")
        (ours, theirs), spreads = map(statistics.fmean, scores), [*map(statistics.stdev, scores)]
        pooled = (sum(s**2 for s in spreads) / 2) ** 0.5
        verdict = "within" if abs(ours - theirs) <= 2 * pooled else "not within"
        seeds = len({r["seed"] for r in own})
        several = sum((other[0], other[2]) == (setting, test) for other in set(runs)) > 1
        told = f"{steps} steps, " if several else ""
        found.append((
            f"{SETTINGS.get(setting, setting)} ({told}{test} tested, {seeds} seeds)",
            f"{ours:.4f} ± {spreads[0]:.4f}",
            f"{theirs:.4f} ± {spreads[1]:.4f}",
            f"{ours - theirs:+.4f}",
                f"{verdict} two pooled standard deviations",
        ))  # fmt: skip
    return found


def draw(rows: Sequence[dict[str, Any]], folder: str | Path, name: str) -> list[Path]:
    """Write `folder`/tables/`name`.tex and .md, whole or not at all."""
    lines = compared(rows)
    heading = ("base and data", "solar", "PEFT, torch", "difference")
    bars = [tables.bar(*heading), tables.bar("---", "---:", "---:", "---")]
    own = [latex.line(*heading)]
    for what, ours, theirs, difference, verdict in lines:
        numbers = [f"${x.replace('±', PM)}$" for x in (ours, theirs)]
        own.append(latex.line(latex.escape(what), *numbers, f"${difference}$, {verdict}"))
    tex = [
        f"% Made by `make figures` from paper_figures/data/{name}.csv; needs booktabs.",
        "",
        *("\\begin{table*}", "\\centering\\small", f"\\caption{{{CAPTION}}}"),
        *(f"\\label{{tab:{name}}}", "\\begin{tabular}{lrrl}", "\\toprule"),
        *(own[0], "\\midrule", *own[1:], "\\bottomrule", "\\end{tabular}", "\\end{table*}"),
    ]
    md = [*bars, *(tables.bar(*cells[:3], ", ".join(cells[3:])) for cells in lines)]
    return tables.write(folder, name, tex="\n".join(tex), md="\n".join(md))


main = program.command(draw, "peft_parity.csv", __doc__, named_after_csv=True)


if __name__ == "__main__":
    main()
