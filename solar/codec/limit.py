"""Limit: the fewest bytes in which Gaussian factors of this spectrum reach a given error.

Model: component j of a layer (m, n) with singular value s has a left and a right vector of m and n
independent Gaussian entries with energy s each. A side coded at distortion D = delta * s, where
0 < delta <= 1, needs (entries / 2) log2(1 / delta) bits (Shannon), and the optimal decoder returns
a vector of energy (1 - delta) s whose product with the true one is (1 - delta) s as well. Then

    ||l r^T - l' r'^T||^2 = s^2 (1 - (1 - delta_l) (1 - delta_r)),

whose small-error form s^2 (delta_l + delta_r) = s (|e_l|^2 + |e_r|^2) weighs each side's distortion
by s. Minimising error + lambda * nats over both deltas in closed form, with all layers, sides and
components at one lambda, is reverse water-filling with that product kept; a component whose two
sides cannot pay for themselves gets nothing. Sweeping lambda gives the lower convex hull of what is
reachable; straight pieces are time sharing. Signs, ranks and layer table are counted as free.
"""

from collections.abc import Mapping

import numpy as np

from solar.codec.blas import one_thread
from solar.codec.factors import Factors, by_shape, core_of_product, stack

POINTS = 600  # water levels in the sweep
FLOOR = 1e-4  # relative error at which the curve ends


def spectrum(factors: Mapping[str, Factors]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular value s, m and n of every component of every layer, (c,) float64 each."""
    s, m, n = [], [], []
    for shape, names in by_shape(factors).items():
        width = max(factors[name].left.shape[1] for name in names)
        if width == 0:
            continue
        sides = [stack([factors[k][i] for k in names], width) for i in (0, 1)]
        values = np.linalg.svd(core_of_product(*sides), compute_uv=False).ravel()
        values = values[values > 0]
        s.append(values)
        m.append(np.full(len(values), float(shape[0])))
        n.append(np.full(len(values), float(shape[1])))
    if not s:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    return np.concatenate(s), np.concatenate(m), np.concatenate(n)


def allocate(
    s: np.ndarray, m: np.ndarray, n: np.ndarray, price: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared error and nats of every component at every price: (p, c) each.

    price (p,) is lambda, squared error per nat. Stationarity reads delta_l (1 - delta_r) = a and
    delta_r (1 - delta_l) = b with a, b = lambda (m, n) / (2 s^2); the smaller root is the minimum.
    """
    a = price[:, None] * m / (2 * s**2)
    b = price[:, None] * n / (2 * s**2)
    square = (1 - a - b) ** 2 - 4 * a * b
    possible = (square >= 0) & (a + b < 1)
    root = np.sqrt(np.where(possible, square, 0))
    # The products of the two roots are a and b: dividing avoids the difference of near-equals.
    left = np.where(possible, 2 * a / np.where(possible, 1 - b + a + root, 1), 1.0)
    right = np.where(possible, 2 * b / np.where(possible, 1 - a + b + root, 1), 1.0)
    nats = -(m * np.log(left) + n * np.log(right)) / 2
    error = s**2 * (left + right - left * right)
    worth = error + price[:, None] * nats < s**2
    return np.where(worth, error, s**2), np.where(worth, nats, 0.0)


@one_thread
def rate_distortion(factors: Mapping[str, Factors]) -> list[tuple[float, float]]:
    """(bytes, relative error) along the limit, bytes rising from 0 and error falling from 1.

    The relative error is ||dW - dW'||_F / ||dW||_F over all layers; the curve is convex and ends at
    FLOOR. A zero update gives the single point (0, 0).
    """
    s, m, n = spectrum(factors)
    if len(s) == 0:
        return [(0.0, 0.0)]
    total = float(np.sum(s**2))
    # At the low end both sides of every component sit at delta = price * d / (2 s^2).
    low = FLOOR**2 * total / np.sum(m + n)
    high = 2 * float(np.max(s**2 / np.minimum(m, n)))
    error, nats = allocate(s, m, n, np.geomspace(high, low, POINTS))
    size = nats.sum(axis=1) / (8 * np.log(2))
    relative = np.sqrt(error.sum(axis=1) / total)
    return _convex(np.concatenate([[0.0], size]), np.concatenate([[1.0], relative]))


def _convex(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """Lower convex hull of points with rising x, falling part only."""
    hull: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _turn(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        if hull and point[0] <= hull[-1][0]:
            hull.pop()
        hull.append(point)
    return hull


def _turn(a, b, c) -> float:
    """Positive where the path a, b, c bends upwards."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def bytes_at(curve: list[tuple[float, float]], relative_error: float) -> float:
    """Bytes the limit needs for a relative error, between points on straight lines; infinite below
    the end of the curve."""
    size, error = np.array(curve).T
    if relative_error < error[-1]:
        return float("inf")
    return float(np.interp(relative_error, error[::-1], size[::-1]))
