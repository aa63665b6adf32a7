"""Matching: a task without labels, whose answers are what an adapter gives on the same inputs."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from solar.adapters.adapter import Adapter
from solar.errors import SolarError
from solar.models.structure import structure
from solar.objective import aim_of
from solar.score import check_complete, hook_leaves, outputs_of
from solar.tasks.task import Task, identity_of
from solar.weights.base import Base

TOGETHER = 32  # examples in one batch


def check_heads(own: Adapter, images: bool) -> None:
    """Raises SolarError for an adapter that brings an output head of a language model: predictions
    are compared before the base's own."""
    if own.heads and not images:
        raise SolarError(
            f"the adapter brings {', '.join(sorted(own.heads))}; what it answers can be matched "
            "with the base's own head only: leave calibration out"
        )


def check_answers(base: Base, own: Adapter) -> None:
    """Raises SolarError where `base` with `own` gives no answers that could be matched."""
    leaves = structure(base.config).leaves
    for name, head in sorted(own.heads.items()):
        wanted = leaves[name].shape if name in leaves else None
        if tuple(head.shape) != wanted:
            raise SolarError(
                f"the adapter's {name} is {tuple(head.shape)}, of which this base has "
                f"{wanted or 'none'}: check that the adapter belongs to it"
            )
    if base.family == "vit" and not base.config.num_labels:
        raise SolarError(
            "neither the base nor the adapter has a classifier, so there are no answers to match: "
            "leave calibration out"
        )
    check_complete(base, own.heads)


def matching(base: Base, task: Task, own: Adapter, most: int | None = None) -> Task:
    """`task` with the first `most` rows of its training split, of which every one has a `reference`
    and no label: float32 hidden states, or logits of an image model, where the base with `own`
    predicts something. Training then lowers the divergence from `own`'s predictions.

    Raises SolarError as `check_heads` and `check_answers` do.
    """
    check_heads(own, task.objective == "image_class")
    check_answers(base, own)
    shape, aim = structure(base.config, own.ranks), aim_of(task, base)
    on_device = replace(base, params={k: jnp.asarray(v) for k, v in base.params.items()})
    rows = {k: v[:most] for k, v in task.train.items() if k != "label"}
    count = len(next(iter(rows.values())))
    parts = []
    for first in range(0, count, TOGETHER):
        index = np.minimum(np.arange(first, first + TOGETHER), count - 1)  # one shape is compiled
        parts.append({k: v[index] for k, v in rows.items()})
    leaves = hook_leaves(base, own.update, own.ranks)
    found = outputs_of(on_device, shape, aim, leaves, own.heads, parts)
    rows["reference"] = np.concatenate(found)[:count].astype(np.float32)
    if "label" in task.train:
        rows["label"] = np.zeros(count, np.int32)  # of no effect, so that none is used
    name = f"{task.name}, matched"
    return replace(task, name=name, train=rows, identity=identity_of({"train": rows}))
