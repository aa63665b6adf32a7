"""Fit: the coefficients of every side before quantisation, in batches of equal shape.

Orthonormal atoms need inner products only; all others are solved for, side by side. Atoms are
drawn, and pursuits run, by XLA on the calling thread: its programs share one pool of threads, and
two that run at once can wait for each other for ever.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from solar.codec import basis, select, tail
from solar.codec.coefficients import (
    Coefficients,
    Frames,
    Side,
    as_group,
    batches,
    kept_of,
    size_of,
    target_rows,
    targets_of,
)
from solar.codec.factors import Factors
from solar.codec.kinds import KINDS
from solar.codec.recipe import BUDGET, Setting
from solar.codec.tail import Tail
from solar.errors import SolarError


class _Batch(NamedTuple):
    """Atoms and targets of sides of equal shape: atoms (b, a, D) and rows (b, t, D) float32. Where
    atoms are None they are implicit (basis.py)."""

    sides: list[Side]
    size: int
    atoms: np.ndarray | None
    rows: np.ndarray
    orthonormal: bool
    unperturbed: np.ndarray | None
    shaped: np.ndarray | None  # the atoms as (b, a, width, d)
    norms: np.ndarray | None
    ranks: np.ndarray

    def one(self, i: int) -> "_Batch":
        """Side i alone."""
        return self._replace(**{
            name: value[i : i + 1] for name, value in self._asdict().items()
            if isinstance(value, (list, np.ndarray))
        })  # fmt: skip


def _batch(
    setting: Setting, batch: list[Side], factors: list[Factors], frames: Frames
) -> _Batch:  # fmt: skip
    recipe = setting.recipe
    group, size = as_group(setting.atoms, batch), size_of(setting, batch[0])
    rows = target_rows(setting.atoms, [factors[s.layer][s.side] for s in batch])
    if basis.implicit(recipe, group, size):
        return _Batch(batch, size, None, rows, True, None, None, None, np.full(len(batch), size))
    ids = np.broadcast_to(np.arange(size, dtype=np.uint32), (len(batch), size))
    own = frames.for_batch(batch)
    unperturbed = basis.sources(recipe, group, ids, own)
    # Arrays of the host, so that the threads which work on them have nothing to do with XLA.
    atoms, norms = (
        x if x is None else np.asarray(x) for x in basis.atoms(recipe, group, ids, unperturbed)
    )
    ranks = np.array([len(f.values) for f in own] if own else [group.dim] * len(batch))
    orthonormal = (
        setting.atoms == "vector" and KINDS[recipe.kind].orthonormal and norms is None
        and size <= int(ranks.min())
    )  # fmt: skip
    return _Batch(
        batch, size, atoms.reshape(len(batch), size, -1), rows, orthonormal,
        unperturbed, atoms, norms, ranks,
    )  # fmt: skip


def _each(
    setting: Setting, sides: list[Side], factors: list[Factors], frames: Frames
) -> Iterator[_Batch]:
    for batch in batches(setting.atoms, sides, lambda side: size_of(setting, side)):
        yield _batch(setting, batch, factors, frames)


def component_weights(setting: Setting, side: Side, factors: list[Factors]) -> np.ndarray:
    """(t,) what an error in each target of a side is multiplied by in dW: the norm of the same
    component on the other side, and 1 for matrix atoms, which have one target."""
    if setting.atoms == "matrix":
        return np.ones(1, np.float32)
    return np.linalg.norm(factors[side.layer][1 - side.side], axis=0).astype(np.float32)


def fit(
    setting: Setting, sides: list[Side], factors: list[Factors], frames: Frames
) -> tuple[dict[Side, Coefficients], dict[Side, Tail], bool]:
    """Coefficients of every side, what was known of their error, and whether all atoms are
    orthonormal. Under a budget all coefficients come back, to be chosen from.

    factors: of every layer, in sorted order of names. Raises SolarError and BoundViolated.
    """
    sent: dict[Side, Coefficients] = {}
    tails: dict[Side, Tail] = {}
    all_orthonormal = True

    def take(found: list[Future]) -> None:
        for table, support, known, part in (own.result() for own in found):
            for i, side in enumerate(part.sides):
                targets = targets_of(setting, side)
                positions = np.flatnonzero(support[i, :targets])
                sent[side] = Coefficients(positions, table[i, :targets].ravel()[positions])
                tails[side] = known[i]

    # While sides are solved the atoms of the next batch are built; no more than two are alive.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        before: list[Future] = []
        for batch in _each(setting, sides, factors, frames):
            all_orthonormal &= batch.orthonormal
            picked = _picked(setting, batch, factors)
            # Orthonormal atoms leave so little to do that threads would cost more.
            parts = (
                [batch] if batch.orthonormal else [batch.one(i) for i in range(len(batch.sides))]
            )
            started = [
                pool.submit(_work, setting, part, factors, own)
                for part, own in zip(parts, picked, strict=True)
            ]
            take(before)
            before = started
        take(before)
    return sent, tails, all_orthonormal


def _work(setting: Setting, batch: _Batch, factors: list[Factors], picked: np.ndarray | None):
    """Coefficients (b, t, a), support (b, t, a), tails and the batch itself. Raises SolarError
    where the solve fails."""
    weights, kept = _weights(setting, batch, factors), _kept(setting, batch)
    if batch.orthonormal:
        table, support, residuals = _project(setting, batch, weights, kept)
    else:
        table, support, residuals = _solve(setting, batch, weights, kept, picked)
    if not (np.isfinite(table).all() and np.isfinite(residuals).all()):
        raise SolarError(f"ridge {setting.ridge} is too small for this basis; raise it")
    known = tail.tails(
        setting.recipe, batch.rows, batch.unperturbed, batch.shaped, batch.norms, batch.ranks,
        residuals,
    )  # fmt: skip
    return table, support, known, batch


def _weights(setting: Setting, batch: _Batch, factors: list[Factors]) -> np.ndarray:
    """(b, t) `component_weights`, zero where a side has fewer targets than the batch."""
    weights = np.zeros(batch.rows.shape[:2], np.float32)
    for i, side in enumerate(batch.sides):
        weights[i, : targets_of(setting, side)] = component_weights(setting, side, factors)
    return weights


def _kept(setting: Setting, batch: _Batch) -> np.ndarray:
    """(b,) int32 coefficients sent of every side where the setting fixes their number, or 0."""
    fixed = setting.keep != BUDGET
    return np.array([kept_of(setting, s) if fixed else 0 for s in batch.sides], np.int32)


def _project(setting: Setting, batch: _Batch, weights: np.ndarray, kept: np.ndarray):
    """Coefficients (b, t, a), support (b, t, a) and residuals (b,) in orthonormal atoms."""
    if batch.atoms is None:
        group = as_group(setting.atoms, batch.sides)
        table = basis.analysed(setting.recipe, group, batch.rows, batch.size)
        inside = basis.composed(setting.recipe, group, table)
    else:
        table = np.matmul(batch.rows, batch.atoms.swapaxes(-1, -2))
        inside = np.matmul(table, batch.atoms)
    # The difference of vectors, not of energies: it can be 1e-7 of the whole.
    rest = batch.rows - inside
    support = np.ones(table.shape, bool)
    if isinstance(setting.keep, int):
        score = np.abs(table) * weights[:, :, None]
        support = np.stack([select.largest(x, k) for x, k in zip(score, kept, strict=True)])
    return table, support, np.linalg.norm(rest, axis=(1, 2))


def _solve(
    setting: Setting, batch: _Batch, weights: np.ndarray, kept: np.ndarray,
    picked: np.ndarray | None,
):  # fmt: skip
    """As `_project`, of one side in any atoms: ridge least squares, then the search and a re-fit.
    picked: the support (a, t) that a pursuit has found already."""
    atoms, rows, ridge = batch.atoms[0], batch.rows[0], setting.ridge
    sparse = isinstance(setting.keep, int)
    count = int(kept[0]) if sparse and picked is None else None
    table, support, residual, gram = select.fit(atoms, rows, weights[0], count, ridge)
    if sparse:
        support = support if picked is None else picked
        table = select.refit(atoms, rows, support, ridge, gram)
    return table.T[None], support.T[None], np.array([residual])


def _picked(setting: Setting, batch: _Batch, factors: list[Factors]) -> list[np.ndarray | None]:
    """Supports (a, t) of every side by orthogonal matching pursuit, None where none is wanted."""
    if batch.orthonormal:
        return [None]
    if not isinstance(setting.keep, int) or setting.search != "omp":
        return [None] * len(batch.sides)
    from solar.codec import omp

    weights, kept = _weights(setting, batch, factors), _kept(setting, batch)
    picked = omp.pursue(batch.atoms, batch.rows, weights, kept, most=int(kept.max()))
    return list(_filled(np.asarray(picked), kept, [targets_of(setting, s) for s in batch.sides]))


def _filled(support: np.ndarray, kept: np.ndarray, targets: list[int]) -> np.ndarray:
    """Support (b, a, t) with as many positions as the file says (kept): a pursuit that has nothing
    left to explain stops early."""
    filled = support.copy()
    for i in np.flatnonzero(support.sum(axis=(1, 2)) < kept):
        free = np.flatnonzero(~filled[i, :, : targets[i]])
        more = free[: kept[i] - filled[i].sum()]
        filled[i, *np.divmod(more, targets[i])] = True
    return filled


def refit(
    setting: Setting, sides: list[Side], factors: list[Factors], frames: Frames,
    positions: Mapping[Side, np.ndarray],
) -> dict[Side, Coefficients]:  # fmt: skip
    """Coefficients fitted again on the given positions of every side, for atoms of any kind."""

    def again(batch: _Batch, i: int) -> Coefficients:
        side = batch.sides[i]
        support = np.zeros((batch.size, batch.rows.shape[1]), bool)
        target, atom = np.divmod(positions[side], batch.size)
        support[atom, target] = True
        table = select.refit(batch.atoms[i], batch.rows[i], support, setting.ridge)
        return Coefficients(positions[side], table[atom, target])

    found: dict[Side, Coefficients] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in _each(setting, sides, factors, frames):
            own = pool.map(again, [batch] * len(batch.sides), range(len(batch.sides)))
            found |= zip(batch.sides, own, strict=True)
    return found
