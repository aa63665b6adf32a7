"""Kinds: the unit vectors that atoms are made of, before perturbation. `KINDS` is the one place
where a kind of basis is entered; configurations, files and `fit` know it by its name there.

Column i on one side of one layer, a unit vector of R^d (d = m on the left, n on the right):

    singular    u_{pi(i)}, singular vectors of W
    random      none: the perturbation alone makes the atom
    orthogonal  column i of diag(signs) C[:, permutation], C the orthonormal cosine matrix

pi is `leading` (1..N) or `sampled` (a seeded permutation). Past the rank k it starts again:
singular columns repeat with fresh perturbations, orthogonal ones with fresh signs, so N may exceed
d. Column i of `orthogonal` goes through a seeded permutation in either case.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solar.codec import threefry

if TYPE_CHECKING:  # both know the kinds by their names
    from solar.codec.recipe import Recipe
    from solar.codec.singular import Frame

# Streams keep the uses of random words apart; the side (0 or 1) is added.
NOISE, ORDER, SIGNS = 0, 2, 4
ALIGNED = 64


class Sides(NamedTuple):
    """Sides of layers that are coded in one batch: they share the dimension and the atom width.

    layers (b,) uint32: index of the layer among the sorted adapted names; sides (b,) uint32:
    0 left, 1 right; dim: d; width: columns in one atom, 1 for vector and r for matrix atoms.
    """

    layers: np.ndarray
    sides: np.ndarray
    dim: int
    width: int


@lru_cache(maxsize=8)
def cosines(dim: int) -> np.ndarray:
    """Rows of the orthonormal DCT-II matrix, float32 from float64."""
    i = np.arange(dim)
    rows = np.empty((dim, dim), np.float32)
    for first in range(0, dim, 256):  # in float64, of which the whole may be too much
        # The angle is reduced in integers, so large products lose nothing.
        lines = i[first : first + 256, None]
        angle = lines * (2 * i + 1) % (4 * dim) * (np.pi / (2 * dim))
        rows[first : first + 256] = np.cos(angle) * np.sqrt(2.0 / dim)
    rows[0] = np.sqrt(2.0 / dim) / np.sqrt(2.0)
    return rows


def keys(recipe: "Recipe", group: Sides, stream: int, ids: np.ndarray) -> np.ndarray:
    """Keys (b, a, 2) of the atoms `ids` (b, a), or (1, a) for all sides alike."""
    layers, sides = group.layers[:, None], group.sides[:, None]
    return threefry.fold(recipe.seed, layers, sides + stream, ids)


def orders(seed: int, group: Sides, ranks: np.ndarray) -> list[np.ndarray]:
    """A seeded permutation of range(rank) for every side in the group."""
    own = threefry.fold(seed, group.layers, group.sides + ORDER, 0)
    drawn = threefry.words(own, int(max(ranks)))
    return [np.argsort(w[:k], kind="stable") for w, k in zip(drawn, ranks, strict=True)]


def _without_repeats(drawn: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """(b, a, c) distinct indices below ranks (b,) from words: a Fisher-Yates draw of c.

    Where c exceeds the rank, repeats begin only once every vector was taken.
    """
    b, a, width = drawn.shape
    chosen = np.zeros((b, a, width), np.int64)
    ranks = ranks[:, None].astype(np.int64)
    for c in range(width):
        taken = c % ranks  # how many the present round has used
        pick = drawn[:, :, c].astype(np.int64) % (ranks - taken)
        # Skip, in rising order, the indices that the round has used already.
        fresh = np.arange(c)[None, None, :] >= (c - taken)[:, :, None]
        used = np.sort(np.where(fresh, chosen[:, :, :c], np.iinfo(np.int64).max), axis=2)
        # The j-th of them is passed by a pick that is at least as large, less the j before it.
        chosen[:, :, c] = pick + (used - np.arange(c) <= pick[:, :, None]).sum(axis=2)
    return chosen


def positions(recipe: "Recipe", group: Sides, ids: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """(b, a, width) index of the vector behind each column of the atoms `ids` (b, a).

    ranks (b,): how many vectors each side has; all indices are below them.
    """
    k = ranks[:, None, None].astype(np.int64)
    i = ids[:, :, None].astype(np.int64)
    c = np.arange(group.width)[None, None, :]
    sampled = recipe.selection == "sampled"
    if sampled and group.width > 1 and recipe.kind == "singular":
        drawn = threefry.words(keys(recipe, group, ORDER, ids), group.width)
        return _without_repeats(drawn, ranks)
    index = (i + c * (1 + i // k)) % k
    if sampled or recipe.kind == "orthogonal":
        drawn = orders(recipe.seed, group, ranks)
        index = np.stack([order[x] for order, x in zip(drawn, index, strict=True)])
    return index


# (recipe, group, ids (b, a), frames) -> (b, a, width, d) float32 unit vectors, None where there are
# none; frames: one per side in the group where the kind is `singular`, otherwise None.
Vectors = Callable[["Recipe", Sides, np.ndarray, "list[Frame] | None"], np.ndarray | None]


class Kind(NamedTuple):
    """A kind of basis: its vectors, and whether the first rank of them (all that there are, with
    one in an atom) are orthonormal, so that coefficients are inner products."""

    vectors: Vectors
    orthonormal: bool


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array that XLA reads where it is: it copies those that do not begin at a
    multiple of ALIGNED bytes first, a tenth of the time that drawing atoms takes."""
    size = 4 * math.prod(shape)
    room = np.empty(size + ALIGNED, np.uint8)
    first = -room.ctypes.data % ALIGNED
    return room[first : first + size].view(np.float32).reshape(shape)


def _singular(recipe, group, ids, frames):
    ranks = np.array([len(frame.values) for frame in frames])
    index = positions(recipe, group, ids, ranks)
    found = _aligned((*index.shape, group.dim))
    for out, frame, place in zip(found, frames, index, strict=True):
        np.take(frame.rows, place, axis=0, out=out, mode="clip")  # others are not in range
    return found


def _random(recipe, group, ids, frames):
    return None


def _orthogonal(recipe, group, ids, frames):
    index = positions(recipe, group, ids, np.full(len(ids), group.dim))
    laps, place = np.unique(ids // group.dim, return_inverse=True)
    drawn = threefry.words(keys(recipe, group, SIGNS, laps[None]), group.dim)
    signs = np.where(drawn >> 31, np.float32(-1), np.float32(1))
    signs = np.take_along_axis(signs, place.reshape(ids.shape)[:, :, None], axis=1)
    return cosines(group.dim)[index] * signs[:, :, None]


# The byte in a file is the place in this table: a new kind goes to its end.
KINDS: dict[str, Kind] = {
    "singular": Kind(_singular, orthonormal=True),
    "random": Kind(_random, orthonormal=False),
    "orthogonal": Kind(_orthogonal, orthonormal=True),
}
