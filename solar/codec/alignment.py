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
from solar.codec.basis import Recipe, Sides
from solar.codec.blas import one_thread
from solar.codec.factors import Factors


def _shares(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(k,) share of ||targets||_F^2 in the span of the leading 1..k orthonormal rows (k, d)."""
    targets = np.asarray(targets, np.float64)
    energy = np.sum((np.asarray(rows, np.float64) @ targets) ** 2, axis=1)
    return np.cumsum(energy) / np.sum(targets**2)


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
    records = []
    for layer, name in enumerate(known.names):
        if ordered[layer].left.shape[1] == 0:
            continue
        frames = basis.singular_frames(
            name,
            lambda name=name: container.read_weight(base, name),
            known.shapes[layer],
            known.digests[layer],
            cache,
        )
        for side, (frame, targets) in enumerate(zip(frames, ordered[layer], strict=True)):
            count, dim = min(max(sizes), len(frame.values)), targets.shape[0]
            group = Sides(np.array([layer], np.uint32), np.array([side], np.uint32), dim, 1)
            ids = np.arange(count, dtype=np.uint32)[None]
            control = basis.sources(Recipe("orthogonal", count, seed=seed), group, ids, None)
            singular = _shares(frame.rows[:count], targets)
            random = _shares(control.reshape(count, dim), targets)
            for size in sorted({min(size, count) for size in sizes}):
                records.append({
                    "name": name, "side": basis.SIDES[side], "size": size, "dim": dim,
                    "singular": float(singular[size - 1]), "random": float(random[size - 1]),
                    "expected": size / dim,
                })  # fmt: skip
    return records
