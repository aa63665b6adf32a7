"""Tail: what is known of a side's error before it is encoded, and what it then is.

For atoms P = P_0 + F whose unperturbed form P_0 is orthonormal,

    ||(I - Pi_P) X||_F <= ||(I - Pi_P0) X||_F + t ||Pi_P0 X||_F,   t = ||F||_2 / (1 - ||F||_2),

while ||F||_2 < 1; beyond that the bound is vacuous and reported as such. For vector atoms
F = eps G. For matrix atoms of `leading` selection P_0 is the stack over sqrt(r), which is
orthonormal too. For N random columns in R^d only the mean is known,
E ||(I - Pi) x||^2 = (1 - N/d) ||x||^2. Proofs: docs/error-bound.md.
"""

from typing import NamedTuple

import numpy as np

from solar.codec import bound
from solar.codec.blas import cholesky, lower_gram
from solar.codec.recipe import Recipe

# Norms and residuals here are float32; relative to ||X||_F.
SLACK = 1e-5
STEPS = 24
SHARP = 0.03  # where theory knows the largest eigenvalue of noise to this share it is the guess
UNKNOWN = "none is known for this kind of atoms"


class Tail(NamedTuple):
    """One side with all N atoms and exact coefficients.

    measured: ||(I - Pi_P) X||_F; bound: of the same, None where vacuous or not known; expected: its
    root mean square over seeds, None where not known; why: the standing of the two in words.
    """

    measured: float
    bound: float | None
    expected: float | None
    why: str


def _inside_and_outside(targets, plain) -> tuple[np.ndarray, np.ndarray]:
    """||Pi_P0 X||_F and ||(I - Pi_P0) X||_F, (b,) each, of targets (b, t, D), plain (b, a, D)."""
    inner = np.matmul(targets, plain.swapaxes(-1, -2))
    # The difference of vectors, not of energies: it can be 1e-7 of the whole.
    rest = targets - np.matmul(inner, plain)
    return np.linalg.norm(inner, axis=(1, 2)), np.linalg.norm(rest, axis=(1, 2))


def tail_bound(targets, plain, perturbation_norms) -> np.ndarray:
    """(b,) bounds of ||(I - Pi_P) X||_F, infinite where vacuous.

    targets (b, t, D) float32; plain (b, a, D) float32, orthonormal rows P_0, zero rows allowed;
    perturbation_norms (b,) upper bounds of ||F||_2.
    """
    inside, outside = (np.asarray(x, np.float64) for x in _inside_and_outside(targets, plain))
    f = np.asarray(perturbation_norms, np.float64)
    with np.errstate(divide="ignore"):
        t = np.where(f < 1, f / np.maximum(1 - f, 0), np.inf)
    return outside + np.where(inside > 0, t, 0.0) * np.where(inside > 0, inside, 1.0)


def exact_residual(targets: np.ndarray, atoms: np.ndarray) -> float:
    """||(I - Pi) X||_F in float64 for targets (t, D) and the span of atoms (a, D)."""
    q, s, _ = np.linalg.svd(np.asarray(atoms, np.float64).T, full_matrices=False)
    q = q[:, s > 1e-7 * s[0]]
    x = np.asarray(targets, np.float64).T
    return float(np.linalg.norm(x - q @ (q.T @ x)))


def expected_tail(norm: float, count: int, dim: int) -> float:
    """Root mean square of ||(I - Pi) X||_F over seeds, `count` random columns in R^dim."""
    return norm * float(np.sqrt(max(0.0, 1 - count / dim)))


def _largest(gram: np.ndarray) -> float:
    """The largest eigenvalue of gram (a, a) from below: of a Krylov space of STEPS steps (Lanczos).

    Power iteration with as many products stops up to a tenth lower where the spectrum is crowded at
    its edge, as that of Gaussian noise is.
    """
    a, tiny = len(gram), np.finfo(gram.dtype).tiny
    steps = min(STEPS, a)
    v = np.ones(a, gram.dtype) + np.arange(a, dtype=gram.dtype) % 3
    v /= np.linalg.norm(v)
    before, beta = np.zeros_like(v), gram.dtype.type(0)
    reduced = np.zeros((steps, steps), gram.dtype)
    for i in range(steps):
        w = gram @ v - beta * before
        alpha = w @ v
        w = w - alpha * v
        beta = np.linalg.norm(w)
        before, v = v, w / max(beta, tiny)
        reduced[i, i] = alpha
        if i + 1 < steps:
            reduced[i, i + 1] = reduced[i + 1, i] = beta
    return float(np.linalg.eigvalsh(reduced)[-1])


def _edge(energy: float, a: int, d: int) -> float | None:
    """The largest eigenvalue of F F^T that one Gaussian F (a, d) in twenty exceeds, of the given
    energy ||F||_F^2: mean and one unit of the Tracy-Widom law (Johnstone 2001). None where the unit
    is more than SHARP of the mean."""
    root = np.sqrt(a) + np.sqrt(d)
    unit = root * (1 / np.sqrt(a) + 1 / np.sqrt(d)) ** (1 / 3)
    return energy / (a * d) * (root**2 + unit) if unit <= SHARP * root**2 else None


def spectral_upper(matrices: np.ndarray, *, noise: bool = False) -> np.ndarray:
    """(b,) upper bounds of the spectral norms of (b, a, D) float32, 2 to 3% loose.

    tau bounds the largest eigenvalue of the Gram matrix if tau I - gram is positive definite, which
    Cholesky decides for a guess of it: what Gaussian `noise` of this energy has, else what Lanczos
    finds. Where both were too low the largest absolute row sum is taken, which always bounds.
    """
    if matrices.shape[1] > matrices.shape[2]:  # the smaller Gram matrix has the same eigenvalues
        matrices = matrices.swapaxes(1, 2)
    found = []
    for matrix in matrices:
        own = lower_gram(matrix)

        def bounds(tau: float, own: np.ndarray = own) -> bool:
            shifted = -own
            shifted.flat[:: len(shifted) + 1] += np.float32(tau)
            return cholesky(shifted)

        tau = _edge(np.trace(own), *matrix.shape) if noise else None
        if tau is None or not bounds(tau):
            gram = own + np.tril(own, -1).T
            tau = 1.04 * _largest(gram)
            if not bounds(tau):
                tau = np.max(np.sum(np.abs(gram), axis=1))
        found.append(tau)
    return np.sqrt(np.array(found, np.float32))


def tails(
    recipe: Recipe, targets: np.ndarray, unperturbed: np.ndarray | None,
    atoms: np.ndarray | None, norms: np.ndarray | None, ranks: np.ndarray, residuals: np.ndarray,
) -> list[Tail]:  # fmt: skip
    """What is known and what is measured for a batch of sides, all N atoms in use.

    targets (b, t, D); unperturbed, atoms (b, a, width, d) and norms (b, a, width) as in basis.py;
    atoms None where implicit; ranks (b,) vectors on each side; residuals (b,) of the fit. Raises
    BoundViolated.
    """
    totals = np.linalg.norm(targets, axis=(1, 2))
    if atoms is None:
        return [Tail(float(r), None, None, UNKNOWN) for r in residuals]
    count, width, dim = atoms.shape[1:]
    if recipe.kind == "random" and width == 1:
        why = "root mean square over seeds"
        return [
            Tail(float(r), None, expected_tail(float(x), count, dim), why)
            for r, x in zip(residuals, totals, strict=True)
        ]
    if recipe.kind != "singular" or (width > 1 and recipe.selection != "leading"):
        return [Tail(float(r), None, None, UNKNOWN) for r in residuals]
    # Atoms past the first lap repeat vectors. Leaving them out keeps P_0 orthonormal, and as the
    # span only shrinks by it the bound still holds.
    first = min(count, int(ranks.max()))
    scale = np.float32(1 / np.sqrt(width))
    plain = unperturbed[:, :first] * scale if width > 1 else unperturbed[:, :first]
    off = np.zeros(len(targets))
    if norms is not None:
        lengths = norms[:, :first, :, None] if width == 1 else scale
        moved = atoms[:, :first] * lengths
        moved -= plain
        moved = moved.reshape(len(targets), first, width * dim)
    plain = plain.reshape(len(targets), first, width * dim)
    if int(ranks.min()) < first:
        real = (np.arange(first)[None, :] < ranks[:, None])[:, :, None]
        plain, moved = plain * real, moved * real if norms is not None else None
    if norms is not None:
        # No norm is below this; where it reaches 1 there is nothing left to find out.
        off = np.sqrt([np.vdot(own, own) / min(first, width * dim) for own in moved])
        if off.min() < 1:
            off = spectral_upper(moved, noise=True)
    limits = tail_bound(targets, plain, off)
    records = []
    for i, total in enumerate(totals):
        measured, allowed = float(residuals[i]), limits[i] + SLACK * total
        if measured > allowed:
            # Ridge leaves more than the projection does, and the bound is on the projection.
            measured = exact_residual(targets[i], atoms[i].reshape(count, -1))
        bound.hold("tail bound of a side", measured, allowed)
        known = float(limits[i]) if np.isfinite(limits[i]) else None
        why = "holds" if known is not None else f"vacuous: ||F||_2 near {off[i]:.3g} reaches 1"
        records.append(Tail(measured, known, None, why))
    return records
