"""The presets that fill a budget beside quantised and truncated factors at equal bytes.

    python -m paper_figures.equal_bytes [CSV] [--out FOLDER]

The picture of accuracy_vs_bytes.py without the paper's form: above what a file is worth, below what
it weighs. A code whose errors count as the activations see them is the best above and the worst
below.
"""

from functools import partial

from paper_figures import accuracy_vs_bytes, program

draw = partial(accuracy_vs_bytes.draw, name="equal_bytes")
main = program.command(draw, "smollm2_budgets.csv", __doc__, score="label of the upper axis")


if __name__ == "__main__":
    main()
