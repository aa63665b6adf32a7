"""What a batch costs and how it is scored, for each kind of task. One definition serves training
and evaluation.

All functions are pure and jit-able; sums are returned with their counts, so that batches and
accumulated micro-batches of unequal weight combine exactly.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from solar.errors import SolarError
from solar.models.linear import at_least_float32
from solar.tasks.task import LABELLED, Task


class Outcome(NamedTuple):
    """Sums over a batch: cross-entropy in nats, correct answers, what both are divided by, and the
    divergence from a reference in nats where one was given.
    """

    loss: Array
    correct: Array
    count: Array
    divergence: Array | float = 0.0


class Aim(NamedTuple):
    """The static part of a task: its objective, the token of each class, and the pixels'
    statistics.
    """

    objective: str
    label_tokens: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def aim_of(task: Task, base) -> Aim:
    """The aim of ``task`` on ``base``; raises SolarError where the two do not go together."""
    images = task.objective == "image_class"
    if images != (base.family == "vit"):
        raise SolarError(
            f"task {task.name} ({task.objective}) does not fit a {base.family} base; pick another"
        )
    if images:
        return Aim(task.objective, (), base.image_mean, base.image_std)
    tokens = () if task.label_tokens is None else tuple(int(t) for t in task.label_tokens)
    return Aim(task.objective, tokens)


def predict(model, aim: Aim, batch: Mapping[str, Array]) -> Array:
    """What the output head is applied to wherever something is predicted: hidden states, (B, D) for
    the two objectives of labels and (B, T - 1, D) for next_token; for image_class the logits (B, C)
    themselves.
    """
    if aim.objective == "image_class":
        pixels = batch["pixels"].astype(jnp.float32) / 255.0
        pixels = (pixels - jnp.asarray(aim.mean)) / jnp.asarray(aim.std)
        return model(pixels.transpose(0, 3, 1, 2))
    hidden, _ = model(batch["tokens"], batch["mask"])
    if aim.objective == "next_token":
        return hidden[:, :-1]
    last = batch["mask"].shape[1] - 1 - jnp.argmax(batch["mask"][:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def measure(model, aim: Aim, batch: Mapping[str, Array], reference: Array | None = None) -> Outcome:
    """Loss and score of a batch. ``batch['weight']`` (B,) is 0 for rows that only fill the batch
    up.

    label_token: the vocabulary-wide cross-entropy of the label's token after the last real one;
    correct where it is the likeliest of the label tokens. label_choice: the same, but the
    cross-entropy, too, is over the label tokens alone, for bases whose rare tokens' embeddings are
    too small to lift them above a whole vocabulary. next_token: cross-entropy over target
    tokens; correct counts tokens that are likeliest. image_class: cross-entropy and top-1.
    ``reference`` is what :func:`predict` gave with other weights and the same output head: the
    divergence is KL(reference || model) over the same vocabulary or classes.
    """
    weight = batch["weight"].astype(jnp.float32)
    state = predict(model, aim, batch)
    if aim.objective == "image_class":
        logits, target = state, batch["label"]
        correct = jnp.argmax(logits, -1) == target
    elif aim.objective in LABELLED:
        options = jnp.asarray(aim.label_tokens)
        among = aim.objective == "label_choice"
        head = model.head()[options] if among else model.head()
        logits = project(state, head)
        target = batch["label"] if among else options[batch["label"]]
        answers = logits if among else logits[:, options]
        correct = jnp.argmax(answers, -1) == batch["label"]
    else:
        weight = batch["target_mask"][:, 1:] * weight[:, None]
        head = model.head()
        logits, target = project(state, head), batch["tokens"][:, 1:]
        correct = jnp.argmax(logits, -1) == target
    loss = cross_entropy(logits, target)
    divergence = jnp.zeros(())
    if reference is not None:
        images = aim.objective == "image_class"
        before = reference if images else project(reference, head)
        divergence = (kullback_leibler(before, logits) * weight).sum()
    return Outcome((loss * weight).sum(), (correct * weight).sum(), weight.sum(), divergence)


def project(hidden: Array, head: Array) -> Array:
    """Logits of hidden states in the compute dtype: float32 or, of float64, that."""
    return (hidden @ head.T.astype(hidden.dtype)).astype(at_least_float32(hidden.dtype))


def kullback_leibler(before: Array, after: Array) -> Array:
    """KL(before || after) in nats of two arrays of logits, over their last axis."""
    first, second = jax.nn.log_softmax(before), jax.nn.log_softmax(after)
    return (jnp.exp(first) * (first - second)).sum(-1)


def cross_entropy(logits: Array, target: Array) -> Array:
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
