"""Training every weight of the base: what pretraining does. No hooks; the trainables replace the
leaves.
"""

import jax
import jax.numpy as jnp

from solar.adapters.method import Method
from solar.weights.base import Base


def hooks(base: Base, config: None) -> tuple[dict[str, int], float]:
    return {}, 0.0


def init(key: jax.Array, base: Base, config: None) -> tuple[dict, dict]:
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in base.params.items()}, {}


def update(trainable: dict, frozen: dict) -> dict:
    return dict(trainable)


METHOD = Method("full", hooks, init, update)
