"""Trellis: quantisation of Gaussian numbers of known classes, and the stream of their cells.

Two quantisers share a line: the even multiples of a step and, beside zero, the odd ones. Which of
them a number is read from is the lowest bit of a state, and the parities of the cells drive the
state, so that the sender has to choose a path and gets, for cells twice as wide, half of them
(trellis-coded quantisation, Marcellin and Fischer 1990; with entropy coding Fischer and Wang 1992;
with zero in both quantisers as in VVC, Schwarz et al. 2019). The state is the syndrome former of
Ungerboeck's code of 256 states for amplitudes (1987). The path is Viterbi's, by squared error and
bits at the price that classes are measured by, or another of the sender's.

A class i stands for a variance of 2^(i/4) UNIT times the price, squared error per bit; below LEAST
nothing is sent. Numbers are taken from the highest class to the lowest and laid out in rows of so
many lanes; each lane has a state of its own, from row to row. A row is coded context by context of
its states, so both ends work on whole rows. The chances of cells are trellis_table.py's where the
rate is low, and those of a Gaussian number in the cells above.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from solar.codec import trellis_table

LEAST, MOST = trellis_table.FIRST, 80
UNIT = 6 / math.log(2)
REGISTERS, EVEN, ODD = 8, 0o515, 0o362  # Ungerboeck's parity checks of 256 states
STATES = 2**REGISTERS
CONTEXTS = 8  # the lowest bits of the state; one of them is the quantiser
LANES, ROWS = 1024, 128  # as many lanes as make so many rows, at most
FLOOR = 0.01  # chance that a number does not follow its class at all
GRAIN = 2.0**-20  # chances are multiples: the last digit of a logarithm elsewhere moves none
RAMP, FEWER, LOST = 20, 0.07, 0.1  # classes above the table: bits and errors, measured
NOTHING = 2.0**-14  # over the root of the price: what is rounding has no sign that could be sent
CHEAPEST, TRIES = 0.25, 6  # price of a bit that is tried, and how often
BLOCK = 2**16  # numbers whose candidates are in memory at once
TOGETHER = 256  # lanes that a thread is worth


class Machine(NamedTuple):
    """after (STATES, 2): the next state by parity. before, parity (2, STATES): the two states that
    lead to a state, and the parities that do."""

    after: np.ndarray
    before: np.ndarray
    parity: np.ndarray


@lru_cache(maxsize=1)
def machine() -> Machine:
    states = np.arange(STATES)[:, None]
    parities = np.array([[0, 1]])
    low = states & 1
    after = np.zeros((STATES, 2), np.int64)
    for i in range(1, REGISTERS + 1):
        bit = (states >> i & 1) ^ (EVEN >> i & low) ^ (ODD >> i & parities)
        after |= (bit & 1) << i - 1
    flat = np.argsort(after.ravel(), kind="stable").reshape(STATES, 2).T
    return Machine(after, flat // 2, flat % 2)


class Table(NamedTuple):
    """Of a class: width, the step over the root of the price; chances (contexts, cells) of |cell|,
    both signs together; values (contexts, cells) in steps. Contexts are CONTEXTS or only the 2
    quantisers."""

    width: float
    chances: np.ndarray
    values: np.ndarray


def grid(cells: int) -> np.ndarray:
    """(2, cells) values in steps of cells 0, 1, ... of both quantisers."""
    return np.stack([2.0 * np.arange(cells), np.maximum(2.0 * np.arange(cells) - 1, 0)])


@lru_cache(maxsize=MOST - LEAST + 1)
def table(index: int) -> Table:
    ratio = 2.0 ** (index / 8) * math.sqrt(UNIT)
    if index - LEAST < len(trellis_table.WIDTHS):
        width = trellis_table.WIDTHS[index - LEAST] / trellis_table.WIDTH
        own = trellis_table.rows(index)
        count = max(own.chances.shape[1], math.ceil(5 * ratio / width) + 8)
        chance = np.zeros((len(own.chances), count))
        chance[:, : own.chances.shape[1]] = own.chances
        values = np.tile(grid(count), (len(chance) // 2, 1))
        values[:, 1:3] += own.shifts / trellis_table.SHIFT
    else:
        width = trellis_table.WIDTHS[-1] / trellis_table.WIDTH
        values = grid(math.ceil(5 * ratio / width) + 8)
        # Quantisation adds what it errs to the variance of what is decoded.
        deviation = math.sqrt((ratio / width) ** 2 + 0.25)
        edges = (values[:, :-1] + values[:, 1:]) / (2 * math.sqrt(2) * deviation)
        above = np.array([[1.0, *map(math.erfc, row), 0.0] for row in edges])
        chance = above[:, :-1] - above[:, 1:]
    chance = chance / chance.sum(axis=1, keepdims=True)
    floor = 0.5 ** np.minimum(np.arange(1, chance.shape[1] + 1), 60)
    chance = np.round(((1 - FLOOR) * chance + FLOOR * floor) / GRAIN)
    return Table(width, np.maximum(chance, 2) * GRAIN, values)


@lru_cache(maxsize=1024)
def _model(index: int, context: int):
    from constriction import stream

    chance = table(index).chances[context]
    both = np.concatenate([chance[:0:-1] / 2, chance[:1], chance[1:] / 2])
    return stream.model.Categorical(both, perfect=False)


class _Tables(NamedTuple):
    """All classes: start of their first row in bits and values, cells, contexts, widths."""

    start: np.ndarray
    cells: np.ndarray
    contexts: np.ndarray
    widths: np.ndarray
    bits: np.ndarray
    values: np.ndarray


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    own = [table(index) for index in range(LEAST, MOST + 1)]
    cells = np.array([t.chances.shape[1] for t in own])
    contexts = np.array([len(t.chances) for t in own])
    bits = []
    for t in own:
        chance = t.chances / t.chances.sum(axis=1, keepdims=True)
        bits.append((-np.log2(chance) + (np.arange(chance.shape[1]) > 0)).ravel())
    sizes = cells * contexts
    return _Tables(
        np.cumsum(sizes) - sizes, cells, contexts, np.array([t.width for t in own]),
        np.concatenate(bits).astype(np.float32),
        np.concatenate([t.values.ravel() for t in own]).astype(np.float32),
    )  # fmt: skip


def point(index: int) -> tuple[float, float]:
    """Bits and relative squared error of a Gaussian number of this class."""
    beyond = max(0, index - LEAST + 1 - len(trellis_table.POINTS))
    bits, lost = trellis_table.POINTS[index - LEAST - beyond]
    # At high rates zero is a cell like others, and the same step errs a little more in fewer bits.
    more = min(beyond, RAMP) / RAMP
    bits = bits / 2**16 + beyond / 8 - FEWER * more
    return bits, lost / 2**16 * 2.0 ** (-beyond / 4) * (1 + LOST * more)


def deviation(index: np.ndarray) -> np.ndarray:
    """Of numbers of these classes, over the root of the price."""
    return 2.0 ** (index / 8) * math.sqrt(UNIT)


def least_bits(index: int) -> float:
    """Bits that a number of this class costs at least."""
    chances = table(index).chances
    return float(-np.log2((chances / chances.sum(axis=1, keepdims=True)).max()))


def lanes(count: int) -> int:
    return min(LANES, max(1, -(-count // ROWS)))


def order(classes: np.ndarray) -> np.ndarray:
    """Indices of classes (n,) in the order in which they are coded."""
    return np.argsort((MOST - classes).astype(np.int8), kind="stable").astype(np.int32)


def _candidates(
    values: np.ndarray, classes: np.ndarray, price: float
) -> tuple[np.ndarray, np.ndarray]:
    """Costs (2 contexts, n) float32 over the price, and cells (n,) alike, of the best cell of each
    parity in each context for |values| (n,) over the root of the price; a bit costs `price`."""
    t = _tables()
    index = classes - LEAST
    width = t.widths[index].astype(np.float32)
    size = values / width
    most, start, cells = t.cells[index] - 1, t.start[index], t.cells[index]
    bits = t.bits * np.float32(price)
    square = width * width
    contexts = t.contexts[index]
    count = int(contexts.max(initial=2))
    costs = np.empty((2 * count, len(values)), np.float32)
    best = np.empty((2 * count, len(values)), np.int16)
    for quantiser in (0, 1):
        for parity in (0, 1):
            near = ((size + (quantiser - 2 * parity)) / 4 + 0.5).astype(np.int64) * 2 + parity
            near = np.minimum(near, most - ((most - parity) & 1))
            lower = np.maximum(near - 2, parity)
            for context in range(quantiser, count, 2):
                at = start + context % contexts * cells
                own = None
                for cell in (near, lower):
                    place = at + cell
                    away = size - t.values[place]
                    cost = away * away * square + bits[place]
                    if own is None:
                        own = cost
                    else:
                        less = cost < own
                        costs[2 * context + parity] = np.where(less, cost, own)
                        best[2 * context + parity] = np.where(less, lower, near)
    costs[1::2, values < NOTHING] = 1e6
    return costs, best


def quantise(
    values: np.ndarray, classes: np.ndarray, price: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Cells (n,) int32, signed, of values (n,) over the root of the price, in coding order, and the
    contexts (n,) in which they are read. price: of a bit, over that by which classes are measured;
    the sender's own, for a stream that is a little shorter or longer."""
    count = len(values)
    wide = lanes(count)
    high = -(-count // wide)
    own, pad = machine(), high * wide - count
    size = np.abs(values).astype(np.float32)
    taken = np.zeros((high, STATES, wide), bool)
    metric = np.full((STATES, wide), 1e9, np.float32)
    metric[0] = 0
    found: list[tuple[np.ndarray, np.ndarray]] = []
    rows = max(1, BLOCK // wide)
    for first in range(0, high, rows):
        part = slice(first * wide, min(first + rows, high) * wide)
        costs, best = _candidates(size[part], classes[part], price)
        found.append((first, best))
        contexts = len(costs) // 2
        column = 2 * (own.before % contexts) + own.parity
        if len(costs[0]) % wide:
            costs = np.pad(costs, ((0, 0), (0, pad)))
        costs = costs.reshape(2 * contexts, -1, wide).transpose(1, 0, 2)
        chosen = taken[first : first + rows]
        _side_by_side(partial(_forward, costs, own.before, column, metric, chosen), wide)
    state, lane = metric.argmin(axis=0), np.arange(wide)
    cells, context = np.zeros((high, wide), np.int32), np.zeros((high, wide), np.int8)
    for first, best in reversed(found):
        contexts = len(best) // 2
        for row in range(min(first + rows, high) - 1, first - 1, -1):
            which = taken[row, state, lane].astype(np.int64)
            parity, state = own.parity[which, state], own.before[which, state]
            begin = (row - first) * wide
            here = min(wide, best.shape[1] - begin)
            column = (2 * (state % contexts) + parity)[:here]
            cells[row, :here] = best[column, begin + lane[:here]]
            context[row] = state % CONTEXTS
    cells, context = cells.ravel()[:count], context.ravel()[:count]
    return np.where(values < 0, -cells, cells), context


def _forward(
    costs: np.ndarray, before: np.ndarray, column: np.ndarray, metric: np.ndarray,
    taken: np.ndarray, some: slice,
) -> None:  # fmt: skip
    """Viterbi's step over rows of some lanes, which know nothing of each other: metric (STATES,
    lanes) becomes that after the rows, taken (rows, STATES, lanes) which way each state was
    reached."""
    here = np.ascontiguousarray(metric[:, some])
    for cost, which in zip(np.ascontiguousarray(costs[..., some]), taken, strict=True):
        one = here[before[0]] + cost[column[0]]
        other = here[before[1]] + cost[column[1]]
        np.less(other, one, out=which[:, some])
        here = np.minimum(one, other, out=one)
        here -= here.min(axis=0)
    metric[:, some] = here


def _side_by_side(work: Callable[[slice], None], wide: int) -> None:
    """Work on all lanes, by as many threads as there are processors and enough lanes for."""
    many = max(1, min(os.cpu_count() or 1, wide // TOGETHER))
    cuts = [wide * i // many for i in range(many + 1)]
    parts = [slice(*pair) for pair in zip(cuts, cuts[1:], strict=False)]
    if many == 1:
        return work(parts[0])
    with ThreadPoolExecutor(many) as pool:
        for done in [pool.submit(work, part) for part in parts]:
            done.result()


def lowest_price(over: Callable[[float], int], left: int, close: float) -> float:
    """The lowest price of a bit, a float32 of at most 1, at which a file is not too long, or one at
    which it leaves no more than `close` bytes. over(price): bytes by which it is too long; left:
    what it leaves at 1."""
    low, found = CHEAPEST, 1.0
    for _ in range(TRIES):
        if left <= close:
            break
        middle = float(np.float32(math.sqrt(low * found)))
        more = -over(middle)
        low, found, left = (low, middle, more) if more >= 0 else (middle, found, left)
    return found


def _places(cells: np.ndarray, contexts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    t = _tables()
    index = classes - LEAST
    return t.start[index] + contexts % t.contexts[index] * t.cells[index] + np.abs(cells)


def bits(cells: np.ndarray, contexts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(n,) bits of cells by their chances."""
    return _tables().bits[_places(cells, contexts, classes)]


def decoded(cells: np.ndarray, contexts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(n,) float32 values of cells over the root of the price."""
    t = _tables()
    widths, found = t.widths.astype(np.float32), np.empty(len(cells), np.float32)
    for first in range(0, len(cells), BLOCK):  # hostile files have many, and places take room
        part = slice(first, first + BLOCK)
        own = cells[part], contexts[part], classes[part]
        found[part] = np.sign(own[0]) * t.values[_places(*own)] * widths[own[2] - LEAST]
    return found


def _runs(classes: np.ndarray) -> list[tuple[int, slice]]:
    """Where each class lies in a row."""
    cuts = np.flatnonzero(np.diff(classes)) + 1
    edges = [0, *cuts.tolist(), len(classes)]
    return [(int(classes[a]), slice(a, b)) for a, b in zip(edges, edges[1:], strict=False)]


def write(coder, cells: np.ndarray, contexts: np.ndarray, classes: np.ndarray) -> None:
    """Encodes cells (n,) in coding order."""
    wide = lanes(len(cells))
    for first in range(0, len(cells), wide):
        row = slice(first, first + wide)
        for index, run in _runs(classes[row]):
            count, most = table(index).chances.shape
            own, symbols = contexts[row][run] % count, cells[row][run] + (most - 1)
            for context in range(count):
                if len(here := symbols[own == context]):
                    coder.encode(here.astype(np.int32), _model(index, context))


def read(decoder, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells (n,) int32 and contexts (n,) of what `write` wrote for these classes, in coding order.
    Lets constriction's AssertionError through."""
    wide, after = lanes(len(classes)), machine().after
    cells = np.zeros(len(classes), np.int32)
    contexts = np.zeros(len(classes), np.int8)
    state = np.zeros(wide, np.int64)
    for first in range(0, len(classes), wide):
        row = slice(first, first + wide)
        whole = classes[row]
        state = state[: len(whole)]
        contexts[row] = state % CONTEXTS
        for index, run in _runs(whole):
            count, most = table(index).chances.shape
            own = state[run] % count
            found = cells[row][run]
            for context in range(count):
                here = np.flatnonzero(own == context)
                if len(here):
                    found[here] = decoder.decode(_model(index, context), len(here)) - (most - 1)
        state = after[state, cells[row] & 1]
    return cells, contexts
