"""Metric: factors seen as the base sees them, and back.

A layer with input x answers an error E of its update with E x, and the loss notices this by
g^T E x, g the gradient at the layer's output. Taken as independent, the mean square of that is
||G^{1/2} E A^{1/2}||_F^2 with A = E[x x^T] and G = E[g g^T], which is Kronecker's approximation of
the Fisher information (Martens and Grosse 2015). In the frame Q of A (frame_file.py) A^{1/2}
becomes an ordinary norm of R~ = D^{1/2} Q^T R, D the eigenvalues, and likewise for G and L: what is
coded are the factors that are canonical for G^{1/2} dW A^{1/2} = L~ R~^T.

Q is the orthogonal factor of the QR of the frame's integer rows by Householder reflections, all n
columns of it: the first k span the rows, the rest is a fixed completion. It depends on the integers
smoothly, so every LAPACK gives the same to rounding, and it is never formed.
"""

from typing import NamedTuple

import numpy as np

from solar.codec.factors import Factors, leading_sign
from solar.codec.frame_file import OCTAVE, Frame, every_power


class Reflections(NamedTuple):
    """Q as LAPACK stores it, and scale (n,) float64: square roots of the eigenvalues. A frame
    without rows has no reflections: Q is the identity."""

    vectors: np.ndarray
    factors: np.ndarray
    scale: np.ndarray


def reflections(frame: Frame) -> Reflections:
    from scipy.linalg.lapack import dgeqrf

    vectors, factors = frame.rows.T.astype(np.float64), np.zeros(0)
    if vectors.size:
        vectors, factors, _, _ = dgeqrf(vectors)
    return Reflections(vectors, factors, 2.0 ** (every_power(frame) / (2.0 * OCTAVE)))


def _turn(own: Reflections, columns: np.ndarray, transposed: str) -> np.ndarray:
    from scipy.linalg.lapack import dormqr

    columns = columns.astype(np.float64)
    if not own.factors.size:
        return columns
    room = max(1, 64 * columns.shape[1])
    return dormqr("L", transposed, own.vectors, own.factors, columns, room)[0]


def into(own: Reflections, columns: np.ndarray) -> np.ndarray:
    """(n, r) float64 D^{1/2} Q^T R of columns R (n, r)."""
    return own.scale[:, None] * _turn(own, columns, "T")


def out_of(own: Reflections, columns: np.ndarray) -> np.ndarray:
    """(n, r) float64 R of columns D^{1/2} Q^T R."""
    return _turn(own, columns / own.scale[:, None], "N")


class Seen(NamedTuple):
    """The canonical factors of G^{1/2} dW A^{1/2}: left (m, r), right (n, r) float64, columns of
    energies sizes (r,), falling, alike on both sides."""

    left: np.ndarray
    right: np.ndarray
    sizes: np.ndarray


def seen(factors: Factors, inputs: Reflections, outputs: Reflections) -> Seen:
    """A layer's update in the metric. The sign of a component is as factors.canonical has it: the
    largest entry of the left column is positive."""
    q_left, r_left = np.linalg.qr(into(outputs, factors.left))
    q_right, r_right = np.linalg.qr(into(inputs, factors.right))
    p, sizes, qt = np.linalg.svd(r_left @ r_right.T)
    rows = (q_left @ p).T
    sign = leading_sign(rows) * np.sqrt(sizes)[:, None]
    return Seen((rows * sign).T, ((qt @ q_right.T) * sign).T, sizes)
