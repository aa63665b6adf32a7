"""Profiled: entropy-coded quantisation of factors whose entries have unequal, known variances.

A component of energy s, alike on both sides, is taken as Gaussian: entry i of a side has variance
s pi_i, where the profile pi goes with the spectrum of the metric on that side (frame_file.py,
bands.py). Its error weighs w ((s + e_r) e_l + s e_r) for errors e of the sides, so at a price per
bit all entries of both sides get one step, Delta^2 = theta / (w s): reverse water-filling (Cover
and Thomas, Elements of Information Theory, 10.3.3). w is the layer's leading energy to the power of
-2 relative: at 1 every layer's error counts relative to its own update. allot.py finds the dials.

Everything that decides how a number is coded is an integer, in quarters of an octave: energies a,
profiles, steps d. The class a + profile - d of an entry says how the trellis codes it
(trellis.py); below LEAST nothing is sent and the entry is 0. All but the head is one range-coded
stream (`constriction`).

    power       2 bytes, signed: what a = 0 stands for
    step        2 bytes, signed: log2 theta
    boost       2 bytes: so many components, in file order, have a step a quarter finer
    relative    1 byte, in 255ths
    slope       1 byte: of the profile of inputs, in 16ths
    out         1 byte: of that of outputs
    banded      1 byte: whether there are offsets of the profiles (bands.py)
    energies    4 bytes: how energies differ from one another (energies.py)
    stream      offsets, energies, cells, in words of 4 bytes
"""

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from solar.codec import bands, trellis
from solar.codec import energies as scales
from solar.codec.container import PacketError
from solar.codec.frame_file import OCTAVE
from solar.codec.trellis import LEAST, MOST

HEAD = struct.Struct("<hhHBBBB")
SHAPE = struct.Struct("<bBbB")
MOST_BOOST = 2**16 - 1  # what HEAD holds of it, also where there are more components
FIRST = HEAD.size + SHAPE.size  # where the stream begins
PRICE = 1 / trellis.UNIT  # squared error per bit over Delta^2
ENERGIES = scales.LARGEST + 1


class Dials(NamedTuple):
    """The header of the payload: integers, see the module docstring."""

    power: int
    step: int
    boost: int
    relative: int
    slope: int
    out: int
    banded: int = 0


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


def steps(energies: np.ndarray, first: np.ndarray, dials: Dials) -> np.ndarray:
    """(c,) int: log2 of every component's squared step, relative to `power`."""
    weighed = (2 * 2 * energies[first] * dials.relative + 255) // 510  # rounded in integers
    finer = np.arange(len(energies)) < dials.boost
    return dials.step + weighed - energies - finer


def steps_of(own: Lines, dials: Dials) -> np.ndarray:
    return steps(own.energies, own.first, dials)


def spread(own: Lines, each: np.ndarray) -> np.ndarray:
    """A number per component (c,) for all its entries."""
    return np.repeat(each, own.lengths.sum(axis=1))


def classes(own: Lines, dials: Dials) -> np.ndarray:
    """(entries,) int, MOST at most."""
    return np.minimum(spread(own, own.energies - steps_of(own, dials)) + own.profiles, MOST)


def widths(energies: np.ndarray, profiles: np.ndarray, step: np.ndarray, power: int) -> np.ndarray:
    """float64 steps of entries. Above MOST they stay a fixed part of the deviation: nothing needs
    more digits than that."""
    logs = np.maximum(step, energies + profiles - MOST) + power
    if not logs.size:
        return np.zeros(logs.shape)
    low = int(logs.min())
    each = 2.0 ** (np.arange(low, int(logs.max()) + 1) / (2 * OCTAVE)) * math.sqrt(PRICE)
    return each[logs - low]  # far fewer powers than entries


class Quantised(NamedTuple):
    """bits in all, decoded values (entries,); classes, cells and contexts of the entries that are
    sent, in coding order."""

    bits: float
    decoded: np.ndarray
    classes: np.ndarray
    cells: np.ndarray
    contexts: np.ndarray


def quantise(own: Lines, dials: Dials, price: float = 1.0) -> Quantised:
    """What is sent of every component. price: of a bit, as trellis.py has it."""
    whole = classes(own, dials)
    place = np.flatnonzero(whole >= LEAST)
    place = place[trellis.order(whole[place])]
    index, decoded = whole[place], np.zeros(len(whole))
    owner = spread(own, np.arange(len(own.energies)))[place]
    step = steps_of(own, dials)
    width = widths(own.energies[owner], own.profiles[place], step[owner], dials.power)
    cells, contexts = trellis.quantise(own.values[place] / width, index, price)
    decoded[place] = trellis.decoded(cells, contexts, index) * width
    bits = float(trellis.bits(cells, contexts, index).sum(dtype=np.float64))
    return Quantised(bits, decoded, index, cells, contexts)


def energy_bits(own: Lines) -> float:
    return scales.shape(own.energies, own.first, own.lengths)[0]


def length(sent: int, bits: float) -> int:
    """Bytes of a payload of `sent` components whose energies and cells have `bits` by their
    chances."""
    return FIRST + (4 * (math.ceil(bits / 32) + 1) if sent else 0)


def only(own: Lines, sent: np.ndarray) -> Lines:
    """The components (c,) of the mask `sent`, which keeps the first of every layer that it keeps
    anything of."""
    entries = spread(own, sent)
    place = np.cumsum(sent) - 1
    return Lines(
        own.energies[sent], place[own.first[sent]], own.lengths[sent], own.profiles[entries],
        None if own.values is None else own.values[entries],
    )  # fmt: skip


def pack(
    own: Lines,
    dials: Dials,
    offsets: np.ndarray = bands.NONE,
    price: float = 1.0,
    found: Quantised | None = None,
) -> bytes:
    """The payload of components that are all sent; offsets: of the shapes among them; price: of a
    bit, as trellis.py has it; found: what `quantise` says of them, where it has been asked."""
    from constriction import stream

    coder = stream.queue.RangeEncoder()
    bands.write(coder, offsets)
    _, shape = scales.shape(own.energies, own.first, own.lengths)
    scales.write(coder, own.energies, own.first, own.lengths, shape)
    found = found or quantise(own, dials, price)
    trellis.write(coder, found.cells, found.contexts, found.classes)
    data = coder.get_compressed().astype("<u4").tobytes() if len(own.energies) else b""
    return HEAD.pack(*dials) + SHAPE.pack(*shape) + data


class Head(NamedTuple):
    """dials, offsets of the profiles (shapes, 2, 2, bands), shape of the energies, words (w,)
    uint32 of the stream, and the coders that have read the offsets and written them again."""

    dials: Dials
    offsets: np.ndarray
    shape: scales.Shape
    words: np.ndarray
    decoder: Any
    again: Any


def dials_of(data: bytes) -> Dials:
    """Raises PacketError."""
    if len(data) < FIRST or (len(data) - FIRST) % 4:
        raise PacketError("packet is altered: its payload is too short for its layer table")
    dials = Dials(*HEAD.unpack_from(data))
    if dials.banded > 1:
        raise PacketError("packet is altered: its payload is not in its one form")
    return dials


def read_head(data: bytes, components: int, shapes: int) -> Head:
    """What comes before the energies of so many components, in layers of so many shapes. Raises
    PacketError."""
    from constriction import stream

    dials, shape = dials_of(data), scales.Shape(*SHAPE.unpack_from(data, HEAD.size))
    scales.check(shape)
    if dials.boost > components or (dials.banded and not components):
        raise PacketError("packet is altered: its payload is not in its one form")
    words = np.frombuffer(data[FIRST:], "<u4").astype(np.uint32)
    shapes = shapes if dials.banded else 0
    if 0.99 * (components * scales.least_bits(shape) + 32 * shapes) > 32 * len(words):
        raise PacketError("packet is altered: its payload is too short for its layer table")
    decoder, again = stream.queue.RangeDecoder(words), stream.queue.RangeEncoder()
    try:
        offsets = bands.read(decoder, shapes)
    except AssertionError:  # what constriction raises for words that no encoder writes
        raise PacketError("packet is altered: it holds a stream that no encoder writes") from None
    bands.write(again, offsets)
    return Head(dials, offsets, shape, words, decoder, again)


class Layer(NamedTuple):
    """Of what is sent: rank, lengths of both sides, and profiles (2, m + n) of the first component
    and of later ones."""

    rank: int
    lengths: tuple[int, int]
    profile: np.ndarray


def _profiles(layer: Layer) -> np.ndarray:
    return layer.profile[np.minimum(np.arange(layer.rank), 1)]


def unpack(head: Head, layers: list[Layer]) -> Iterator[np.ndarray]:
    """Decoded values (rank, m + n) float64 of one layer after another. Raises PacketError.

    An entry of which nothing is sent costs the sender nothing: one byte is held of each until its
    layer's turn comes.
    """
    dials, words, decoder, again = head.dials, head.words, head.decoder, head.again
    ranks = np.array([layer.rank for layer in layers], np.int64)
    starts = np.cumsum(ranks) - ranks
    first = np.repeat(starts, ranks)
    lengths = np.array([layer.lengths for layer in layers], np.int64).reshape(-1, 2)
    try:
        lengths = np.repeat(lengths, ranks, axis=0)
        energies = scales.read(decoder, first, lengths, head.shape)
        scales.write(again, energies, first, lengths, head.shape)
        step = steps(energies, first, dials)
        held, counts = [], np.zeros(MOST - LEAST + 2, np.int64)
        for at, layer in zip(starts.tolist(), layers, strict=True):
            whole = (energies - step)[at : at + layer.rank, None] + _profiles(layer)
            held.append(np.clip(whole, LEAST - 1, MOST).astype(np.int8))
            counts += np.bincount(held[-1].ravel() - np.int64(LEAST - 1), minlength=len(counts))
        # The likeliest cell of all needs this much: entries are not read from nothing.
        found = [c for c in range(LEAST, MOST + 1) if counts[c - LEAST + 1]]
        least = sum(trellis.least_bits(c) * int(counts[c - LEAST + 1]) for c in found)
        if 0.99 * least > 32 * len(words):
            raise PacketError("packet is altered: its payload is too short for its layer table")
        sent = [whole[whole >= LEAST] for whole in held]
        index = np.concatenate([np.zeros(0, np.int8), *sent])
        order = trellis.order(index)
        index = index[order]
        cells, contexts = trellis.read(decoder, index)
        trellis.write(again, cells, contexts, index)
    except AssertionError:  # what constriction raises for words that no encoder writes
        raise PacketError("packet is altered: it holds a stream that no encoder writes") from None
    # The coder reads zeros past its end: only writing again tells whether these were all the words.
    if not np.array_equal(again.get_compressed() if len(energies) else words[:0], words):
        raise PacketError("packet is altered: it holds a stream that is not in its one form")
    values = np.zeros(len(index), np.float32)
    values[order] = trellis.decoded(cells, contexts, index)
    del cells, contexts, index, order
    at = 0
    for i, (start, layer) in enumerate(zip(starts.tolist(), layers, strict=True)):
        mine = slice(start, start + layer.rank)
        with np.errstate(over="ignore"):  # of entries that are not sent
            width = widths(energies[mine, None], _profiles(layer), step[mine, None], dials.power)
        here = held[i] >= LEAST
        held[i] = None
        decoded, count = np.zeros(width.shape), int(np.count_nonzero(here))
        decoded[here] = values[at : at + count] * width[here]
        at += count
        if not np.isfinite(decoded).all():
            raise PacketError("packet is altered: it holds non-finite coefficients")
        yield decoded
