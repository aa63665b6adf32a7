"""Alignment: how much of an update lies in the leading singular subspace of its own base weight.

The premise of coding in singular vectors, measured: the share of ||L||_F^2 in the span of the
leading N left singular vectors (R and right ones alike), beside the same share for N columns of a
seeded orthogonal matrix, whose mean is N / d. Nothing is assumed about the outcome.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solar.codec import basis, container
from solar.codec.blas import one_thread
from solar.codec.coefficients import Frames, as_group, batches, coded_sides, target_rows
from solar.codec.factors import Factors
from solar.codec.recipe import SIDES, Recipe


def _shares(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(b, k) shares of ||targets||_F^2 in the span of the leading 1..k orthonormal rows.

    rows (b, k, d), targets (b, t, d), float32.
    """
    inner = np.matmul(rows, targets.swapaxes(1, 2))
    energy = np.sum(np.asarray(inner, np.float64) ** 2, axis=2)
    return np.cumsum(energy, axis=1) / np.sum(targets.astype(np.float64) ** 2, (1, 2))[:, None]


@one_thread
def alignment(
    factors: Mapping[str, Factors],
    base: Mapping[str, np.ndarray],
    sizes: Iterable[int],
    cache: Path | None = None,
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One record per layer, side and size, in sorted order of names.

    {"name", "side", "size", "dim", "singular", "random", "expected"}: shares of energy in the
    leading `size` singular vectors and in as many columns of a seeded orthogonal matrix, and
    size / dim. `size` is cut to the rank of the base weight. Layers whose update is zero are left
    out.
    """
    known = container.identify(base, factors)
    ordered = container.in_order(known, factors)
    sizes = sorted(set(sizes))
    recipe = Recipe("orthogonal", sizes[-1], seed=seed)
    sides = coded_sides(known.shapes, [f.left.shape[1] for f in ordered])
    frames = Frames(base, known, sides, Recipe("singular", sizes[-1]), cache)
    records: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for batch in batches("vector", sides, lambda _: sizes[-1]):
        own = frames.for_batch(batch)
        ranks = [len(frame.values) for frame in own]
        count = min(sizes[-1], max(ranks))
        # Zero rows after the rank add no energy.
        singular = np.zeros((len(batch), count, batch[0].dim), np.float32)
        for i, frame in enumerate(own):
            singular[i, : ranks[i]] = frame.rows[:count]
        ids = np.broadcast_to(np.arange(count, dtype=np.uint32), (len(batch), count))
        control = basis.sources(recipe, as_group("vector", batch), ids, None)[:, :, 0]
        targets = target_rows("vector", [ordered[s.layer][s.side] for s in batch])
        shares = [_shares(rows, targets) for rows in (singular, control)]
        for i, side in enumerate(batch):
            records[side.layer, side.side] = [
                {
                    "name": known.names[side.layer],
                    "side": SIDES[side.side],
                    "size": size,
                    "dim": side.dim,
                    "singular": float(shares[0][i, size - 1]),
                    "random": float(shares[1][i, size - 1]),
                    "expected": size / side.dim,
                }
                for size in sorted({min(size, ranks[i]) for size in sizes})
            ]
    return [record for key in sorted(records) for record in records[key]]
