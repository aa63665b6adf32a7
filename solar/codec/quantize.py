"""Quantize: numbers and supports to bytes and back, exactly.

Floats are stored as float16 (or float32) times one power of two for the whole packet, so the scale
of an adapter never meets the range of float16. Factor entries at b bits sit on the mid-rise grid
(code - (2^b - 1) / 2) * step with one float16 step per group. A support of k out of n positions is
a bitmap or its rank among all C(n, k) (combinatorial number system), whichever is shorter.
"""

import math
from functools import lru_cache

import numpy as np

from solar.errors import SolarError

FLOATS = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
TOP = 14  # the largest stored float16 lies in [2^13, 2^14): head room for rounding
MAX_RANKED = 16384  # beyond this many positions a rank costs too much time; the bitmap is used
STEPS = np.linspace(0.3, 1.0, 29)  # shares of the step that reaches the largest entry of a group


def exponent(values: np.ndarray, dtype: str) -> int:
    """Power of two by which `values` are multiplied before they are stored as `dtype`."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if dtype == "float32" or largest == 0:
        return 0
    return TOP - math.frexp(largest)[1]


def store(values: np.ndarray, dtype: str, power: int) -> bytes:
    """Little-endian bytes of values * 2^power as `dtype`."""
    return np.ldexp(np.asarray(values, np.float64), power).astype(FLOATS[dtype]).tobytes()


def restore(data: bytes, dtype: str, power: int) -> np.ndarray:
    """float32 values (len,) that `store` wrote; the caller checks that they are finite."""
    stored = np.frombuffer(data, FLOATS[dtype]).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ldexp(stored, -power).astype(np.float32)


# --------------------------------------------------------------------------------------- supports


@lru_cache(maxsize=1024)
def support_bytes(n: int, k: int) -> int:
    """Bytes of a support of k out of n positions; nothing where there is no choice."""
    if k == n or k == 0:
        return 0
    bitmap = (n + 7) // 8
    if n > MAX_RANKED:
        return bitmap
    return min(bitmap, ((math.comb(n, k) - 1).bit_length() + 7) // 8)


def _ranked(n: int, k: int) -> bool:
    return support_bytes(n, k) < (n + 7) // 8


def pack_support(support: np.ndarray) -> bytes:
    """Bytes of a support (n,) bool."""
    n, k = len(support), int(np.sum(support))
    size = support_bytes(n, k)
    if size == 0:
        return b""
    if not _ranked(n, k):
        return np.packbits(support, bitorder="little").tobytes()
    # The rank is the sum of C(p_i, i) over the positions p_1 < ... < p_k; binomials are updated.
    rank, binomial, left = 0, math.comb(n - 1, k), k
    for p in range(n - 1, -1, -1):
        if left == 0:
            break
        if support[p]:
            rank += binomial
            binomial, left = (binomial * left // p if p else 0), left - 1
        else:
            binomial = binomial * (p - left) // p
    return rank.to_bytes(size, "little")


def unpack_support(data: bytes, n: int, k: int) -> np.ndarray:
    """Support (n,) bool of k positions. Raises ValueError where `data` is not a valid code."""
    if len(data) != support_bytes(n, k):
        raise ValueError("support of the wrong length")
    if k == n or k == 0:
        return np.full(n, k == n)
    if not _ranked(n, k):
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        if int(bits.sum()) != k or bits[n:].any():
            raise ValueError("support with the wrong number of positions")
        return bits[:n].astype(bool)
    rank = int.from_bytes(data, "little")
    if rank >= math.comb(n, k):
        raise ValueError("support beyond the last one")
    support = np.zeros(n, bool)
    binomial, left = math.comb(n - 1, k), k
    for p in range(n - 1, -1, -1):
        if left == 0:
            break
        if rank >= binomial:
            support[p] = True
            rank -= binomial
            binomial, left = (binomial * left // p if p else 0), left - 1
        else:
            binomial = binomial * (p - left) // p
    return support


# ------------------------------------------------------------------------------- few-bit integers


def midrise(groups: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (g, e) uint8 and float16 steps (g,) of least squared error for groups (g, e) float32.

    One bit has the closed form step = 2 mean|x|; otherwise the best of a fixed set of steps up to
    the one that reaches the largest entry. Padding is NaN and counts for nothing.
    """
    if bits == 1:
        steps = 2 * np.nanmean(np.abs(groups), axis=1)
        return _codes(groups, _half(steps), bits), _half(steps)
    reach = np.nanmax(np.abs(groups), axis=1) / ((2**bits - 1) / 2)
    best = np.full(len(groups), np.inf)
    steps = _half(reach)
    for share in STEPS:
        tried = _half(reach * share)
        error = np.nansum((dequantize(_codes(groups, tried, bits), tried, bits) - groups) ** 2, 1)
        steps = np.where(error < best, tried, steps)
        best = np.minimum(error, best)
    return _codes(groups, steps, bits), steps


def _half(steps: np.ndarray) -> np.ndarray:
    half = np.asarray(steps).astype(np.float16)
    if not np.isfinite(half).all():
        raise SolarError("a quantisation step exceeds float16; scale the factors first")
    return half


def _codes(groups: np.ndarray, steps: np.ndarray, bits: int) -> np.ndarray:
    width = np.where(steps > 0, steps.astype(np.float32), np.inf)[:, None]
    level = np.floor(np.nan_to_num(groups) / width) + 2 ** (bits - 1)
    return np.clip(level, 0, 2**bits - 1).astype(np.uint8)


def dequantize(codes: np.ndarray, steps: np.ndarray, bits: int) -> np.ndarray:
    """(g, e) float32 of codes (g, e) and steps (g,)."""
    middle = np.float32((2**bits - 1) / 2)
    return (codes.astype(np.float32) - middle) * steps.astype(np.float32)[:, None]


def pack_bits(codes: np.ndarray, bits: int) -> bytes:
    """Codes (e,) uint8 below 2^bits, bits in (1, 2, 4, 8), packed from the low end of each byte."""
    per_byte = 8 // bits
    padded = np.zeros(-(-len(codes) // per_byte) * per_byte, np.uint8)
    padded[: len(codes)] = codes
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1).tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> np.ndarray:
    """Codes (count,) uint8. Raises ValueError where the length or the padding is wrong."""
    per_byte = 8 // bits
    if len(data) != -(-count // per_byte):
        raise ValueError("codes of the wrong length")
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    codes = (np.frombuffer(data, np.uint8)[:, None] >> shifts & (2**bits - 1)).reshape(-1)
    if codes[count:].any():
        raise ValueError("codes after the last one")
    return codes[:count].astype(np.uint8)
