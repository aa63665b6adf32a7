"""A low-rank adapter at rest: what is read, coded and written, whoever trained it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Adapter:
    """``pairs[layer] = (B (out, r), A (r, in), scale)`` with ``dW = scale * B @ A``, float32; r may
    be 0. ``heads``: modules that were trained whole, by leaf name.

    ``wide``: layers whose A was read without a base and may have more columns than the layer has
    inputs (VeRA shares one A among layers); :func:`solar.adapters.directory.read_for` cuts them.
    """

    pairs: Mapping[str, tuple[np.ndarray, np.ndarray, float]]
    heads: Mapping[str, np.ndarray]
    wide: frozenset[str] = frozenset()

    @property
    def ranks(self) -> dict[str, int]:
        return {name: a.shape[0] for name, (_, a, _) in self.pairs.items()}

    @property
    def update(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """``update[layer] = (L (out, r), R (in, r))`` with ``dW = L @ R.T``."""
        return {name: (b * np.float32(s), a.T) for name, (b, a, s) in self.pairs.items()}


def scaling(alpha: float, rank: int, rslora: bool) -> float:
    """The factor before B A."""
    return alpha / (rank**0.5 if rslora else rank)
