"""What training, evaluation and tables know of a method of adaptation: a few pure functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from solar.weights.base import Base

Leaves = Mapping[str, jax.Array]


class Method(NamedTuple):
    """A method of adaptation.

    hooks(base, config) -> (rank of each projection that gets a low-rank hook, dropout rate)
    init(key, base, config) -> (trainable, frozen): float32 arrays by name
    update(trainable, frozen) -> the leaves that the model sees beside, or instead of, the base's
    refresh(trainable, frozen, step, config) -> entries of frozen that are to be replaced before a
        step, and after the last with None for the step; on the host, outside of what is compiled
    carried: the entries of frozen that the next refresh needs, so that checkpoints hold them
    """

    name: str
    hooks: Callable[[Base, Any], tuple[dict[str, int], float]]
    init: Callable[[jax.Array, Base, Any], tuple[dict[str, jax.Array], dict[str, jax.Array]]]
    update: Callable[[Leaves, Leaves], dict[str, jax.Array]]
    refresh: Callable[[Leaves, Leaves, int | None, Any], dict[str, Any]] | None = None
    carried: tuple[str, ...] = ()
