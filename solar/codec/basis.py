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

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from solar.codec import threefry
from solar.codec.factors import leading_sign
from solar.errors import SolarError
from solar.files import write_whole

KINDS = ("singular", "random", "orthogonal")
SELECTIONS = ("leading", "sampled")
SIDES = ("left", "right")
MAX_SIZE = 65535  # N is two bytes in the packet
RANK_CUTOFF = 1e-6  # singular vectors below this share of the largest value are not reproducible
# Streams keep the uses of random words apart; the side (0 or 1) is added.
NOISE, ORDER, SIGNS = 0, 2, 4


@dataclass(frozen=True)
class Recipe:
    """What both ends need to build the same atoms beside the base weights.

    `size` is N, `perturbation` is eps (rounded to float32; only `singular` uses it, the other kinds
    store 0), `seed` an integer of 64 bits. Raises SolarError on values out of range.
    """

    kind: str = "singular"
    size: int = 64
    perturbation: float = 0.0
    selection: str = "leading"
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise SolarError(f"basis kind {self.kind!r} is unknown; choose one of {KINDS}")
        if self.selection not in SELECTIONS:
            raise SolarError(f"selection {self.selection!r} is unknown; choose from {SELECTIONS}")
        if not 1 <= self.size <= MAX_SIZE:
            raise SolarError(f"basis size {self.size} is out of range; choose 1 to {MAX_SIZE}")
        if not (0 <= self.perturbation < 1e6):
            raise SolarError(f"perturbation {self.perturbation} is out of range; choose 0 or more")
        if not 0 <= self.seed < 2**64:
            raise SolarError(f"seed {self.seed} is out of range; choose 0 to 2^64 - 1")
        eps = float(np.float32(self.perturbation)) if self.kind == "singular" else 0.0
        object.__setattr__(self, "perturbation", eps)


class Frame(NamedTuple):
    """One side of one layer: rows (k, d) float32, a vector each, and their values (k,) float64."""

    rows: np.ndarray
    values: np.ndarray


class Sides(NamedTuple):
    """Sides of layers that are coded in one batch: they share the dimension and the atom width.

    layers (b,) uint32: index of the layer among the sorted adapted names; sides (b,) uint32:
    0 left, 1 right; dim: d; width: columns in one atom, 1 for vector and r for matrix atoms.
    """

    layers: np.ndarray
    sides: np.ndarray
    dim: int
    width: int


# ---------------------------------------------------------------- singular vectors, host, float64


def _svd(weight: np.ndarray) -> tuple[Frame, Frame]:
    u, s, vt = np.linalg.svd(np.asarray(weight, np.float64), full_matrices=False)
    rank = int(np.sum(s > RANK_CUTOFF * s[0])) if s.size else 0
    frames = []
    for rows in (np.ascontiguousarray(u.T[:rank]), vt[:rank]):
        rows = rows * leading_sign(rows) if rank else rows
        frames.append(Frame(rows.astype(np.float32), s[:rank]))
    return frames[0], frames[1]


def _load(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # absent, or cut short by a full disk: compute again
        return None


def _save(path: Path, array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    write_whole(path, file.getvalue())


def singular_frames(
    name: str,
    weight: Callable[[], np.ndarray],
    shape: tuple[int, int],
    digest: bytes,
    cache: Path | None,
) -> tuple[Frame, Frame]:
    """Left (k, m) and right (k, n) singular vectors of a weight (m, n), k its numerical rank.

    `weight` is called only where `cache` does not hold the answer under `digest`, the hash of the
    exact weight. Raises SolarError where W is zero or not finite.
    """
    stem = None if cache is None else Path(cache) / "singular" / digest.hex()[:32]
    if stem is not None:
        parts = [_load(stem.with_suffix(s)) for s in (".left.npy", ".right.npy", ".values.npy")]
        if all(part is not None for part in parts):
            left, right, values = parts
            k = len(values)
            if left.shape == (k, shape[0]) and right.shape == (k, shape[1]):
                return Frame(left, np.asarray(values)), Frame(right, np.asarray(values))
    matrix = weight()
    if not np.isfinite(matrix).all():
        raise SolarError(f"base weight {name} holds non-finite values; get the checkpoint again")
    left, right = _svd(matrix)
    if len(left.values) == 0:
        raise SolarError(f"base weight {name} is zero and has no singular basis; use kind=random")
    if stem is not None:
        _save(stem.with_suffix(".left.npy"), left.rows)
        _save(stem.with_suffix(".right.npy"), right.rows)
        _save(stem.with_suffix(".values.npy"), left.values)
    return left, right


def smallest_gap(values: np.ndarray, count: int) -> float:
    """Smallest (s_i - s_{i+1}) / s_1 of the leading `count`: where it is 0 vectors turn freely."""
    used = values[: count + 1]
    return float(np.min(-np.diff(used)) / used[0]) if len(used) > 1 else 1.0


# ------------------------------------------------------------------------------------------ atoms


@lru_cache(maxsize=8)
def _cosines(dim: int) -> np.ndarray:
    """Rows of the orthonormal DCT-II matrix, float32 from float64."""
    i = np.arange(dim)
    # The angle is reduced in integers, so large products lose nothing.
    angle = (i[:, None] * (2 * i[None, :] + 1)) % (4 * dim) * (np.pi / (2 * dim))
    rows = np.cos(angle) * np.sqrt(2.0 / dim)
    rows[0] /= np.sqrt(2.0)
    return rows.astype(np.float32)


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
        fresh = np.arange(width)[None, None, :] >= (c - taken)[:, :, None]
        fresh &= np.arange(width)[None, None, :] < c
        used = np.sort(np.where(fresh, chosen, np.iinfo(np.int64).max), axis=2)
        for j in range(c):
            pick += pick >= used[:, :, j]
        chosen[:, :, c] = pick
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
        return np.stack(
            [np.asarray(f.rows[: int(x.max()) + 1])[x] for f, x in zip(frames, index, strict=True)]
        )
    ranks = np.full(len(ids), group.dim)
    index = positions(recipe, group, ids, ranks)
    laps, place = np.unique(ids // group.dim, return_inverse=True)
    keys = _keys(recipe, group, SIGNS, laps[None])
    signs = np.where(threefry.words(keys, group.dim) >> 31, np.float32(-1), np.float32(1))
    signs = np.take_along_axis(signs, place.reshape(ids.shape)[:, :, None], axis=1)
    return _cosines(group.dim)[index] * signs[:, :, None]


@jax.jit
def _perturbed(keys, base, scale):
    """unit(base + scale g) for keys (b, a, 2), base (b, a, width, d), and the norms (b, a, width)
    before `unit`."""
    width, dim = base.shape[2:]
    drawn = threefry.words(keys, width * dim).reshape(base.shape)
    raw = base + scale * threefry.gaussian(drawn)
    norms = jnp.sqrt(jnp.sum(raw * raw, axis=-1))
    return raw / norms[..., None], norms


def atoms(
    recipe: Recipe, group: Sides, ids: np.ndarray, base: np.ndarray | None
) -> tuple[jax.Array, jax.Array | None]:
    """Atoms `ids` (b, a) of every side in the group as (b, a, width, d) float32 unit columns.

    base: what `sources` returned. Also gives the norms (b, a, width) before scaling to unit length,
    None where nothing was perturbed.
    """
    eps = 1.0 if recipe.kind == "random" else recipe.perturbation
    if eps == 0:
        return jnp.asarray(base), None
    if base is None:
        base = jnp.zeros((*ids.shape, group.width, group.dim), jnp.float32)
    scale = np.float32(eps / np.sqrt(group.dim))
    return _perturbed(_keys(recipe, group, NOISE, ids), base, scale)
