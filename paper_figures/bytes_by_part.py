"""What the bytes of a file are: payload, header and trained heads, for codes of about one size.

    python -m paper_figures.bytes_by_part [CSV] [--out FOLDER] [--near BYTES]

Of every code the file whose size is nearest to BYTES, if within a factor of 2.5; the same code at
several perturbations counts once. The numbers beside a bar are the parts from left to right, mean
over seeds; the standard deviation of the whole is an error bar where it is wide enough to be seen.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from paper_figures import program, style
from paper_figures import rows as results

NEAR = 15_000
FACTOR = 2.5
# Light against dark, and hatched: the parts stay apart in grey.
PARTS = {
    "payload": {"color": style.SKY},
    "header": {"color": style.BLACK},
    "heads": {"color": style.ORANGE, "hatch": "////"},
}


def chosen(points: Sequence[Mapping[str, Any]], near: int) -> list[Mapping[str, Any]]:
    """The point of every code that is nearest to `near` bytes, by falling size."""
    best: dict[tuple, Mapping[str, Any]] = {}
    for point in points:
        far = abs(math.log(point["bytes"] / near))
        if point.get("codec") == "none" or far > math.log(FACTOR) + 1e-9:
            continue
        # Lower rank is another code than all ranks, a number of kept coefficients than all of them.
        kind = (*(point.get(k) for k in ("codec", "basis", "atoms", "dtype")),
                point.get("keep") is None, point.get("rank") is None)  # fmt: skip
        if kind not in best or far < abs(math.log(best[kind]["bytes"] / near)):
            best[kind] = point
    return sorted(best.values(), key=lambda p: -p["bytes"])


def draw(
    rows: Sequence[dict[str, Any]],
    folder: str | Path,
    name: str = "bytes_by_part",
    near: int = NEAR,
) -> list[Path]:
    """Draw tidy `rows` to `folder`/`name`.png and .pdf, a panel per base, task and configuration.
    Raises ValueError where no code is near enough."""
    if near <= 0:
        raise ValueError(f"{near} is no size of a file; give a number of bytes above zero")
    panels = results.panels(rows, lambda r: bool(r.get("bytes")) and r.get("payload") is not None)
    shown = [(panel.title, chosen(panel.points, near)) for panel in panels]
    shown = [(title, points) for title, points in shown if points]
    if not shown:
        raise ValueError(f"no file is within a factor of {FACTOR:g} of {near:,} bytes")
    tall = [len(points) for _, points in shown]
    figure, axes = style.figure(
        len(shown), 1, style.COLUMN, 0.45 + sum(0.45 + 0.37 * n for n in tall), height_ratios=tall
    )
    for here, (title, points) in zip(axes[:, 0], shown, strict=True):
        _bars(here, points)
        here.set_title(title)
    axes[-1, 0].set_xlabel("bytes of the file")
    bars = axes[0, 0].containers
    figure.legend(
        [bar for bar in bars if bar.get_label() in PARTS],
        PARTS,
        loc="outside lower center",
        ncols=3,
    )
    return style.save(figure, folder, name)


def _bars(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    lines = range(len(points))
    before = [0.0] * len(points)
    for part, look in PARTS.items():
        sizes = [p.get(part) or 0.0 for p in points]
        axes.barh(lines, sizes, 0.42, left=before, label=part, linewidth=0, **look)
        before = [a + b for a, b in zip(before, sizes, strict=True)]
    longest = max(before)
    for line, (end, point) in enumerate(zip(before, points, strict=True)):
        spread = point.get("bytes_std") or 0.0
        if spread > 0.01 * longest:  # narrower than its caps it would be a smudge
            axes.errorbar(end, line, xerr=spread, color=style.GREY, elinewidth=0.9)
        numbers = " + ".join(f"{point.get(part) or 0:,.0f}" for part in PARTS)
        axes.annotate(
            numbers,
            (end + spread, line),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )
        # Names stand above their bars: beside them the longest would leave no width.
        axes.annotate(
            results.describe(point),
            (0, line - 0.24),
            xytext=(3, 0),
            textcoords="offset points",
            va="bottom",
            fontsize=7,
        )
    axes.set_yticks([])
    axes.set_ylim(len(points) - 0.65, -0.8)
    axes.set_xlim(0, longest * 1.38)  # room for the numbers
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda size, _: style.readable(size) if size else "0")
    )


main = program.command(
    draw, "smollm2_sentiment.csv", __doc__, near="bytes of the files that are compared"
)


if __name__ == "__main__":
    main()
