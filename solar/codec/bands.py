"""Bands: by how much factors hold more or less than the profile says, octave by octave of the
frame's directions.

A power of the eigenvalue is not all there is: what an adapter learns first lies along the mean of
the activations, and what it learns next, being orthogonal to that, does not. So first components
and later ones, left sides and right sides, of each shape of layers, have an offset each for
directions 0, 1, 2 to 3, 4 to 7 and so on, in half octaves, and profiles are made to sum to one
again. The sender measures energies; nothing is searched. A file has them where they pay.
"""

from functools import lru_cache

import numpy as np

from solar.codec.container import PacketError
from solar.codec.frame_file import OCTAVE

STARTS = np.array([0, 1, 2, 4, 8, 16, 32, 64])
LARGEST = 15  # half octaves, either way
WEIGHT = 0.5  # power of a component's weighed energy by which it counts
MOST = 1 / 64  # of the bytes of a payload that offsets may take
ROUNDS = 4
GRAIN = 2.0**-20
NONE = np.zeros((0, 2, 2, len(STARTS)), np.int64)


@lru_cache(maxsize=1)
def _chances() -> np.ndarray:
    """Of the difference between neighbouring offsets: halved from each to the next."""
    away = np.abs(np.arange(-2 * LARGEST, 2 * LARGEST + 1))
    chances = np.maximum(0.5 ** np.minimum(away, 18), GRAIN)
    return chances / 4 + GRAIN


@lru_cache(maxsize=1)
def _model():
    from constriction import stream

    return stream.model.Categorical(_chances(), perfect=False)


def bits(offsets: np.ndarray) -> float:
    chances = _chances()
    return float(-np.log2(chances / chances.sum())[_differences(offsets)].sum())


def _differences(offsets: np.ndarray) -> np.ndarray:
    return (np.diff(offsets, axis=-1, prepend=0) + 2 * LARGEST).ravel().astype(np.int32)


def write(coder, offsets: np.ndarray) -> None:
    """Encodes offsets (shapes, 2, 2, bands): of left and right sides, of first and of later
    components."""
    if offsets.size:
        coder.encode(_differences(offsets), _model())


def read(decoder, shapes: int) -> np.ndarray:
    """What `write` wrote. Raises PacketError, and lets constriction's AssertionError through."""
    if not shapes:
        return NONE
    found = decoder.decode(_model(), shapes * 4 * len(STARTS)) - 2 * LARGEST
    offsets = np.cumsum(found.reshape(shapes, 2, 2, -1).astype(np.int64), axis=-1)
    if np.abs(offsets).max() > LARGEST:
        raise PacketError("packet is altered: its payload is not in its one form")
    return offsets


def adjusted(profile: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(2, n) int: the profile (n,) of a side by offsets (2, bands) of first and later
    components."""
    sizes = np.diff(np.append(np.minimum(STARTS, len(profile)), len(profile)))
    raised = profile + np.repeat(table * (OCTAVE // 2), sizes, axis=1)
    top = raised.max(axis=1, keepdims=True)
    total = np.sum(2.0 ** ((raised - top) / OCTAVE), axis=1, keepdims=True)
    return raised - top - np.round(OCTAVE * np.log2(total)).astype(np.int64)


def by_band(shares: np.ndarray) -> np.ndarray:
    """(..., bands) sums of shares (..., n)."""
    starts = STARTS[STARTS < shares.shape[-1]]
    found = np.zeros((*shares.shape[:-1], len(STARTS)))
    found[..., : len(starts)] = np.add.reduceat(shares, starts, axis=-1)
    return found


def measured(
    shares: list[tuple[np.ndarray, np.ndarray]], weights: list[np.ndarray],
    profiles: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:  # fmt: skip
    """Offsets (2, 2, bands) that give every band the energy it has. By layer of one shape: shares
    of the energy of both sides (r, m) and (r, n), weights (r,) of the components, profiles (m,) and
    (n,) without bands."""
    found = np.zeros((2, 2, len(STARTS)), int)
    for side in (0, 1):
        own = np.stack([by_band(2.0 ** (both[side] / OCTAVE)) for both in profiles])
        for later in (0, 1):
            part = [slice(1, None) if later else slice(0, 1)] * len(shares)
            heavy = np.array([w[p].sum() for w, p in zip(weights, part, strict=True)])
            energy = sum(
                w[p] @ by_band(s[side][p]) for s, w, p in zip(shares, weights, part, strict=True)
            )
            offsets = np.zeros(len(STARTS))
            for _ in range(ROUNDS):
                raised = own * 2.0 ** (offsets / 2)
                expected = heavy @ (raised / raised.sum(axis=1, keepdims=True))
                some = (energy > 0) & (expected > 0)
                ratio = np.where(some, energy, 1) / np.where(some, expected, 1)
                offsets = np.round(offsets + 2 * np.log2(ratio))
                offsets = np.clip(offsets, -LARGEST, LARGEST)
            found[side, later] = offsets
    return found
