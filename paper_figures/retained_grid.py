"""Heat map of the retained share of the adapter's gain over basis size N and perturbation eps.

    python -m paper_figures.retained_grid [CSV] [--out FOLDER]

Cells hold per cent, mean over seeds, and below it the standard deviation where there are several
seeds. 0 is the base, 100 the adapter; an empty cell was not measured.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paper_figures import program, style, sweep
from paper_figures import rows as results

_COLOURS = "cividis"  # lightness rises all the way, for all eyes and in grey
_CELL = 0.34  # inches: height of a cell


def draw(
    rows: Sequence[dict[str, Any]], folder: str | Path, name: str = "retained_grid"
) -> list[Path]:
    """Draw tidy `rows` to `folder`/`name`.png and .pdf, a panel per base, task and configuration.
    Raises ValueError where no row has N, eps and a retained gain."""
    panels = results.panels(rows, lambda r: results.on_grid(r) and r.get("retained") is not None)
    if not panels:
        raise ValueError("no row has N, eps and retained: run `python -m experiments.compare`")
    every = [100 * p["retained"] for panel in panels for p in panel.points]
    span = {"vmin": min(0.0, *every), "vmax": max(100.0, *every)}
    tall = max(len({p["N"] for p in panel.points}) for panel in panels)
    figure, axes = style.figure(
        1, len(panels), style.COLUMN * len(panels), 0.95 + _CELL * max(tall, 3)
    )
    for column, (here, panel) in enumerate(zip(axes[0], panels, strict=True)):
        sizes = sorted({p["N"] for p in panel.points}, reverse=True)
        scales = sorted({p["eps"] for p in panel.points})
        table = np.full((len(sizes), len(scales)), np.nan)
        for point in panel.points:
            at = sizes.index(point["N"]), scales.index(point["eps"])
            table[at] = 100 * point["retained"]
            _number(here, at, point, span)
        image = here.imshow(table, cmap=_COLOURS, aspect="auto", **span)
        here.set_title(panel.title)
        here.set_xticks(range(len(scales)), [f"{v:g}" for v in scales])
        here.set_yticks(range(len(sizes)), [f"{v:g}" for v in sizes])
        here.set_xlabel(sweep.NAMES["eps"])
        if column == 0:
            here.set_ylabel(sweep.NAMES["N"])
        here.grid(False)
        here.tick_params(length=0)
    bar = figure.colorbar(image, ax=list(axes[0]), fraction=0.06, pad=0.02)
    bar.set_label("retained gain, %")
    return style.save(figure, folder, name)


def _number(axes: Any, at: tuple[int, int], point: dict[str, Any], span: dict[str, float]) -> None:
    value, spread = 100 * point["retained"], point.get("retained_std")
    light = (value - span["vmin"]) / (span["vmax"] - span["vmin"]) > 0.5
    text = f"{value:.1f}" if spread is None else f"{value:.1f}\n$\\pm$ {100 * spread:.1f}"
    color = "black" if light else "white"
    axes.text(at[1], at[0], text, ha="center", va="center", color=color, fontsize=7)


main = program.command(draw, "smollm2_sentiment.csv", __doc__)


if __name__ == "__main__":
    main()
