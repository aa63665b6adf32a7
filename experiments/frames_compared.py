"""One quantiser in many frames: what a frame is worth, and what it was measured on.

    python -m experiments.frames_compared experiment=smollm2_budgets [+seeds=[0,1,2]]
        [+budgets=[1000,4000]] [+text=bbc_news] [+out=paper_figures/data/frames_compared.csv]

Trains the adapters of the experiment, or takes them from the cache, and codes each as preset
`compact` does, in the same number of bytes (heads apart), but in other frames:

- `own, N`: eigenvectors of both moments, measured on N passages that the base writes itself, or
  pictures made from a seed; 256 are what `solar frames` takes. Here and below eigenvalues are as
  measured, which `solar frames` softens on some bases (moments.py);
- `own, 256, power P`: the same with the eigenvalues taken to that power;
- `random tokens` (`noise`), another task's text (`bbc_news`), `the task's inputs`: the same on 64
  others; no label is used;
- `inputs alone`: the moment of a layer's input only, errors counted as it has them or relative to
  each layer's own change; `outputs alone`: that of the gradients at its output only;
- `singular`, `singular, perturbed` (each vector by a tenth of its length, then made orthonormal),
  `random`, `identity`: the moments of `own, 256` in other directions, of each of which the energy
  is told as an eigenvalue is; the 64 of most energy, as in all other frames.

A row has the divergence of what the decoded adapter predicts on the test split from what the
adapter itself does, in nats, and the retained share of its gain; rows of single kinds of layers
have the error of their change as the task's own inputs feel it, relative to sending nothing.
Rows of an experiment, base, seed and budget that FILE has already are not made again.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from experiments import csv_file
from experiments.compare import shrink
from experiments.finetune import Setup, finetune, prepare
from experiments.kinds import kinds
from experiments.program import CONFIGS, main, numbers
from paper_figures import rows as results
from paper_figures.frames import COLUMNS
from solar.adapters import peft_io
from solar.adapters.adapter import Adapter
from solar.codec import activation, choose, container, frame_file
from solar.codec.factors import Factors, canonical
from solar.codec.frame_file import Frame, FramesFile
from solar.codec.heads import pack_heads
from solar.compilation import cache_compilations
from solar.evaluate import Weights, task_for, usual_names
from solar.moments import (
    PASSAGES,
    ROWS,
    TOGETHER,
    TOKENS,
    in_batches,
    own_batches,
    second_moments,
)
from solar.score import make_scorer

BUDGETS = (1000, 4000)
AMOUNTS = (1024, 256, 64, 16)  # passages or pictures
POWERS = (0.7, 0.5)
OTHERS = 64  # of every other kind
EPS = 0.1
TEXT = "bbc_news"

Layers = Mapping[str, tuple[int, int]]


class Seen(NamedTuple):
    """Second moments (n, n) float64, and which two are a layer's own, input first."""

    moments: list[np.ndarray]
    layers: Layers


class Variant(NamedTuple):
    name: str
    frames: FramesFile
    relative: float = choose.RELATIVE


def inputs_of(
    setup: Setup, text: str, data_seed: int
) -> Iterator[tuple[str, list[dict[str, np.ndarray]]]]:
    """Name and batches of everything that moments are measured on; text: name of a task."""
    base, drawn = setup.base, np.random.Generator(np.random.PCG64(0))
    own, _ = own_batches(base, 0, AMOUNTS[0])
    for amount in AMOUNTS:
        yield f"own, {amount}", own[: amount // TOGETHER]
    if base.family == "vit":
        size = base.config.image_size
        noise = drawn.integers(0, 256, (OTHERS, size, size, 3)).astype(np.uint8)
        yield "noise", in_batches({"pixels": noise})
    else:
        tokens = drawn.integers(0, base.config.vocab_size, (OTHERS, TOKENS)).astype(np.int32)
        yield "random tokens", in_batches({"tokens": tokens, "mask": np.ones(tokens.shape, bool)})
        config = OmegaConf.to_container(OmegaConf.load(CONFIGS / "task" / f"{text}.yaml"))
        yield text, in_batches(_first(task_for(base, config, data_seed).train, TOKENS))
    yield "the task's inputs", in_batches(_first(setup.task.train))


def _first(arrays: Mapping[str, np.ndarray], width: int | None = None) -> dict[str, np.ndarray]:
    """The first rows of a split, text cut to `width` tokens."""
    found = {k: v[:OTHERS] for k, v in arrays.items()}
    return {k: v[:, :width] if k in ("tokens", "mask") else v for k, v in found.items()}


def in_directions(moment: np.ndarray, vectors: np.ndarray) -> Frame:
    """The frame of orthonormal columns (n, n), those of most energy first."""
    energy = np.sum(vectors * (moment @ vectors), axis=0)
    order = np.argsort(-energy, kind="stable")
    energy = np.maximum(energy[order], energy.mean() * 1e-6)
    return frame_file.of_directions(vectors[:, order], energy, min(ROWS, len(moment) - 1))


def flat(moment: np.ndarray) -> Frame:
    """A frame in which all directions are alike."""
    return in_directions(np.eye(len(moment)) * np.trace(moment) / len(moment), np.eye(len(moment)))


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    return np.linalg.qr(columns)[0]


def turned(kind: str, weight: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions of inputs (n, n) and outputs (m, m) of a layer with a weight (m, n)."""
    m, n = weight.shape
    drawn = np.random.Generator(np.random.PCG64(seed))
    if kind == "identity":
        return np.eye(n), np.eye(m)
    if kind == "random":
        return _orthonormal(drawn.normal(size=(n, n))), _orthonormal(drawn.normal(size=(m, m)))
    left, _, right = np.linalg.svd(weight.astype(np.float64))
    sides = right.T, left
    if kind == "singular":
        return sides
    moved = (x + EPS * drawn.normal(size=x.shape) / np.sqrt(len(x)) for x in sides)
    return tuple(map(_orthonormal, moved))


def variants(setup: Setup, names: tuple[str, ...], seen: Mapping[str, Seen]) -> Iterator[Variant]:
    """Everything that is compared, of the layers `names`."""
    weights = Weights(setup.base)
    known = container.identify(weights, names)
    digests = dict(zip(known.names, known.digests, strict=True))
    filed = partial(FramesFile, digests=digests, about={})

    def whole(own: Seen, make=lambda moment, side: frame_file.quantised(moment, ROWS)):
        inputs = {pair[0] for pair in own.layers.values()}
        made = [make(moment, int(i not in inputs)) for i, moment in enumerate(own.moments)]
        return filed(tuple(made), own.layers)

    for name, own in seen.items():
        yield Variant(name, whole(own))
    own = seen[f"own, {PASSAGES}"]

    def softened(power: float):
        return whole(own, lambda moment, _: frame_file.softened(
            frame_file.quantised(moment, ROWS), power))  # fmt: skip

    for power in POWERS:
        yield Variant(f"own, {PASSAGES}, power {power}", softened(power))

    def one_side(kept: int):
        return whole(own, lambda moment, side: frame_file.quantised(moment, ROWS)
                     if side == kept else flat(moment))  # fmt: skip

    yield Variant("inputs alone", one_side(0), 0.0)
    yield Variant("inputs alone, relative", one_side(0), 1.0)
    yield Variant("outputs alone", one_side(1))
    for kind in ("singular", "singular, perturbed", "random", "identity"):
        frames, layers = [], {}
        for i, name in enumerate(sorted(names)):
            layers[name] = 2 * i, 2 * i + 1
            both = turned(kind, np.asarray(weights[name]), i)
            moments = (own.moments[place] for place in own.layers[name])
            frames += map(in_directions, moments, both)
        yield Variant(kind, filed(tuple(frames), layers))


def felt(
    before: Mapping[str, Factors], after: Mapping[str, Factors], own: Seen
) -> dict[str, float]:
    """By kind of layer: ||G^{1/2} (dW - dW') A^{1/2}||_F relative to ||G^{1/2} dW A^{1/2}||_F, over
    all layers of the kind."""
    sums: dict[str, np.ndarray] = {}
    kind = kinds(before)
    for name, (left, right) in before.items():
        inputs, outputs = (own.moments[place] for place in own.layers[name])
        other = after[name]
        both = np.concatenate([left, -other.left], 1), np.concatenate([right, other.right], 1)
        found = [np.sum((a.T @ outputs @ a) * (b.T @ inputs @ b)) for a, b in (both, (left, right))]
        sums[kind[name][1]] = sums.get(kind[name][1], 0.0) + np.array(found)
    return {name: float(np.sqrt(max(lost, 0) / all_)) for name, (lost, all_) in sums.items()}


def measure(
    config: Mapping[str, Any], setup: Setup, adapter: Adapter, every: Iterable[Variant],
    judge: Seen, budgets: Iterable[int],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of one adapter. judge: the moments of the task's own inputs."""
    weights, usual = Weights(setup.base), usual_names(setup.base)
    factors, head = canonical(adapter.pairs), len(pack_heads(adapter.heads))
    known = container.identify(weights, factors)
    whole = {k: (f.left, f.right) for k, f in factors.items()}
    score = make_scorer(
        setup.base, setup.task, adapter.ranks, "test", config["evaluate"]["batch_size"],
        config["evaluate"]["examples"], reference=(whole, adapter.heads),
    )  # fmt: skip
    base = score({}, adapter.heads)["score"]
    gain = score(whole, adapter.heads)["score"] - base
    for frame, frames, relative in every:
        for budget in budgets:
            coded = activation.encode(
                factors, weights, frames, known=known, heads=adapter.heads, relative=relative,
                budget_bytes=budget + head, usual_names=usual,
            )  # fmt: skip
            own = {k: (f.left, f.right) for k, f in coded.factors.items()}
            found = score(own, adapter.heads)
            row = {
                "experiment": config["name"], "base": config["model"]["name"],
                "task": config["task"]["name"], "seed": config["seed"],
                "frame": frame, "budget": budget,
            }  # fmt: skip
            yield row | {
                "layers": "all",
                "bytes": len(coded.data) - head,
                "kl": f"{found['kl']:.5g}",
                "score": f"{found['score']:.5g}",
                "retained": f"{(found['score'] - base) / gain:.5g}" if gain > 0 else "",
            }
            for kind, error in felt(factors, coded.factors, judge).items():
                yield row | {"layers": kind, "error": f"{error:.5g}"}


def _watched(name: str, console: Console, items: Iterable, count: int, what: str) -> Iterable:
    return track(items, name + what, count, console=console)


def _done(out: str | None, config: Mapping[str, Any]) -> set[tuple[int, int]]:
    """Seeds and budgets of which the file has rows of this experiment and base."""
    if not out or not Path(out).is_file():
        return set()
    found, mine = results.read(out), {"experiment": config["name"], "base": config["model"]["name"]}
    return {(r["seed"], r["budget"]) for r in found if mine.items() <= r.items()}


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    out, text = plain.pop("out", None), plain.pop("text", TEXT)
    budgets = numbers(plain, "budgets", list(BUDGETS))
    seeds = numbers(plain, "seeds", [plain["seed"]])
    plain = shrink(plain) if plain["tiny"] else plain
    console, done = Console(stderr=True), _done(out, plain)
    left = {seed: [size for size in budgets if (seed, size) not in done] for seed in seeds}
    if known := done & set(itertools.product(seeds, budgets)):
        console.print(f"{out} has {len(known)} of {len(seeds) * len(budgets)} seeds and budgets")
    left = {seed: sizes for seed, sizes in left.items() if sizes}
    if not left:
        return
    setup, every, seen = prepare(plain), None, {}
    for seed, sizes in left.items():
        own = plain | {"seed": seed}
        adapter = peft_io.read(finetune(own, setup), setup.base)
        if every is None:
            names = tuple(adapter.pairs)
            for name, batches in inputs_of(setup, text, plain["data_seed"]):
                watch = partial(_watched, f"{name}: ", console)
                seen[name] = Seen(*second_moments(setup.base, batches, names=names, watch=watch))
            every = list(variants(setup, names, seen))
        found = measure(own, setup, adapter, every, seen["the task's inputs"], sizes)
        rows = list(track(found, f"seed {seed}", None, console=console))
        mine = ("experiment", "base", "seed", "budget")
        csv_file.put_out(out, "frames_compared.csv", COLUMNS, rows, mine)


if __name__ == "__main__":
    cache_compilations()
    program()
