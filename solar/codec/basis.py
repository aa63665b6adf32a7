"""Basis: the atoms both ends rebuild from the base weights and a recipe, so they are never sent.

Column i on one side of one layer, a unit vector of R^d (d = m on the left, n on the right):

    singular    unit(u_{pi(i)} + eps g_i)       u: singular vectors of W, g_i ~ N(0, I/d)
    random      unit(g_i)
    orthogonal  column i of diag(signs) C[:, permutation], C the orthonormal cosine matrix

pi is `leading` (1..N) or `sampled` (a seeded permutation). Past the rank k it starts again:
singular columns repeat with fresh perturbations, orthogonal ones with fresh signs, so N may exceed
d. Column i of `orthogonal` goes through a seeded permutation in either case.

A matrix atom stacks r such columns and has one coefficient for all of them. `leading` atom i takes
vector (i + c (1 + i // k)) mod k for its column c, so that no two of the first k^2 / r atoms are
equal; `sampled` draws r of the k vectors without repeats, anew for every atom.

Rebuilding is a promise. Singular vectors are computed on the host in float64 with one sign rule.
Random words are threefry's under keys folded with (layer, stream + side, atom), so any atom can be
rebuilt alone; words become numbers by exact maps, save for one erf_inv in float32.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from solar.codec import threefry
from solar.codec.recipe import Recipe
from solar.codec.singular import Frame

# Streams keep the uses of random words apart; the side (0 or 1) is added.
NOISE, ORDER, SIGNS = 0, 2, 4


class Sides(NamedTuple):
    """Sides of layers that are coded in one batch: they share the dimension and the atom width.

    layers (b,) uint32: index of the layer among the sorted adapted names; sides (b,) uint32:
    0 left, 1 right; dim: d; width: columns in one atom, 1 for vector and r for matrix atoms.
    """

    layers: np.ndarray
    sides: np.ndarray
    dim: int
    width: int


# ------------------------------------------------------------------------------------------ atoms


@lru_cache(maxsize=8)
def _cosines(dim: int) -> np.ndarray:
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


def _keys(recipe: Recipe, group: Sides, stream: int, ids: np.ndarray) -> np.ndarray:
    """Keys (b, a, 2) of the atoms `ids` (b, a), or (1, a) for all sides alike."""
    layers, sides = group.layers[:, None], group.sides[:, None]
    return threefry.fold(recipe.seed, layers, sides + stream, ids)


def _orders(seed: int, group: Sides, ranks: np.ndarray) -> list[np.ndarray]:
    """A seeded permutation of range(rank) for every side in the group."""
    keys = threefry.fold(seed, group.layers, group.sides + ORDER, 0)
    drawn = threefry.words(keys, int(max(ranks)))
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


def positions(recipe: Recipe, group: Sides, ids: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """(b, a, width) index of the vector behind each column of the atoms `ids` (b, a).

    ranks (b,): how many vectors each side has; all indices are below them.
    """
    k = ranks[:, None, None].astype(np.int64)
    i = ids[:, :, None].astype(np.int64)
    c = np.arange(group.width)[None, None, :]
    sampled = recipe.selection == "sampled"
    if sampled and group.width > 1 and recipe.kind == "singular":
        keys = _keys(recipe, group, ORDER, ids)
        return _without_repeats(threefry.words(keys, group.width), ranks)
    index = (i + c * (1 + i // k)) % k
    if sampled or recipe.kind == "orthogonal":
        orders = _orders(recipe.seed, group, ranks)
        index = np.stack([order[x] for order, x in zip(orders, index, strict=True)])
    return index


def sources(
    recipe: Recipe, group: Sides, ids: np.ndarray, frames: list[Frame] | None
) -> np.ndarray | None:
    """(b, a, width, d) float32 unit vectors before perturbation; None for `random`, which has none.

    frames: one per side in the group, for kind `singular`.
    """
    if recipe.kind == "random":
        return None
    if recipe.kind == "singular":
        ranks = np.array([len(frame.values) for frame in frames])
        index = positions(recipe, group, ids, ranks)
        found = np.empty((*index.shape, group.dim), np.float32)
        for out, frame, place in zip(found, frames, index, strict=True):
            np.take(frame.rows, place, axis=0, out=out, mode="clip")  # others are not in range
        return found
    ranks = np.full(len(ids), group.dim)
    index = positions(recipe, group, ids, ranks)
    laps, place = np.unique(ids // group.dim, return_inverse=True)
    keys = _keys(recipe, group, SIGNS, laps[None])
    signs = np.where(threefry.words(keys, group.dim) >> 31, np.float32(-1), np.float32(1))
    signs = np.take_along_axis(signs, place.reshape(ids.shape)[:, :, None], axis=1)
    return _cosines(group.dim)[index] * signs[:, :, None]


def implicit(recipe: Recipe, group: Sides, count: int) -> bool:
    """Whether products with the leading `count` atoms need no atoms: `analysed`, `composed`."""
    return recipe.kind == "orthogonal" and group.width == 1 and count <= group.dim


def _turned(recipe: Recipe, group: Sides) -> tuple[np.ndarray, np.ndarray]:
    """Signs (b, 1, d) and order (b, 1, d) of the first lap of `orthogonal` columns."""
    orders = _orders(recipe.seed, group, np.full(len(group.layers), group.dim))
    words = threefry.words(_keys(recipe, group, SIGNS, np.zeros((1, 1), np.uint32)), group.dim)
    return np.where(words >> 31, -1.0, 1.0), np.stack(orders)[:, None]


def analysed(recipe: Recipe, group: Sides, rows: np.ndarray, count: int) -> np.ndarray:
    """Inner products (b, t, count) float32 of rows (b, t, d) with the leading atoms, where these
    are `implicit`: by the fast cosine transform, in float64."""
    from scipy.fft import dct

    signs, order = _turned(recipe, group)
    found = dct(rows * signs, type=2, norm="ortho")
    return np.take_along_axis(found, order[:, :, :count], axis=2).astype(np.float32)


def composed(recipe: Recipe, group: Sides, table: np.ndarray) -> np.ndarray:
    """Sums (b, t, d) float32 of the leading atoms times table (b, t, count), likewise."""
    from scipy.fft import idct

    signs, order = _turned(recipe, group)
    placed = np.zeros((*table.shape[:2], group.dim))
    np.put_along_axis(placed, order[:, :, : table.shape[2]], table, axis=2)
    return (idct(placed, type=2, norm="ortho") * signs).astype(np.float32)


def atoms(recipe: Recipe, group: Sides, ids: np.ndarray, base: np.ndarray | None):
    """Atoms `ids` (b, a) of every side in the group as (b, a, width, d) float32 unit columns.

    base: what `sources` returned. Also gives the norms (b, a, width) before scaling to unit length,
    None where nothing was perturbed: then the atoms are `base` itself and JAX is not needed.
    """
    eps = 1.0 if recipe.kind == "random" else recipe.perturbation
    if eps == 0:
        return base, None
    from solar.codec import noise  # JAX takes longer to import than most packets to decode

    if base is None:
        base = np.zeros((*ids.shape, group.width, group.dim), np.float32)
    scale = np.float32(eps / np.sqrt(group.dim))
    return noise.perturbed(_keys(recipe, group, NOISE, ids), base, scale)
