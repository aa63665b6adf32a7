"""Checksum: a coarse rounding of the basis that two machines agree on, or else refuse.

Rounding every entry of a basis would differ on any two machines, for among millions of entries
some always sit on a rounding boundary. Instead each side is seen through the coefficients that were
sent: its decoded columns X' = P^T C, over sqrt(||X'||_F^2 + ||C||_F^2), meet ROWS seeded sign
vectors, and these few numbers are rounded to multiples of a step. (Rounding moves X' by about
||C||_F times a float32 ulp, hence the C.) The sender picks the offset of the grid that keeps all of
them farthest from a boundary and sends it, so differences of rounding size never cross one, while a
flipped, turned or exchanged column that carries weight does. The step grows with the count of
numbers so that the margin stays near MARGIN.
"""

import hashlib

import numpy as np

from solar.codec import threefry

ROWS = 4
MARGIN = 5e-6
STREAM = 6
OFFSETS = 65536
LENGTH = 8


def energy(table: np.ndarray) -> np.ndarray:
    """Sums of squares (b,) float64 of a table (b, ., .)."""
    table = np.asarray(table, np.float64)
    return np.einsum("bij,bij->b", table, table)


def sketch(rows: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """(b, t, ROWS) float64 numbers of a batch of sides.

    rows (b, t, d) float32 are what coefficients of energy `sent` (b,) decode to.
    """
    dim = rows.shape[-1]
    keys = threefry.fold(0, dim, STREAM, np.arange(ROWS))
    signs = np.where(threefry.words(keys, dim) >> 31, -1.0, 1.0)
    rows = np.asarray(rows, np.float64)
    norm = np.sqrt(energy(rows) + sent)[:, None, None]
    return rows @ signs.T / np.where(norm > 0, norm, 1)


def _scaled(numbers: np.ndarray) -> np.ndarray:
    count = max(numbers.size, 3)
    return numbers / (2 * MARGIN * count / np.log(count))


def choose_offset(numbers: np.ndarray) -> int:
    """The offset, in 1/OFFSETS of a step, that keeps `numbers` (v,) farthest from a boundary."""
    if numbers.size == 0:
        return 0
    places = np.sort(np.mod(_scaled(numbers), 1.0))
    gaps = np.diff(np.append(places, places[0] + 1))
    widest = int(np.argmax(gaps))
    # The boundary, where place + offset is an integer, goes to the middle of the widest gap.
    return int(np.round((1 - places[widest] - gaps[widest] / 2) % 1.0 * OFFSETS)) % OFFSETS


def checksum(numbers: np.ndarray, offset: int, recipe: bytes) -> bytes:
    """LENGTH bytes of SHA-256 over `recipe`, which says what gives the numbers their scale, and
    `numbers` (v,) rounded on the grid with this offset."""
    rounded = np.floor(_scaled(numbers) + offset / OFFSETS).astype("<i8")
    return hashlib.sha256(recipe + rounded.tobytes()).digest()[:LENGTH]
