"""Fit: the coefficients of every side before quantisation, in batches of equal shape.

Orthonormal atoms need inner products only; all others the jitted solves of select.py and omp.py.
Batches are worked on one after another: XLA's programs share one pool of threads, and two that run
at once can wait for each other for ever.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from solar.codec import basis, tail
from solar.codec.coefficients import (
    BUCKET,
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
    atoms: Any
    rows: np.ndarray
    orthonormal: bool
    unperturbed: np.ndarray | None
    shaped: Any  # the atoms as (b, a, width, d)
    norms: Any
    ranks: np.ndarray


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
    atoms, norms = basis.atoms(recipe, group, ids, unperturbed)
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
    tails: dict[Side, tuple[Future, int]] = {}
    all_orthonormal = True
    # What is known of the error is worked out on the host while XLA solves the next batch.
    with ThreadPoolExecutor(1) as host:
        before: Future | None = None
        for batch in _each(setting, sides, factors, frames):
            all_orthonormal &= batch.orthonormal
            table, support, residuals = _coefficients(setting, batch, factors)
            if before is not None:
                before.result()  # so that no more than two batches are alive
            # Arrays of the host, so that its thread has nothing to do with XLA.
            atoms, norms = (x if x is None else np.asarray(x) for x in (batch.shaped, batch.norms))
            before = host.submit(
                tail.tails, setting.recipe, batch.rows, batch.unperturbed, atoms, norms,
                batch.ranks, residuals,
            )  # fmt: skip
            for i, side in enumerate(batch.sides):
                targets = targets_of(setting, side)
                positions = np.flatnonzero(support[i, :targets])
                sent[side] = Coefficients(positions, table[i, :targets].ravel()[positions])
                tails[side] = before, i
    return sent, {side: own.result()[i] for side, (own, i) in tails.items()}, all_orthonormal


def _coefficients(setting: Setting, batch: _Batch, factors: list[Factors]):
    """Coefficients (b, t, a), support (b, t, a) and residuals (b,) of a batch. Raises SolarError
    where the solve fails."""
    weights = np.zeros(batch.rows.shape[:2], np.float32)
    for i, side in enumerate(batch.sides):
        weights[i, : targets_of(setting, side)] = component_weights(setting, side, factors)
    kept = np.array([kept_of(setting, s) if setting.keep != BUDGET else 0 for s in batch.sides])
    solve = _project if batch.orthonormal else _solve
    table, support, residuals = solve(setting, batch, weights, kept)
    if not np.isfinite(table).all():
        raise SolarError(f"ridge {setting.ridge} is too small for this basis; raise it")
    return table, support, residuals


def _project(setting: Setting, batch: _Batch, weights: np.ndarray, kept: np.ndarray):
    """As `_coefficients`, in orthonormal atoms."""
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
        flat = score.reshape(len(score), -1)
        order = np.argsort(-flat, axis=1, kind="stable")
        support = np.zeros(flat.shape, bool)
        np.put_along_axis(support, order, np.arange(flat.shape[1])[None] < kept[:, None], axis=1)
        support = support.reshape(table.shape)
    return table, support, np.linalg.norm(rest, axis=(1, 2))


def _solve(setting: Setting, batch: _Batch, weights: np.ndarray, kept: np.ndarray):
    """As `_project` for any atoms: ridge least squares, then the search and a re-fit."""
    from solar.codec import omp, select

    sparse, ridge = isinstance(setting.keep, int), np.float32(setting.ridge)
    fitted = select.fit(
        batch.atoms, batch.rows, weights, kept.astype(np.int32), ridge,
        sparse=sparse and setting.search == "top",
    )  # fmt: skip
    table, support, residuals = (np.asarray(x) for x in fitted)
    if sparse and setting.search == "omp":
        counts = kept.astype(np.int32)
        picked = omp.pursue(batch.atoms, batch.rows, weights, counts, most=int(kept.max()))
        support = _filled(np.asarray(picked), kept, [targets_of(setting, s) for s in batch.sides])
    if sparse:
        table = _again(batch, support, ridge)
    return table.swapaxes(1, 2), support.swapaxes(1, 2), residuals


def _filled(support: np.ndarray, kept: np.ndarray, targets: list[int]) -> np.ndarray:
    """Support (b, a, t) with as many positions as the file says (kept): a pursuit that has nothing
    left to explain stops early."""
    filled = support.copy()
    for i in np.flatnonzero(support.sum(axis=(1, 2)) < kept):
        free = np.flatnonzero(~filled[i, :, : targets[i]])
        more = free[: kept[i] - filled[i].sum()]
        filled[i, *np.divmod(more, targets[i])] = True
    return filled


def _again(batch: _Batch, support: np.ndarray, ridge: np.float32) -> np.ndarray:
    """Coefficients (b, a, t) fitted again on support (b, a, t)."""
    from solar.codec import select

    # Powers of two, so that few programs are compiled.
    counts = np.maximum(support.sum(axis=1).max(axis=0), BUCKET)
    most = (min(batch.size, 1 << (int(count) - 1).bit_length()) for count in counts)
    return np.asarray(select.refit(batch.atoms, batch.rows, support, ridge, most=tuple(most)))


def refit(
    setting: Setting, sides: list[Side], factors: list[Factors], frames: Frames,
    positions: Mapping[Side, np.ndarray],
) -> dict[Side, Coefficients]:  # fmt: skip
    """Coefficients fitted again on the given positions of every side, for atoms of any kind."""
    found = {}
    for batch in _each(setting, sides, factors, frames):
        support = np.zeros((len(batch.sides), batch.rows.shape[1], batch.size), bool)
        for i, side in enumerate(batch.sides):
            target, atom = np.divmod(positions[side], batch.size)
            support[i, target, atom] = True
        table = _again(batch, support.swapaxes(1, 2), np.float32(setting.ridge)).swapaxes(1, 2)
        for i, side in enumerate(batch.sides):
            own = table[i, : targets_of(setting, side)].ravel()[positions[side]]
            found[side] = Coefficients(positions[side], own)
    return found
