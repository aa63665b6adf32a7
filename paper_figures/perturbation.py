"""Perturbation sweep: score and relative error of the paper's form over eps, a line per basis size.

    python -m paper_figures.perturbation [CSV] [--out FOLDER]

The axis is logarithmic; eps = 0 stands half a decade below the least eps that is not zero. Rows
that keep only some coefficients, or use another basis, atoms or dtype, are no part of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_figures import program, sweep


def draw(
    rows: Sequence[dict[str, Any]],
    folder: str | Path,
    name: str = "perturbation",
    score: str = "test score",
) -> list[Path]:
    """Draw tidy `rows` to `folder`/`name`.png and .pdf; `score` labels the upper axis. Raises
    ValueError where no row is on the grid of N and eps."""
    return sweep.draw(rows, folder, name, "eps", score)


main = program.command(draw, "smollm2_sentiment.csv", __doc__, score="label of the upper axis")


if __name__ == "__main__":
    main()
