"""The presets that fill a budget beside quantised and truncated factors at equal bytes.

    python -m paper_figures.equal_bytes [CSV] [--out FOLDER]

The picture of accuracy_vs_bytes.py without the paper's form: above what a file is worth, below what
it weighs. A code whose errors count as the activations see them is the best above and the worst
below.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_figures import accuracy_vs_bytes, program


def draw(
    rows: Sequence[dict[str, Any]],
    folder: str | Path,
    name: str = "equal_bytes",
    score: str = "test score",
) -> list[Path]:
    """Draw tidy `rows` to `folder`/`name`.png and .pdf; `score` labels the upper axis. Raises
    ValueError where no row has a size and a score."""
    return accuracy_vs_bytes.draw(rows, folder, name, score)


main = program.command(draw, "smollm2_budgets.csv", __doc__, score="label of the upper axis")


if __name__ == "__main__":
    main()
