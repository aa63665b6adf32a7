"""Basis: the atoms both ends rebuild from the base weights and a recipe, so they are never sent.

Column i on one side of one layer, a unit vector of R^d (d = m on the left, n on the right), is
unit(v_i + eps g_i): v_i by the kind of basis (kinds.py), g_i ~ N(0, I/d), eps from the recipe for
`singular`, 0 for kinds that are not perturbed; `random` is unit(g_i).

A matrix atom stacks r such columns and has one coefficient for all of them. `leading` atom i takes
vector (i + c (1 + i // k)) mod k for its column c, so that no two of the first k^2 / r atoms are
equal; `sampled` draws r of the k vectors without repeats, anew for every atom.

Rebuilding is a promise. Singular vectors are computed on the host in float64 with one sign rule.
Random words are threefry's under keys folded with (layer, stream + side, atom), so any atom can be
rebuilt alone; words become numbers by exact maps, save for one erf_inv in float32.
"""

import numpy as np

from solar.codec import threefry
from solar.codec.kinds import KINDS, NOISE, SIGNS, Sides, keys, orders
from solar.codec.recipe import Recipe
from solar.codec.singular import Frame


def sources(
    recipe: Recipe, group: Sides, ids: np.ndarray, frames: list[Frame] | None
) -> np.ndarray | None:
    """(b, a, width, d) float32 unit vectors before perturbation; None for `random`, which has none.

    frames: one per side in the group, for kind `singular`.
    """
    return KINDS[recipe.kind].vectors(recipe, group, ids, frames)


def implicit(recipe: Recipe, group: Sides, count: int) -> bool:
    """Whether products with the leading `count` atoms need no atoms: `analysed`, `composed`."""
    return recipe.kind == "orthogonal" and group.width == 1 and count <= group.dim


def _turned(recipe: Recipe, group: Sides) -> tuple[np.ndarray, np.ndarray]:
    """Signs (b, 1, d) and order (b, 1, d) of the first lap of `orthogonal` columns."""
    drawn = orders(recipe.seed, group, np.full(len(group.layers), group.dim))
    words = threefry.words(keys(recipe, group, SIGNS, np.zeros((1, 1), np.uint32)), group.dim)
    return np.where(words >> 31, -1.0, 1.0), np.stack(drawn)[:, None]


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
    return noise.perturbed(keys(recipe, group, NOISE, ids), base, scale)
