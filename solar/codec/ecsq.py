"""ECSQ: entropy-coded quantisation, each side of each component at the rate it is worth.

In orthonormal atoms of full or seeded choice the coefficients of a component are near Gaussian. Of
such numbers the trellis (trellis.py) has for each of its classes a point (bits, share of the energy
captured); the lower hull of these points is LEVELS, the levels there are. A component of energies
e_l and e_r reaches dW with
c_l e_l c_r e_r, where c are the shares captured, so at a price per bit the pair of levels that is
worth most follows from the two energies alone. Both ends compute it: the file needs the price, a
byte for each energy, and the cells. Layers can weigh their errors by the energy of their own first
component to the power of -relative: at 0 the error of dW over all layers is what counts, at 1 each
layer's error relative to its own update, which keeps small updates that the model needs from being
outbid by large ones. This is `limit.py`'s water-filling with a real quantiser in
the place of Shannon's curve.

`boost` fits the last bytes of a budget: that many sides, in order of falling energy and starting
again after the last, are coded one level finer than the price says; where it is negative one level
coarser, from the other end, but none is dropped.

    price       4 bytes, float32: squared error per bit
    boost       2 bytes, signed
    relative    1 byte, in 255ths
    energies    a byte per component, on the scale of quantize.py; two where the sides capture
                different energies because their atoms do not span the whole space
    cells       of all sides, in the order of trellis.py, one range-coded stream (`constriction`)
"""

import math
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from solar.codec import quantize, trellis
from solar.codec.coefficients import Coefficients, Side, size_of
from solar.codec.container import PacketError
from solar.codec.recipe import Setting

HEAD = struct.Struct("<fhB")
HIGHEST = 76  # the class of the finest level
MAX_BOOST = 32767
LOWEST = 1e-13  # price at which everything is at its finest, relative to that at which nothing is
PRECISION = 1.003  # to which a price is searched; the boost does the rest
ROUNDS, CLOSE = 5, 0.004
NEXT = 40  # prices tried for the next component


class Levels(NamedTuple):
    """The levels, finest last; the first is nothing at all. bits and share per coefficient; index:
    the class of the trellis."""

    bits: np.ndarray
    share: np.ndarray
    index: np.ndarray


@lru_cache(maxsize=1)
def levels() -> Levels:
    points = []
    for index in range(trellis.LEAST, HIGHEST + 1):
        bits, lost = trellis.point(index)
        points.append((bits, 1 - lost, index))
    hull: list[tuple] = [(0.0, 0.0, trellis.LEAST - 1)]
    for point in points:
        if point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    # Rounded, so that the last bit of a power on another machine moves nothing.
    bits, share, index = np.array(hull).T
    return Levels(np.round(bits, 9), np.round(share, 9), index.astype(np.int64))


def _slope(a: tuple, b: tuple) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


@lru_cache(maxsize=1)
def _slopes() -> np.ndarray:
    """Share gained per bit from each level to the next, falling."""
    table = levels()
    return np.minimum.accumulate(np.diff(table.share) / np.diff(table.bits))


class Components(NamedTuple):
    """Components in file order: their sides, target in them, sizes (c, 2) and energies (c, 2), and
    weights (c,) of their squared errors."""

    pairs: list[tuple[Side, Side]]
    targets: np.ndarray
    sizes: np.ndarray
    energies: np.ndarray
    weights: np.ndarray


def components(setting: Setting, sides: list[Side]) -> Components:
    """All components of `sides`, energies still unknown."""
    pairs, targets = [], []
    for left, right in zip(sides[::2], sides[1::2], strict=True):
        pairs += [(left, right)] * left.rank
        targets += range(left.rank)
    sizes = [[size_of(setting, side) for side in pair] for pair in pairs]
    sizes = np.array(sizes, np.int64).reshape(-1, 2)
    return Components(
        pairs, np.array(targets, np.int64), sizes, np.zeros(sizes.shape), np.ones(len(sizes))
    )


def weighed(own: Components, energies: np.ndarray, relative: int) -> Components:
    """`own` with energies (c, 2) and the weights that `relative`, in 255ths, gives its layers."""
    layers = np.array([pair[0].layer for pair in own.pairs], np.int64)
    first = np.flatnonzero(own.targets == 0)
    lead = np.zeros(int(layers.max(initial=-1)) + 1)
    lead[layers[first]] = energies[first].prod(axis=1)
    # Nothing here may depend on layers that the file leaves out.
    own_lead = lead[layers]
    weights = np.where(own_lead > 0, np.maximum(own_lead, 1e-300) ** (-relative / 255), 1.0)
    return own._replace(energies=energies, weights=weights)


def worths(own: Components) -> np.ndarray:
    """(c,) what a whole component is worth: its weighed squared norm in dW."""
    return own.energies.prod(axis=1) * own.weights


def whole(own: Components) -> np.ndarray:
    """(c,) whether both sides have atoms for the whole space: their energies are then the same."""
    dims = np.array([[side.dim for side in pair] for pair in own.pairs], np.int64).reshape(-1, 2)
    return (own.sizes == dims).all(axis=1)


def choose(own: Components, price: float, boost: int) -> np.ndarray:
    """Levels (c, 2) of every component at a price; both 0 where it is not worth sending."""
    table = levels()
    bits, share, worth = table.bits[1:], table.share[1:], worths(own)[:, None]
    left, right = own.sizes[:, :1], own.sizes[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Beside any level of the left side the right one climbs while a step gains its price.
        least = price * right / (worth * share)
        other = np.searchsorted(-_slopes(), -least)
        # One more byte for the energy of what is sent.
        value = worth * share * table.share[other]
        value = value - price * (left * bits + right * table.bits[other] + 8.0)
    best = np.argmax(np.where(other > 0, value, -np.inf), axis=1)[:, None]
    chosen = np.concatenate([best + 1, np.take_along_axis(other, best, axis=1)], axis=1)
    sent = (np.take_along_axis(value, best, axis=1) > 0) & (chosen[:, 1:] > 0)
    chosen = np.where(sent, chosen, 0)
    active = np.flatnonzero(chosen[:, 0] > 0)
    if boost and len(active):
        # What is worth alike, as the first components of all layers where `relative` is 1, keeps
        # its place whatever the last bits of a power are on this machine.
        falling = -np.round(2**20 * np.log2(worth[active, 0]))
        order = active[np.argsort(falling, kind="stable")]
        lines = np.stack([np.repeat(order, 2), np.tile([0, 1], len(order))])
        turns, rest = divmod(abs(boost), lines.shape[1])
        sign = 1 if boost > 0 else -1
        lines = lines[:, ::sign][:, :rest]
        chosen[order] += sign * turns
        chosen[lines[0], lines[1]] += sign
        chosen[order] = np.clip(chosen[order], 1, len(table.bits) - 1)
    return chosen


def _deviations(own: Components) -> np.ndarray:
    return np.sqrt(own.energies / np.maximum(own.sizes, 1))


class Quantised(NamedTuple):
    """Classes, cells and contexts of everything that is sent, in coding order, and bits (c, 2)."""

    classes: np.ndarray
    cells: np.ndarray
    contexts: np.ndarray
    bits: np.ndarray


def _spread(own: Components, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By coefficient that is sent, sides one after another: the side's index in (c, 2) laid flat,
    its class, and the root of the price at its level."""
    sizes = np.where(chosen > 0, own.sizes, 0).ravel()
    owner = np.repeat(np.arange(len(sizes)), sizes)
    index = levels().index[chosen].ravel()
    unit = _deviations(own).ravel() / trellis.deviation(index)
    return owner, index[owner], unit[owner]


def quantise(own: Components, tables: list, chosen: np.ndarray, bit: float = 1.0) -> Quantised:
    """tables: the coefficients (n,) of the left and of the right side by component, own.energies as
    the file has them; chosen (c, 2) levels; bit: its price, as trellis.py has it."""
    owner, index, unit = _spread(own, chosen)
    flat = [side for pair in tables for side in pair]
    sent = [side for side, level in zip(flat, chosen.ravel(), strict=True) if level > 0]
    values = np.concatenate([np.zeros(0), *sent])
    order = trellis.order(index)
    index = index[order]
    cells, contexts = trellis.quantise((values / unit)[order], index, bit)
    spent = trellis.bits(cells, contexts, index)
    bits = np.bincount(owner[order], spent, chosen.size).reshape(chosen.shape)
    return Quantised(index, cells, contexts, bits)


def pack(
    own: Components, dials: tuple[float, int, int], bytes_: np.ndarray, found: Quantised
) -> bytes:
    """The payload. dials: price, boost and relative; own: what is sent, energies as bytes_ (c, 2)
    say them."""
    from constriction import stream

    coder = stream.queue.RangeEncoder()
    trellis.write(coder, found.cells, found.contexts, found.classes)
    mask = np.stack([np.ones(len(own.pairs), bool), ~whole(own)], axis=1)
    data = coder.get_compressed().astype("<u4").tobytes() if len(own.pairs) else b""
    return HEAD.pack(*dials) + bytes_[mask].astype(np.uint8).tobytes() + data


def fill(own: Components, length: Callable[[np.ndarray], int], budget: int) -> tuple[float, int]:
    """The price (a float32) and the boost whose file, length(levels) bytes, is at most `budget`."""
    table = levels()

    each = 8 * (1 + ~whole(own))  # bits of a component's energies

    def modelled(price: float) -> float:
        chosen = choose(own, price, 0)
        return float((table.bits[chosen] * own.sizes).sum() + each[chosen[:, 0] > 0].sum())

    high = float(np.max(worths(own), initial=0)) or 1.0
    low, best, target = high * LOWEST, high, None
    for _ in range(ROUNDS):
        if target is not None:
            inside = (best, high) if modelled(best) > target else (low, best)
            best = _bisect(modelled, *inside, target)
        else:
            best = _bisect(modelled, low, high, 8.0 * budget)
        best = float(np.float32(best))
        real = length(choose(own, best, 0))
        if 0 <= budget - real <= CLOSE * budget:
            break
        # What the model does not know: tables, header, and how Gaussian the coefficients are.
        target = modelled(best) + 8.0 * (budget - real) - (16 if real > budget else 0)
    while length(choose(own, best, 0)) > budget and best < high:
        best = float(np.float32(best * 1.01))
    found = best, _most(lambda boost: length(choose(own, best, boost)) <= budget, 0, MAX_BOOST)
    # The next component may cost more than is left: let it in, and all of them a little coarser.
    lower = best
    for _ in range(NEXT):
        lower = float(np.float32(lower / PRECISION**2))
        if length(choose(own, lower, 0)) > budget:
            break
    if length(choose(own, lower, -MAX_BOOST)) <= budget:
        fits = lambda boost: length(choose(own, lower, boost)) <= budget  # noqa: E731
        other = lower, _most(fits, -MAX_BOOST, 0)
        found = max(found, other, key=lambda x: gained(own, choose(own, *x)))
    return found


def gained(own: Components, chosen: np.ndarray) -> float:
    """Weighed squared norm of dW that levels (c, 2) are expected to capture."""
    return float((worths(own) * levels().share[chosen].prod(axis=1)).sum())


def _most(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number in [low, high] that fits; low does."""
    step = 1
    while low < high and fits(min(low + step, high)):
        low, step = min(low + step, high), step * 2
    high = min(low + step, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _bisect(cost: Callable[[float], float], low: float, high: float, most: float) -> float:
    """The lowest price in [low, high] whose cost is at most `most`, near enough."""
    if cost(low) <= most:
        return low
    while high > low * PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle) <= most else (middle, high)
    return high


def expected(own: Components, chosen: np.ndarray) -> np.ndarray:
    """(c, 2) bits that Gaussian coefficients need at levels (c, 2)."""
    return levels().bits[chosen] * own.sizes


def by_side(own: Components, bits: np.ndarray) -> dict[Side, float]:
    """Bits of every side that is sent: its cells, (c, 2) by component, and its energies. A byte of
    energy that serves both sides counts half to each."""
    energy = np.where(whole(own), 4.0, 8.0)
    spent: dict[Side, float] = {}
    for pair, cells_, each in zip(own.pairs, bits, energy, strict=True):
        for side, found in zip(pair, cells_, strict=True):
            spent[side] = spent.get(side, 0.0) + float(found) + float(each)
    return spent


def length(energies: int, bits: float) -> int:
    """Bytes of a payload with `energies` bytes of energies and cells of `bits` by their chances:
    what the coder needs to a few bytes."""
    return HEAD.size + energies + (4 * (math.ceil(bits / 32) + 1) if energies else 0)


def unpack(
    setting: Setting, sides: list[Side], power: int, data: bytes
) -> dict[Side, Coefficients]:
    """Coefficients of every side. Raises PacketError."""
    from constriction import stream

    if sum(side.rank for side in sides[::2]) > len(data):
        raise PacketError("packet is altered: its payload is too short for its layer table")
    own = components(setting, sides)
    mask = np.stack([np.ones(len(own.pairs), bool), ~whole(own)], axis=1)
    head = HEAD.size + int(mask.sum())
    if len(data) < head or (len(data) - head) % 4:
        raise PacketError("packet is altered: its payload is too short for its layer table")
    price, boost, relative = HEAD.unpack_from(data)
    if not (np.isfinite(price) and price >= 0):
        raise PacketError("packet is altered: its price is no positive number")
    bytes_ = np.zeros(mask.shape, np.uint8)
    bytes_[mask] = np.frombuffer(data[HEAD.size : head], np.uint8)
    bytes_[:, 1] = np.where(mask[:, 1], bytes_[:, 1], bytes_[:, 0])
    own = weighed(own, quantize.scale_steps(bytes_, power), relative)
    chosen = choose(own, price, boost)
    words = np.frombuffer(data[head:], "<u4").astype(np.uint32)
    # The likeliest cells of all need this much: a level is not read from nothing.
    kinds = levels().index[chosen]
    sizes = {int(i): int(own.sizes[kinds == i].sum()) for i in np.unique(kinds[chosen > 0])}
    if 0.99 * sum(n * trellis.least_bits(i) for i, n in sizes.items()) > 32 * len(words):
        raise PacketError("packet is altered: its payload is too short for its layer table")
    coder, again = stream.queue.RangeDecoder(words), stream.queue.RangeEncoder()
    counts = np.where(chosen > 0, own.sizes, 0).ravel()
    index = np.repeat(kinds.ravel().astype(np.int8), counts)
    order = trellis.order(index)
    index = index[order]
    try:
        cells, contexts = trellis.read(coder, index)
        trellis.write(again, cells, contexts, index)
    except AssertionError:  # what constriction raises for words that no encoder writes
        raise PacketError("packet is altered: it holds a stream that no encoder writes") from None
    # The coder reads zeros past its end: only writing again tells whether these were all the words.
    if not np.array_equal(again.get_compressed() if sides else words[:0], words):
        raise PacketError("packet is altered: it holds a stream that is not in its one form")
    found = np.empty(len(index), np.float32)
    found[order] = trellis.decoded(cells, contexts, index)
    unit = (_deviations(own) / trellis.deviation(kinds)).ravel().astype(np.float32)
    with np.errstate(over="ignore"):  # refused below
        found *= np.repeat(unit, counts)
    if not np.isfinite(found).all():
        raise PacketError("packet is altered: it holds non-finite coefficients")
    parts = np.split(found, np.cumsum(counts)[:-1])
    values: dict[Side, list[np.ndarray]] = {side: [] for side in sides}
    for i, (row, side) in enumerate(np.ndindex(chosen.shape)):
        part = parts[i] if chosen[row, side] else np.zeros(own.sizes[row, side], np.float32)
        values[own.pairs[row][side]].append(part)
    return {
        side: Coefficients(
            np.arange(size_of(setting, side) * side.rank, dtype=np.int32), np.concatenate(own_)
        )
        for side, own_ in values.items()
    }
