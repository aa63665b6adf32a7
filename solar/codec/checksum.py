"""Checksum: a coarse rounding of the basis that two machines agree on, or else refuse.

Rounding every entry of a basis would differ on any two machines, for among millions of entries
some always sit on a rounding boundary. Instead each side is seen through the coefficients that were
sent: its decoded columns X' = P^T C, over sqrt(||X'||_F^2 + ||C||_F^2), meet ROWS seeded sign
vectors, and these few numbers are rounded to multiples of a step. (Rounding moves X' by about
||C||_F times a float32 ulp, hence the C.) The sender picks the offset of the grid that keeps all of
them farthest from a boundary and sends it, so differences of rounding size never cross one, while a
flipped, turned or exchanged column that carries weight does. The step grows with the count of
numbers so that the margin stays near MARGIN.

With many sides that step is coarse: what moves the whole update by a little can pass. So WHOLE more
numbers sum all sides with seeded signs, each side weighing what its layer weighs in the update, and
are rounded to multiples of WHOLE_STEP; a bit for each, in the first byte of the checksum, says
whether its grid is shifted by half a step, which keeps it a quarter of a step from a boundary.
"""

import hashlib
from functools import lru_cache

import numpy as np

from solar.codec import threefry

ROWS = 4
MARGIN = 5e-6
STREAM = 6
OFFSETS = 65536
LENGTH = 8
WHOLE = 8  # as many as a byte has bits
WHOLE_STEP = 1e-5


def energy(table: np.ndarray) -> np.ndarray:
    """Sums of squares (b,) float64 of a table (b, ., .)."""
    table = np.asarray(table, np.float64)
    return np.einsum("bij,bij->b", table, table)


@lru_cache(maxsize=8)
def _signs(dim: int) -> np.ndarray:
    """(dim, ROWS) float64, the same for all sides of a width: a base has few widths."""
    keys = threefry.fold(0, dim, STREAM, np.arange(ROWS))
    return np.where(threefry.words(keys, dim) >> 31, -1.0, 1.0).T


def sketch(rows: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """(b, t, ROWS) float64 numbers of a batch of sides.

    rows (b, t, d) float32 are what coefficients of energy `sent` (b,) decode to.
    """
    signs = _signs(rows.shape[-1])
    rows = np.asarray(rows, np.float64)
    norm = np.sqrt(energy(rows) + sent)[:, None, None]
    return rows @ signs / np.where(norm > 0, norm, 1)


def whole(numbers: list[np.ndarray], norms: np.ndarray) -> np.ndarray:
    """(WHOLE,) sums over all sides, left and right of a layer next to each other.

    numbers: of every side, (t, ROWS) as `sketch` gives them; norms (s,): of its decoded columns.
    """
    if not numbers:
        return np.zeros(WHOLE)
    weights = np.repeat(norms.reshape(-1, 2).astype(np.float64).prod(axis=1), 2)
    total = np.linalg.norm(weights)
    weights = np.repeat(weights / (total if total > 0 else 1), [len(own) for own in numbers])
    rows = np.concatenate(numbers)[:, np.arange(WHOLE) % ROWS]
    keys = threefry.fold(0, len(rows), STREAM + 1, np.arange(WHOLE))
    signs = np.where(threefry.words(keys, len(rows)) >> 31, -1.0, 1.0)
    return (signs.T * rows * weights[:, None]).sum(axis=0)


def _scaled(numbers: np.ndarray) -> np.ndarray:
    count = max(numbers.size, 3)
    return numbers / (2 * MARGIN * count / np.log(count))


def choose_offset(numbers: np.ndarray) -> int:
    """The offset, in 1/OFFSETS of a step, that keeps those of the sides among `numbers`, the last
    WHOLE being of the whole, farthest from a boundary."""
    numbers = numbers[:-WHOLE]
    if numbers.size == 0:
        return 0
    places = np.sort(np.mod(_scaled(numbers), 1.0))
    gaps = np.diff(np.append(places, places[0] + 1))
    widest = int(np.argmax(gaps))
    # The boundary, where place + offset is an integer, goes to the middle of the widest gap.
    return int(np.round((1 - places[widest] - gaps[widest] / 2) % 1.0 * OFFSETS)) % OFFSETS


def checksum(
    numbers: np.ndarray, offset: int, recipe: bytes, shifts: int | None = None
) -> bytes:  # fmt: skip
    """LENGTH bytes: the shifts, and SHA-256 over `recipe`, which says what gives the numbers their
    scale, and over `numbers` (v + WHOLE,) rounded on the grids with this offset and these shifts.

    shifts: what the sender chose; None to choose.
    """
    places = numbers[-WHOLE:] / WHOLE_STEP
    if shifts is None:
        near = np.abs(places - np.round(places)) < 0.25
        shifts = int(np.packbits(near, bitorder="little")[0])
    halves = np.unpackbits(np.array([shifts], np.uint8), bitorder="little") / 2
    rounded = np.concatenate([
        np.floor(_scaled(numbers[:-WHOLE]) + offset / OFFSETS), np.floor(places + halves)
    ]).astype("<i8")  # fmt: skip
    first = bytes([shifts])
    return first + hashlib.sha256(first + recipe + rounded.tobytes()).digest()[: LENGTH - 1]


def fits(mark: bytes, numbers: np.ndarray, offset: int, recipe: bytes) -> bool:
    """Whether `mark` is the checksum of numbers that differ from these by rounding at most."""
    return bool(np.isfinite(numbers).all()) and mark == checksum(numbers, offset, recipe, mark[0])
