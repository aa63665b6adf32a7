"""In how many directions the energy of an adapter lies, in the frame of W's singular vectors and as
the base feels it in the frame of its own activations and gradients.

    python -m paper_figures.energy [CSV] [--out FOLDER]

Columns: experiment, base, seed, frame (singular, random or activation), side (left or right), size
(number of leading directions), share (of the energy that lies in them, mean of the layers), spread
(standard deviation over the layers), layers. A row of panels per experiment, a panel per side, a
line per frame; several seeds are averaged. Bands are one standard deviation over the layers.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, style
from paper_figures.rows import adapters, check

COLUMNS = ("experiment", "base", "seed", "frame", "side", "size", "share", "spread", "layers")
LOOKS = {
    "activation": ("the base's activations and gradients", style.VERMILLION, "D", "-"),
    "singular": ("singular vectors of $W$", style.BLUE, "o", "-"),
    "random": ("random directions", style.GREY, "x", ":"),
}
SIDES = {"left": "left (output)", "right": "right (input)"}


def draw(rows: Sequence[dict[str, Any]], folder: str | Path, name: str = "energy") -> list[Path]:
    """Draw `rows` to `folder`/`name`.png and .pdf. Raises ValueError for a missing column or no
    rows."""
    check(rows, COLUMNS, "energy", "experiments.energy")
    names = adapters(rows)
    figure, axes = style.figure(
        len(names), len(SIDES), style.COLUMN, 0.7 + 1.3 * len(names), sharey=True, sharex="row"
    )
    for i, (experiment, adapter) in enumerate(names.items()):
        for j, (side, title) in enumerate(SIDES.items()):
            here = axes[i, j]
            for frame, (label, color, marker, line) in LOOKS.items():
                place = experiment, frame, side
                own = [r for r in rows if (r["experiment"], r["frame"], r["side"]) == place]
                sizes = sorted({row["size"] for row in own})
                share, spread = (
                    [statistics.fmean(r[column] for r in own if r["size"] == k) for k in sizes]
                    for column in ("share", "spread")
                )
                here.plot(
                    sizes, share, color=color, marker=marker, linestyle=line, markersize=2.5,
                    label=label,
                )  # fmt: skip
                both = list(zip(share, spread, strict=True))
                here.fill_between(
                    sizes, [max(x - s, 0) for x, s in both], [min(x + s, 1) for x, s in both],
                    color=color, alpha=0.15, linewidth=0,
                )  # fmt: skip
            here.set_xscale("log", base=2)
            here.set_ylim(0, 1.03)
            if i == 0:
                here.set_title(title)
            if j == 0:
                here.set_ylabel(f"{adapter}\nshare of energy")
            if i == len(names) - 1:
                here.set_xlabel("leading directions")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1)
    return style.save(figure, folder, name)


main = program.command(draw, "energy.csv", __doc__)


if __name__ == "__main__":
    main()
