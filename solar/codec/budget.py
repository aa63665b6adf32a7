"""Budget: how many coefficients every component gets, so that the file fills a number of bytes.

A component of singular value s has a left and a right vector of energy s each. If the coefficients
kept of a side capture the energy c, what reaches dW of that component is the product c_l c_r, and
the squared error falls by it (exactly so for one component in orthonormal atoms, nearly so for
several). Every side of every component is cut at a few counts k; each cut has the bits that its
support and its numbers cost. At one price per bit all components choose, independently, the pair
of cuts that is worth most after its price. That is reverse water-filling over layers, sides and
components with real costs; the price is lowered until the file is full. What is left of the budget
goes to single coefficients, in order of what they add.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from solar.codec import supports
from solar.codec.coefficients import Coefficients, Side, size_of, targets_of
from solar.codec.quantize import FLOATS, INTEGERS
from solar.codec.recipe import Setting

CUTS = 22  # counts a side of a component is tried at, in geometric steps up to all it has
FEWEST = 1 / 128  # the least of them but none, as a share
STEPS = 30  # of the search for the price
LOWEST = 1e-14  # price at which everything is bought, relative to that at which nothing is
WIDTHS = {"float16": 16, "float32": 32, **INTEGERS}


class Lines(NamedTuple):
    """Coefficients of components, a row of two sides for each.

    sides: (left, right) and the target of each row; sizes (c, 2); order (c, 2, n) positions by
    falling magnitude; magnitudes (c, 2, n) in that order, zero past the size; energies (c, 2) of
    the targets; gains (c,): squared norm in dW per product of the two energies.
    """

    sides: list[tuple[Side, Side]]
    targets: np.ndarray
    sizes: np.ndarray
    order: np.ndarray
    magnitudes: np.ndarray
    energies: np.ndarray
    gains: np.ndarray


def lines(
    setting: Setting, sides: list[Side], fitted: Mapping[Side, Coefficients],
    energies: Mapping[Side, np.ndarray],
) -> Lines:  # fmt: skip
    """All components of `sides`; fitted: every coefficient of every side; energies (t,) of its
    targets."""
    pairs, targets = [], []
    for left, right in zip(sides[::2], sides[1::2], strict=True):
        for target in range(targets_of(setting, left)):
            pairs.append((left, right))
            targets.append(target)
    widest = max((size_of(setting, side) for side in sides), default=1)
    shape = (len(pairs), 2, widest)
    table, energy = np.zeros(shape, np.float32), np.zeros(shape[:2])
    sizes = np.zeros(shape[:2], np.int64)
    for row, (pair, target) in enumerate(zip(pairs, targets, strict=True)):
        for i, side in enumerate(pair):
            size = size_of(setting, side)
            table[row, i, :size] = fitted[side].values[target * size : (target + 1) * size]
            sizes[row, i], energy[row, i] = size, energies[side][target]
    order = np.argsort(-np.abs(table), axis=2, kind="stable")
    magnitudes = np.abs(np.take_along_axis(table, order, axis=2)).astype(np.float64)
    # A matrix atom codes all components at once, whose energies do not multiply up to ||dW||^2.
    # Only the ratio between layers matters then, and that of their energies is near enough.
    return Lines(pairs, np.array(targets, np.int64), sizes, order, magnitudes, energy,
                 np.ones(len(pairs)))  # fmt: skip


def captured(own: Lines, counts: np.ndarray, dtype: str) -> np.ndarray:
    """Energy (c, 2, g) that the `counts` (c, 2, g) largest coefficients capture at a dtype.

    Sign: one step per component captures (sum |c|)^2 / k. Floats lose nothing. b bits lose a
    twelfth of a squared step each, the step reaching from -max to max.
    """
    zero = np.zeros((*own.sizes.shape, 1))
    index = np.minimum(counts, own.magnitudes.shape[2])
    if dtype == "sign":
        total = np.concatenate([zero, np.cumsum(own.magnitudes, axis=2)], axis=2)
        return np.take_along_axis(total, index, axis=2) ** 2 / np.maximum(counts, 1)
    total = np.concatenate([zero, np.cumsum(own.magnitudes**2, axis=2)], axis=2)
    kept = np.take_along_axis(total, index, axis=2)
    if dtype in FLOATS:
        return kept
    step = 2 * own.magnitudes[:, :, :1] / 2 ** INTEGERS[dtype]
    return np.maximum(kept - counts * step**2 / 12, 0)


class Cuts(NamedTuple):
    """The cuts of all lines at one dtype: counts, bits and captured energy, (c, 2, g) each."""

    counts: np.ndarray
    bits: np.ndarray
    energy: np.ndarray


def cuts(own: Lines, dtype: str) -> Cuts:
    share = np.concatenate([[0.0], np.geomspace(FEWEST, 1, CUTS)])
    counts = np.ceil(own.sizes[:, :, None] * share).astype(np.int64)
    bits = supports.bits(counts, own.sizes[:, :, None]) + counts * WIDTHS[dtype]
    bits += np.where(counts > 0, 16, 8)  # the scale and the density
    return Cuts(counts, bits, captured(own, counts, dtype))


def choose(own: Lines, at: Cuts, price: float) -> tuple[np.ndarray, float]:
    """Counts (c, 2) of every component at a price, in squared error per bit, and the sum of
    bits."""
    gain = at.energy[:, 0, :, None] * at.energy[:, 1, None, :] * own.gains[:, None, None]
    cost = at.bits[:, 0, :, None] + at.bits[:, 1, None, :]
    best = np.argmax((gain - price * cost).reshape(len(gain), -1), axis=1)
    rows = np.arange(len(gain))
    left, right = np.divmod(best, at.counts.shape[2])
    counts = np.stack([at.counts[rows, 0, left], at.counts[rows, 1, right]], axis=1)
    return counts, float(cost[rows, left, right].sum())


def search(own: Lines, at: Cuts, bits: float) -> np.ndarray:
    """Counts (c, 2) at the lowest price at which they cost at most `bits`."""
    high = float(np.max(own.gains * own.energies.prod(axis=1), initial=0))  # nothing is worth it
    low = high * LOWEST
    best = np.zeros(own.sizes.shape, np.int64)
    counts, cost = choose(own, at, low)
    if cost <= bits:
        return counts
    for _ in range(STEPS):
        price = float(np.sqrt(low * high))
        counts, cost = choose(own, at, price)
        if cost <= bits:
            best, high = counts, price
        else:
            low = price
    return best


def extras(own: Lines, counts: np.ndarray) -> np.ndarray:
    """Line, side and rank (e, 3) of every coefficient beyond `counts` (c, 2), the most useful
    first: by its energy times what the other side has captured."""
    energy = captured(own, counts[:, :, None], "float32")[:, :, 0]
    other = energy[:, ::-1] + 1e-6 * own.energies[:, ::-1]
    worth = own.magnitudes**2 * other[:, :, None] * own.gains[:, None, None]
    rank = np.arange(worth.shape[2])
    free = (rank >= counts[:, :, None]) & (rank < own.sizes[:, :, None])
    free &= own.gains[:, None, None] > 0
    found = np.argwhere(free)
    return found[np.argsort(-worth[free], kind="stable")]


def with_extras(counts: np.ndarray, more: np.ndarray, number: int) -> np.ndarray:
    """Counts (c, 2) with the first `number` of `more`."""
    # Within a line worth falls with rank, so those taken are always the next ones.
    result = counts.copy()
    np.add.at(result, (more[:number, 0], more[:number, 1]), 1)
    return result


def positions(own: Lines, counts: np.ndarray) -> dict[Side, np.ndarray]:
    """Rising positions (k,) of every side that `counts` (c, 2) keep."""
    found: dict[Side, list[np.ndarray]] = {}
    for row, pair in enumerate(own.sides):
        for i, side in enumerate(pair):
            kept = np.sort(own.order[row, i, : counts[row, i]])
            found.setdefault(side, []).append(kept + own.targets[row] * own.sizes[row, i])
    return {side: np.concatenate(parts) for side, parts in found.items()}


def best_dtype(own: Lines, bits: float) -> str:
    """The dtype that gains most in `bits`, by the model of `captured`."""
    gains = {}
    for dtype in WIDTHS:
        counts = search(own, cuts(own, dtype), bits)
        energy = captured(own, counts[:, :, None], dtype)[:, :, 0]
        gains[dtype] = float(np.sum(energy.prod(axis=1) * own.gains))
    return max(gains, key=gains.__getitem__)
