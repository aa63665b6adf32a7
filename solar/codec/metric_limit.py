"""Metric limit: Shannon's bound for the errors that `activation` counts.

The factors of a component of energy s are taken as Gaussian with variances s pi_i, as profiled.py
takes them, here with pi that add up to 1 on either side. Shares f_l and f_r of its sides that are
lost add w s^2 (1 - (1 - f_l) (1 - f_r)) to the weighed error (limit.py has the same for dW).
Minimising error + lambda * nats is reverse water-filling over entries, sides, components and
layers: an entry has the distortion min(s pi_i, lambda / (2 w s (1 - f))), f that of the other side,
and a component that is not worth its nats is left out. A code that has the metric but not the
profiles knows of every component no more than s: all pi_i of a side are alike.
"""

from typing import NamedTuple

import numpy as np

from solar.codec.frame_file import OCTAVE
from solar.codec.profiled import Dials, Lines

ROUNDS = 36  # halvings of 80 octaves
SETTLED = 40  # most rounds in which both sides of a component agree on what is lost
CLOSE = 1e-10  # how nearly they agree


class _Sides(NamedTuple):
    """Sums over the entries of every side (sides, classes + 1): of those below a class the shares
    of its energy, of the others how many there are and half the logarithms of their shares; least
    (sides,): log2 of the share of an entry of the first class, times OCTAVE."""

    energy: np.ndarray
    count: np.ndarray
    logs: np.ndarray
    least: np.ndarray


def least_bytes(own: Lines, dials: Dials, error: float) -> float:
    """Bytes below which no code of such Gaussian factors has a weighed squared error of `error`, as
    a share of that of sending nothing. own: all components of the update."""
    return _bytes(own, dials, own.profiles, error)


def unprofiled(own: Lines, dials: Dials, error: float) -> float:
    """The same for codes that know the spectrum alone."""
    return _bytes(own, dials, np.zeros_like(own.profiles), error)


def _bytes(own: Lines, dials: Dials, profiles: np.ndarray, error: float) -> float:
    if not len(own.energies) or error >= 1:
        return 0.0
    logs = 2 * own.energies - 2 * own.energies[own.first] * dials.relative / 255
    worth = 2.0 ** ((logs - logs.max()) / OCTAVE)  # w s^2
    sides = _sides(own.lengths, profiles)

    def at(level: float) -> tuple[float, float]:
        lost, nats = _filled(sides, level / worth)
        left = worth * (1 - np.prod(1 - lost, axis=1))
        sent = left + 2 * level * nats < worth
        share = np.sum(np.where(sent, left, worth)) / worth.sum()
        return float(share), float(np.sum(nats[sent]) / (8 * np.log(2)))

    low, high = 2.0**-79, 2.0
    for _ in range(ROUNDS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if at(middle)[0] < error else (low, middle)
    # A component begins at once, with many bits: in between, time is shared.
    return float(np.interp(error, *zip(at(low), at(high), strict=True)))


def _sides(lengths: np.ndarray, profiles: np.ndarray) -> _Sides:
    count = lengths.size
    side, least = np.repeat(np.arange(count), lengths.ravel()), int(profiles.min())
    width = int(profiles.max()) - least + 1
    many = np.bincount(side * width + profiles - least, minlength=count * width)
    many = many.reshape(count, width).astype(float)
    share = many * 2.0 ** (np.arange(width) / OCTAVE)
    total = share.sum(axis=1, keepdims=True)
    first = -OCTAVE * np.log2(total)
    log = many * (first + np.arange(width)) * np.log(2) / (2 * OCTAVE)
    edge = np.zeros((count, 1))
    below = np.concatenate([edge, np.cumsum(share / total, axis=1)], axis=1)
    above = [
        np.concatenate([np.cumsum(x[:, ::-1], axis=1)[:, ::-1], edge], axis=1) for x in (many, log)
    ]
    return _Sides(below, *above, first[:, 0])


def _filled(sides: _Sides, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares that both sides of every component lose (c, 2), and nats of both (c,). levels: (c,)
    lambda / (2 w s^2)."""
    row, last = np.arange(len(sides.energy)), sides.count.shape[1] - 1
    lost = np.zeros((len(levels), 2))
    for _ in range(SETTLED):
        water = (levels[:, None] / np.maximum(1 - lost[:, ::-1], 1e-9)).ravel()
        water = np.minimum(water, 1.0)  # no entry has more
        place = np.ceil(OCTAVE * np.log2(water) - sides.least)
        place = np.clip(place, 0, last).astype(int)
        count = sides.count[row, place]
        before = lost
        lost = np.minimum(sides.energy[row, place] + water * count, 1).reshape(-1, 2)
        if np.abs(lost - before).max() < CLOSE:
            break
    nats = sides.logs[row, place] - count * np.log(water) / 2
    return lost, nats.reshape(-1, 2).sum(axis=1)
