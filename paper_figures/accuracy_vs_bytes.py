"""Score against bytes, and relative error against bytes under the rate-distortion limit.

    python -m paper_figures.accuracy_vs_bytes [CSV] [--out FOLDER]

One column of panels per base, task and configuration in the rows. Error bars are the standard
deviation over seeds. The scale of bytes is logarithmic; bytes are the length of the file, trained
heads included.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from paper_figures import program, style
from paper_figures import rows as results


def draw(
    rows: Sequence[dict[str, Any]],
    folder: str | Path,
    name: str = "accuracy_vs_bytes",
    score: str = "test score",
) -> list[Path]:
    """Draw `rows` (tidy, one a packet and seed, limit rows among them) to `folder`/`name`.png and
    .pdf.

    `score` labels the upper axis. Raises ValueError when no row has a size and a score.
    """
    panels = results.panels(rows, on_curve)
    if not panels:
        raise ValueError("no row has both bytes and score: run `python -m experiments.compare`")
    # One look per line over all panels, so that they share a legend.
    everything = [point for panel in panels for point in panel.points]
    looks = styled(results.lines(everything))

    figure, axes = style.figure(
        2,
        len(panels),
        style.COLUMN * len(panels),
        5.2,
        sharex="col",
        height_ratios=(1.25, 1),
    )
    legend: dict[str, Any] = {}
    for column, (title, own, points) in enumerate(panels):
        upper, lower = axes[:, column]
        for label, (look, line) in looks.items():
            here = [point for point in line if point in points]
            if here:
                legend[label] = plot_line(upper, here, "score", look)
                plot_line(lower, here, "relative_error", look)
        style.score_levels(upper, points)
        curve = results.limit(own)
        if curve:
            (legend["rate-distortion limit"],) = lower.plot(
                *zip(*curve, strict=True), **style.LIMIT
            )
        scale_bytes(lower, points)
        _mark_sizes(upper, points)
        upper.set_title(title, pad=14)
        upper.set_ylabel(score if column == 0 else "")
        lower.set_ylabel("relative error of $\\Delta W$" if column == 0 else "")
        lower.set_xlabel("bytes of the file")
    figure.legend(
        legend.values(),
        legend.keys(),
        loc="outside lower center",
        ncols=2 * len(panels),
        handlelength=2.6,
        columnspacing=1.2,
    )
    return style.save(figure, folder, name)


def on_curve(row: dict[str, Any]) -> bool:
    """Whether a row is a point: it has a size and a score, and is not the empty packet."""
    return bool(row.get("bytes")) and row.get("score") is not None and row.get("codec") != "none"


def styled(lines: dict[str, list]) -> dict[str, tuple[dict[str, Any], list]]:
    """Name -> (how it is drawn, its points). SOLAR's lines take the looks in turn."""
    found = {}
    turn = 0
    for label, line in lines.items():
        codec = line[0].get("codec")
        if codec == "bits" and line[0].get("rank") is not None:
            codec = "truncated bits"
        look = style.BASELINES.get(codec)
        if look is None:
            look = style.SOLAR[turn % len(style.SOLAR)]
            turn += 1
        found[label] = (look, line)
    return found


def plot_line(axes: Any, line: list[dict[str, Any]], measure: str, look: dict[str, Any]) -> Any:
    """A line of points over their bytes, with the spread over seeds; gives its handle."""
    shown = [p for p in line if p.get(measure) is not None]
    spread = [p.get(f"{measure}_std") or 0.0 for p in shown]
    return axes.errorbar(
        [p["bytes"] for p in shown],
        [p[measure] for p in shown],
        yerr=spread if any(spread) else None,
        elinewidth=0.7,
        **look,
    )


def scale_bytes(axes: Any, points: list[dict[str, Any]]) -> None:
    """Bytes on a log axis from the smallest to the largest packet, ticks in bytes, kB and MB."""
    sizes = [p["bytes"] for p in points]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    # As many labels as fit side by side: 1, 2, 5 of each decade on a short axis, powers of ten on a
    # long one.
    decades = math.log10(max(sizes) / min(sizes))
    steps = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 3 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: style.readable(size)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=-0.03)  # room for the markers of what is exact


def _mark_sizes(axes: Any, points: list[dict[str, Any]]) -> None:
    """N above the panel, over the bytes that belong to it, where each N has one size and they do
    not crowd.
    """
    sizes: dict[Any, set[float]] = {}
    for point in points:
        # The paper's dial; with a number of kept coefficients, N alone does not give a size.
        if point.get("codec") == "solar" and point.get("N") and point.get("keep") is None:
            sizes.setdefault(point["N"], set()).add(round(point["bytes"]))
    places = {n: sum(at) / len(at) for n, at in sizes.items()}
    if not places or any(max(at) > 1.1 * min(at) for at in sizes.values()):
        return
    ordered = sorted(places.items(), key=lambda item: item[1])
    if any(b / a < 1.25 for (_, a), (_, b) in zip(ordered, ordered[1:], strict=False)):
        return
    for i, (n, size) in enumerate(ordered):
        axes.annotate(
            f"$N$ = {n:g}" if i == 0 else f"{n:g}",
            (size, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3 if i == 0 else 0, 2),
            textcoords="offset points",
            ha="right" if i == 0 else "center",
            va="bottom",
            fontsize=6.5,
        )
        axes.axvline(size, color="#d9d9d9", linewidth=0.6, zorder=0)


main = program.command(draw, "smollm2_sentiment.csv", __doc__, score="label of the upper axis")


if __name__ == "__main__":
    main()
