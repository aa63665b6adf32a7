"""Where the bytes of one budget go: bytes of both sides, relative error and rank of every layer.

    python -m paper_figures.layer_budget [CSV] [--out FOLDER]

Columns: experiment, base, task, seed, budget (bytes of the whole file), layer (index), module, side
(left or right), rank (that is sent), bits (spent on the side), relative_error (of the layer's
update, the same in both rows). One block of panels per experiment and budget, a line per module;
points are means over seeds, and bars their standard deviation where there are several.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paper_figures import program, style
from paper_figures.rows import adapters, check

COLUMNS = (
    *("experiment", "base", "task", "seed", "budget", "layer", "module", "side"),
    *("rank", "bits", "relative_error"),
)
_LOOKS = tuple(
    {"color": color, "marker": marker, "markersize": 2.4}
    for color, marker in (
        (style.BLUE, "o"), (style.VERMILLION, "s"), (style.GREEN, "^"), (style.PURPLE, "D"),
        (style.ORANGE, "v"), (style.BLACK, "X"), (style.SKY, "p"),
    )
)  # fmt: skip


def draw(
    rows: Sequence[dict[str, Any]], folder: str | Path, name: str = "layer_budget"
) -> list[Path]:
    """Draw `rows` to `folder`/`name`.png and .pdf. Raises ValueError for a missing column or no
    rows."""
    check(rows, COLUMNS, "layer", "experiments.layer_budget")
    blocks = list(dict.fromkeys((r["experiment"], r["task"], r["budget"]) for r in rows))
    names = adapters(rows)
    modules = list(dict.fromkeys(r["module"] for r in rows))
    looks = {module: _LOOKS[i % len(_LOOKS)] for i, module in enumerate(modules)}
    figure, parts, axes = style.stacked((2,) * (2 * len(blocks)), (1.6, 1.75) * len(blocks),
                                        style.COLUMN)  # fmt: skip
    for i, block in enumerate(blocks):
        own = [r for r in rows if (r["experiment"], r["task"], r["budget"]) == block]
        upper, lower = axes[2 * i], axes[2 * i + 1]
        for here, side in zip(upper, ("left", "right"), strict=True):
            _lines(here, [r for r in own if r["side"] == side], lambda r: r["bits"] / 8, looks)
            here.set_title({"left": "left factor (output)", "right": "right factor (input)"}[side])
        upper[0].set_ylabel("bytes spent")
        top = max(here.get_ylim()[1] for here in upper)
        once = [r for r in own if r["side"] == "left"]
        _lines(lower[0], once, lambda r: r["relative_error"], looks)
        lower[0].set_ylabel("relative error")
        _lines(lower[1], once, lambda r: r["rank"], looks)
        lower[1].set_ylabel("rank sent")
        lower[1].yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for here in (*upper, *lower):
            highest = top if here in upper else here.get_ylim()[1]
            here.set_ylim(-0.04 * highest, highest)  # markers at zero are whole
            here.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for here in lower:
            here.set_xlabel("layer")
        experiment, task, budget = block
        parts[2 * i].suptitle(f"{names[experiment]}, {task}, {budget:,} bytes", fontsize=8)
    handles = [Line2D([], [], **look) for look in looks.values()]
    parts[-1].legend(handles, modules, loc="outside lower center", ncols=4, columnspacing=1.2)
    return style.save(figure, folder, name)


def _lines(axes: Any, rows: list, value: Callable[[dict], float], looks: dict) -> None:
    """`value` over the layers, a line per module: mean over seeds, and its standard deviation."""
    for module, look in looks.items():
        layers: dict[int, list[float]] = {}
        for row in rows:
            if row["module"] == module:
                layers.setdefault(row["layer"], []).append(value(row))
        if not layers:
            continue
        x = sorted(layers)
        spread = [statistics.stdev(layers[k]) if len(layers[k]) > 1 else 0.0 for k in x]
        axes.errorbar(
            x,
            [statistics.fmean(layers[k]) for k in x],
            yerr=spread if any(spread) else None,
            elinewidth=0.6,
            linewidth=0.9,
            capsize=1,
            **look,
        )


main = program.command(draw, "layer_budget.csv", __doc__)


if __name__ == "__main__":
    main()
