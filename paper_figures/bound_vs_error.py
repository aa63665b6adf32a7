"""Every proved bound of the error beside the error itself, on a trained adapter and on matrices
made to press on the bounds.

    python -m paper_figures.bound_vs_error [CSV] [--out FOLDER]

Columns: case; layer (`all`, or the name of the layer nearest to its bound); side (left, right,
both, or empty where dW as a whole is meant); N; eps; which bound:

    certificate   of dW after encoding           tail         of a factor in all N atoms
    tail on dW    the two tails put together     expected     root mean square over random atoms
    outputs       of (dW - dW') x

measured, bound: relative to the norm of what is sent, so 1 is the error of sending nothing; slack:
1 - measured / bound; vacuous: there is no bound, the column is empty. In the case `parallel` eps is
the relative error put into both sides by hand. Above, one panel per bound: error and bound of the
adapter over eps. Below, by case, bound / error at every point, 1 where the bound is attained. What
is vacuous stands in the shaded bands, under the infinity sign below.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from paper_figures import program, style
from paper_figures.rows import check

COLUMNS = ("case", "layer", "side", "N", "eps", "which", "measured", "bound", "slack", "vacuous")

_OVER_EPS = {
    "certificate": "certificate, of $\\Delta W$",
    "outputs": "outputs on activations",
    "tail on dW": "tail, on $\\Delta W$",
    "tail": "tail of the factors",
}
_RATIOS = {"certificate": "certificate", "tail on dW": "tail on $\\Delta W$", "tail": "tail"}
_SIZES = ((style.BLACK, "o"), (style.VERMILLION, "s"), (style.BLUE, "^"), (style.ORANGE, "D"))
_OPEN = {"markerfacecolor": "none", "markeredgewidth": 0.8}
_BOUND = (0, (3, 1.5))
_REFERENCE = {"color": style.GREY, "linestyle": (0, (1, 1.5)), "linewidth": 0.9, "zorder": 1}
_ROUNDING = 1e-5  # errors below it are rounding, and so would be their ratio to the bound
_ZERO = 1e-4  # where eps = 0 stands on the logarithmic axis
_BAND = 0.86  # the share of a panel at which the band of vacuous points begins


def draw(
    rows: Sequence[dict[str, Any]], folder: str | Path, name: str = "bound_vs_error"
) -> list[Path]:
    """Draw `rows` to `folder`/`name`.png and .pdf. Raises ValueError for a missing column, no rows
    or not exactly one adapter (the case that has bounds on outputs) among them."""
    check(rows, COLUMNS, "bound", "experiments.bound_check")
    adapters = {r["case"] for r in rows if r["which"] == "outputs"}
    if len(adapters) != 1:
        raise ValueError("bound rows need the outputs of one trained adapter: write one CSV for it")
    rows = [r for r in rows if r["layer"] == "all" and r["which"] != "expected"]
    own = [r for r in rows if r["case"] in adapters]
    sizes = sorted({r["N"] for r in own})
    looks = {n: _SIZES[i % len(_SIZES)] for i, n in enumerate(sizes)}

    figure, parts, axes = style.stacked((2, 2, len(_RATIOS)), (1.55, 2.05, 2.7), style.COLUMN)
    panels = [*axes[0], *axes[1]]
    for panel, (which, title) in zip(panels, _OVER_EPS.items(), strict=True):
        _over_eps(panel, [r for r in own if r["which"] == which], looks)
        panel.set_title(title)
    for row in axes[:2]:
        row[0].set_ylabel("relative error")
    for panel in axes[1]:
        panel.set_xlabel("perturbation $\\epsilon$")
    _legend(parts[1], looks)
    cases = list(dict.fromkeys(r["case"] for r in rows if r["case"] not in adapters))
    for panel, (which, title) in zip(axes[2], _RATIOS.items(), strict=True):
        here = [r for r in rows if r["which"] == which]
        _ratios(panel, here, [*cases, *adapters], looks)
        panel.set_title(title)
    axes[2][0].set_yticks(range(len(cases) + 1), [*cases, "trained adapter"])
    axes[2][1].set_xlabel("bound / error")
    return style.save(figure, folder, name)


def _over_eps(axes: Any, rows: list[dict[str, Any]], looks: dict) -> None:
    """Measured error and bound over eps, a pair of lines per N."""
    axes.set_xscale("log")
    for i, (size, (color, marker)) in enumerate(looks.items()):
        line = sorted((r for r in rows if r["N"] == size), key=lambda r: r["eps"])
        shape = {"color": color, "marker": marker, "markersize": 3.2, "linewidth": 0.9}
        x = [r["eps"] or _ZERO for r in line]
        axes.plot(x, [r["measured"] for r in line], **shape)
        known = [(at, r["bound"]) for at, r in zip(x, line, strict=True) if not r["vacuous"]]
        if known:
            axes.plot(*zip(*known, strict=True), **shape, **_OPEN, linestyle=_BOUND)
        lost = [at * 1.7 ** (i - 1.5) for at, r in zip(x, line, strict=True) if r["vacuous"]]
        _in_band(axes, lost, shape)
    axes.axhline(1, **_REFERENCE)
    axes.set_xlim(_ZERO / 1.8, 3)
    axes.xaxis.set_major_locator(FixedLocator([_ZERO, 1e-3, 1e-2, 1e-1, 1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(["0", "", "$10^{-2}$", "", "1"])
    top = max((r[k] for r in rows for k in ("measured", "bound") if r[k] is not None), default=1)
    vacuous = any(r["vacuous"] for r in rows)
    axes.set_ylim(0, 1.08 * max(top, 1) / (_BAND if vacuous else 1))
    if vacuous:
        axes.axhspan(axes.get_ylim()[1] * _BAND, axes.get_ylim()[1], color="#dddddd", zorder=0)
        axes.text(0.03, (1 + _BAND) / 2, "vacuous", transform=axes.transAxes, va="center", size=7)


def _in_band(axes: Any, x: list[float], shape: dict[str, Any]) -> None:
    place = blended_transform_factory(axes.transData, axes.transAxes)
    axes.plot(x, [(1 + _BAND) / 2] * len(x), transform=place, **{**shape, **_OPEN, "linestyle": ""})


def _ratios(axes: Any, rows: list[dict[str, Any]], cases: list[str], looks: dict) -> None:
    """bound / error of every point, a row per case and within it a line per N."""
    axes.set_xscale("log")
    finite = [r["bound"] / r["measured"] for r in rows if _has_ratio(r)]
    highest = max(finite, default=1)
    edge = max(highest, 2) ** 1.1
    end = edge ** (1 / _BAND) if any(r["vacuous"] for r in rows) else edge
    sizes = list(looks)
    for r in rows:
        if not (r["vacuous"] or _has_ratio(r)):
            continue
        color, marker = looks.get(r["N"], (style.GREY, "x"))
        line = (sizes.index(r["N"]) + 0.5) / len(sizes) - 0.5 if r["N"] in sizes else 0
        x = (edge * end) ** 0.5 if r["vacuous"] else r["bound"] / r["measured"]
        axes.plot(x, cases.index(r["case"]) + 0.75 * line, color=color, marker=marker,
                  markersize=2.6, **_OPEN)  # fmt: skip
    axes.axvline(1, color=style.BLACK, linewidth=0.8, zorder=1)
    if end > edge:
        axes.axvspan(edge, end, color="#dddddd", zorder=0)
    axes.set_xlim(0.93 if edge < 10 else 0.6, end)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.grid(False, axis="y")
    for i in range(1, len(cases)):
        axes.axhline(i - 0.5, color="#e6e6e6", linewidth=0.5, zorder=0)
    ticks = {1: "1", 2: "2", 3: "3"} if edge < 10 else {1: "1", 100: "$10^2$"}
    ticks = {x: text for x, text in ticks.items() if x <= edge}
    if end > edge:
        ticks[(edge * end) ** 0.5] = "$\\infty$"
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())


def _has_ratio(row: dict[str, Any]) -> bool:
    return not row["vacuous"] and row["measured"] > _ROUNDING


def _legend(part: Any, looks: dict) -> None:
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=3.2, linestyle="")
        for color, marker in looks.values()
    ]
    names = [f"$N$ = {size:g}" for size in looks]
    shape = {"color": style.GREY, "marker": "o", "markersize": 3.2, "linewidth": 0.9}
    handles += [
        Line2D([], [], **shape),
        Line2D([], [], **shape, **_OPEN, linestyle=_BOUND),
        Line2D([], [], **_REFERENCE),
    ]
    names += ["measured", "bound", "nothing sent"]
    part.legend(handles, names, loc="outside lower center", ncols=4, columnspacing=1.1,
                handlelength=1.9)  # fmt: skip


main = program.command(draw, "bound_check.csv", __doc__)


if __name__ == "__main__":
    main()
