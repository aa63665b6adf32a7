"""Score and relative error along one dial of the paper's form, a line per value of the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, NullLocator

from paper_figures import rows as results
from paper_figures import style

NAMES = {"N": "basis size $N$", "eps": "perturbation $\\epsilon$"}
_SIGNS = {"N": "$N$", "eps": "$\\epsilon$"}


def draw(
    rows: Sequence[dict[str, Any]], folder: str | Path, name: str, along: str, score: str
) -> list[Path]:
    """Draw `rows` over the dial `along` (N or eps) to `folder`/`name`.png and .pdf; `score` labels
    the upper axis.

    One column of panels per base, task and configuration. Error bars are the standard deviation
    over seeds. Raises ValueError where no row is on the grid of N and eps.
    """
    apart = "eps" if along == "N" else "N"
    panels = results.panels(rows, results.on_grid)
    if not panels:
        raise ValueError("no row has N, eps and a score: run `python -m experiments.compare`")
    values = sorted({p[apart] for panel in panels for p in panel.points})
    looks = {v: style.SOLAR[i % len(style.SOLAR)] for i, v in enumerate(values)}
    figure, axes = style.figure(
        2, len(panels), style.COLUMN * len(panels), 3.7, sharex="col", height_ratios=(1.2, 1)
    )
    legend: dict[str, Any] = {}
    for column, (title, _, points) in enumerate(panels):
        upper, lower = axes[:, column]
        places = _places(sorted({p[along] for p in points}))
        for value, look in looks.items():
            line = sorted((p for p in points if p[apart] == value), key=lambda p: p[along])
            for panel, measure in ((upper, "score"), (lower, "relative_error")):
                legend[f"{_SIGNS[apart]} = {value:g}"] = _line(panel, line, along, places, measure,
                                                               look)  # fmt: skip
        style.score_levels(upper, points)
        _scale(lower, places)
        lower.margins(y=0.12)
        upper.set_title(title)
        if column == 0:
            upper.set_ylabel(score)
            lower.set_ylabel("relative error of $\\Delta W$")
        lower.set_xlabel(NAMES[along])
    figure.legend(
        legend.values(),
        legend.keys(),
        loc="outside lower center",
        ncols=4,
        handlelength=2.2,
        columnspacing=1.1,
    )
    return style.save(figure, folder, name)


def _places(values: Sequence[float]) -> dict[float, float]:
    """Where each value of a dial stands on a logarithmic axis: at itself, and zero half a decade
    below the least that is not zero."""
    least = min((v for v in values if v > 0), default=1.0)
    return {v: v if v > 0 else least / 10**0.5 for v in values}


def _line(axes: Any, line: list, along: str, places: dict, measure: str, look: dict) -> Any:
    shown = [p for p in line if p.get(measure) is not None]
    spread = [p.get(f"{measure}_std") or 0.0 for p in shown]
    return axes.errorbar(
        [places[p[along]] for p in shown],
        [p[measure] for p in shown],
        yerr=spread if any(spread) else None,
        elinewidth=0.7,
        **look,
    )


def _scale(axes: Any, places: dict[float, float]) -> None:
    at = list(places.values())
    axes.set_xscale("log")
    room = (max(at) / min(at)) ** 0.06 if len(at) > 1 else 2.0
    axes.set_xlim(min(at) / room, max(at) * room)
    axes.xaxis.set_major_locator(FixedLocator(at))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{value:g}" for value in places])
