"""A low-rank adapter at rest: what is read, coded and written, whoever trained it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Adapter:
    """``pairs[layer] = (B (out, r), A (r, in), scale)`` with ``dW = scale * B @ A``, float32; r may
    be 0. ``heads``: modules that were trained whole, by leaf name.

    ``wide``: layers whose A was read without a base and may have more columns than the layer has
    inputs (VeRA shares one A among layers); :func:`solar.adapters.directory.fit` cuts them.
    """

    pairs: Mapping[str, tuple[np.ndarray, np.ndarray, float]]
    heads: Mapping[str, np.ndarray]
    wide: frozenset[str] = frozenset()


def scaling(alpha: float, rank: int, rslora: bool) -> float:
    """The factor before B A."""
    return alpha / (rank**0.5 if rslora else rank)
