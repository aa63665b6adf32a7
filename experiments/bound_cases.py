"""Updates and base weights made to press on the bounds of the error, each for one reason.

inside        the update lies in the leading 16 singular directions of W on both sides
orthogonal    it lies in the trailing 40, outside every leading subspace of up to 200
one side      rank one: the right vector inside the leading 16, the left half in and half outside,
              so two terms of the certificate vanish and the third is attained
equal values  singular values of W in groups of eight that differ by 1e-10 of one another
condition     singular values of the update from 1 to 1e-6, given in a gauge of condition 1e6
rank one      one random direction on each side
"""

from collections.abc import Mapping

import numpy as np

from solar.codec.factors import Factors, canonical

SHAPE = (240, 320)
RANK = 4
LEADING, TRAILING = 16, 40


def _frame(rng: np.random.Generator, dim: int, count: int) -> np.ndarray:
    """(dim, count) orthonormal columns."""
    return np.linalg.qr(rng.normal(size=(dim, count)))[0]


def cases(
    seed: int = 0, shape: tuple[int, int] = SHAPE, leading: int = LEADING, trailing: int = TRAILING
) -> tuple[dict[str, Factors], Mapping[str, np.ndarray]]:
    """Canonical factors and base weights (m, n) float32 by case, m <= n.

    leading, trailing: how many singular directions `inside` and `orthogonal` lie in.
    """
    rng = np.random.default_rng(seed)
    m, n = shape
    apart = np.linspace(1, 0.05, m)
    equal = np.repeat(np.linspace(1, 0.1, -(-m // 8)), 8)[:m] * (1 - 1e-10 * np.arange(m))

    pairs, base = {}, {}

    def add(name, left, right, values, u, v):
        pairs[name] = (left, right.T, 1.0)
        base[name] = ((u * values) @ v.T).astype(np.float32)

    def mixed(count, rank=RANK):
        return rng.normal(size=(count, rank))

    u, v = _frame(rng, m, m), _frame(rng, n, m)
    add("inside", u[:, :leading] @ mixed(leading), v[:, :leading] @ mixed(leading), apart, u, v)
    u, v = _frame(rng, m, m), _frame(rng, n, m)
    last = slice(m - trailing, m)
    add("orthogonal", u[:, last] @ mixed(trailing), v[:, last] @ mixed(trailing), apart, u, v)
    u, v = _frame(rng, m, m), _frame(rng, n, m)
    half = u[:, :1] + u[:, -1:]
    add("one side", half, v[:, :leading] @ mixed(leading, 1), apart, u, v)
    u, v = _frame(rng, m, m), _frame(rng, n, m)
    add("equal values", mixed(m), mixed(n), equal, u, v)
    u, v = _frame(rng, m, m), _frame(rng, n, m)
    steep = np.logspace(0, -6, RANK)
    turn, back = _frame(rng, RANK, RANK), _frame(rng, RANK, RANK)
    gauge = (turn * steep) @ back.T
    left = _frame(rng, m, RANK) * steep
    right = np.linalg.solve(gauge, _frame(rng, n, RANK).T).T
    add("condition", left @ gauge, right, apart, u, v)
    u, v = _frame(rng, m, m), _frame(rng, n, m)
    add("rank one", mixed(m, 1), mixed(n, 1), apart, u, v)
    return canonical(pairs), base


def parallel(size: float, seed: int = 0) -> tuple[Factors, Factors]:
    """An update and a decoded form of it whose certificate is attained: both sides are too long by
    `size` in the leading component, so the three terms are parallel and of one sign."""
    rng = np.random.default_rng(seed)
    m, n = SHAPE
    left, right = (_frame(rng, d, RANK) * np.sqrt([1, 0.3, 0.1, 0.03]) for d in (m, n))
    stretch = np.array([1 + size, 1, 1, 1])
    return Factors(left, right), Factors(left * stretch, right * stretch)
