"""Inputs of named projections on examples of a task, for bounds on outputs."""

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from solar.models.structure import assemble, find, structure
from solar.objective import aim_of, measure
from solar.score import batches
from solar.tasks.task import Task
from solar.weights.base import Base


def inputs_of(
    base: Base,
    task: Task,
    names: Iterable[str],
    heads: Mapping[str, np.ndarray],
    examples: int = 8,
    split: str = "test",
) -> dict[str, np.ndarray]:
    """What the base feeds to every named projection on the first `examples` of a split: (s, inputs)
    float32, s being the real tokens (patches) of all examples. heads: full tensors that the base
    lacks or that replace its own."""
    leaves = {k: jnp.asarray(v) for k, v in {**base.params, **heads}.items()}
    model = assemble(structure(base.config), leaves)
    seen: dict[str, np.ndarray] = {}

    def watched(name, projection):
        def call(x):
            seen[name] = np.asarray(x, np.float32)
            return projection(x)

        return call

    for name in names:
        above, _, last = name.rpartition(".")
        setattr(find(model, above), last, watched(name, find(model, name)))
    arrays = {k: v[:examples] for k, v in getattr(task, split).items()}
    count = len(next(iter(arrays.values())))
    (batch,) = batches(arrays, count)
    measure(model, aim_of(task, base), {k: jnp.asarray(v) for k, v in batch.items()})
    real = np.asarray(batch["mask"], bool) if "mask" in batch else np.s_[:, :]
    return {name: x[real].reshape(-1, x.shape[-1]) for name, x in seen.items()}
