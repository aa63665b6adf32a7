"""Energies: the scales of components, integers in quarters of an octave, as differences.

The first component of a layer is told by its difference from the first of the layer before it of
the same shape, or from START; a later one by how much it is below the one before it in its layer,
which is never less than 0. Differences have chances that fall to both sides of a middle by one of
RATIOS; middles and ratios are four bytes of the header:

    middle, ratio      1 byte each, the middle signed: of first components
    middle, ratio      the same of later ones
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from solar.codec.container import PacketError

LARGEST = 255
START = 200  # what the first layer of a shape is told from
RATIOS = (0.2, 0.3, 0.4, 0.5, 0.58, 0.65, 0.7, 0.75, 0.79, 0.83, 0.86, 0.89, 0.91, 0.93, 0.95, 0.97)
GRAIN = 2.0**-20


class Shape(NamedTuple):
    """Middle and index of the ratio, of first and of later components."""

    middle: int
    ratio: int
    later: int
    later_ratio: int


@lru_cache(maxsize=256)
def _chances(low: int, middle: int, ratio: int) -> np.ndarray:
    """Chances of differences from `low` to LARGEST."""
    # Products of the same numbers in the same order are the same everywhere, powers are not.
    falls = np.cumprod(np.full(3 * LARGEST, RATIOS[ratio]))
    chances = np.append(1.0, falls)[np.abs(np.arange(low, LARGEST + 1) - middle)]
    return np.maximum(np.round(chances / chances.sum() / GRAIN), 1) * GRAIN


@lru_cache(maxsize=256)
def _bits(low: int, middle: int, ratio: int) -> np.ndarray:
    chances = _chances(low, middle, ratio)
    return -np.log2(chances / chances.sum())


@lru_cache(maxsize=256)
def _model(low: int, middle: int, ratio: int):
    from constriction import stream

    return stream.model.Categorical(_chances(low, middle, ratio), perfect=False)


def before(lengths: np.ndarray) -> np.ndarray:
    """(l,) index of the layer before each with the same lengths (l, 2) of its sides, or -1."""
    found, last = np.full(len(lengths), -1), {}
    for i, pair in enumerate(map(tuple, lengths.tolist())):
        found[i] = last.get(pair, -1)
        last[pair] = i
    return found


def _differences(
    energies: np.ndarray, first: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of first components, and of later ones in file order."""
    leads = np.flatnonzero(first == np.arange(len(first)))
    from_ = before(lengths[leads])
    known = np.where(from_ >= 0, energies[leads][np.maximum(from_, 0)], START)
    later = np.flatnonzero(first != np.arange(len(first)))
    return energies[leads] - known, energies[later - 1] - energies[later]


def _best(low: int, differences: np.ndarray) -> tuple[float, int, int]:
    """Bits, middle and ratio that differences cost least with."""
    if not len(differences):
        return 0.0, 0, 0
    middle = int(np.clip(np.median(differences), low, 127)) if low == 0 else 0
    counts = np.bincount(differences - low, minlength=LARGEST + 1 - low)
    bits = [
        (float(counts @ _bits(low, middle + m, r)), middle + m, r)
        for m in ((0,) if low else (-2, -1, 0, 1, 2))
        for r in range(len(RATIOS))
        if low <= middle + m <= 127
    ]
    return min(bits)


def shape(energies: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> tuple[float, Shape]:
    """Bits of energies (c,), and the shape of their differences that makes them least. first (c,):
    index of the first component of the layer; lengths (c, 2): entries of both sides."""
    own, later = _differences(energies, first, lengths)
    one, other = _best(-LARGEST, own), _best(0, later)
    return one[0] + other[0], Shape(*one[1:], *other[1:])


def write(coder, energies: np.ndarray, first: np.ndarray, lengths: np.ndarray, own: Shape) -> None:
    lead, later = _differences(energies, first, lengths)
    if len(lead):
        coder.encode((lead + LARGEST).astype(np.int32), _model(-LARGEST, own.middle, own.ratio))
    if len(later):
        coder.encode(later.astype(np.int32), _model(0, own.later, own.later_ratio))


def check(own: Shape) -> None:
    """Raises PacketError."""
    if max(own.ratio, own.later_ratio) >= len(RATIOS) or own.later < 0:
        raise PacketError("packet is altered: its payload is not in its one form")


def least_bits(own: Shape) -> float:
    """Bits that an energy costs at least."""
    return float(
        min(
            _bits(-LARGEST, own.middle, own.ratio).min(),
            _bits(0, own.later, own.later_ratio).min(),
        )
    )


def read(decoder, first: np.ndarray, lengths: np.ndarray, own: Shape) -> np.ndarray:
    """Energies (c,) int64 that `write` wrote. Raises PacketError, and lets constriction's
    AssertionError through."""
    count = len(first)
    leads = first == np.arange(count)
    energies = np.zeros(count, np.int64)
    if not count:
        return energies
    found = decoder.decode(_model(-LARGEST, own.middle, own.ratio), int(leads.sum())) - LARGEST
    starts, values = np.flatnonzero(leads), []
    for difference, last in zip(found.tolist(), before(lengths[starts]).tolist(), strict=True):
        values.append((values[last] if last >= 0 else START) + difference)
    if not leads.all():
        falls = decoder.decode(_model(0, own.later, own.later_ratio), int((~leads).sum()))
        energies[~leads] = falls
    total = np.cumsum(energies)
    energies = np.array(values)[np.cumsum(leads) - 1] - (total - total[first])
    if energies.min() < 0 or energies.max() > LARGEST:
        raise PacketError("packet is altered: its payload is not in its one form")
    return energies
