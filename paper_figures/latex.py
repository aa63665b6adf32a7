"""Result rows as LaTeX tables: a row per code, mean and standard deviation of the seeds, the best
mean of every column in bold.

    python -m paper_figures.latex [CSV] [--out FOLDER]

A file FOLDER/tables/NAME.tex per CSV, a `table*` per base, task and configuration in it, for
\\input into a document that loads booktabs; NAME is the CSV's. Base and uncompressed adapter
stand on top and are never bold. Beside it NAME.md, the same rows as they stand in docs/results.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, tables
from paper_figures import rows as results

# What a column is called where it is not its own name with a capital, and what is left out.
HEADINGS = {"retained %": "Retained, \\%", "w/o head": "W/o head", "KL": "KL"}
LEFT_OUT = ("slack",)
REFERENCES = ("none", "float32")  # codecs that are no code: the base, the adapter as trained
_SPECIAL = {c: f"\\{c}" for c in "&%#_{}"} | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
_SPECIAL |= {"\\": "\\textbackslash{}"}

CAPTION = """\
{title}. Mean and, where it is not zero, standard deviation over {seeds}. Bytes: length of the \
file; ratio: the LoRA file in float32 over it; retained: share of the adapter's gain over the \
base; error: relative error of $\\Delta W$.{more} Bold: the best mean of the column among all \
codes below the rule, whatever their bytes; base and uncompressed adapter take no part."""


# By heading: what a column that not every table has is.
EXPLAINED = {
    "W/o head": "W/o head: the file less the trained classifier.",
    "KL": "KL: mean divergence from the uncompressed adapter's predictions, nats.",
    "Loss": "Loss: mean cross-entropy, nats.",
    "METEOR": "METEOR is nltk's, not version 1.5.",
}


def escape(text: str) -> str:
    """Text for LaTeX; what stands between two dollar signs is left as it is."""
    parts = text.split("$")
    if len(parts) % 2 == 0:  # a dollar sign of its own
        return "\\$".join("".join(_SPECIAL.get(c, c) for c in part) for part in parts)
    for i in range(0, len(parts), 2):
        parts[i] = "".join(_SPECIAL.get(c, c) for c in parts[i])
    return "$".join(parts)


def table(panel: results.Panel, name: str) -> str:
    """One `table*` with the label tab:`name`."""
    shown = tables.columns(panel.points).items()
    columns = {heading(name): column for name, column in shown if name not in LEFT_OUT}
    first = [p for p in panel.points if p.get("codec") in REFERENCES]
    codes = [p for p in panel.points if p.get("codec") not in REFERENCES]
    best = {heading: _best(codes, column) for heading, column in columns.items()}
    seeds = max(p["seeds"] for p in panel.points)
    more = "".join(f" {text}" for name, text in EXPLAINED.items() if name in columns)
    over = f"{seeds} seeds" if seeds > 1 else "one seed, so none is given"
    lines = [
        "\\begin{table*}",
        "\\centering\\small",
        f"\\caption{{{CAPTION.format(title=escape(panel.title), seeds=over, more=more)}}}",
        f"\\label{{tab:{name}}}",
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        "\\toprule",
        line("Code", *columns),
        "\\midrule",
    ]
    for group in (first, codes):
        if group is codes and first and codes:
            lines.append("\\midrule")
        for point in group:
            marked = best if group is codes else {}
            cells = (_cell(point, column, marked.get(h)) for h, column in columns.items())
            lines.append(line(escape(results.describe(point)), *cells))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table*}"])


def heading(name: str) -> str:
    """A table's heading in LaTeX."""
    return HEADINGS.get(name) or escape(name[:1].upper() + name[1:])


def _best(points: Sequence[Mapping[str, Any]], column: tables.Column) -> str | None:
    """The best mean as it is shown: what looks the same is as good."""
    known = [p for p in points if p.get(column.measure) is not None]
    if not known:
        return None
    return tables.mean(column.best(known, key=lambda p: p[column.measure]), column)


def _cell(point: Mapping[str, Any], column: tables.Column, best: str | None) -> str:
    shown, more = tables.mean(point, column), tables.spread(point, column)
    if shown is None:
        return "--"
    shown = shown.replace(",", "{,}")
    if best is not None and shown == best.replace(",", "{,}"):
        shown = f"\\mathbf{{{shown}}}"
    return f"${shown} \\pm {more}$" if more else f"${shown}$"


def line(*cells: str) -> str:
    """A row of a tabular."""
    return " & ".join(cells) + " \\\\"


def draw(rows: Sequence[dict[str, Any]], folder: str | Path, name: str) -> list[Path]:
    """Write `folder`/tables/`name`.tex and .md, whole or not at all. Raises ValueError where no row
    has a code and its bytes."""
    panels = results.panels(rows, lambda r: bool(r.get("bytes")) and r.get("codec") is not None)
    if not panels:
        raise ValueError(
            "no row has a codec and bytes: make them with `python -m experiments.collect`"
        )
    labels = [name, *(f"{name}-{i}" for i in range(2, len(panels) + 1))]
    head = f"% Made by `make figures` from paper_figures/data/{name}.csv; needs booktabs."
    found = [table(panel, own) for panel, own in zip(panels, labels, strict=True)]
    return tables.write(folder, name, tex="\n\n".join([head, *found]), md=tables.markdown(rows))


main = program.command(draw, "smollm2_sentiment.csv", __doc__, named_after_csv=True)


if __name__ == "__main__":
    main()
