"""Coefficients: what is sent of every side of every layer, and the factors it rebuilds.

A side is L or R of one layer. Sides that share dimension, atom width and number of singular vectors
are one batch for every product and random draw; Python only moves their arrays. Encoder and decoder
run the same `rebuild`.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from solar.codec import basis, checksum, container, singular
from solar.codec.container import Base, Watch, unwatched
from solar.codec.kinds import KINDS, Sides
from solar.codec.recipe import BUDGET, Recipe, Setting
from solar.codec.singular import Frame

CHUNK_BYTES = 2**23  # atoms built at once; a side that has more is alone
BUCKET = 32  # counts of atoms in use are rounded up to this, so few shapes are compiled


class Side(NamedTuple):
    """One side of one coded layer: index of the layer, 0 left or 1 right, d, rank r of the update,
    and the most singular vectors its base weight can have, min(m, n)."""

    layer: int
    side: int
    dim: int
    rank: int
    vectors: int


class Coefficients(NamedTuple):
    """What one side is rebuilt from: rising positions (k,) int64 among its targets * size
    coefficients, component by component, and their values (k,) float32."""

    positions: np.ndarray
    values: np.ndarray


def coded_sides(shapes: Iterable[tuple[int, int]], ranks: Iterable[int]) -> list[Side]:
    return [
        Side(layer, side, shape[side], rank, min(shape))
        for layer, (shape, rank) in enumerate(zip(shapes, ranks, strict=True))
        if rank > 0
        for side in (0, 1)
    ]


def targets_of(setting: Setting, side: Side) -> int:
    """How many targets a side has: its components, or all of them as one for matrix atoms."""
    return side.rank if setting.atoms == "vector" else 1


def size_of(setting: Setting, side: Side) -> int:
    """Atoms of a side: N, and under a budget no more than the orthonormal vectors there are."""
    one_each = setting.keep == BUDGET and setting.atoms == "vector"
    if not one_each or not KINDS[setting.recipe.kind].orthonormal:
        return setting.recipe.size
    most = side.vectors if setting.recipe.kind == "singular" else side.dim
    return min(setting.recipe.size, most)


def kept_of(setting: Setting, side: Side) -> int:
    """Coefficients sent of a side whose number the setting fixes."""
    return targets_of(setting, side) * (setting.keep or setting.recipe.size)


def batches(
    atoms: str, sides: list[Side], size: Callable[[Side], int], limit: int = CHUNK_BYTES
) -> list[list[Side]]:
    """Sides of equal shape, in batches whose atoms, `size` of each side, fit in `limit` bytes.

    The batches of a shape are of one length where that is possible with up to twice as many, so
    that one program serves them all.
    """
    groups: dict[tuple[int, int, int], list[Side]] = {}
    for side in sides:
        width = 1 if atoms == "vector" else side.rank
        groups.setdefault((side.dim, width, side.vectors), []).append(side)
    result = []
    for (dim, width, _), members in groups.items():
        count = len(members)
        least = min(count, max(1, math.ceil(count * size(members[0]) * dim * width * 4 / limit)))
        pieces = next((p for p in range(least, 2 * least) if count % p == 0), least)
        step = math.ceil(count / pieces)
        result += [members[i : i + step] for i in range(0, count, step)]
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
    """Singular frames of the base weights of coded layers, loaded once for one call.

    watch(iterable, length, what) may show progress while they are computed.
    """

    def __init__(
        self, base: Mapping[str, np.ndarray], known: Base, sides: list[Side], recipe: Recipe,
        cache: Path | None, watch: Watch = unwatched,
    ):  # fmt: skip
        def load(layer: int) -> tuple[Frame, Frame]:
            name = known.names[layer]
            return singular.singular_frames(
                name, lambda: container.read_weight(base, name),
                known.shapes[layer], known.digests[layer], cache,
            )  # fmt: skip

        self.loaded: dict[int, tuple[Frame, Frame]] = {}
        if recipe.kind != "singular":
            return
        missing = []
        for layer in sorted({side.layer for side in sides}):
            found = singular.cached_frames(known.shapes[layer], known.digests[layer], cache)
            if found is None:
                missing.append(layer)
            else:
                self.loaded[layer] = found
        if missing:
            # LAPACK lets other threads run, so weights are factorised side by side.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = watch(pool.map(load, missing), len(missing), "singular vectors")
                self.loaded |= zip(missing, made, strict=True)

    def for_batch(self, batch: list[Side]) -> list[Frame] | None:
        return [self.loaded[side.layer][side.side] for side in batch] if self.loaded else None


def atoms_of(positions: np.ndarray, size: int) -> np.ndarray:
    """The atoms (a,) of `size` that carry a coefficient, rising."""
    carries = np.zeros(size, bool)
    carries[positions % size] = True
    return np.flatnonzero(carries)


def _table(
    setting: Setting, batch: list[Side], sent: Mapping[Side, Coefficients], atoms: list[np.ndarray],
    width: int,
) -> np.ndarray:  # fmt: skip
    """Coefficients (b, t, width) float32 of a batch that belong to the given rising atoms of each
    side, in their order."""
    targets = max(targets_of(setting, side) for side in batch)
    table = np.zeros((len(batch), targets, width), np.float32)
    for i, (side, own) in enumerate(zip(batch, atoms, strict=True)):
        size = size_of(setting, side)
        place = np.full(size, -1)
        place[own] = np.arange(len(own))
        target, atom = np.divmod(sent[side].positions, size)
        here = place[atom] >= 0
        table[i, target[here], place[atom[here]]] = sent[side].values[here]
    return table


def _summed(
    setting: Setting, batch: list[Side], sent: Mapping[Side, Coefficients],
    used: Mapping[Side, np.ndarray], count: int, frames: Frames,
    embedded: Mapping[Side, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Rows (b, t, d) that the coefficients add up to, and their energies (b,). Only atoms that
    carry one are built, after them any others times zero up to `count`; a side that has too many
    for once, in pieces."""
    group = as_group(setting.atoms, batch)
    targets = max(targets_of(setting, side) for side in batch)
    length = group.dim * group.width
    room = max(1, 2 * CHUNK_BYTES // (4 * len(batch) * (length + targets)))
    step = math.ceil(count / math.ceil(count / room))
    rows, energy = np.zeros(1, np.float32), np.zeros(1)
    for first in range(0, count, step):
        own = [used[side][first : first + step] for side in batch]
        if embedded is not None:
            flat = np.zeros((len(batch), step, length), np.float32)
            for i, side in enumerate(batch):
                flat[i, : len(own[i])] = embedded[side][first : first + step]
        else:
            ids = np.zeros((len(batch), step), np.uint32)
            for i, which in enumerate(own):
                ids[i, : len(which)] = which
            unperturbed = basis.sources(setting.recipe, group, ids, frames.for_batch(batch))
            atoms, _ = basis.atoms(setting.recipe, group, ids, unperturbed)
            flat = np.asarray(atoms).reshape(len(batch), step, -1)
        table = _table(setting, batch, sent, own, step)
        rows = rows + np.matmul(table, flat)
        energy = energy + checksum.energy(table)
    return rows.reshape(len(batch), -1, batch[0].dim), energy


def rebuild(
    setting: Setting,
    sides: list[Side],
    sent: Mapping[Side, Coefficients],
    frames: Frames,
    embedded: Mapping[Side, np.ndarray] | None = None,
) -> tuple[dict[Side, np.ndarray], np.ndarray]:
    """Factors (d, r) float32 of every coded side, and the numbers of the basis checksum.

    embedded: the atoms in use (a, width * d) of every side, where the file brings them itself.
    """
    used = {}
    for side in sides:
        own = sent[side].positions
        # A file brings atoms for all that it says a number of; none is built for a zero.
        own = own[sent[side].values != 0] if embedded is None else own
        used[side] = atoms_of(own, size_of(setting, side))
    decoded: dict[Side, np.ndarray] = {}
    numbers: dict[Side, np.ndarray] = {}
    most = max((len(which) for which in used.values()), default=0)
    most = max(1, math.ceil(most / BUCKET)) * BUCKET
    # What atoms add up to takes memory too.
    room = max(most, *(targets_of(setting, side) for side in sides)) if sides else most
    for batch in batches(setting.atoms, sides, lambda _: room):
        group, size = as_group(setting.atoms, batch), size_of(setting, batch[0])
        if embedded is None and basis.implicit(setting.recipe, group, size):
            table = _table(setting, batch, sent, [np.arange(size)] * len(batch), size)
            rows, energy = basis.composed(setting.recipe, group, table), checksum.energy(table)
        else:
            count, own = most, max(len(used[side]) for side in batch)
            while count > max(2 * own, BUCKET):  # halves, so that there are still few shapes
                count = math.ceil(count / 2 / BUCKET) * BUCKET
            rows, energy = _summed(setting, batch, sent, used, count, frames, embedded)
        marks = checksum.sketch(rows, energy)
        for i, side in enumerate(batch):
            decoded[side] = np.ascontiguousarray(rows[i, : side.rank].T)
            numbers[side] = marks[i, : side.rank]
    ordered = [numbers[side] for side in sides]
    whole = checksum.whole(ordered, np.array([np.linalg.norm(decoded[side]) for side in sides]))
    return decoded, np.concatenate([*(own.ravel() for own in ordered), whole])


def atoms_in_use(
    setting: Setting, sides: list[Side], sent: Mapping[Side, Coefficients], frames: Frames
) -> dict[Side, np.ndarray]:
    """Atoms (a, width * d) float32 that carry a coefficient, of every side."""
    found = {}
    for side in sides:
        ids = atoms_of(sent[side].positions, size_of(setting, side)).astype(np.uint32)[None]
        group = as_group(setting.atoms, [side])
        unperturbed = basis.sources(setting.recipe, group, ids, frames.for_batch([side]))
        atoms, _ = basis.atoms(setting.recipe, group, ids, unperturbed)
        found[side] = np.asarray(atoms).reshape(ids.shape[1], -1)
    return found
