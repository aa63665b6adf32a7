"""Singular: frames of singular vectors of the base weights, on the host in float64, cached on disk.

Rebuilding them is a promise, so everything that a LAPACK driver may choose freely is fixed here:
signs, and the vectors within a group of (nearly) equal singular values.
"""

import io
import itertools
import math
import mmap
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from solar.codec.factors import TIE, leading_sign
from solar.codec.recipe import SIDES
from solar.errors import SolarError
from solar.files import write_whole

RANK_CUTOFF = 1e-6  # singular vectors below this share of the largest value are not reproducible
HEADER = 128  # bytes of an .npy file before its numbers, for all but very long shapes
GAP = 1e-8  # values closer than this share of the largest leave their vectors to the driver


class Frame(NamedTuple):
    """One side of one layer: rows (k, d) float32, a vector each, and their values (k,) float64."""

    rows: np.ndarray
    values: np.ndarray


def _gesdd(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(weight, full_matrices=False)


def _gesvd(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from scipy.linalg import svd

    return svd(weight, full_matrices=False, lapack_driver="gesvd")


def _gram(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Through the eigenvectors of the smaller Gram matrix: half of the digits of small values."""
    if weight.shape[0] > weight.shape[1]:
        u, s, vt = _gram(weight.T)
        return vt.T, s, u.T
    squares, vectors = np.linalg.eigh(weight @ weight.T)
    u, s = vectors[:, ::-1], np.sqrt(np.maximum(squares[::-1], 0))
    return u, s, (u.T @ weight) / np.where(s > 0, s, 1)[:, None]


# The same vectors to within rounding, or a basis checksum that does not fit. `SOLAR_SVD` picks one.
DRIVERS = {"gesdd": _gesdd, "gesvd": _gesvd, "gram": _gram}


def driver() -> str:
    """The name of the LAPACK driver in use. Raises SolarError where SOLAR_SVD names none."""
    name = os.environ.get("SOLAR_SVD", "gesdd")
    if name not in DRIVERS:
        raise SolarError(f"SOLAR_SVD={name} is unknown; choose one of {tuple(DRIVERS)}")
    return name


def groups(values: np.ndarray) -> list[slice]:
    """Runs of two or more of the falling `values` (k,) that are closer than GAP of the first."""
    if len(values) < 2:
        return []
    apart = np.flatnonzero(values[:-1] - values[1:] > GAP * values[0]) + 1
    edges = [0, *apart.tolist(), len(values)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if b - a > 1]


def canonical_group(rows: np.ndarray) -> np.ndarray:
    """Another orthonormal basis (g, d) of the span of orthonormal rows (g, d), the same whichever
    basis of the span is given.

    Columns of the projector with pivots: the coordinate axis that lies deepest in what is left of
    the span (the first of equals) is projected onto it, normalised, and taken out.
    """
    rest, found = rows.copy(), np.empty_like(rows)
    for i in range(len(rows)):
        depth = np.sum(rest**2, axis=0)
        pivot = int(np.argmax(depth >= (1 - TIE) * depth.max()))
        found[i] = rest[:, pivot] @ rest / np.sqrt(depth[pivot])
        rest -= (rest @ found[i])[:, None] * found[i]
    return found


def _svd(weight: np.ndarray, name: str) -> tuple[Frame, Frame]:
    u, s, vt = DRIVERS[name](np.asarray(weight, np.float64))
    rank = int(np.sum(s > RANK_CUTOFF * s[0])) if s.size else 0
    frames = []
    for rows in (np.ascontiguousarray(u.T[:rank]), vt[:rank].copy()):
        # Sides are coded apart, so left and right vectors of a group need no common rotation.
        for group in groups(s[:rank]):
            rows[group] = canonical_group(rows[group])
        rows = rows * leading_sign(rows) if rank else rows
        frames.append(Frame(rows.astype(np.float32), s[:rank]))
    return frames[0], frames[1]


@lru_cache(maxsize=64)
def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _load(path: Path, width: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """The array (k, *width) in an .npy file, mapped; None where there is no such whole file.

    np.load would parse the header as Python, which is slow and, from several threads at once, fails
    now and then in Python 3.11. Its bytes are known, so they are compared.
    """
    try:
        size = path.stat().st_size
        row = math.prod(width) * np.dtype(dtype).itemsize
        count = max(0, size - HEADER) // row
        shape = (count, *width)
        with path.open("rb") as file:
            whole = file.read(HEADER) == _header(shape, dtype) and size == HEADER + count * row
            if not (whole and count):
                return None
            # np.memmap resolves the path anew, which takes as long as all the rest.
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        return np.frombuffer(data, dtype, offset=HEADER).reshape(shape)
    except (OSError, ValueError):  # absent, or cut short meanwhile: compute it
        return None


def _save(path: Path, array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    write_whole(path, file.getvalue())


def _stem(digest: bytes, cache: Path) -> Path:
    how = driver()
    return Path(cache) / "singular" / (digest.hex()[:32] + ("" if how == "gesdd" else f"-{how}"))


def cached_frames(
    shape: tuple[int, int], digest: bytes, cache: Path | None
) -> tuple[Frame, Frame] | None:
    """What `singular_frames` saved of the weight (m, n) with this hash; None where it did not."""
    if cache is None:
        return None
    stem = _stem(digest, cache)
    values = _load(stem.with_suffix(".values.npy"), (), "<f8")
    left, right = (
        _load(stem.with_suffix(f".{side}.npy"), (length,), "<f4")
        for side, length in zip(SIDES, shape, strict=True)
    )
    if values is None or left is None or right is None:
        return None
    if not len(values) == len(left) == len(right):
        return None
    return Frame(left, np.asarray(values)), Frame(right, np.asarray(values))


def singular_frames(
    name: str,
    weight: Callable[[], np.ndarray],
    shape: tuple[int, int],
    digest: bytes,
    cache: Path | None,
) -> tuple[Frame, Frame]:
    """Left (k, m) and right (k, n) singular vectors of a weight (m, n), k its numerical rank.

    `weight` is called only where `cache` does not hold the answer under `digest`, the hash of the
    exact weight. Raises SolarError where W is zero or not finite.
    """
    if (known := cached_frames(shape, digest, cache)) is not None:
        return known
    matrix = weight()
    if not np.isfinite(matrix).all():
        raise SolarError(f"base weight {name} holds non-finite values; get the checkpoint again")
    left, right = _svd(matrix, driver())
    if len(left.values) == 0:
        raise SolarError(f"base weight {name} is zero and has no singular basis; use kind=random")
    if cache is not None:
        stem = _stem(digest, cache)
        _save(stem.with_suffix(".left.npy"), left.rows)
        _save(stem.with_suffix(".right.npy"), right.rows)
        _save(stem.with_suffix(".values.npy"), left.values)
    return left, right


def smallest_gap(values: np.ndarray, count: int) -> float:
    """Smallest (s_i - s_{i+1}) / s_1 of the leading `count`: where it is 0 vectors turn freely."""
    used = values[: count + 1]
    return float(np.min(-np.diff(used)) / used[0]) if len(used) > 1 else 1.0
