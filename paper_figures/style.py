"""The look of every figure: sizes, fonts, and one fixed colour and marker per code.

Colours are Okabe and Ito's, which stay apart for colour-blind readers. No two series rely on colour
alone: each has its own marker and line, so the figure also reads in grey (of more than six lines of
the paper's form the looks repeat). Figures are drawn at the width at which they are printed, so no
text shrinks on the page.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, and none is opened

from matplotlib import pyplot as plt  # noqa: E402  the backend has to be chosen first
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

COLUMN = 3.4  # inches: the width of one column of a two-column page

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#777777"
WINE = "#882255"  # Tol's; darker than all but black, blue and green

# What lines of the paper's form take in turn, one per perturbation or basis. The first marker is
# filled and the others are open and grow, so that points on the same spot show as nested shapes.
_OPEN = {"markerfacecolor": "none", "markeredgewidth": 1.0}
SOLAR = (
    {"color": BLUE, "marker": "o", "linestyle": "-", "markersize": 3.5},
    {"color": VERMILLION, "marker": "s", "linestyle": "--", "markersize": 5.5, **_OPEN},
    {"color": GREEN, "marker": "^", "linestyle": "-.", "markersize": 7.5, **_OPEN},
    {"color": PURPLE, "marker": "D", "linestyle": ":", "markersize": 6.5, **_OPEN},
    {"color": WINE, "marker": "p", "linestyle": "-", "markersize": 8.5, **_OPEN},
    {"color": ORANGE, "marker": "h", "linestyle": "--", "markersize": 9.5, **_OPEN},
)

BASELINES = {
    "compact": {"color": VERMILLION, "marker": "D", "linestyle": "-", "markersize": 4.5},
    "weights": {"color": SKY, "marker": "d", "linestyle": "-", "markersize": 5.5},
    "refit": {"color": WINE, "marker": ">", "linestyle": ":", "markersize": 5},
    "unlabelled": {"color": PURPLE, "marker": "v", "linestyle": "--", "markersize": 5},
    "aware": {"color": GREEN, "marker": "^", "linestyle": "-", "markersize": 5},
    "float32": {"color": BLACK, "marker": "*", "linestyle": "none", "markersize": 8},
    "float16": {"color": BLACK, "marker": "P", "linestyle": "none", "markersize": 6},
    "truncate": {"color": ORANGE, "marker": "v", "linestyle": "-", "markersize": 7.5, **_OPEN},
    "bits": {"color": GREY, "marker": "X", "linestyle": "-", "markersize": 4.5},
    "truncated bits": {"color": GREY, "marker": "x", "linestyle": ":", "markersize": 5},
}

LIMIT = {"color": BLACK, "linestyle": "-", "linewidth": 0.9}

_SETTINGS = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.1,
    "lines.markersize": 4.5,
    "errorbar.capsize": 1.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text: searchable, and editable by a publisher
    "ps.fonttype": 42,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
}


def figure(rows: int, columns: int, width: float, height: float, **options):
    """A figure of `rows` x `columns` panels, sizes in inches, and its axes as a 2-D array."""
    plt.rcParams.update(_SETTINGS)
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)


def stacked(columns: Sequence[int], heights: Sequence[float], width: float):
    """A figure of rows with different numbers of panels, sizes in inches: the figure, its parts
    (one a row, each may have a title and a legend) and the axes of every row; a row shares its y
    axis where it has more than two panels."""
    plt.rcParams.update(_SETTINGS)
    whole = plt.figure(figsize=(width, sum(heights)))
    parts = whole.subfigures(len(columns), 1, height_ratios=heights, squeeze=False)[:, 0]
    rows = [
        part.subplots(1, count, sharey=count > 2, squeeze=False)[0]
        for part, count in zip(parts, columns, strict=True)
    ]
    return whole, parts, rows


def readable(size: float) -> str:
    """A size in bytes as 700 B, 1.5 kB, 12 kB, 3 MB (powers of ten)."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.3g} B"


def level(axes: Axes, height: float, name: str) -> None:
    """A dotted horizontal line at `height`, named outside the right edge, where no marker is."""
    axes.axhline(height, color=GREY, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
    axes.annotate(
        f"{name}\n{height:.3f}",
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(2, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=6.5,
        color="#444444",
        annotation_clip=False,
    )


def score_levels(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """The mean scores of the base and of the adapter, where the points have them."""
    for measure, name in (("score_adapter", "adapter"), ("score_base", "base")):
        values = [p[measure] for p in points if p.get(measure) is not None]
        if values:
            level(axes, sum(values) / len(values), name)
    axes.margins(y=0.12)


def save(drawn: Figure, folder: str | os.PathLike, name: str) -> list[Path]:
    """Write `name`.png and `name`.pdf into `folder`, whole or not at all, and close the figure.

    Returns their paths. No date goes into the files: the same rows give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, metadata in (("png", None), ("pdf", {"CreationDate": None})):
        path = folder / f"{name}.{ending}"
        partial = path.with_name(f".{path.name}.partial")
        drawn.savefig(partial, format=ending, metadata=metadata)
        os.replace(partial, path)
        paths.append(path)
    plt.close(drawn)
    return paths
