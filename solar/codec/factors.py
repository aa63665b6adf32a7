"""Canonical factors: the gauge in which an update is coded, and its error without forming dW.

An update dW = s B A has infinitely many factorisations (B G, G^-1 A). The one coded here is
dW = L R^T with L = U sqrt(S), R = V sqrt(S), where U S V^T is the thin SVD of dW, found from the
QR of both factors and one r x r SVD:

    s B = Q_B R_B,   A^T = Q_A R_A,   R_B R_A^T = P S Q^T,   L = Q_B P sqrt(S),   R = Q_A Q sqrt(S).

Sign: the largest entry of each left column is positive. Components below CUTOFF of the largest are
dropped, so the rank of a layer can shrink, to 0 for a zero update.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from solar.codec.blas import one_thread
from solar.errors import SolarError

CUTOFF = 1e-7  # components below this share of the layer's largest one are rounding, not signal
TIE = 1e-6  # entries within this relative distance of the largest count as equally large


class Factors(NamedTuple):
    """dW = left @ right.T, scale folded in: left (m, r), right (n, r), float32."""

    left: np.ndarray
    right: np.ndarray


def leading_sign(rows: np.ndarray) -> np.ndarray:
    """Sign (..., 1) of the largest-magnitude entry of each row of (..., d); the lowest index wins.

    Entries within TIE of the largest count as tied, so rounding cannot choose between them.
    """
    size = np.abs(rows)
    first = np.argmax(size >= (1 - TIE) * np.max(size, axis=-1, keepdims=True), axis=-1)
    entry = np.take_along_axis(rows, first[..., None], axis=-1)
    return np.where(entry < 0, -1.0, 1.0).astype(rows.dtype)


def _balance(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Balanced factors of left @ right^T for a batch (b, m, r), (b, n, r), and singular values."""
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right)
    p, s, qt = np.linalg.svd(r_left @ r_right.swapaxes(-1, -2), full_matrices=False)
    root = np.sqrt(s)[:, :, None]
    rows_left = (q_left @ p).swapaxes(-1, -2)
    rows_right = qt @ q_right.swapaxes(-1, -2)
    sign = leading_sign(rows_left)
    return rows_left * sign * root, rows_right * sign * root, s


@one_thread
def canonical(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
) -> dict[str, Factors]:
    """Balanced factors of every update in `pairs`.

    `pairs[name]` is (B (m, r), A (r, n), scale) with dW = scale * B @ A. Layers of equal shape are
    factorised together, in float64 (the gauge may be ill-conditioned); the result is float32.
    Raises SolarError where shapes do not fit or a value is not finite.
    """
    groups: dict[tuple[int, int, int], list[str]] = {}
    for name in sorted(pairs):
        b, a, scale = pairs[name]
        if np.ndim(b) != 2 or np.ndim(a) != 2 or b.shape[1] != a.shape[0]:
            raise SolarError(
                f"update of {name}: B {np.shape(b)} and A {np.shape(a)} do not multiply; "
                "expected B (m, r) and A (r, n)"
            )
        if not (np.isfinite(scale) and np.isfinite(b).all() and np.isfinite(a).all()):
            raise SolarError(f"update of {name} holds non-finite values; train the adapter again")
        groups.setdefault((b.shape[0], a.shape[1], b.shape[1]), []).append(name)

    result: dict[str, Factors] = {}
    for (m, n, r), names in groups.items():
        if r == 0:
            empty = Factors(np.zeros((m, 0), np.float32), np.zeros((n, 0), np.float32))
            result.update(dict.fromkeys(names, empty))
            continue
        left = np.stack([np.asarray(pairs[k][0], np.float64) * float(pairs[k][2]) for k in names])
        right = np.stack([np.asarray(pairs[k][1], np.float64).T for k in names])
        rows_left, rows_right, s = _balance(left, right)
        # A component whose float32 factors would vanish cannot be sent either.
        kept = (s > CUTOFF * s[:, :1]) & (np.sqrt(s) > np.finfo(np.float32).tiny)
        for i, name in enumerate(names):
            count = int(kept[i].sum())
            result[name] = Factors(
                np.ascontiguousarray(rows_left[i, :count].T, np.float32),
                np.ascontiguousarray(rows_right[i, :count].T, np.float32),
            )
    return {name: result[name] for name in sorted(pairs)}


def by_shape(factors: Mapping[str, Factors]) -> dict[tuple[int, int], list[str]]:
    """Names grouped by the (m, n) of their update, in sorted order."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name in sorted(factors):
        left, right = factors[name]
        groups.setdefault((left.shape[0], right.shape[0]), []).append(name)
    return groups


def stack(matrices: Iterable[np.ndarray], width: int, dtype=np.float64) -> np.ndarray:
    """(b, d, width): matrices (d, r_i) padded with zero columns, which change no product."""
    matrices = list(matrices)
    out = np.zeros((len(matrices), matrices[0].shape[0], width), dtype)
    for i, matrix in enumerate(matrices):
        out[i, :, : matrix.shape[1]] = matrix
    return out


def stack_pair(
    original: Mapping[str, Factors], decoded: Mapping[str, Factors], names: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """L (b, m, r), R (b, n, r), L' and R' of equal shape, float64, for `names` of one shape."""
    for name in names:
        shapes = [[side.shape[0] for side in which[name]] for which in (original, decoded)]
        if shapes[0] != shapes[1]:
            raise SolarError(f"decoded update of {name} is {shapes[1]}, the original {shapes[0]}")
    width = max(1, *(f[k].left.shape[1] for f in (original, decoded) for k in names))
    return tuple(
        stack([getattr(f[name], side) for name in names], width)
        for f in (original, decoded)
        for side in ("left", "right")
    )


def core_of_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A small (b, k, k') matrix with the singular values of left @ right^T, batched, float64."""
    r_left = np.linalg.qr(left, mode="r")
    r_right = np.linalg.qr(right, mode="r")
    return r_left @ r_right.swapaxes(-1, -2)


def core_of_error(left, right, left_, right_) -> np.ndarray:
    """Core of L' R'^T - L R^T = E_L R'^T + L E_R^T: the differences are taken before the product.

    Subtracting the two products instead would lose half of the digits.
    """
    return core_of_product(
        np.concatenate([left_ - left, left], axis=-1),
        np.concatenate([right_, right_ - right], axis=-1),
    )


@one_thread
def relative_error(original: Mapping[str, Factors], decoded: Mapping[str, Factors]) -> float:
    """||dW - dW'||_F / ||dW||_F over all layers together, float64, dW never formed.

    0 where both are zero and infinity where only the original is. Raises SolarError where the
    layers differ.
    """
    if set(original) != set(decoded):
        odd = sorted(set(original) ^ set(decoded))[0]
        raise SolarError(f"layer {odd} is in only one of the two updates compared")
    error = total = 0.0
    for names in by_shape(original).values():
        left, right, left_, right_ = stack_pair(original, decoded, names)
        error += float(np.sum(core_of_error(left, right, left_, right_) ** 2))
        total += float(np.sum(core_of_product(left, right) ** 2))
    if total == 0:
        return 0.0 if error == 0 else float("inf")
    return float(np.sqrt(error / total))
