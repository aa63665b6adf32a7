"""Allot: which components of an update are sent, and how finely.

Trials are many, so they are made with a scalar quantiser in the place of the trellis: uniform, with
a dead zone and centroids, at the same price per bit. It needs more bits than the trellis for the
same error, by a share that depends on the rate; how many the trellis needs is measured for what was
found, the trials are given so many more, and the last choice, how many components are a quarter
finer, is made with the trellis itself. Values that lie in heaps, as trained ones do, make a file
grow by leaps; what is left then is spent by quantising at a lower price of a bit.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from solar.codec import energies, profiled, trellis
from solar.codec.frame_file import OCTAVE
from solar.codec.profiled import PRICE, Dials, Lines, Quantised, only
from solar.codec.trellis import MOST

LEAST = -18  # classes of the scalar quantiser: 0.21 standard deviations over steps
DEADS = (0.5, 0.54, 0.58, 0.62, 0.66, 0.7, 0.76, 0.82, 0.9)
FLOOR = 0.02  # chance that an entry does not follow its class at all
AROUND = 8  # finer steps that are tried with fewer components
SHARE = 0.95  # of the scalar quantiser's bits that the trellis needs, before it is measured
ROUNDS = 2  # of measuring it
NEAR = 4  # quarters of an octave by which the step may move for it
WORD = 4  # bytes in which the stream grows
TOGETHER = 2**18  # entries that a thread is worth
TRIES, CLOSE = 6, 0.002  # of the trellis at the end, and the share of a budget that may be left


def _gaussian(ratio: float, dead: float) -> tuple[np.ndarray, np.ndarray]:
    """Chances (k,) of |x| in cells 0, 1, ... for x ~ N(0, 1) and its means there in steps; cell j
    begins at (j - 1 + dead) / ratio."""
    last = math.ceil(10 * ratio) + 6
    edges = np.concatenate([[0.0], (np.arange(last) + dead) / ratio])
    above = np.array([math.erfc(x) for x in edges / math.sqrt(2)] + [0.0])
    density = np.append(np.sqrt(2 / np.pi) * np.exp(-(edges**2) / 2), 0.0)
    chance = above[:-1] - above[1:]
    mean = (density[:-1] - density[1:]) / np.maximum(chance, 1e-300)
    # Far in the tail the entry does not follow its class: the middle of the cell.
    mean = np.where(chance > 1e-7, mean, edges + 0.5 / ratio)
    mean[0] = 0  # both signs are in the first cell
    return chance, np.round(mean * ratio, 6)


@lru_cache(maxsize=MOST - LEAST + 1)
def _table(index: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Dead zone, chances of the cells 0, 1, ... (both signs together) and values in steps."""
    ratio = 2.0 ** (index / (2 * OCTAVE))
    best = None
    for dead in DEADS:
        chance, mean = _gaussian(ratio, dead)
        bits = -np.sum(chance * np.log2(np.maximum(chance, 1e-300))) + chance[1:].sum()
        worth = np.sum(chance * (mean / ratio) ** 2) - PRICE / ratio**2 * bits
        if best is None or worth > best[0] + 1e-9:
            best = (worth, dead, chance, mean)
    _, dead, chance, mean = best
    floor = 0.5 ** np.minimum(np.arange(1, len(chance) + 1), 60)
    return dead, np.maximum((1 - FLOOR) * chance + FLOOR * floor, 2.0**-19), mean


@lru_cache(maxsize=1)
def _tables():
    """All classes laid end to end: dead (classes,), start and last cell, bits and values."""
    own = [_table(c) for c in range(LEAST, MOST + 1)]
    sizes = np.array([len(t[1]) for t in own])
    # A cell other than the first costs its sign too.
    bits = [-np.log2(t[1] / t[1].sum()) + (np.arange(len(t[1])) > 0) for t in own]
    start = np.cumsum(sizes) - sizes
    values = np.concatenate([t[2] for t in own])
    return np.array([t[0] for t in own]), start, sizes - 1, np.concatenate(bits), values


class Tried(NamedTuple):
    """What dials would do with a scalar quantiser: bits (c,), by how much sending a component
    lowers the squared error in the metric (c,), and decoded values (entries,)."""

    bits: np.ndarray
    gains: np.ndarray
    decoded: np.ndarray


def attempt(own: Lines, dials: Dials) -> Tried:
    """Quantises every component, side by side where there are many."""
    count, sizes = len(own.energies), own.lengths.sum(axis=1)
    step, decoded = profiled.steps_of(own, dials), np.zeros(len(own.values))
    ends = np.cumsum(sizes)
    many = min(os.cpu_count() or 1, -(-len(decoded) // TOGETHER)) if count else 1
    cuts = np.searchsorted(ends, np.arange(1, many) * len(decoded) // many).tolist()

    def part(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        place = slice(*(int(ends[i - 1]) if i else 0 for i in (first, last)))
        here = Lines(own.energies[first:last], own.first, own.lengths[first:last],
                     own.profiles[place], own.values[place])  # fmt: skip
        return _attempt(here, step[first:last], dials.power, decoded[place])

    edges = [0, *cuts, count]
    both = list(zip(edges, edges[1:], strict=False))
    if many == 1:
        found = [part(*pair) for pair in both]
    else:
        with ThreadPoolExecutor(many) as pool:
            found = list(pool.map(lambda pair: part(*pair), both))
    bits, gains = (np.concatenate(x) for x in zip(*found, strict=True))
    return Tried(bits, gains, decoded)


def _attempt(
    own: Lines, step: np.ndarray, power: int, decoded: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bits and gains of components with squared steps 2^step; their entries go into `decoded`."""
    if not len(own.energies):
        return np.zeros(0), np.zeros(0)
    dead, start, last, cost, means = _tables()
    whole = np.minimum(profiled.spread(own, own.energies - step) + own.profiles, MOST)
    place = np.flatnonzero(whole >= LEAST)
    index = whole[place] - LEAST
    owner = profiled.spread(own, np.arange(len(own.energies)))[place]
    width = profiled.widths(own.energies[owner], own.profiles[place], step[owner], power)
    width /= math.sqrt(PRICE)
    values = own.values[place]
    cell = np.floor(np.abs(values) / width + 1 - dead[index]).astype(np.int64)
    cell = np.clip(cell, 0, last[index]) + start[index]
    decoded[place] = np.sign(values) * means[cell] * width
    bits = np.bincount(owner, cost[cell], len(own.energies))
    ends = np.cumsum(own.lengths.ravel())
    starts = ends - own.lengths.ravel()
    together = np.add.reduceat(own.values * decoded, starts).reshape(-1, 2)
    alone = np.add.reduceat(decoded**2, starts).reshape(-1, 2)
    return bits, 2 * together.prod(axis=1) - alone.prod(axis=1)


def cost(own: Lines, dials: Dials) -> float:
    """Bits, and squared errors as bits at the price at which the entries are quantised."""
    tried = attempt(own, dials)
    each = profiled.spread(own, 2.0 ** ((profiled.steps_of(own, dials) + dials.power) / OCTAVE))
    return float(tried.bits.sum() + np.sum((tried.decoded - own.values) ** 2 / each) / PRICE)


def _worths(own: Lines, dials: Dials, gains: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """(c,) what a bit of a component gains, over the price at which its entries are quantised; no
    more than that of the components before it in its layer, which have to be sent too."""
    size = 2.0 ** ((own.energies + profiled.steps_of(own, dials) + 2 * dials.power) / OCTAVE)
    worth = gains / (PRICE * size * bits)
    place = np.arange(len(worth)) - own.first
    for rank in range(1, int(place.max(initial=0)) + 1):
        here = np.flatnonzero(place == rank)
        worth[here] = np.minimum(worth[here], worth[here - 1])
    return worth


def _range(own: Lines, dials: Dials) -> tuple[int, int]:
    """Steps between which anything changes: below the first every entry is as fine as it gets, at
    the second none is sent."""
    zero = (
        profiled.spread(own, own.energies - profiled.steps_of(own, dials._replace(step=0, boost=0)))
        + own.profiles
    )
    return max(int(zero.min()) - MOST, -(2**15)), min(int(zero.max()) - LEAST + 1, 2**15 - 1)


def _found(
    own: Lines, dials: Dials, size: Callable[[np.ndarray, float], int], budget: int, share: float,
    steps: tuple[int, int], around: int, known: dict[int, tuple[np.ndarray, np.ndarray]],
) -> tuple[int, np.ndarray]:  # fmt: skip
    """The step within `steps`, and the components (c,), of most gain where cells have `share` of
    the bits that the scalar quantiser has. known: bits and gains of the steps that were tried."""
    count = len(own.energies)
    scale = energies.shape(own.energies, own.first, own.lengths)[0] / count

    def best_at(step: int, least: float) -> tuple[np.ndarray, int, float]:
        """The best components of worth above `least` that fit, how many more there would have been,
        and what they gain."""
        here = dials._replace(step=step, boost=0)
        if step not in known:
            known[step] = attempt(own, here)[:2]
        alone, gains = known[step]
        bits = share * alone + scale
        worth = _worths(own, here, gains, bits)
        order = np.argsort(-worth, kind="stable")
        wanted = int(np.sum(worth > least))

        def taken(many: int) -> np.ndarray:
            return np.isin(np.arange(count), order[:many])

        def fits(many: int) -> bool:
            sent = taken(many)
            return size(sent, float(bits[sent].sum())) <= budget

        many = wanted if fits(wanted) else _most(fits, 0, wanted)
        sent = taken(many)
        weight = 2.0 ** (-(profiled.steps_of(own, here) + own.energies) / OCTAVE)
        return sent, wanted - many, float(np.sum((weight * gains)[sent]))

    low, high = steps
    while low < high:  # the finest step at which all that is worth its bits fits
        middle = (low + high) // 2
        low, high = (low, middle) if best_at(middle, 1.0)[1] == 0 else (middle + 1, high)
    # A finer step for fewer components may gain more: below some rate a side is not worth having.
    tried = {step: best_at(step, 0.0) for step in range(max(low - around, -(2**15)), low + 1)}
    tops = {step: gain * 2.0 ** (step / OCTAVE) for step, (_, _, gain) in tried.items()}
    step = max(tops, key=lambda x: (tops[x], x))
    return step, tried[step][0]


def outline(
    own: Lines, dials: Dials, size: Callable[[np.ndarray, float], int], budget: int
) -> tuple[Dials, np.ndarray]:
    """About what `fill` finds, by the scalar quantiser alone."""
    if not len(own.energies):
        return dials, np.zeros(0, bool)
    step, sent = _found(own, dials, size, budget, SHARE, _range(own, dials), AROUND, {})
    return dials._replace(step=step, boost=0), sent


class Filled(NamedTuple):
    """Dials, the components (c,) that are sent, the price of a bit, and what is sent so, or None
    where that was not found on the way."""

    dials: Dials
    sent: np.ndarray
    price: float = 1.0
    quantised: Quantised | None = None


def fill(own: Lines, dials: Dials, size: Callable[[np.ndarray, float], int], budget: int) -> Filled:
    """How a file, size(sent, bits), has at most `budget` bytes and hardly less."""
    if not len(own.energies):
        return Filled(dials, np.zeros(0, bool))
    share, steps, known = SHARE, _range(own, dials), {}
    for turn in range(ROUNDS):
        step, sent = _found(own, dials, size, budget, share, steps, AROUND, known)
        if turn == ROUNDS - 1 or not sent.any():
            break
        part, here = only(own, sent), dials._replace(step=step, boost=0)
        real = profiled.quantise(part, here).bits
        share = real / max(float(attempt(part, here).bits.sum()), 1.0)
        steps = max(step - NEAR, steps[0]), min(step + NEAR, steps[1])
    if not sent.any():
        return Filled(dials._replace(step=step, boost=0), sent)
    return _finest(own, sent, dials._replace(step=step, boost=0), size, budget)


def again(
    own: Lines, sent: np.ndarray, dials: Dials, price: float,
    size: Callable[[np.ndarray, float], int], budget: int, spare: float,
) -> Filled:  # fmt: skip
    """The same near these dials and this price for components (c,) that are sent in any case: these
    themselves where their file leaves no more than `spare` of the budget. `size` reckons with a
    word that the coder hardly ever needs, so a file may be a word too long by it."""
    if not sent.any():
        return Filled(dials._replace(boost=0), sent, price)
    part = only(own, sent)
    dials = dials._replace(boost=min(dials.boost, _most_boost(part)))
    found = profiled.quantise(part, dials, price)
    bits = found.bits + profiled.energy_bits(part)
    if -WORD <= budget - size(sent, bits) <= max(spare * budget, WORD):
        return Filled(dials, sent, price, found)
    return _finest(own, sent, dials, size, budget)


def _finest(
    own: Lines, sent: np.ndarray, dials: Dials, size: Callable[[np.ndarray, float], int],
    budget: int,
) -> Filled:  # fmt: skip
    """The dials near these whose file is the fullest that fits, and the price of a bit that fills
    it further."""
    part, known = only(own, sent), {}
    count, scale = len(part.energies), profiled.energy_bits(part)
    least, most = _range(part, dials)

    def at(boost: int) -> Dials:
        turns, rest = divmod(boost, count)
        return dials._replace(step=dials.step - turns, boost=min(rest, profiled.MOST_BOOST))

    best: tuple[int, Quantised] | None = None  # of the fullest file that fits: what it leaves

    def over(boost: int, price: float = 1.0) -> int:
        """Bytes above the budget."""
        nonlocal best
        found = profiled.quantise(part, at(boost), price)
        more = size(sent, found.bits + scale) - budget
        # At one dial a lower price that fits is taken whatever it leaves.
        if more <= 0 and (best is None or more > best[0] or price < 1.0):
            best = more, found
        return more

    # A component a quarter finer has an eighth of a bit more in each number that has any.
    each = max(float(np.sum(profiled.classes(part, dials) >= profiled.LEAST)) / count / 64, 0.01)
    low, high = (dials.step - most) * count, (dials.step - least) * count
    guess, close = dials.boost, max(CLOSE * budget, WORD)
    for _ in range(TRIES):
        known[guess] = over(guess)
        if 0 <= -known[guess] <= close:
            break
        near = sorted(known, key=lambda b: abs(known[b]))[:2]
        if len(near) == 2 and known[near[0]] != known[near[1]]:  # a secant
            each = max((known[near[0]] - known[near[1]]) / (near[0] - near[1]), each / 4)
        aim = near[0] - (known[near[0]] + WORD / 2) / each
        guess = min(max(math.floor(aim), low), high)
        under = [b for b in known if known[b] <= 0]
        above = [b for b in known if known[b] > 0]
        if under and above:
            if min(above) - max(under) <= 1:
                break
            guess = min(max(guess, max(under) + 1), min(above) - 1)
        if guess in known:
            break
    fitting = [b for b in known if known[b] <= 0]
    if not fitting:
        return Filled(at(min(known)), sent)
    boost = max(fitting, key=known.get)
    price = trellis.lowest_price(lambda price: over(boost, price), -known[boost], close)
    return Filled(at(boost), sent, price, best[1])


def _most(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number in [low, high] that fits; low does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def coarser(own: Lines, dials: Dials) -> Dials:
    """The next dials that cost less."""
    if dials.boost:
        return dials._replace(boost=dials.boost - 1)
    return dials._replace(step=dials.step + 1, boost=_most_boost(own))


def _most_boost(own: Lines) -> int:
    return min(len(own.energies) - 1, profiled.MOST_BOOST)
