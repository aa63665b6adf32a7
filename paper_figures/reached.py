"""Errors that the codecs reach, over bytes, beside the rate-distortion limits.

    python -m paper_figures.reached [CSV] [--out FOLDER]

Rows are those of `experiments.reach`, of an adapter's first seed. A row of panels per adapter: left
errors as preset `compact` counts them, with the limit of codes that know the spectrum alone and
that of codes that know which variances a file promises; right errors of dW, with their limit. Bytes
are those of the payload: limits count header and names as free.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from paper_figures import program, style
from paper_figures.accuracy_vs_bytes import scale_bytes
from paper_figures.limits import ADAPTERS, adapters_of, first_of
from paper_figures.rows import check

NEEDED = ("adapter", "seed", "code", "payload", "relative_error", "limit", "profiled_limit")
METRIC = "compact"  # the code that counts errors in a metric of its own
LINES = {
    METRIC: style.BASELINES["compact"],
    "absolute weights": {"color": style.BLUE, "marker": "o", "linestyle": "-", "markersize": 3.5},
    "weights": style.BASELINES["weights"],
}
OTHERS = {**style.BASELINES["bits"], "linestyle": "none"}
SPECTRUM = {**style.LIMIT, "linestyle": ":"}

Rows = Sequence[dict[str, Any]]


def _line(axes: Axes, rows: Rows, x: str, label: str, look: dict[str, Any]) -> None:
    own = sorted((row[x], row["relative_error"]) for row in rows if row[x])
    if own:
        axes.plot(*zip(*own, strict=True), label=label, **look)


def _panel(axes: Axes, rows: Rows, chosen: Callable[[str], bool]) -> None:
    """Files of the chosen codes and what limits them."""
    own = [row for row in rows if chosen(row["code"])]
    for code, look in LINES.items():
        _line(axes, [row for row in own if row["code"] == code], "payload", code, look)
    _line(
        axes,
        [row for row in own if row["code"] not in LINES],
        "payload",
        "quantised factors, paper",
        OTHERS,
    )
    if chosen(METRIC):
        _line(axes, own, "profiled_limit", "limit with profile", style.LIMIT)
        _line(axes, own, "limit", "limit of the spectrum", SPECTRUM)
    else:
        _line(axes, own, "limit", "limit of the spectrum", SPECTRUM)


def draw(rows: Rows, folder: str | Path, name: str = "reached") -> list[Path]:
    """Draw `rows` to `folder`/`name`.png and .pdf. Raises ValueError for a missing column or no
    rows."""
    check(rows, NEEDED, "limit", "experiments.reach")
    rows, adapters = first_of(rows), adapters_of(rows)
    figure, axes = style.figure(
        len(adapters), 2, 2 * style.COLUMN, 0.5 + 1.7 * len(adapters), sharey="row", sharex="row"
    )
    for (left, right), adapter in zip(axes, adapters, strict=True):
        own = [row for row in rows if row["adapter"] == adapter]
        _panel(left, own, lambda code: code == METRIC)
        _panel(right, own, lambda code: code != METRIC)
        title = ADAPTERS.get(adapter, adapter).replace(", ", "\n", 2)
        left.set_ylabel(f"{title}\nrelative error", fontsize=6.5)
        sizes = [row[x] for row in own for x in ("payload", "limit", "profiled_limit") if row[x]]
        for axis in (left, right):
            scale_bytes(axis, [{"bytes": size} for size in sizes])
            axis.legend(loc="lower left")
        left.set_yscale("log")  # of both
        left.set_ylim(min(row["relative_error"] for row in own) / 1.5, 1.3)
    for axis, title in zip(axes[0], ("as compact counts errors", "errors of dW"), strict=True):
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel("bytes of payload")
    return style.save(figure, folder, name)


main = program.command(draw, "reach.csv", __doc__)


if __name__ == "__main__":
    main()
