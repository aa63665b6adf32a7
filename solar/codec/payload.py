"""Payload: the coefficients of all sides as bytes, and back.

    densities   a byte per component, where a budget chose how many each one gets (supports.py)
    length      4 bytes, of the supports; absent, as the supports are, where everything is sent
    supports    one entropy-coded stream for all sides
    scales      a byte per component that sends anything, for integer coefficients (quantize.py)
    numbers     the coefficients, side by side, component by component
    vectors     float16 atoms in use, only where the file brings its basis

Sides stand in sorted order of layers, left before right. With dtype `entropy` the payload is
ecsq.py's instead.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from solar.codec import ecsq, guard, quantize, supports
from solar.codec.coefficients import Coefficients, Side, atoms_of, kept_of, size_of, targets_of
from solar.codec.container import PacketError
from solar.codec.quantize import INTEGERS
from solar.codec.reader import Reader
from solar.codec.recipe import BUDGET, ENTROPY, Setting

LENGTH = 4  # bytes of the length of the supports


class Sent(NamedTuple):
    """What the file says of one side: rising positions (k,) int64, numbers (k,) as they are stored
    (uint8 codes, or values for floats) and scales (t,) uint8 of its components, 0 for floats."""

    positions: np.ndarray
    numbers: np.ndarray
    scales: np.ndarray


def values_of(setting: Setting, side: Side, sent: Sent, power: int) -> Coefficients:
    """The float32 coefficients that a receiver reads."""
    if setting.dtype not in INTEGERS:
        stored = quantize.store(sent.numbers, setting.dtype, power)
        return Coefficients(sent.positions, quantize.restore(stored, setting.dtype, power))
    steps = quantize.scale_steps(sent.scales, power)[sent.positions // size_of(setting, side)]
    middle = (2 ** INTEGERS[setting.dtype] - 1) / 2
    with np.errstate(over="ignore"):  # refused where a file says so
        return Coefficients(sent.positions, ((sent.numbers - middle) * steps).astype(np.float32))


def counts(setting: Setting, side: Side, positions: np.ndarray) -> np.ndarray:
    """Coefficients that every component of a side sends, (t,)."""
    return np.bincount(positions // size_of(setting, side), minlength=targets_of(setting, side))


def _supports(setting: Setting, sides: list[Side], densities: Mapping[Side, np.ndarray]):
    """Sizes and chances of the supports of all sides in file order, one entry per component under
    a budget and one per side otherwise."""
    sizes, chances = [], []
    for side in sides:
        size, targets = size_of(setting, side), targets_of(setting, side)
        if setting.keep == BUDGET:
            sizes += [size] * targets
            chances += [int(d) / supports.ALL for d in densities[side]]
        else:
            sizes.append(size * targets)
            chances.append(kept_of(setting, side) / (size * targets))
    return sizes, chances


def _fewest(setting: Setting, sides: list[Side], densities: Mapping[Side, np.ndarray]) -> int:
    """The fewest coefficients that a file can send which says this much of its supports."""
    if setting.keep == BUDGET:
        return sum(
            int(supports.fewest(densities[side], size_of(setting, side)).sum()) for side in sides
        )
    return sum(kept_of(setting, side) for side in sides)


def pack(setting: Setting, sides: list[Side], sent: Mapping[Side, Sent], power: int) -> bytes:
    """The payload without the vectors."""
    parts, densities = [], {}
    if setting.keep == BUDGET:
        for side in sides:
            size = size_of(setting, side)
            kept = counts(setting, side, sent[side].positions)
            densities[side] = np.array([supports.density(int(k), size) for k in kept], np.uint8)
            parts.append(densities[side].tobytes())
    if setting.sparse:
        sizes, chances = _supports(setting, sides, densities)
        positions = []
        for side in sides:
            own, size = sent[side].positions, size_of(setting, side)
            if setting.keep == BUDGET:
                edges = np.searchsorted(own, np.arange(1, targets_of(setting, side)) * size)
                positions += [x % size for x in np.split(own, edges)]
            else:
                positions.append(own)
        stream = supports.pack(zip(positions, sizes, chances, strict=True))
        parts += [len(stream).to_bytes(LENGTH, "little"), stream]
    if setting.dtype in INTEGERS:
        for side in sides:
            parts.append(
                sent[side].scales[counts(setting, side, sent[side].positions) > 0].tobytes()
            )
    numbers = [sent[side].numbers for side in sides]
    numbers = np.concatenate(numbers) if numbers else np.zeros(0)
    if setting.dtype in INTEGERS:
        parts.append(quantize.pack_bits(numbers, INTEGERS[setting.dtype]))
    else:
        parts.append(quantize.store(numbers, setting.dtype, power))
    return b"".join(parts)


def length(setting: Setting, sides: list[Side], positions: Mapping[Side, np.ndarray]) -> int:
    """Bytes of the payload that sends these positions, the vectors included."""
    blank = {}
    for side in sides:
        own = positions[side]
        stored = np.zeros(len(own), np.uint8)
        blank[side] = Sent(own, stored, np.zeros(targets_of(setting, side), np.uint8))
    total = len(pack(setting, sides, blank, 0))
    if setting.embed:
        for side in sides:
            used = len(atoms_of(positions[side], size_of(setting, side)))
            total += 2 * used * side.dim * (1 if setting.atoms == "vector" else side.rank)
    return total


def pack_vectors(atoms: Mapping[Side, np.ndarray], sides: list[Side]) -> bytes:
    return b"".join(atoms[side].astype("<f2").tobytes() for side in sides)


def unpack(
    setting: Setting, sides: list[Side], power: int, data: bytes
) -> tuple[dict[Side, Coefficients], dict[Side, np.ndarray] | None]:
    """Coefficients of every side and, where the file brings them, the atoms in use (a, D) float32.

    Raises PacketError.
    """
    short = "its payload is too short for its layer table"
    reader = Reader(data, short)
    take = reader.take

    def vectors(used: Mapping[Side, int]) -> dict[Side, np.ndarray] | None:
        if not setting.embed:
            return None
        found = {}
        for side in sides:
            length = side.dim * (1 if setting.atoms == "vector" else side.rank)
            own = quantize.restore(take(2 * used[side] * length), "float16", 0)
            if not np.isfinite(own).all():
                raise PacketError("packet is altered: its basis holds non-finite entries")
            found[side] = own.reshape(used[side], length)
        return found

    if setting.dtype == ENTROPY:
        sizes = {side: size_of(setting, side) for side in sides}
        last = sum(2 * sizes[side] * side.dim for side in sides) if setting.embed else 0
        body = take(max(0, len(data) - last))
        return ecsq.unpack(setting, sides, power, body), vectors(sizes)
    densities, found = {}, {}
    if setting.keep == BUDGET:
        for side in sides:
            densities[side] = np.frombuffer(take(targets_of(setting, side)), np.uint8)
    # Before any support is sized: a hostile table cannot ask for more than it sent.
    if quantize.size(setting.dtype, _fewest(setting, sides, densities)) > len(data):
        raise PacketError(f"packet is altered: {short}")
    if setting.sparse:
        sizes, chances = _supports(setting, sides, densities)
        guard.check_positions(sizes, chances, len(data))
        stream = take(int.from_bytes(take(LENGTH), "little"))
        try:
            pieces = iter(supports.unpack(stream, sizes, chances))
        except ValueError as error:
            raise PacketError(f"packet is altered: it holds a {error}") from None
    for side in sides:
        size, targets = size_of(setting, side), targets_of(setting, side)
        if not setting.sparse:
            found[side] = np.arange(size * targets)
        elif setting.keep == BUDGET:
            found[side] = np.concatenate([next(pieces) + t * size for t in range(targets)])
            kept = counts(setting, side, found[side])
            # Densities in their one form, so that no two files hold the same thing.
            if [supports.density(int(k), size) for k in kept] != densities[side].tolist():
                raise PacketError("packet is altered: a density does not fit its support")
        else:
            found[side] = next(pieces)
            if len(found[side]) != kept_of(setting, side):
                raise PacketError("packet is altered: a support with the wrong number of positions")
    scales = {}
    for side in sides if setting.dtype in INTEGERS else ():
        sending = counts(setting, side, found[side]) > 0
        scales[side] = np.zeros(len(sending), np.uint8)
        scales[side][sending] = np.frombuffer(take(int(sending.sum())), np.uint8)
    total = sum(len(positions) for positions in found.values())
    numbers = _numbers(setting, total, take(quantize.size(setting.dtype, total)), power)
    sent, first = {}, 0
    for side in sides:
        own = numbers[first : first + len(found[side])]
        first += len(own)
        if setting.dtype in INTEGERS:
            sent[side] = values_of(setting, side, Sent(found[side], own, scales[side]), power)
        else:
            sent[side] = Coefficients(found[side], own)
        if not np.isfinite(sent[side].values).all():
            raise PacketError("packet is altered: it holds non-finite coefficients")
    brought = vectors({s: len(atoms_of(found[s], size_of(setting, s))) for s in sides})
    if reader.left:
        raise PacketError("packet is altered: its payload does not fit its layer table")
    return sent, brought


def _numbers(setting: Setting, count: int, data: bytes, power: int) -> np.ndarray:
    if setting.dtype not in INTEGERS:
        return quantize.restore(data, setting.dtype, power)
    try:
        return quantize.unpack_bits(data, INTEGERS[setting.dtype], count)
    except ValueError as error:
        raise PacketError(f"packet is altered: it holds {error}") from None
