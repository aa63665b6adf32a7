"""Select: coefficients of the factors in the atoms by ridge least squares, and which are kept.

For one side with atoms as the rows of P (a, D) and targets as the rows of X (t, D):

    C = argmin ||X^T - P^T C||_F^2 + lam ||C||_F^2,   lam = ridge * ||P P^T||_F^2 / tr(P P^T),

by Cholesky on the Gram matrix, with one step of refinement that takes back most of the bias of the
ridge where the problem is well conditioned. Near a = D plain least squares explodes; the ridge
bounds ||C||. Orthonormal atoms need no solve: C = P X^T.

Of all a * t coefficients of a side the largest by |c| * weight are kept, weight being the norm of
the component on the other side, because the error of dW scales with it; the kept ones are fitted
again on their support.

These are products and factors of BLAS and LAPACK, one side a call, and fit.py shares the sides
among threads. With one jitted call over a batch a whole `compress` took 1.5 times as long, for XLA
factorises one matrix after another on one thread, pads supports and multiplies both halves of a
Gram matrix, and compiling it took ten times as long again: docs/lab-notes.md.
"""

from typing import NamedTuple

import numpy as np

from solar.codec.blas import cholesky, solved

TINY = np.finfo(np.float32).tiny


class Fit(NamedTuple):
    """coefficients (a, t) float32, zero off the support; support (a, t) bool; residual:
    ||X^T - P^T C||_F with every atom in use, before selection; gram (a, a) float32 of the atoms,
    None where they outnumber the dimensions and it was not needed."""

    coefficients: np.ndarray
    support: np.ndarray
    residual: float
    gram: np.ndarray | None


def _wide(atoms: np.ndarray) -> bool:
    return atoms.shape[0] <= atoms.shape[1]


def _gram(atoms: np.ndarray) -> np.ndarray:
    """P P^T or P^T P of atoms (a, D), the smaller one. Of the two equal forms

        (P P^T + lam)^-1 P X^T = P (P^T P + lam)^-1 X^T

    the smaller matrix is factorised, so that more atoms than dimensions leave it well conditioned.
    """
    return atoms @ atoms.T if _wide(atoms) else atoms.T @ atoms


def _ridge(atoms: np.ndarray, targets: np.ndarray, ridge: float, gram: np.ndarray) -> np.ndarray:
    """C (a, t) for atoms (a, D) and targets (t, D), gram as of `_gram`; rows of zeros among the
    atoms get zeros. Not a number where the ridge is too small for Cholesky."""
    # Eigenvalues in their own weighting: 1 for orthonormal atoms, a / D for many random ones.
    scale = np.vdot(gram, gram) / max(np.trace(gram), TINY)
    shifted = gram.copy()
    shifted.flat[:: len(gram) + 1] += max(np.float32(ridge) * scale, TINY)
    lower = shifted.T  # symmetric
    if not cholesky(lower):
        return np.full((len(atoms), len(targets)), np.nan, np.float32)
    # The right side in either form, b: its ridge solution, and that of what this leaves of it. The
    # atoms are large and targets few, so products with them cost more than with the Gram matrix.
    right = np.asfortranarray(atoms @ targets.T if _wide(atoms) else targets.T)
    first = solved(lower, right)
    whole = first + solved(lower, np.asfortranarray(right - gram @ first))
    return whole if _wide(atoms) else atoms @ whole


def largest(score: np.ndarray, count: int) -> np.ndarray:
    """Support, of the shape of `score`, of its `count` largest entries; ties go to the lower flat
    index."""
    flat = score.ravel()
    if not 0 < count < flat.size:
        return np.full(score.shape, count > 0)
    least = np.partition(flat, -count)[-count]
    support = flat > least
    ties = np.flatnonzero(flat == least)
    support[ties[: count - np.count_nonzero(support)]] = True
    return support.reshape(score.shape)


def fit(
    atoms: np.ndarray, targets: np.ndarray, weights: np.ndarray, count: int | None, ridge: float
) -> Fit:
    """Coefficients of targets (t, D) in atoms (a, D), float32, before any re-fit.

    weights (t,) order the coefficients, `count` of which are kept; None keeps all.
    """
    gram = _gram(atoms)
    full = _ridge(atoms, targets, ridge, gram)
    residual = float(np.linalg.norm(targets - full.T @ atoms))
    support = np.ones(full.shape, bool)
    if count is not None:
        support = largest(np.abs(full) * weights, count)
    return Fit(full * support, support, residual, gram if _wide(atoms) else None)


def refit(
    atoms: np.ndarray, targets: np.ndarray, support: np.ndarray, ridge: float,
    gram: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Coefficients (a, t) of targets (t, D) fitted again on support (a, t), each target on its own
    atoms. gram: P P^T of atoms (a, D) where it is at hand."""
    found = np.zeros(support.shape, np.float32)
    for t, target in enumerate(targets):
        chosen = np.flatnonzero(support[:, t])
        if not len(chosen):
            continue
        own = atoms[chosen]
        known = gram is not None and _wide(own)
        small = gram[np.ix_(chosen, chosen)] if known else _gram(own)
        found[chosen, t] = _ridge(own, target[None], ridge, small)[:, 0]
    return found
