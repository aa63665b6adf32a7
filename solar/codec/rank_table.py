"""Rank table: the rank of every layer of a `.solar` file as bytes, and back.

    most       1 or 2 bytes, a varint: the largest rank; nothing follows where all layers have it
    numbers    for 64 layers at a time, the last time for the rest: their ranks as the digits of one
               number to the base most + 1, lowest first, in as few bytes as hold all such numbers

60 layers of rank 0 to 3 take 16 bytes, of rank 0 to 4 19. Files of before 2026-11-26 have a varint
a layer instead. Broken tables raise ValueError.
"""

from collections.abc import Sequence

MOST = 16383  # two varint bytes
TOGETHER = 64  # layers a number: more would save no byte and make long tables slow


def pack(ranks: Sequence[int]) -> bytes:
    """The table of ranks from 0 to MOST."""
    most = max(ranks)
    table = _varint(most)
    if min(ranks) == most:
        return table
    for at in range(0, len(ranks), TOGETHER):
        number, together = 0, ranks[at : at + TOGETHER]
        for rank in reversed(together):
            number = number * (most + 1) + rank
        table += number.to_bytes(_width(most, len(together)), "little")
    return table


def length(ranks: Sequence[int]) -> int:
    """How many bytes `pack` needs."""
    most = max(ranks)
    whole, rest = divmod(len(ranks), TOGETHER)
    differ = min(ranks) != most
    return len(_varint(most)) + differ * (whole * _width(most, TOGETHER) + _width(most, rest))


def unpack(data: bytes, layers: int) -> tuple[int, ...]:
    """The ranks of `layers` layers. Raises ValueError where no ranks have this table."""
    most, at = _read(data, 0)
    ranks: list[int] = []
    if at == len(data):
        return (most,) * layers
    while len(ranks) < layers:
        together = min(TOGETHER, layers - len(ranks))
        width = _width(most, together)
        number = int.from_bytes(data[at : at + width], "little")
        at += width
        for _ in range(together):
            number, rank = divmod(number, most + 1)
            ranks.append(rank)
        if number or at > len(data):
            raise ValueError("a number that is no ranks")
    if at < len(data) or max(ranks) != most or min(ranks) == most:
        raise ValueError("ranks that do not fit their largest")
    return tuple(ranks)


def unpack_varints(data: bytes, layers: int) -> tuple[int, ...]:
    """The same of an older file: a varint a layer, or one where all are alike."""
    if len(data) > 2 * layers:  # before a number is made of every byte
        raise ValueError("ranks for more layers than there are")
    ranks, at = [], 0
    while at < len(data):
        rank, at = _read(data, at)
        ranks.append(rank)
    if len(ranks) == 1:
        return tuple(ranks * layers)
    if len(ranks) != layers or len(set(ranks)) == 1:
        raise ValueError(f"{len(ranks)} ranks for {layers} layers")
    return tuple(ranks)


def _width(most: int, count: int) -> int:
    """Bytes that hold every number of `count` digits from 0 to `most`."""
    return (((most + 1) ** count - 1).bit_length() + 7) // 8


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])


def _read(data: bytes, at: int) -> tuple[int, int]:
    """A varint at a place, and the place behind it."""
    first, second = (*data[at : at + 2], 0, 0)[:2]
    if at >= len(data) or (first & 128 and not 0 < second < 128):
        raise ValueError("a broken number")
    return (first & 127 | second << 7, at + 2) if first & 128 else (first, at + 1)
