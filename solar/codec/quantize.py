"""Quantize: numbers and supports to bytes and back, exactly.

Floats are stored as float16 (or float32) times one power of two for the whole packet, so the scale
of an adapter never meets the range of float16. Factor entries at b bits sit on the mid-rise grid
(code - (2^b - 1) / 2) * step with one float16 step per group; coefficients at b bits on the same
grid with steps of one byte, 2^((byte - 255) / SCALE_STEPS) times the packet's power of two.
"""

import math
from collections.abc import Callable

import numpy as np

from solar.errors import SolarError

FLOATS = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
TOP = 14  # the largest stored float16 lies in [2^13, 2^14): head room for rounding
SCALE_STEPS = 12  # of a step per octave: rounding one costs a thousandth of the energy at most
SCALE_TOP = 255
INTEGERS = {"int8": 8, "int4": 4, "int2": 2, "sign": 1}
STEPS = np.linspace(0.3, 1.0, 29)  # shares of the step that reaches the largest entry of a group


def size(dtype: str, count: int) -> int:
    """Bytes of `count` numbers."""
    if dtype in FLOATS:
        return count * FLOATS[dtype].itemsize
    return (count * INTEGERS[dtype] + 7) // 8


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
    stored = np.frombuffer(data, FLOATS[dtype])
    with np.errstate(over="ignore", invalid="ignore"):  # even the cast of some NaN is invalid
        return np.ldexp(stored.astype(np.float64), -power).astype(np.float32)


# ------------------------------------------------------------------------------- few-bit integers


def midrise(groups: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (g, e) uint8 and float16 steps (g,) of least squared error for groups (g, e) float32.

    Padding is NaN and counts for nothing.
    """
    steps = steps_for(groups, bits, _half)
    return codes(groups, steps, bits), steps


def _half(steps: np.ndarray) -> np.ndarray:
    half = np.asarray(steps).astype(np.float16)
    if not np.isfinite(half).all():
        raise SolarError("a quantisation step exceeds float16; scale the factors first")
    return half


def scale_power(largest: float) -> int:
    """The power of two of a packet whose largest step is `largest`."""
    return math.frexp(largest)[1] if largest > 0 else 0


def scale_bytes(steps: np.ndarray, power: int) -> np.ndarray:
    """Bytes (g,) uint8 of positive steps (g,); what is far below the largest gets the least."""
    with np.errstate(divide="ignore"):
        octaves = np.log2(np.asarray(steps, np.float64)) - power
    return np.clip(np.round(octaves * SCALE_STEPS) + SCALE_TOP, 0, SCALE_TOP).astype(np.uint8)


def scale_steps(scales: np.ndarray, power: int) -> np.ndarray:
    """Steps (g,) float64 of bytes (g,)."""
    return np.exp2((scales.astype(np.float64) - SCALE_TOP) / SCALE_STEPS + power)


def steps_for(
    groups: np.ndarray, bits: int, rounded: Callable[[np.ndarray], np.ndarray] = lambda steps: steps
) -> np.ndarray:
    """Steps (g,) of least squared error for groups (g, e), NaN where there is no entry, among those
    that `rounded` leaves.

    One bit has the closed form step = 2 mean|x|; otherwise the best of a fixed set of steps up to
    the one that reaches the largest entry.
    """
    if bits == 1:
        return rounded(2 * np.nanmean(np.abs(groups), axis=1))
    reach = np.nanmax(np.abs(groups), axis=1) / ((2**bits - 1) / 2)
    best, steps = np.full(len(groups), np.inf), rounded(reach)
    for share in STEPS:
        tried = rounded(reach * share)
        error = np.nansum((dequantize(codes(groups, tried, bits), tried, bits) - groups) ** 2, 1)
        steps, best = np.where(error < best, tried, steps), np.minimum(error, best)
    return steps


def codes(groups: np.ndarray, steps: np.ndarray, bits: int) -> np.ndarray:
    """Codes (g, e) uint8 of groups (g, e) on the mid-rise grid with steps (g,)."""
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
