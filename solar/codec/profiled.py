"""Profiled: entropy-coded quantisation of factors whose entries have unequal, known variances.

A component of energy s, alike on both sides, is taken as Gaussian: entry i of a side has variance
s pi_i, where the profile pi goes with the spectrum of the metric on that side (frame_file.py). Its
error weighs w ((s + e_r) e_l + s e_r) for errors e of the sides, so at a price per bit all entries
of both sides get one step, Delta^2 = theta / (w s): reverse water-filling (Cover and Thomas,
Elements of Information Theory, 10.3.3) with a uniform quantiser, dead zone and centroids in the
place of Shannon's curve. w is the layer's leading energy to the power of -2 relative: at 1 every
layer's error counts relative to its own update.

Everything that decides how a number is coded is an integer, in quarters of an octave: energies a,
profiles, steps d. The class a + profile - d of an entry, log2 of variance over step^2, names its
table of chances; below LEAST nothing is sent and the entry is 0. The cells of one class follow one
another in one range-coded stream (`constriction`).

    power       2 bytes, signed: what a = 0 stands for
    step        2 bytes, signed: log2 theta
    boost       2 bytes: so many components, in file order, have a step a quarter finer
    relative    1 byte, in 255ths
    slope       1 byte: of the profile of inputs, in 16ths
    out         1 byte: of that of outputs
    energies    a byte for each component that is sent
    cells       the stream, in words of 4 bytes
"""

import math
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from solar.codec.container import PacketError
from solar.codec.frame_file import OCTAVE

HEAD = struct.Struct("<hhHBBB")
LEAST, MOST = -18, 80  # classes: 0.21 and 1,024 standard deviations over steps
FLOOR = 0.02  # chance that an entry does not follow its class at all
GRAIN = 2.0**-20  # chances are multiples: the last digit of a logarithm elsewhere moves none
PRICE = math.log(2) / 6  # squared error per bit over Delta^2, at high rates
DEADS = (0.5, 0.54, 0.58, 0.62, 0.66, 0.7, 0.76, 0.82, 0.9)
ENERGIES = 256
AROUND = 8  # finer steps that are tried with fewer components
MOST_TURNS = 8  # quarters of an octave by which all components may become finer at the end


class Dials(NamedTuple):
    """The header of the payload: integers, see the module docstring."""

    power: int
    step: int
    boost: int
    relative: int
    slope: int
    out: int


class Lines(NamedTuple):
    """Components in file order, the entries of each left side before those of its right side.

    energies (c,) int: a; first (c,) index of the layer's first component; lengths (c, 2): entries;
    profiles (entries,) int. values (entries,) float64 are the sender's own.
    """

    energies: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    profiles: np.ndarray
    values: np.ndarray | None = None


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
    chance = (1 - FLOOR) * chance + FLOOR * floor
    return dead, np.maximum(np.round(chance / GRAIN), 2) * GRAIN, mean


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


@lru_cache(maxsize=MOST - LEAST + 1)
def _model(index: int):
    from constriction import stream

    chance = _table(index)[1]
    both = np.concatenate([chance[:0:-1] / 2, chance[:1], chance[1:] / 2])
    return stream.model.Categorical(both, perfect=False)


def steps(energies: np.ndarray, first: np.ndarray, dials: Dials) -> np.ndarray:
    """(c,) int: log2 of every component's squared step, relative to `power`."""
    weighed = (2 * 2 * energies[first] * dials.relative + 255) // 510  # rounded in integers
    finer = np.arange(len(energies)) < dials.boost
    return dials.step + weighed - energies - finer


def _steps(own: Lines, dials: Dials) -> np.ndarray:
    return steps(own.energies, own.first, dials)


def _spread(own: Lines, each: np.ndarray) -> np.ndarray:
    """A number per component (c,) for all its entries."""
    return np.repeat(each, own.lengths.sum(axis=1))


def classes(own: Lines, dials: Dials) -> np.ndarray:
    """(entries,) int, MOST at most."""
    return np.minimum(_spread(own, own.energies - _steps(own, dials)) + own.profiles, MOST)


def _widths(energies: np.ndarray, profiles: np.ndarray, step: np.ndarray, power: int) -> np.ndarray:
    """float64 steps of entries. Above MOST they stay a fixed part of the deviation: nothing needs
    more digits than that."""
    logs = np.maximum(step, energies + profiles - MOST) + power
    return 2.0 ** (logs / (2 * OCTAVE))


class Tried(NamedTuple):
    """What dials would do: bits (c,), decoded values (entries,), and signed cells (entries,)."""

    bits: np.ndarray
    decoded: np.ndarray
    cells: np.ndarray


def attempt(own: Lines, dials: Dials) -> Tried:
    """Quantises every component."""
    dead, start, last, cost, means = _tables()
    whole = classes(own, dials)
    place = np.flatnonzero(whole >= LEAST)
    index = whole[place] - LEAST
    energies, step = (_spread(own, x)[place] for x in (own.energies, _steps(own, dials)))
    width = _widths(energies, own.profiles[place], step, dials.power)
    values = own.values[place]
    cell = np.floor(np.abs(values) / width + 1 - dead[index]).astype(np.int64)
    cell = np.clip(cell, 0, last[index])
    decoded, cells = np.zeros(len(whole)), np.zeros(len(whole), np.int32)
    decoded[place] = np.sign(values) * means[start[index] + cell] * width
    cells[place] = np.sign(values) * cell
    owner = _spread(own, np.arange(len(own.energies)))[place]
    bits = np.bincount(owner, cost[start[index] + cell], len(own.energies))
    return Tried(bits, decoded, cells)


def gains(own: Lines, decoded: np.ndarray) -> np.ndarray:
    """(c,) by how much sending a component lowers the squared error in the metric."""
    ends = np.cumsum(own.lengths.ravel())
    starts = ends - own.lengths.ravel()
    together = np.add.reduceat(own.values * decoded, starts).reshape(-1, 2)
    alone = np.add.reduceat(decoded**2, starts).reshape(-1, 2)
    return 2 * together.prod(axis=1) - alone.prod(axis=1)


def cost(own: Lines, dials: Dials) -> float:
    """Bits, and squared errors as bits at the price at which the entries are quantised."""
    tried = attempt(own, dials)
    each = _spread(own, 2.0 ** ((_steps(own, dials) + dials.power) / OCTAVE))
    return float(tried.bits.sum() + np.sum((tried.decoded - own.values) ** 2 / each) / PRICE)


def _worths(own: Lines, dials: Dials, tried: Tried) -> np.ndarray:
    """(c,) what a bit of a component gains, over the price at which its entries are quantised; no
    more than that of the components before it in its layer, which have to be sent too."""
    size = 2.0 ** ((own.energies + _steps(own, dials) + 2 * dials.power) / OCTAVE)
    worth = gains(own, tried.decoded) / (PRICE * size * (tried.bits + 8))
    place = np.arange(len(worth)) - own.first
    for rank in range(1, int(place.max(initial=0)) + 1):
        here = np.flatnonzero(place == rank)
        worth[here] = np.minimum(worth[here], worth[here - 1])
    return worth


def _range(own: Lines, dials: Dials) -> tuple[int, int]:
    """Steps between which anything changes: below the first every entry is as fine as it gets, at
    the second none is sent."""
    zero = _spread(own, own.energies - _steps(own, dials._replace(step=0, boost=0))) + own.profiles
    return max(int(zero.min()) - MOST, -(2**15)), min(int(zero.max()) - LEAST + 1, 2**15 - 1)


def length(sent: int, bits: float) -> int:
    """Bytes of a payload of `sent` components whose cells have `bits` by their chances."""
    return HEAD.size + sent + (4 * (math.ceil(bits / 32) + 1) if sent else 0)


def fill(
    own: Lines, dials: Dials, size: Callable[[np.ndarray, float], int], budget: int
) -> tuple[Dials, np.ndarray]:
    """Dials and the components (c,) that are sent whose file, size(sent, bits), has at most
    `budget` bytes and hardly less."""
    count = len(own.energies)
    if not count:
        return dials, np.zeros(0, bool)

    def best_at(step: int, least: float) -> tuple[np.ndarray, int, float]:
        """The best components of worth above `least` that fit, how many more there would have been,
        and what they gain."""
        here = dials._replace(step=step)
        tried = attempt(own, here)
        worth = _worths(own, here, tried)
        order = np.argsort(-worth, kind="stable")
        wanted = int(np.sum(worth > least))

        def taken(many: int) -> np.ndarray:
            return np.isin(np.arange(count), order[:many])

        def fits(many: int) -> bool:
            sent = taken(many)
            return size(sent, float(tried.bits[sent].sum())) <= budget

        many = wanted if fits(wanted) else _most(fits, 0, wanted)
        sent = taken(many)
        weight = 2.0 ** (-(_steps(own, here) + own.energies) / OCTAVE)
        return sent, wanted - many, float(np.sum((weight * gains(own, tried.decoded))[sent]))

    low, high = _range(own, dials)
    while low < high:  # the finest step at which all that is worth its bits fits
        middle = (low + high) // 2
        low, high = (low, middle) if best_at(middle, 1.0)[1] == 0 else (middle + 1, high)
    # A finer step for fewer components may gain more: below some rate a side is not worth having.
    tried = {step: best_at(step, 0.0) for step in range(max(low - AROUND, -(2**15)), low + 1)}
    tops = {step: gain * 2.0 ** (step / OCTAVE) for step, (_, _, gain) in tried.items()}
    step = max(tops, key=lambda x: (tops[x], x))
    sent = tried[step][0]
    part = only(own, sent)

    def fits(boost: int) -> bool:
        turns, rest = divmod(boost, len(part.energies))
        more = dials._replace(step=step - turns, boost=rest)
        return size(sent, float(attempt(part, more).bits.sum())) <= budget

    boost = _most(fits, 0, MOST_TURNS * len(part.energies)) if sent.any() else 0
    turns, rest = divmod(boost, max(len(part.energies), 1))
    return dials._replace(step=step - turns, boost=rest), sent


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
    return dials._replace(step=dials.step + 1, boost=len(own.energies) - 1)


def only(own: Lines, sent: np.ndarray) -> Lines:
    """The components (c,) of the mask `sent`, which keeps the first of every layer that it keeps
    anything of."""
    entries = _spread(own, sent)
    place = np.cumsum(sent) - 1
    return Lines(
        own.energies[sent], place[own.first[sent]], own.lengths[sent], own.profiles[entries],
        None if own.values is None else own.values[entries],
    )  # fmt: skip


def pack(own: Lines, dials: Dials) -> bytes:
    """The payload of components that are all sent."""
    from constriction import stream

    coder = stream.queue.RangeEncoder()
    whole, cells = classes(own, dials), attempt(own, dials).cells
    for index in np.unique(whole[whole >= LEAST]):
        symbols = cells[whole == index] + len(_table(int(index))[1]) - 1
        coder.encode(symbols.astype(np.int32), _model(int(index)))
    data = coder.get_compressed().astype("<u4").tobytes() if len(own.energies) else b""
    return HEAD.pack(*dials) + own.energies.astype(np.uint8).tobytes() + data


def read_head(data: bytes, components: int) -> tuple[Dials, np.ndarray]:
    """Dials and energies (components,). Raises PacketError."""
    if len(data) < HEAD.size + components or (len(data) - HEAD.size - components) % 4:
        raise PacketError("packet is altered: its payload is too short for its layer table")
    dials = Dials(*HEAD.unpack_from(data))
    if dials.boost > components:
        raise PacketError("packet is altered: its payload is not in its one form")
    return dials, np.frombuffer(data, np.uint8, components, HEAD.size).astype(np.int64)


def unpack(
    energies: np.ndarray, layers: list[tuple[int, np.ndarray]], dials: Dials, data: bytes
) -> Iterator[np.ndarray]:
    """Decoded values (rank, m + n) float64 of one layer after another of a payload whose head was
    read; layers: rank and profile (m + n,) of each. Raises PacketError.

    An entry of which nothing is sent costs the sender nothing: three bytes are held of each until
    its layer's turn comes.
    """
    from constriction import stream

    words = np.frombuffer(data[HEAD.size + len(energies) :], "<u4").astype(np.uint32)
    ranks = np.array([rank for rank, _ in layers], np.int64)
    first = np.cumsum(ranks) - ranks
    step = steps(energies, np.repeat(first, ranks), dials)
    held, counts = [], np.zeros(MOST - LEAST + 2, np.int64)
    for at, (rank, profile) in zip(first.tolist(), layers, strict=True):
        whole = (energies - step)[at : at + rank, None] + profile
        held.append((np.clip(whole, LEAST - 1, MOST)).astype(np.int8))
        counts += np.bincount(held[-1].ravel() - np.int64(LEAST - 1), minlength=len(counts))
    found = [c for c in range(LEAST, MOST + 1) if counts[c - LEAST + 1]]
    # The likeliest cell of all needs this much: entries are not read from nothing.
    least = [-math.log2(float((t := _table(c)[1]).max() / t.sum())) for c in found]
    if 0.99 * float(np.dot(least, [counts[c - LEAST + 1] for c in found])) > 32 * len(words):
        raise PacketError("packet is altered: its payload is too short for its layer table")
    decoder, again = stream.queue.RangeDecoder(words), stream.queue.RangeEncoder()
    cells = [np.zeros(whole.shape, np.int16) for whole in held]
    try:
        for index in found:
            for whole, own in zip(held, cells, strict=True):
                here = whole == index
                if count := int(np.count_nonzero(here)):
                    symbols = decoder.decode(_model(index), count)
                    again.encode(symbols, _model(index))
                    own[here] = symbols - (len(_table(index)[1]) - 1)
    except AssertionError:  # what constriction raises for words that no encoder writes
        raise PacketError("packet is altered: it holds a stream that no encoder writes") from None
    # The coder reads zeros past its end: only writing again tells whether these were all the words.
    if not np.array_equal(again.get_compressed() if len(energies) else words[:0], words):
        raise PacketError("packet is altered: it holds a stream that is not in its one form")
    for i, (at, (rank, profile)) in enumerate(zip(first.tolist(), layers, strict=True)):
        mine = slice(at, at + rank)
        with np.errstate(over="ignore"):  # of entries that are not sent
            width = _widths(energies[mine, None], profile, step[mine, None], dials.power)
        whole, own, decoded = held[i], cells[i], np.zeros(width.shape)
        held[i] = cells[i] = None
        for index in np.unique(whole[whole >= LEAST]).tolist():
            here = whole == index
            cell = own[here]
            decoded[here] = np.sign(cell) * _table(index)[2][np.abs(cell)] * width[here]
        if not np.isfinite(decoded).all():
            raise PacketError("packet is altered: it holds non-finite coefficients")
        yield decoded
