"""Coefficients: factors to coefficients in atoms and back, for all sides of all layers in batches.

A side is L or R of one layer. Sides that share dimension, atom width and number of singular vectors
are one batch for every product, solve and random draw; Python only moves their arrays.
"""

import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from solar.codec import basis, checksum, container, quantize, select, tail
from solar.codec.basis import Frame, Recipe, Sides
from solar.codec.container import Base
from solar.codec.factors import Factors
from solar.codec.tail import Tail
from solar.errors import SolarError

ATOMS = ("vector", "matrix")
DTYPES = tuple(quantize.FLOATS)
CHUNK_BYTES = 2**26  # atoms alive at once
BUCKET = 32  # counts of atoms in use are rounded up to this, so few shapes are compiled


@dataclass(frozen=True)
class Setting:
    """How to code an adapter.

    atoms: `vector` gives every component N coefficients of its own, `matrix` one coefficient per
    stack of r vectors. keep: K coefficients are sent per component (vector atoms; shared among the
    components of a side by what they are worth) or per side (matrix atoms); None sends all N.
    dtype: of the coefficients. ridge: relative to the mean eigenvalue, see select.py.
    """

    recipe: Recipe = field(default_factory=Recipe)
    atoms: str = "vector"
    keep: int | None = None
    dtype: str = "float16"
    ridge: float = 1e-5

    def __post_init__(self):
        if self.atoms not in ATOMS:
            raise SolarError(f"atoms {self.atoms!r} are unknown; choose one of {ATOMS}")
        if self.dtype not in DTYPES:
            raise SolarError(f"coefficient dtype {self.dtype!r} is unknown; choose from {DTYPES}")
        if self.keep is not None and self.keep < 1:
            raise SolarError(f"keep {self.keep} is out of range; choose 1 or more, or none for all")
        if not 0 < self.ridge < 1:
            raise SolarError(f"ridge {self.ridge} is out of range; choose between 0 and 1")
        if self.keep is not None and self.keep >= self.recipe.size:
            object.__setattr__(self, "keep", None)


class Side(NamedTuple):
    """One side of one coded layer: index of the layer, 0 left or 1 right, d, rank r of the update,
    and the most singular vectors its base weight can have, min(m, n)."""

    layer: int
    side: int
    dim: int
    rank: int
    vectors: int


class Coefficients(NamedTuple):
    """What is sent for one side, component by component: values (k,) on a support (n,) bool."""

    support: np.ndarray
    values: np.ndarray


def coded_sides(shapes: Iterable[tuple[int, int]], ranks: Iterable[int]) -> list[Side]:
    return [
        Side(layer, side, shape[side], rank, min(shape))
        for layer, (shape, rank) in enumerate(zip(shapes, ranks, strict=True))
        if rank > 0
        for side in (0, 1)
    ]


def _targets_per_side(setting: Setting, side: Side) -> int:
    return side.rank if setting.atoms == "vector" else 1


def counts_of(setting: Setting, side: Side) -> tuple[int, int]:
    """Coefficients of a side (n) and how many of them are sent (k)."""
    per_target = setting.recipe.size if setting.keep is None else setting.keep
    targets = _targets_per_side(setting, side)
    return setting.recipe.size * targets, per_target * targets


def batches(atoms: str, sides: list[Side], size: int) -> list[list[Side]]:
    """Sides of equal shape, in batches whose atoms (`size` each) fit in CHUNK_BYTES."""
    groups: dict[tuple[int, int, int], list[Side]] = {}
    for side in sides:
        width = 1 if atoms == "vector" else side.rank
        groups.setdefault((side.dim, width, side.vectors), []).append(side)
    result = []
    for (dim, width, _), members in groups.items():
        pieces = math.ceil(len(members) * size * dim * width * 4 / CHUNK_BYTES)
        step = math.ceil(len(members) / max(1, pieces))
        result += [members[i : i + step] for i in range(0, len(members), step)]
    return result


def as_group(atoms: str, batch: list[Side]) -> Sides:
    """The batch as basis.py sees it."""
    return Sides(
        np.array([s.layer for s in batch], np.uint32),
        np.array([s.side for s in batch], np.uint32),
        batch[0].dim,
        1 if atoms == "vector" else batch[0].rank,
    )


def target_rows(atoms: str, matrices: list[np.ndarray]) -> np.ndarray:
    """Targets (b, t, D) float32 of factors (d, r): one row per component, or all in one row."""
    if atoms == "matrix":
        return np.stack([matrix.T.reshape(1, -1) for matrix in matrices])
    width = max(matrix.shape[1] for matrix in matrices)
    rows = np.zeros((len(matrices), width, matrices[0].shape[0]), np.float32)
    for i, matrix in enumerate(matrices):
        rows[i, : matrix.shape[1]] = matrix.T
    return rows


class Frames:
    """Singular frames of the base weights of coded layers, loaded once for one call."""

    def __init__(
        self, base: Mapping[str, np.ndarray], known: Base, sides: list[Side], recipe: Recipe,
        cache: Path | None,
    ):  # fmt: skip
        def load(layer: int) -> tuple[Frame, Frame]:
            name = known.names[layer]
            return basis.singular_frames(
                name, lambda: container.read_weight(base, name),
                known.shapes[layer], known.digests[layer], cache,
            )  # fmt: skip

        self.loaded: dict[int, tuple[Frame, Frame]] = {}
        if recipe.kind == "singular":
            layers = sorted({side.layer for side in sides})
            # LAPACK lets other threads run, so weights are factorised side by side.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                self.loaded = dict(zip(layers, pool.map(load, layers), strict=True))

    def for_batch(self, batch: list[Side]) -> list[Frame] | None:
        return [self.loaded[side.layer][side.side] for side in batch] if self.loaded else None


def rebuild(
    setting: Setting, sides: list[Side], sent: list[Coefficients], frames: Frames
) -> tuple[dict[Side, np.ndarray], np.ndarray]:
    """Factors (d, r) float32 of every coded side, and the numbers of the basis checksum."""
    size = setting.recipe.size
    tables = {}
    for side, (support, values) in zip(sides, sent, strict=True):
        table = np.zeros(support.shape, np.float32)
        table[support] = values
        tables[side] = table.reshape(-1, size), support.reshape(-1, size).any(axis=0)
    decoded: dict[Side, np.ndarray] = {}
    numbers: dict[Side, np.ndarray] = {}
    most = max((int(used.sum()) for _, used in tables.values()), default=0)
    count = min(size, math.ceil(most / BUCKET) * BUCKET)
    for batch in batches(setting.atoms, sides, count):
        # Only atoms that carry a coefficient are built; unused places repeat atom 0 times zero.
        ids = np.zeros((len(batch), count), np.uint32)
        width = max(_targets_per_side(setting, side) for side in batch)
        coefficients = np.zeros((len(batch), count, width), np.float32)
        for i, side in enumerate(batch):
            table, used = tables[side]
            which = np.flatnonzero(used)
            ids[i, : len(which)] = which
            coefficients[i, : len(which), : len(table)] = table[:, which].T
        group = as_group(setting.atoms, batch)
        unperturbed = basis.sources(setting.recipe, group, ids, frames.for_batch(batch))
        atoms, _ = basis.atoms(setting.recipe, group, ids, unperturbed)
        flat = atoms.reshape(len(batch), count, -1)
        rows = np.asarray(select.combine(coefficients, flat))
        rows = rows.reshape(len(batch), -1, batch[0].dim)
        marks = checksum.sketch(rows, coefficients)
        for i, side in enumerate(batch):
            decoded[side] = np.ascontiguousarray(rows[i, : side.rank].T)
            numbers[side] = marks[i, : side.rank].ravel()
    ordered = [numbers[side] for side in sides]
    return decoded, np.concatenate(ordered) if ordered else np.zeros(0)


def fit(
    setting: Setting, sides: list[Side], factors: list[Factors], frames: Frames
) -> tuple[dict[Side, Coefficients], dict[Side, Tail]]:
    """Coefficients of every side before quantisation, and what was known of its error.

    factors: of every layer, in sorted order of names. Raises BoundViolated.
    """
    recipe, size = setting.recipe, setting.recipe.size
    sent: dict[Side, Coefficients] = {}
    tails: dict[Side, Tail] = {}
    for batch in batches(setting.atoms, sides, size):
        group = as_group(setting.atoms, batch)
        ids = np.broadcast_to(np.arange(size, dtype=np.uint32), (len(batch), size))
        own = frames.for_batch(batch)
        unperturbed = basis.sources(recipe, group, ids, own)
        atoms, norms = basis.atoms(recipe, group, ids, unperturbed)
        ranks = np.array([len(f.values) for f in own] if own else [group.dim] * len(batch))
        orthonormal = (
            setting.atoms == "vector" and recipe.kind != "random" and norms is None
            and size <= int(ranks.min())
        )  # fmt: skip
        rows = target_rows(setting.atoms, [factors[s.layer][s.side] for s in batch])
        weights = np.ones(rows.shape[:2], np.float32)
        if setting.atoms == "vector":
            for i, side in enumerate(batch):
                # An error in this component of L is multiplied by the same component of R.
                other = factors[side.layer][1 - side.side]
                weights[i, : side.rank] = np.linalg.norm(other, axis=0)
        counts = np.array([counts_of(setting, side)[1] for side in batch], np.int32)
        flat = atoms.reshape(len(batch), size, -1)
        ridge = np.float32(setting.ridge)
        fitted = select.fit(
            flat, rows, weights, counts, ridge,
            orthonormal=orthonormal, sparse=setting.keep is not None,
        )  # fmt: skip
        coefficients, support, residuals = map(np.asarray, fitted)
        if setting.keep is not None and not orthonormal:
            most = math.ceil(int(support.sum(axis=1).max()) / BUCKET) * BUCKET
            refitted = select.refit(flat, rows, support, ridge, most=min(most, size))
            coefficients = np.asarray(refitted)
        if not np.isfinite(coefficients).all():
            raise SolarError(f"ridge {setting.ridge} is too small for this basis; raise it")
        known = tail.tails(recipe, rows, unperturbed, atoms, norms, ranks, residuals)
        for i, side in enumerate(batch):
            targets = _targets_per_side(setting, side)
            flat_support = support[i].T[:targets].ravel()
            values = coefficients[i].T[:targets].ravel()[flat_support]
            sent[side], tails[side] = Coefficients(flat_support, values), known[i]
    return sent, tails
