"""ECSQ: entropy-coded scalar quantisation, each side of each component at the rate it is worth.

In orthonormal atoms of full or seeded choice the coefficients of a component are near Gaussian. A
uniform quantiser of such numbers with a dead zone, its cells coded at their entropy, has for every
step and every dead zone a point (bits, share of the energy captured); the lower hull of these
points is LEVELS, the levels there are. A component of energies e_l and e_r reaches dW with
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
    cells       one entropy-coded stream (range coder of `constriction`)
"""

import math
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from solar.codec import quantize
from solar.codec.coefficients import Coefficients, Side, size_of
from solar.codec.container import PacketError
from solar.codec.recipe import Setting

HEAD = struct.Struct("<fhB")
RATIOS = np.geomspace(0.12, 400, 150)  # standard deviation over step
DEADS = (
    0.5,
    0.55,
    0.6,
    0.65,
    0.7,
    0.8,
)  # a number of size x lies in cell floor(x / step + 1 - this)
LEAST_BITS, MOST_LEVELS = 0.01, 64
REACH = 9.0  # standard deviations that cells cover; what is beyond counts as the last one
MAX_BOOST = 32767
LOWEST = 1e-13  # price at which everything is at its finest, relative to that at which nothing is
PRECISION = 1.003  # to which a price is searched; the boost does the rest
ROUNDS, CLOSE = 5, 0.004
NEXT = 40  # prices tried for the next component


class Levels(NamedTuple):
    """The levels, finest last; the first is nothing at all. bits and share per coefficient."""

    bits: np.ndarray
    share: np.ndarray
    ratio: np.ndarray
    dead: np.ndarray


def _cells(ratio: float, dead: float) -> tuple[np.ndarray, np.ndarray]:
    """Chances (k,) and mean sizes (k,) of |x| in cells 0, 1, ... for x ~ N(0, 1)."""
    last = math.ceil(REACH * ratio) + 1
    edges = np.concatenate([[0.0], (np.arange(last) + dead) / ratio])
    above = np.array([math.erfc(x) for x in edges / math.sqrt(2)] + [0.0])
    density = np.append(np.sqrt(2 / np.pi) * np.exp(-(edges**2) / 2), 0.0)
    chance = above[:-1] - above[1:]
    mean = (density[:-1] - density[1:]) / np.maximum(chance, 1e-300)
    # Far in the tail both are differences of tiny numbers; the middle of the cell will do.
    mean = np.where(chance > 1e-13, mean, edges + 0.5 / ratio)
    mean[0] = 0  # both signs are in the first cell
    return chance, mean


@lru_cache(maxsize=1)
def levels() -> Levels:
    points = []
    for ratio in RATIOS:
        for dead in DEADS if ratio < 2 else DEADS[:1]:
            chance, mean = _cells(ratio, dead)
            bits = -np.sum(chance * np.log2(np.maximum(chance, 1e-300))) + chance[1:].sum()
            points.append((bits, float(np.sum(chance * mean**2)), ratio, dead))
    hull: list[tuple] = [(0.0, 0.0, 0.0, 0.0)]
    for point in sorted(points):
        if point[0] < LEAST_BITS or point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    # As many as choosing pairs can afford, evenly along the curve. Rounded, so that the last bit
    # of a logarithm on another machine moves nothing.
    chosen = np.unique(np.round(np.linspace(0, len(hull) - 1, MOST_LEVELS)).astype(int))
    return Levels(*(np.round(x, 9) for x in np.array(hull)[chosen].T))


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
        order = active[np.argsort(-worths(own)[active], kind="stable")]
        lines = np.stack([np.repeat(order, 2), np.tile([0, 1], len(order))])
        turns, rest = divmod(abs(boost), lines.shape[1])
        sign = 1 if boost > 0 else -1
        lines = lines[:, ::sign][:, :rest]
        chosen[order] += sign * turns
        chosen[lines[0], lines[1]] += sign
        chosen[order] = np.clip(chosen[order], 1, len(table.bits) - 1)
    return chosen


@lru_cache(maxsize=256)
def _level(index: int):
    """Chances of cells -k ... k at a level, the mean size in each, ratio and dead zone."""
    table = levels()
    chance, mean = _cells(float(table.ratio[index]), float(table.dead[index]))
    both = np.concatenate([chance[:0:-1] / 2, chance[:1], chance[1:] / 2])
    values = np.concatenate([-mean[:0:-1], mean[:1], mean[1:]])
    return np.maximum(both, 1e-12), values, float(table.ratio[index]), float(table.dead[index])


def _least_bits(index: int) -> float:
    """Bits that the likeliest cell of a level costs, a little less."""
    return -0.99 * math.log2(float(_level(index)[0].max())) if index else 0.0


@lru_cache(maxsize=256)
def _model(index: int):
    from constriction import stream

    return stream.model.Categorical(_level(index)[0], perfect=False)


def _deviations(own: Components) -> np.ndarray:
    return np.sqrt(own.energies / np.maximum(own.sizes, 1))


def cells(values: np.ndarray, level: int, deviation: float) -> np.ndarray:
    """Cells (n,) int32, counted from 0 at -k, of values (n,)."""
    chances, _, ratio, dead = _level(level)
    middle = len(chances) // 2
    size = np.floor(np.abs(values) * (ratio / deviation) + 1 - dead)
    return (np.sign(values) * np.minimum(np.maximum(size, 0), middle)).astype(np.int32) + middle


def pack(
    own: Components, dials: tuple[float, int, int], bytes_: np.ndarray, tables: list[np.ndarray],
    chosen: np.ndarray,
) -> bytes:  # fmt: skip
    """The payload. dials: price, boost and relative; own: what is sent, energies as bytes_ (c, 2)
    say them; tables: the coefficients (c, n) of left sides and right sides by component; chosen
    (c, 2) levels.
    """
    from constriction import stream

    coder = stream.queue.RangeEncoder()
    deviations = _deviations(own)
    for row, side in np.argwhere(chosen > 0):
        index = int(chosen[row, side])
        coder.encode(cells(tables[row][side], index, deviations[row, side]), _model(index))
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


def meter(own: Components, tables: list) -> Callable[[np.ndarray], np.ndarray]:
    """The bits (c, 2) of the cells at levels (c, 2), from their chances. Each level of each side is
    counted once, however often it is asked for."""
    known = np.full((*own.sizes.shape, len(levels().bits)), np.nan)
    known[:, :, 0] = 0
    deviations = _deviations(own)

    def bits(chosen: np.ndarray) -> np.ndarray:
        found = np.take_along_axis(known, chosen[:, :, None], axis=2)[:, :, 0]
        for row, side in np.argwhere(np.isnan(found)):
            index = int(chosen[row, side])
            symbols = cells(tables[row][side], index, deviations[row, side])
            found[row, side] = -float(np.log2(_level(index)[0])[symbols].sum())
            known[row, side, index] = found[row, side]
        return found

    return bits


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
    sizes = {int(i): int(own.sizes[chosen == i].sum()) for i in np.unique(chosen)}
    if sum(size * _least_bits(i) for i, size in sizes.items()) > 32 * len(words):
        raise PacketError("packet is altered: its payload is too short for its layer table")
    coder = stream.queue.RangeDecoder(words)
    deviations = _deviations(own)
    again = stream.queue.RangeEncoder()
    values: dict[Side, list[np.ndarray]] = {side: [] for side in sides}
    try:
        for (row, side), index in np.ndenumerate(chosen):
            size = int(own.sizes[row, side])
            if index == 0:
                values[own.pairs[row][side]].append(np.zeros(size, np.float32))
                continue
            symbols = coder.decode(_model(int(index)), size)
            again.encode(symbols, _model(int(index)))
            found = _level(int(index))[1][symbols] * deviations[row, side]
            with np.errstate(over="ignore"):  # refused below
                values[own.pairs[row][side]].append(found.astype(np.float32))
            if not np.isfinite(values[own.pairs[row][side]][-1]).all():
                raise PacketError("packet is altered: it holds non-finite coefficients")
    except AssertionError:  # what constriction raises for words that no encoder writes
        raise PacketError("packet is altered: it holds a stream that no encoder writes") from None
    # The coder reads zeros past its end: only writing again tells whether these were all the words.
    if not np.array_equal(again.get_compressed() if sides else words[:0], words):
        raise PacketError("packet is altered: it holds a stream that is not in its one form")
    return {
        side: Coefficients(
            np.arange(size_of(setting, side) * side.rank, dtype=np.int32), np.concatenate(own_)
        )
        for side, own_ in values.items()
    }
