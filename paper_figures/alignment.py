"""How much of an adapter lies in the leading singular subspace of its base weights, layer by layer,
beside chance.

    python -m paper_figures.alignment [CSV] [--out FOLDER]

Columns: experiment, base, layer (index), module, side (left or right), size (N), alignment (energy
of the factor in the leading N singular vectors of W), random (the same for a seeded random subspace
of N dimensions), chance (N / dimension). One row of panels per experiment and size, one panel per
side, one line per module; its random subspace is dashed in the same colour. Several seeds of one
layer are averaged.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paper_figures import program, style
from paper_figures.rows import adapters, check

COLUMNS = ("experiment", "base", "layer", "module", "side", "size", "alignment", "random", "chance")
_COLORS = (
    style.BLUE,
    style.VERMILLION,
    style.GREEN,
    style.PURPLE,
    style.ORANGE,
    style.BLACK,
    style.SKY,
)
_MARKERS = "os^DvXp"


def draw(rows: Sequence[dict[str, Any]], folder: str | Path, name: str = "alignment") -> list[Path]:
    """Draw `rows` to `folder`/`name`.png and .pdf. Raises ValueError for a missing column or no
    rows.
    """
    check(rows, COLUMNS, "alignment", "experiments.alignment")
    names = adapters(rows)
    panels = list(dict.fromkeys((row["experiment"], row["size"]) for row in rows))
    sides = [side for side in ("left", "right") if any(row["side"] == side for row in rows)]
    modules = list(dict.fromkeys(row["module"] for row in rows))
    looks = {
        module: (_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)])
        for i, module in enumerate(modules)
    }
    figure, axes = style.figure(
        len(panels), len(sides), style.COLUMN, 0.7 + 1.45 * len(panels), sharey="row", sharex="row"
    )
    for i, (experiment, size) in enumerate(panels):
        for j, side in enumerate(sides):
            here = axes[i, j]
            for module, (color, marker) in looks.items():
                chosen = [
                    row
                    for row in rows
                    if (row["experiment"], row["size"], row["side"], row["module"])
                    == (experiment, size, side, module)
                ]
                if not chosen:
                    continue
                layers, seen = _by_layer(chosen, "alignment")
                here.plot(layers, seen, color=color, marker=marker, markersize=2.5)
                here.plot(
                    *_by_layer(chosen, "random"), color=color, linestyle=(0, (3, 2)), linewidth=0.8
                )
                here.plot(
                    *_by_layer(chosen, "chance"), color=color, linestyle=(0, (1, 2)), linewidth=0.6
                )
            here.margins(y=0.1)
            here.set_ylim(bottom=0)
            here.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if i == 0:
                here.set_title({"left": "left (output)", "right": "right (input)"}[side])
            if j == 0:
                here.set_ylabel(f"{names[experiment]}\nenergy in top {size:g}")
            if i == len(panels) - 1:
                here.set_xlabel("layer")
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=3) for color, marker in looks.values()
    ]
    handles += [
        Line2D([], [], color=style.GREY, linestyle=(0, (3, 2)), linewidth=0.8),
        Line2D([], [], color=style.GREY, linestyle=(0, (1, 2)), linewidth=0.8),
    ]
    figure.legend(
        handles,
        [*modules, "random subspace", "chance, $N$ / dimension"],
        loc="outside lower center",
        ncols=2 if len(handles) <= 4 else 3,
        columnspacing=1.2,
    )
    return style.save(figure, folder, name)


def _by_layer(rows: Sequence[dict[str, Any]], column: str) -> tuple[list[float], list[float]]:
    """Layers in order and the mean of `column` at each."""
    layers: dict[float, list[float]] = {}
    for row in rows:
        if row[column] is not None:
            layers.setdefault(row["layer"], []).append(row[column])
    ordered = sorted(layers)
    return ordered, [statistics.fmean(layers[layer]) for layer in ordered]


main = program.command(draw, "alignment.csv", __doc__)


if __name__ == "__main__":
    main()
