"""Supports: which of many positions carry a coefficient, entropy-coded.

All supports of a file are one stream of a range coder (Martin 1979; the coder is the package
`constriction`). A position is a Bernoulli symbol whose chance both ends know: k / n where the file
fixes k, or a density of one byte, so a support of k out of n positions costs its n H(k / n) bits
and the whole stream at most a word more.
"""

from collections.abc import Iterable, Sequence

import numpy as np

ALL = 255  # the density of a component that sends everything; 0 sends nothing
WORD = np.dtype("<u4")
RUN = 2**20  # symbols coded at once, so that memory does not grow with the positions


def density(kept: int, size: int) -> int:
    """The byte that stands for `kept` of `size` positions."""
    if kept in (0, size):
        return ALL if kept else 0
    return min(max(round(ALL * kept / size), 1), ALL - 1)


def fewest(densities: np.ndarray, size: int) -> np.ndarray:
    """The fewest of `size` positions that the bytes `densities` can stand for, or one fewer."""
    least = np.maximum(np.floor((densities.astype(float) - 0.5) * size / ALL), 1)
    return np.where(densities == 0, 0, np.where(densities == ALL, size, least)).astype(np.int64)


def bits(kept, size) -> np.ndarray:
    """Bits that supports of `kept` out of `size` positions cost, arrays that broadcast."""
    kept, size = np.broadcast_arrays(np.asarray(kept, float), np.asarray(size, float))
    share = kept / np.maximum(size, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    return size * np.where((share > 0) & (share < 1), entropy, 0.0)


def _model(chance: float):
    from constriction import stream

    return stream.model.Bernoulli(chance, perfect=False)


def pack(supports: Iterable[tuple[np.ndarray, int, float]]) -> bytes:
    """The stream of supports given as (rising positions (k,), size n, chance); a support of chance
    0 or 1 is known and costs nothing."""
    from constriction import stream

    coder, any_symbol = stream.queue.RangeEncoder(), False
    for positions, size, chance in supports:
        if 0 < chance < 1:
            for first in range(0, size, RUN):
                marks = np.zeros(min(RUN, size - first), np.int32)
                here = slice(*np.searchsorted(positions, [first, first + RUN]))
                marks[positions[here] - first] = 1
                coder.encode(marks, _model(chance))
            any_symbol = True
    return coder.get_compressed().astype(WORD).tobytes() if any_symbol else b""


def unpack(data: bytes, sizes: Sequence[int], chances: Sequence[float]) -> list[np.ndarray]:
    """Positions (k,) int64 of every support. Raises ValueError where `data` is not a stream that
    `pack` writes for these sizes and chances."""
    from constriction import stream

    if len(data) % WORD.itemsize:
        raise ValueError("stream of supports of a broken length")
    coder = stream.queue.RangeDecoder(np.frombuffer(data, WORD).astype(np.uint32))
    found = []
    try:
        for size, chance in zip(sizes, chances, strict=True):
            if 0 < chance < 1:
                runs = [(at, min(RUN, size - at)) for at in range(0, size, RUN)]
                ones = [at + np.flatnonzero(coder.decode(_model(chance), n)) for at, n in runs]
                found.append(np.concatenate(ones))
            else:
                found.append(np.arange(size if chance else 0))
    except AssertionError:  # what constriction raises for words that no encoder writes
        raise ValueError("stream of supports that no encoder writes") from None
    # The coder reads zeros past its end: only writing again tells whether these were all the words.
    if pack(zip(found, sizes, chances, strict=True)) != data:
        raise ValueError("stream of supports that is not in its one form")
    return found
