"""Redraws every figure and table from the committed CSV files: what `make figures` runs.

    python -m paper_figures [--out FOLDER]

Nothing is trained or scored, and where no CSV has changed no file does. Every CSV of collected
results becomes a table.
"""

import argparse
from collections.abc import Sequence

from paper_figures import (
    accuracy_vs_bytes,
    alignment,
    basis_size,
    bound_vs_error,
    bytes_by_part,
    energy,
    latex,
    layer_budget,
    parity,
    perturbation,
    program,
    reached,
    retained,
    retained_grid,
    rows,
)

FIGURES = (
    accuracy_vs_bytes,
    retained,
    basis_size,
    perturbation,
    retained_grid,
    bytes_by_part,
    energy,
    bound_vs_error,
    alignment,
    layer_budget,
    reached,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw all of them; the first that cannot be drawn ends the program with status 2."""
    parser = argparse.ArgumentParser(prog="python -m paper_figures",
                                     description=__doc__.partition("\n\n")[0])  # fmt: skip
    parser.add_argument("--out", default=program.HERE, help="folder for the files")
    folder = str(parser.parse_args(arguments).out)
    with program.mistakes():
        for figure in FIGURES:
            figure.main(["--out", folder])
        parity.main(["--out", folder])
        for path in sorted(program.DATA.glob("*.csv")):
            if {"codec", "label", "score"} <= rows.read(path)[0].keys():
                latex.main([str(path), "--out", folder])


if __name__ == "__main__":
    main()
