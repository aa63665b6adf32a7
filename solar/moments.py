"""Moments: the second moments of what a base feeds to its own projections, and of the gradients
that arrive at their outputs, as a frames file.

No data is needed. A language model is run on text that it writes itself from a seed, each passage
begun with a token drawn at random; the gradients are those of the loss on that text, whose tokens
are drawn from the model's own predictions, so that their moments are those of the Fisher
information. An image model is run on pictures made from a seed (pictures.py), and its gradients are
those of sums of its last features with random signs, since a classifier is what adapters bring.
What an error costs goes less steeply with the eigenvalues than a quadratic form says, so those of a
base whose gradients keep to few directions are softened.
Everything but the draw of the text's tokens is computed in float64, and rounded to integers only
then (codec/frame_file.py), so that another machine gets the same file.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solar.codec import container, frame_file
from solar.codec.container import Watch, unwatched
from solar.codec.frame_file import Frame, FramesFile
from solar.errors import SolarError
from solar.evaluate import Weights
from solar.generate import generate
from solar.models.structure import assemble, find, structure
from solar.objective import cross_entropy, project
from solar.pictures import pictures
from solar.weights.base import Base, load

ROWS = 64  # directions in a frame
PASSAGES, TOKENS = 256, 32  # that a language model writes
TOGETHER = 16  # passages or images in one batch: the gradients of a deep model fill memory
IMAGES, PATCHES = 256, 8  # pictures, and patches along a side
SHARPNESS = 0.5  # octaves, of gradients, above which eigenvalues are softened


def frames_of(
    base: Base,
    batches: Iterable[dict[str, np.ndarray]] | None = None,
    *,
    rows: int = ROWS,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    watch: Watch = unwatched,
) -> FramesFile:
    """The frames of every projection of `base`.

    batches: of tokens and mask, or of pixels, instead of what the base writes itself from `seed`;
    `about` then says what they are. The file's own has, where eigenvalues were softened, the
    `power` they were taken to. Raises SolarError where the base cannot be run.
    """
    if batches is None:
        batches, about = own_batches(base, seed)
    about = {"rows": rows, **(about or {})}
    moments, layers = second_moments(base, batches, seed=seed, watch=watch)
    found = watch(moments, len(moments), "eigenvectors")
    frames = tuple(frame_file.quantised(moment, rows) for moment in found)
    power = softening(frames[out] for _, out in layers.values())
    if power < 1:
        frames = tuple(frame_file.softened(own, power) for own in frames)
        about["power"] = power
    known = container.identify(Weights(base), layers)
    digests = dict(zip(known.names, known.digests, strict=True))
    return FramesFile(frames, layers, digests, about)


def softening(outputs: Iterable[Frame]) -> float:
    """The power, in tenths and at most 1, to which a base's eigenvalues are taken so that the
    median of its outputs' frames has a sharpness (frame_file.py) of about SHARPNESS."""
    found = float(np.median([frame_file.sharpness(own) for own in outputs]))
    return min(1.0, round(10 * math.sqrt(SHARPNESS / found)) / 10) if found > 0 else 1.0


def in_batches(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The inputs of a split in batches that moments are measured on; text, short to long, is cut to
    the longest of its batch, in steps of 8 tokens so that few widths are compiled."""
    found = {k: arrays[k] for k in ("tokens", "mask", "pixels") if k in arrays}
    count, parts = len(next(iter(found.values()))), []
    order = np.arange(count)
    if "mask" in found:
        order = np.argsort(found["mask"].sum(axis=1), kind="stable")
    for at in range(0, count, TOGETHER):
        part = {k: v[order[at : at + TOGETHER]] for k, v in found.items()}
        if "mask" in part:
            width = -(-int(part["mask"].sum(axis=1).max()) // 8) * 8
            part = {k: v[:, :width] for k, v in part.items()}
        parts.append(part)
    return parts


def second_moments(
    base: Base,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    names: Collection[str] | None = None,
    seed: int = 0,
    watch: Watch = unwatched,
) -> tuple[list[np.ndarray], dict[str, tuple[int, int]]]:
    """Second moments (n, n) float64 of inputs and of gradients at outputs, and which two of them
    are a projection's own, input first. names: projections that are asked about, all unless given.

    Raises SolarError where the base cannot be run.
    """
    with jax.enable_x64(True):
        return _sum(_precise(base), list(batches), seed, watch, names)


def _precise(base: Base) -> Base:
    """The base in float64; an image model without the classifier that adapters bring."""
    plain = {"dtype": "float64", "remat": False}
    if base.family == "vit":
        plain["num_labels"] = 0
    return replace(
        base,
        config=replace(base.config, **plain),
        params={k: np.asarray(v, np.float64) for k, v in base.params.items()},
    )


def own_batches(
    base: Base, seed: int, count: int | None = None
) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """What the base is run on where nothing is given, `count` passages or pictures, and what to
    call it. More of them begin with the same, text in whole PASSAGES."""
    if base.family == "vit":
        count = count or IMAGES
        pixels = pictures(count, base.config.image_size, seed)
        about = {"images": "dead leaves and digits", "seed": seed, "n": count}
        return [{"pixels": pixels[at : at + TOGETHER]} for at in range(0, count, TOGETHER)], about
    count = count or PASSAGES
    with jax.enable_x64(True):
        tokens = written(_precise(base), count, seed)
    parts = [tokens[at : at + TOGETHER] for at in range(0, count, TOGETHER)]
    about = {"text": "its own", "seed": seed, "tokens": count * TOKENS}
    return [{"tokens": part, "mask": np.ones(part.shape, bool)} for part in parts], about


def written(base: Base, count: int, seed: int) -> np.ndarray:
    """Passages that a language model writes itself, int32 (count, TOKENS), each begun with a token
    drawn at random."""
    drawn, parts = np.random.Generator(np.random.PCG64(seed)), []
    for at in range(0, count, PASSAGES):
        first = drawn.integers(0, base.config.vocab_size, (min(PASSAGES, count - at), 1)).tolist()
        rest = generate(base, first, TOKENS - 1, temperature=1.0, seed=seed + at)
        parts += [a + b for a, b in zip(first, rest, strict=True)]
    return np.array(parts, np.int32)


def image_size(config: Any) -> int:
    """The image size at which an image model is run: smaller than its own, for speed."""
    return min(config.image_size, PATCHES * config.patch_size)


def load_small(spec: str, **overrides: Any) -> Base:
    """A base as `load` gives it, an image model at `image_size`: for what needs no detail."""
    base = load(spec, **overrides)
    if base.family == "vit" and image_size(base.config) != base.config.image_size:
        base = load(spec, image_size=image_size(base.config), **overrides)
    return base


def _loss(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """What the gradients are those of, a sum over the batch."""
    if "pixels" in batch:
        return (model(batch["pixels"]) * batch["signs"]).sum()
    hidden, _ = model(batch["tokens"], batch["mask"])
    each = cross_entropy(project(hidden[:, :-1], model.head()), batch["tokens"][:, 1:])
    return (each * batch["mask"][:, 1:]).sum()


def _as_taken(base: Base, batch: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """A batch as the model takes it; images with the signs of their features."""
    if "pixels" not in batch:
        return batch
    pixels = (batch["pixels"] / 255.0 - np.array(base.image_mean)) / np.array(base.image_std)
    drawn = np.random.Generator(np.random.PCG64(seed))
    signs = drawn.choice([-1.0, 1.0], (len(pixels), base.config.hidden_size))
    return {"pixels": pixels.transpose(0, 3, 1, 2), "signs": signs}


def _sum(
    base: Base,
    batches: list[dict[str, np.ndarray]],
    seed: int,
    watch: Watch,
    names: Collection[str] | None = None,
) -> tuple[list[np.ndarray], dict[str, tuple[int, int]]]:
    """second_moments of a base as it is."""
    shape = structure(base.config)
    asked = [name for name in shape.linears if names is None or name in names]
    leaves = {k: jnp.asarray(base.params[k]) for k in shape.leaves}
    layers: dict[str, int] = {}

    def run(probes, leaves, batch):
        """The loss with `probes` added to the outputs; the different inputs, and the outputs."""
        model, inputs, outputs = assemble(shape, leaves), [], {}
        layers.clear()

        def watched(name, projection):
            def call(x):
                same = [i for i, y in enumerate(inputs) if y is x]
                layers[name] = same[0] if same else len(inputs)
                if not same:
                    inputs.append(x)
                outputs[name] = projection(x) + probes.get(name, 0.0)
                return outputs[name]

            call.weight = projection.weight  # an output head is multiplied with, not called
            return call

        for name in asked:
            above, _, last = name.rpartition(".")
            owner = find(model, above) if above else model
            setattr(owner, last, watched(name, getattr(owner, last)))
        return _loss(model, batch), (inputs, outputs)

    @jax.jit
    def summed(leaves, batch):
        _, (_, outputs) = jax.eval_shape(run, {}, leaves, batch)
        probes = {k: jnp.zeros(y.shape, y.dtype) for k, y in outputs.items()}
        gradients, (inputs, _) = jax.grad(run, has_aux=True)(probes, leaves, batch)
        if "mask" in batch:
            inputs = [x * batch["mask"][..., None] for x in inputs]
        every = [*inputs, *(gradients[name] for name in sorted(gradients))]
        flat = [x.reshape(-1, x.shape[-1]) for x in every]
        return [x.T @ x for x in flat]

    total, count = None, 0
    for batch in watch(batches, len(batches), "second moments"):
        count += int(batch["mask"].sum()) if "mask" in batch else len(batch["pixels"])
        given = _as_taken(base, batch, seed + count)
        # One batch's sums on the host at a time: the device never holds two of them.
        found = jax.device_get(summed(leaves, {k: jnp.asarray(v) for k, v in given.items()}))
        if total is None:
            total = [np.array(x, np.float64) for x in found]
        else:
            for sum_, x in zip(total, found, strict=True):
                sum_ += x
    if total is None:
        raise SolarError("frames need at least one batch of text or images")
    inputs = len(total) - len(layers)
    both = {name: (layers[name], i) for i, name in enumerate(sorted(layers), inputs)}
    return [x / count for x in total], both
