"""Metric limit: Shannon's bound for the errors that `activation` counts.

The factors of a component of energy s are taken as Gaussian with variances s pi_i, as profiled.py
takes them. At a level theta every entry has the distortion min(s pi_i, theta / (w s)), reverse
water-filling over entries, sides, components and layers, and what a component adds to the weighed
error is w (s^2 - (s - e_l)(s - e_r)) for errors e of its sides (limit.py has the same for dW). A
code that has the metric but not the profiles knows of every component no more than s: `unprofiled`.
"""

from collections.abc import Callable

import numpy as np

from solar.codec import limit
from solar.codec.frame_file import OCTAVE
from solar.codec.profiled import Dials, Lines

ROUNDS = 60


def least_bytes(own: Lines, dials: Dials, error: float) -> float:
    """Bytes below which no code of such Gaussian factors has a weighed squared error of `error`, as
    a share of that of sending nothing. own: all components of the update."""
    sizes, weights = _components(own, dials)
    entries = own.lengths.sum(axis=1)
    variances = np.repeat(sizes, entries) * 2.0 ** (own.profiles / OCTAVE)
    starts = np.cumsum(own.lengths.ravel()) - own.lengths.ravel()
    total = float(np.sum(weights * sizes**2))

    def at(theta: float) -> tuple[float, float]:
        level = np.repeat(theta / (weights * sizes), entries)
        lost = np.add.reduceat(np.minimum(variances, level), starts).reshape(-1, 2)
        lost = np.minimum(lost, sizes[:, None])
        left = sizes**2 - (sizes - lost[:, 0]) * (sizes - lost[:, 1])
        bits = 0.5 * np.log2(np.maximum(variances / level, 1)).sum()
        return float(np.sum(weights * left)) / total, float(bits)

    if not len(sizes) or error >= 1:
        return 0.0
    high = float(np.max(np.repeat(weights * sizes, entries) * variances))
    return at(_bracket(at, high, error)[0])[1] / 8


def unprofiled(own: Lines, dials: Dials, error: float) -> float:
    """The same for codes that know the spectrum alone: all entries of a side alike (limit.py)."""
    sizes, weights = _components(own, dials)
    s, (m, n) = np.sqrt(weights) * sizes, own.lengths.T.astype(float)
    if not len(s) or error >= 1:
        return 0.0

    def at(price: float) -> tuple[float, float]:
        left, nats = limit.allocate(s, m, n, np.array([price]))
        return float(left.sum() / np.sum(s**2)), float(nats.sum() / (8 * np.log(2)))

    high = 2 * float(np.max(s**2 / np.minimum(m, n)))
    # A component begins at once, with many bits: in between, time is shared.
    ends = map(at, _bracket(at, high, error))
    return float(np.interp(error, *zip(*ends, strict=True)))


def _bracket(at: Callable[[float], tuple[float, float]], high: float, error: float) -> tuple:
    """Two levels, next to each other, between which the first number of `at` passes `error`."""
    low = high * 2.0**-80
    for _ in range(ROUNDS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if at(middle)[0] < error else (low, middle)
    return low, high


def _components(own: Lines, dials: Dials) -> tuple[np.ndarray, np.ndarray]:
    """Size and weight of every component."""
    relative = -2 * own.energies[own.first] * dials.relative / 255
    return 2.0 ** (own.energies / OCTAVE), 2.0 ** (relative / OCTAVE)
