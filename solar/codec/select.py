"""Select: coefficients of the factors in the atoms by ridge least squares, and which are kept.

For one side with atoms as the rows of P (a, D) and targets as the rows of X (t, D):

    C = argmin ||X^T - P^T C||_F^2 + lam ||C||_F^2,   lam = ridge * ||P P^T||_F^2 / tr(P P^T),

by Cholesky on the Gram matrix, with one step of refinement that takes back most of the bias of the
ridge where the problem is well conditioned. Near a = D plain least squares explodes; the ridge
bounds ||C||. Orthonormal atoms need no solve: C = P X^T.

Of all a * t coefficients of a side the largest by |c| * weight are kept, weight being the norm of
the component on the other side, because the error of dW scales with it; the kept ones are fitted
again on their support. All sides of equal shape are one batch.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


class Fit(NamedTuple):
    """coefficients (b, a, t) float32, zero off the support; support (b, a, t) bool; residual (b,):
    ||X^T - P^T C||_F with every atom in use, before selection."""

    coefficients: jax.Array
    support: jax.Array
    residual: jax.Array


def _ridge(atoms, targets, ridge):
    """C (a, t) for atoms (a, D) and targets (t, D); rows of zeros among the atoms get zeros.

    Of the two equal forms (P P^T + lam)^-1 P X^T = P (P^T P + lam)^-1 X^T the smaller matrix is
    factorised, so that more atoms than dimensions leave it well conditioned.
    """
    wide = atoms.shape[0] <= atoms.shape[1]
    own = atoms if wide else atoms.T
    gram = jnp.matmul(own, own.T, precision=HIGHEST)
    # Eigenvalues in their own weighting: 1 for orthonormal atoms, a / D for many random ones.
    scale = jnp.sum(gram * gram) / jnp.maximum(jnp.trace(gram), jnp.finfo(gram.dtype).tiny)
    lam = jnp.maximum(ridge * scale, jnp.finfo(gram.dtype).tiny)
    diagonal = jnp.arange(gram.shape[0])
    lower = jax.lax.linalg.cholesky(
        gram.at[diagonal, diagonal].add(lam), symmetrize_input=False
    )  # fmt: skip

    def ridged(rest):
        """The ridge solution for rest (t, D)."""
        if wide:
            return _solved(lower, inner(atoms, rest))
        return jnp.matmul(atoms, _solved(lower, rest.T), precision=HIGHEST)

    first = ridged(targets)
    # And the ridge solution for what it leaves of the targets.
    return first + ridged(targets - jnp.matmul(first.T, atoms, precision=HIGHEST))


def _solved(lower, right):
    """x of lower lower^T x = right (a, t)."""
    half = jax.lax.linalg.triangular_solve(lower, right, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(
        lower, half, left_side=True, lower=True, transpose_a=True
    )


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


@partial(jax.jit, static_argnames=("sparse",))
def fit(atoms, targets, weights, counts, ridge, *, sparse: bool) -> Fit:
    """Coefficients of targets (b, t, D) in atoms (b, a, D), float32, before any re-fit.

    weights (b, t) order the coefficients; counts (b,) int32 of them are kept where `sparse`.
    """

    def one(atoms, targets, weights, count):
        full = _ridge(atoms, targets, ridge)
        rest = targets - jnp.matmul(full.T, atoms, precision=HIGHEST)
        residual = jnp.sqrt(jnp.sum(rest * rest))
        if not sparse:
            return Fit(full, jnp.ones(full.shape, bool), residual)
        support = _largest(jnp.abs(full) * weights[None, :], count)
        return Fit(full * support, support, residual)

    # One side after another: the work memory is that of one Gram matrix.
    return jax.lax.map(lambda x: one(*x), (atoms, targets, weights, counts))


@partial(jax.jit, static_argnames=("most",))
def refit(atoms, targets, support, ridge, *, most: tuple[int, ...]):
    """Coefficients (b, a, t) fitted again on support (b, a, t), each target on its own atoms.

    most: for every target, at least the number of atoms that it uses on any side. Targets that
    differ in it are solved one after another: a Gram matrix costs the square of it.
    """

    def one(atoms, target, support, most):
        chosen = jnp.argsort(~support, stable=True)[:most]
        own = atoms[chosen] * support[chosen][:, None]
        solved = _ridge(own, target[None, :], ridge)[:, 0]
        return jnp.zeros(support.shape, atoms.dtype).at[chosen].set(solved)

    def side(atoms, targets, support):
        found = jnp.zeros(support.shape, atoms.dtype)
        for count in sorted(set(most)):
            which = np.flatnonzero(np.array(most) == count)
            per_target = jax.vmap(partial(one, most=count), (None, 0, 1), 1)
            found = found.at[:, which].set(per_target(atoms, targets[which], support[:, which]))
        return found

    return jax.lax.map(lambda x: side(*x), (atoms, targets, support))


@jax.jit
def inner(atoms, targets):
    """Inner products (..., a, t) of atoms (..., a, D) and targets (..., t, D), float32."""
    return jnp.einsum("...ad,...td->...at", atoms, targets, precision=HIGHEST)
