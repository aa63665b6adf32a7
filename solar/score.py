"""Measures an update on a task: one compiled function into which any number of adapters is put.

Text is batched by length. The last batch is filled up with rows of weight 0, so that every example
counts once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solar import written
from solar.errors import SolarError
from solar.models.structure import Structure, assemble, structure
from solar.objective import Aim, Outcome, aim_of, measure, predict
from solar.tasks.task import Task
from solar.weights.base import Base
from solar.written import make_writer

WIDTH_STEP = 8  # token widths are rounded up to this, so that few shapes are compiled

Update = Mapping[str, tuple[np.ndarray, np.ndarray]]


def batches(arrays: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of equal size; text is sorted by length and cut to the batch's width, rows that only
    fill up the last batch have weight 0.
    """
    count = len(next(iter(arrays.values())))
    order = np.arange(count)
    if "mask" in arrays:
        order = np.argsort(arrays["mask"].sum(1), kind="stable")
    for first in range(0, count, size):
        index = order[first : first + size]
        fill = np.concatenate([index, np.full(size - len(index), index[-1])])
        batch = {k: v[fill] for k, v in arrays.items()}
        if "mask" in batch:
            longest = int(batch["mask"].sum(1).max())
            width = -(-longest // WIDTH_STEP) * WIDTH_STEP
            for name in ("tokens", "mask", "target_mask"):
                if name in batch:
                    batch[name] = batch[name][:, :width]
        batch["weight"] = (np.arange(size) < len(index)).astype(np.float32)
        yield batch


def make_scorer(
    base: Base,
    task: Task,
    ranks: Mapping[str, int],
    split: str = "test",
    batch_size: int = 32,
    examples: int | None = None,
    *,
    reference: tuple[Update, Mapping[str, np.ndarray]] | None = None,
    text: Mapping[str, Any] | None = None,
    also: Mapping[str, Task] | None = None,
) -> Callable[[Update, Mapping[str, np.ndarray]], dict[str, float]]:
    """A function ``(update, heads) -> {score, loss, count, ...}`` on one split of a right-padded
    task.

    ``examples`` takes the first so many of the split, whose order is random.

    score is accuracy in [0, 1] (of tokens, for next_token); loss is the mean cross-entropy in nats.
    With ``reference``, an update and its heads: kl, the mean KL(reference || update) in nats over
    what is predicted. With ``text`` (settings of solar.written): the metrics of what is written for
    the split's prompts. With ``also``: also_NAME, the score of each further task.
    Raises SolarError for an empty split and where a reference or text does not fit the task.
    """
    arrays = {k: v[:examples] for k, v in getattr(task, split).items()}
    if not arrays or len(next(iter(arrays.values()))) == 0:
        raise SolarError(
            f"task {task.name} has no {split} examples; check its source and split sizes"
        )
    shape, aim = structure(base.config, ranks), aim_of(task, base)
    params = {k: jnp.asarray(v) for k, v in base.params.items()}
    base = replace(base, params=params)  # one copy on the device for all that is measured
    parts = list(batches(arrays, batch_size))
    befores = [None] * len(parts)
    if reference is not None:
        befores = outputs_of(base, shape, aim, hook_leaves(base, reference[0], ranks),
                             reference[1], parts)  # fmt: skip
    write = make_writer(base, task, arrays, written.parse(text)) if text else None
    others = {
        name: make_scorer(base, other, ranks, split, batch_size)
        for name, other in (also or {}).items()
    }

    @jax.jit
    def run(params, leaves, batch, before):
        return measure(assemble(shape, {**params, **leaves}), aim, batch, before)

    def score(update: Update, heads: Mapping[str, np.ndarray]) -> dict[str, float]:
        given = {
            k: jnp.asarray(v) for k, v in {**hook_leaves(base, update, ranks), **heads}.items()
        }
        check_complete(base, given)
        total = Outcome(0.0, 0.0, 0.0, 0.0)
        for part, before in zip(parts, befores, strict=True):
            # One small read a batch keeps the device's queue short and Ctrl-C prompt.
            outcome = jax.device_get(run(params, given, part, before))
            total = Outcome(*(a + float(b) for a, b in zip(total, outcome, strict=True)))
        count = max(total.count, 1.0)
        found = {"score": total.correct / count, "loss": total.loss / count, "count": total.count}
        if reference is not None:
            found["kl"] = total.divergence / count
        if write is not None:
            found |= write(given, ranks)
        return found | {f"also_{k}": other(update, heads)["score"] for k, other in others.items()}

    return score


def outputs_of(
    base: Base,
    shape: Structure,
    aim: Aim,
    leaves: Mapping[str, np.ndarray],
    heads: Mapping[str, np.ndarray],
    parts: Sequence[Mapping[str, np.ndarray]],
) -> list[np.ndarray]:
    """What :func:`solar.objective.predict` gives for each batch under a reference, on the host:
    hidden states, because logits of a whole split would not fit.

    Raises SolarError for a reference that brings an output head of a language model.
    """
    if heads and aim.objective != "image_class":
        raise SolarError(
            f"the reference brings {', '.join(sorted(heads))}; the KL of a language model's "
            "outputs needs the base's own head: set evaluate.kl=false"
        )
    given = {**base.params, **{k: jnp.asarray(v) for k, v in {**leaves, **heads}.items()}}

    @jax.jit
    def run(given, batch):
        return predict(assemble(shape, given), aim, batch)

    return [jax.device_get(run(given, part)) for part in parts]


def check_complete(base: Base, given: Mapping) -> None:
    """Raises SolarError where the base lacks a head that the file does not bring either."""
    lacking = structure(base.config).leaves.keys() - base.params.keys() - given.keys()
    if lacking:
        raise SolarError(
            f"neither the base nor the file holds {', '.join(sorted(lacking))}; "
            "train it with modules_to_save"
        )


def hook_leaves(base: Base, update: Update, ranks: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Leaves of the low-rank hooks for ``dW = L R^T``: zero columns up to the rank, zeros where
    nothing came.
    """
    if unknown := sorted(update.keys() - ranks.keys()):
        raise SolarError(f"the file updates {unknown[0]}, which this evaluation has no hook for")
    leaves = {}
    linears = structure(base.config).linears
    for name, rank in ranks.items():
        outputs, inputs, _ = linears[name]
        a, b = np.zeros((rank, inputs), np.float32), np.zeros((outputs, rank), np.float32)
        if name in update:
            left, right = update[name]
            a[: right.shape[1]], b[:, : left.shape[1]] = right.T, left
        leaves[f"{name}.lora_A"], leaves[f"{name}.lora_B"] = a, b
    return leaves
