"""Threefry: the random words of the basis, to the bit, whatever the library's defaults are.

Threefry-2x32 with 20 rounds (Salmon et al. 2011) maps a key and a counter of two 32-bit words to
two words. A key is folded with a number d by encrypting the counter (0, d); word i under a key is
the exclusive or of the two words for the counter (0, i). This is `jax.random` with impl
threefry2x32 and the partitionable layout, as a test checks; written out here because the words are
part of the format and must not change with a version or an option. The same code serves NumPy and
JAX arrays.
"""

import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def encrypt(key0, key1, counter0, counter1):
    """Two uint32 words for two-word keys and counters, uint32 arrays that broadcast."""
    keys = (key0, key1, key0 ^ key1 ^ np.uint32(PARITY))
    x, y = counter0 + keys[0], counter1 + keys[1]
    for block in range(5):
        for turn in ROTATIONS[block % 2]:
            x = x + y
            y = (y << np.uint32(turn) | y >> np.uint32(32 - turn)) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def fold(seed: int, *numbers: np.ndarray) -> np.ndarray:
    """Keys (..., 2) uint32: the 64-bit seed folded with each of `numbers` in turn, host arrays of
    unsigned integers below 2^32 that broadcast."""
    key0, key1 = (np.asarray(part, np.uint32) for part in (seed >> 32, seed & 0xFFFFFFFF))
    for number in numbers:
        number = np.asarray(number, np.uint32)
        # One dimension at least: NumPy warns of wrapping scalars, not of wrapping arrays.
        key0, key1, number = (np.atleast_1d(part) for part in (key0, key1, number))
        key0, key1 = encrypt(key0, key1, np.zeros_like(number), number)
    return np.stack(np.broadcast_arrays(key0, key1), axis=-1)


def words(keys, count: int):
    """uint32 words (..., count) of keys (..., 2), NumPy or JAX by the type of `keys`."""
    counter = np.arange(count, dtype=np.uint32)
    x, y = encrypt(keys[..., :1], keys[..., 1:], np.zeros_like(counter), counter)
    return x ^ y
