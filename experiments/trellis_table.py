"""Makes solar/codec/trellis_table.py: chances of the trellis's cells where the rate is low.

    python -m experiments.trellis_table     # a minute; says how far each class is from Shannon

Gaussian numbers of each class are quantised again and again, each time by the chances of the time
before, until these stay as they are; the step is the one of least squared error plus bits at the
price. The file is part of the format: packets made with another one do not read the same.
"""

import math
from pathlib import Path

import numpy as np

from solar.codec import trellis, trellis_table

FIRST, LAST, MANY = -12, 12, -4  # classes from FIRST to LAST; up to MANY with all contexts
STEPS = (26, 28, 30, 32, 34, 36, 38, 41, 44, 48, 52, 55)  # over the root of the price, in 32nds
NEIGHBOURS = 2  # steps tried beside the best of the class below
ROUNDS, DRAWS = 7, 2**17
SCALE = 2**12
PATH = Path(trellis_table.__file__)
HEAD = '''"""Trellis table: made by `python -m experiments.trellis_table`, and part of the format.

For each class from FIRST: WIDTHS, its step over the root of the price, in WIDTH-ths, and in SHAPES,
for each context of the state, by how much the values of cells 1 and 2 are beside the grid, in
SHIFT-ths of a step, and how often each cell occurs. POINTS: bits and relative squared error of a
Gaussian number, in 65,536ths.
"""

from typing import NamedTuple

import numpy as np

WIDTH, SHIFT, FIRST = 32, 64, {first}


class Rows(NamedTuple):
    """chances (contexts, cells), not normalised; shifts (contexts, 2)."""

    chances: np.ndarray
    shifts: np.ndarray


def rows(index: int) -> Rows:
    """Of a class that has a shape."""
    own = np.array(SHAPES[index - FIRST])
    return Rows(own[:, 2:].astype(np.float64), own[:, :2])


# fmt: off
WIDTHS = (
{widths})
POINTS = (
{points})
SHAPES = (
{shapes})
# fmt: on
'''


def _settle(index: int, width: int, contexts: int, draws: int) -> tuple[float, np.ndarray, tuple]:
    """What a number of the class costs, bits and squared error over the price, its rows, and its
    bits and relative squared error."""
    ratio = 2.0 ** (index / 8) * math.sqrt(trellis.UNIT)
    cells = math.ceil(2.5 * ratio / (width / 32)) + 3
    grid = trellis.grid(cells)
    chances = np.exp(-((grid * width / 32) ** 2) / (2 * ratio**2 + 1)) + 1e-4
    chances = np.tile(chances / chances.sum(axis=1, keepdims=True), (contexts // 2, 1))
    shifts = np.zeros((contexts, 2))
    drawn = np.random.Generator(np.random.PCG64(index + 100))
    classes = np.full(draws, index)
    for _ in range(ROUNDS):
        rows = np.concatenate([np.round(shifts * 64), np.ceil(chances * SCALE)], axis=1)
        # The codec reads the shapes of the module: here they are what is being looked for.
        place = index - FIRST
        trellis_table.SHAPES = [rows.astype(int).tolist()] * (place + 1)
        trellis_table.WIDTHS = (width,) * (place + 1)
        trellis.MOST = index
        trellis.table.cache_clear()
        trellis._tables.cache_clear()
        own = trellis.table(index)
        values = drawn.standard_normal(draws) * ratio
        found, states = trellis.quantise(values, classes)
        states, size = states % contexts, np.minimum(np.abs(found), cells - 1)
        counts = np.zeros((contexts, cells))
        np.add.at(counts, (states, size), 1)
        sums = np.zeros((contexts, cells))
        np.add.at(sums, (states, size), np.abs(values) / (width / 32))
        chances = (counts + 0.1) / (counts + 0.1).sum(axis=1, keepdims=True)
        mean = sums / np.maximum(counts, 1) - np.tile(grid, (contexts // 2, 1))
        shifts = np.where(counts > 200, np.clip(mean, -0.5, 0.5), 0)[:, 1:3]
        decoded = own.values[states, np.abs(found)] * own.width
        chance = own.chances / own.chances.sum(axis=1, keepdims=True)
        bits = -np.log2(chance[states, np.abs(found)]) + (found != 0)
        error = (np.abs(values) - decoded) ** 2
        # The variance that was drawn is not quite that of the class.
        cost = float(np.mean(error) + np.mean(bits)) - 0.5 * math.log2(
            np.mean(values**2) / ratio**2
        )
        point = float(np.mean(bits)), float(np.mean(error) / np.mean(values**2))
    return cost, rows.astype(int), point


def least(index: int) -> float:
    """What a number costs at Shannon's bound, bits and squared error over the price."""
    variance = 2.0 ** (index / 4) * trellis.UNIT
    level = 1 / (2 * math.log(2))
    return min(variance, level) + max(0.0, 0.5 * math.log2(variance / level))


def main() -> None:
    widths, shapes, points, near = [], [], [], 2
    for index in range(FIRST, LAST + 1):
        contexts = trellis.CONTEXTS if index <= MANY else 2
        tried = range(max(near - NEIGHBOURS, 0), min(near + NEIGHBOURS + 1, len(STEPS)))
        costs = {i: _settle(index, STEPS[i], contexts, DRAWS // 2)[0] for i in tried}
        near = min(costs, key=costs.get)
        cost, rows, point = _settle(index, STEPS[near], contexts, DRAWS)
        points.append(tuple(round(x * 2**16) for x in point))
        widths.append(STEPS[near])
        shapes.append(rows.tolist())
        silent = 2.0 ** (index / 4) * trellis.UNIT - least(index)
        print(f"class {index}: step {STEPS[near]}, {cost - least(index):.3f} above Shannon, "
              f"{silent:.3f} if nothing is sent", flush=True)  # fmt: skip
    text = "".join("    (\n" + "".join(f"        {tuple(row)},\n" for row in rows) + "    ),\n"
                   for rows in shapes)  # fmt: skip
    table = "".join(
        "    " + ", ".join(map(str, widths[i : i + 16])) + ",\n" for i in range(0, len(widths), 16)
    )
    pairs = "".join(
        "    " + ", ".join(map(str, points[i : i + 6])) + ",\n" for i in range(0, len(points), 6)
    )
    PATH.write_text(HEAD.format(first=FIRST, widths=table, points=pairs, shapes=text))
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
