"""Select: coefficients of the factors in the atoms, by ridge least squares, and which ones are kept.

For one side with atoms as the rows of P (a, D) and targets as the rows of X (t, D):

    C = argmin ||X^T - P^T C||_F^2 + ridge * mean(diag P P^T) * ||C||_F^2,

by Cholesky on the Gram matrix P P^T, with one step of refinement that takes back most of the bias of
the ridge where the problem is well conditioned. Near a = D plain least squares explodes; the ridge
bounds ||C||. Orthonormal atoms need no solve: C = P X^T.

Of all a * t coefficients of a side the largest by |c| * weight are kept, weight being the norm of
the component on the other side, because the error of dW scales with it; the kept ones are fitted
again on their support. All sides of equal shape are one batch.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from solar.codec.factors import HIGHEST


class Fit(NamedTuple):
    """coefficients (b, a, t) float32, zero off the support; support (b, a, t) bool; residual (b,):
    ||X^T - P^T C||_F with every atom in use, before selection."""

    coefficients: jax.Array
    support: jax.Array
    residual: jax.Array


def _solve(gram, moments, lam):
    """(gram + lam I) C = moments, refined once towards lam = 0; gram (a, a), moments (a, t)."""
    lower = jnp.linalg.cholesky(gram + lam * jnp.eye(gram.shape[0], dtype=gram.dtype))
    first = jax.scipy.linalg.cho_solve((lower, True), moments)
    left_over = moments - jnp.matmul(gram, first, precision=HIGHEST)
    return first + jax.scipy.linalg.cho_solve((lower, True), left_over)


def _largest(score, count):
    """Support (a, t) of the `count` largest entries; ties go to the lower flat index."""
    flat = score.reshape(-1)
    order = jnp.argsort(-flat, stable=True)
    return (
        jnp.zeros(flat.shape, bool)
        .at[order]
        .set(jnp.arange(flat.size) < count)
        .reshape(score.shape)
    )


@partial(jax.jit, static_argnames=("orthonormal", "sparse"))
def fit(atoms, targets, weights, counts, ridge, *, orthonormal: bool, sparse: bool) -> Fit:
    """Coefficients of targets (b, t, D) in atoms (b, a, D), float32, before any re-fit.

    weights (b, t) order the coefficients; counts (b,) int32 of them are kept where `sparse`.
    """

    def one(atoms, targets, weights, count):
        moments = jnp.matmul(atoms, targets.T, precision=HIGHEST)
        if orthonormal:
            full = moments
        else:
            gram = jnp.matmul(atoms, atoms.T, precision=HIGHEST)
            full = _solve(gram, moments, ridge * jnp.trace(gram) / gram.shape[0])
        rest = targets - jnp.matmul(full.T, atoms, precision=HIGHEST)
        residual = jnp.sqrt(jnp.sum(rest * rest))
        if not sparse:
            return Fit(full, jnp.ones(full.shape, bool), residual)
        support = _largest(jnp.abs(full) * weights[None, :], count)
        return Fit(full * support, support, residual)

    # One side after another: the work memory is that of one Gram matrix.
    return jax.lax.map(lambda x: one(*x), (atoms, targets, weights, counts))


@partial(jax.jit, static_argnames=("most",))
def refit(atoms, targets, support, ridge, *, most: int):
    """Coefficients (b, a, t) fitted again on support (b, a, t), each target on its own atoms.

    most: at least the number of atoms that any one target uses.
    """

    def one(atoms, target, support):
        chosen = jnp.argsort(~support, stable=True)[:most]
        inside = support[chosen].astype(atoms.dtype)
        own = atoms[chosen] * inside[:, None]
        gram = jnp.matmul(own, own.T, precision=HIGHEST)
        scale = jnp.trace(gram) / jnp.maximum(jnp.sum(inside), 1)
        # Places beyond the support become rows of the identity and stay at zero.
        gram = gram + jnp.diag((1 - inside) * jnp.maximum(scale, 1))
        moments = jnp.matmul(own, target, precision=HIGHEST)
        solved = _solve(gram, moments[:, None], ridge * scale)[:, 0] * inside
        return jnp.zeros(support.shape, atoms.dtype).at[chosen].set(solved)

    per_side = jax.vmap(one, (None, 0, 1), 1)
    return jax.lax.map(lambda x: per_side(*x), (atoms, targets, support))


@jax.jit
def combine(coefficients, atoms):
    """Rows (b, t, D) float32: coefficients (b, a, t) times atoms (b, a, D)."""
    return jnp.einsum("bat,bad->btd", coefficients, atoms, precision=HIGHEST)
