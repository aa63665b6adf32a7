"""What both ends of a link know before a file arrives, and how much of an update that is.

    python -m experiments.known_to_both experiment=smollm2_budgets [+seeds=[0,1,2]] [+out=FILE.csv]

Trains the adapters of the experiment, or takes them from the cache. For each, as shares in the mean
of the layers, in the metric of preset `compact`:

- `start`: of the energy of the inputs' side, what lies in the span of A's initial values, which the
  recorded seed gives (`control`: of those of another seed), and `moved`, the squared error of
  sending B alone with A as it began, relative to sending nothing;
- `earlier, right` and `earlier, left`: what lies in the span of the factors that the other seeds'
  adapters have in the same layer (`control`: the factors of the next layer of the same shape
  there).

`energies` are bits a component: the entropy of the energies' differences from one layer to the
next, as the codec sends them, and from the same component of another seed's adapter (`control`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from experiments import csv_file
from experiments.compare import shrink
from experiments.finetune import Setup, adapter_config, finetune, prepare
from experiments.kinds import kinds
from experiments.program import main, numbers
from solar import frame_store
from solar.adapters import lora, peft_io
from solar.codec import container, framed, metric
from solar.codec.factors import canonical
from solar.codec.frame_file import OCTAVE
from solar.codec.metric import Reflections, Seen
from solar.compilation import cache_compilations
from solar.evaluate import Weights

COLUMNS = ("experiment", "base", "task", "seed", "known", "share", "control")
OTHER = 1000  # added to a seed for the control


def share(of: np.ndarray, span: np.ndarray) -> float:
    """Of the energy of columns (n, r), what lies in the span of columns (n, k)."""
    inside = np.linalg.qr(span)[0].T @ of
    return float(np.sum(inside**2) / np.sum(of**2))


def entropy(values: np.ndarray) -> float:
    """Bits a value, of whole numbers, by their own frequencies."""
    _, counts = np.unique(values, return_counts=True)
    chance = counts / counts.sum()
    return float(-(chance * np.log2(chance)).sum())


def starts(setup: Setup, config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """A (r, n) of every layer before training."""
    key = jax.random.key(seed, impl="threefry2x32")
    own, _ = lora.init(key, setup.base, adapter_config(config["adapter"]))
    return {k.removesuffix(".lora_A"): np.asarray(v) for k, v in own.items() if "lora_A" in k}


def measure(config: Mapping[str, Any], setup: Setup, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Rows of all seeds."""
    adapters = {
        seed: peft_io.read(finetune({**config, "seed": seed}, setup), setup.base) for seed in seeds
    }
    weights, names = Weights(setup.base), tuple(sorted(adapters[seeds[0]].pairs))
    known = container.identify(weights, names)
    frames = frame_store.for_base(None, setup.spec, weights, known)
    turns = framed.reflections(known, (1,) * len(known.names), frames)
    every: dict[int, dict[str, Seen]] = {}
    for seed, adapter in adapters.items():
        factors = canonical(adapter.pairs)
        every[seed] = {name: metric.seen(factors[name], *turns[name]) for name in known.names}
    shapes = dict(zip(known.names, known.shapes, strict=True))
    for seed, adapter in adapters.items():
        found = _started(every[seed], adapter.pairs, turns, *(
            starts(setup, config, s) for s in (seed, seed + OTHER)
        ))  # fmt: skip
        others = [every[other] for other in seeds if other != seed]
        if others:
            found |= _earlier(every[seed], others, _neighbours(shapes))
            found["energies"] = _energies(every[seed], others[0], shapes)
        for what, (own, control) in found.items():
            yield {
                "experiment": config["name"], "base": config["model"]["name"],
                "task": config["task"]["name"], "seed": seed,
                "known": what, "share": f"{own:.4g}",
                "control": "" if control is None else f"{control:.4g}",
            }  # fmt: skip


Found = dict[str, tuple[float, float | None]]


def _started(
    own: Mapping[str, Seen], pairs: Mapping[str, tuple],
    turns: Mapping[str, tuple[Reflections, Reflections]],
    before: Mapping[str, np.ndarray], strange: Mapping[str, np.ndarray],
) -> Found:  # fmt: skip
    shares, controls, moved = [], [], []
    for name, seen in own.items():
        inputs, outputs = turns[name]
        b, a, _ = pairs[name]
        shares.append(share(seen.right, metric.into(inputs, before[name].T)))
        controls.append(share(seen.right, metric.into(inputs, strange[name].T)))
        left = metric.into(outputs, b)
        both = [left @ metric.into(inputs, x.T).T for x in (a - before[name], a)]
        moved.append(np.sum(both[0] ** 2) / np.sum(both[1] ** 2))
    means = map(float, map(np.mean, (shares, controls, moved)))
    inside, control, left_out = means
    return {"start": (inside, control), "moved": (left_out, None)}


def _neighbours(shapes: Mapping[str, tuple]) -> dict[str, str]:
    """The next layer of the same kind and shape, of the last one the first."""
    alike: dict[tuple, list[str]] = {}
    for name, (_, kind) in kinds(shapes).items():
        alike.setdefault((shapes[name], kind), []).append(name)
    return {
        own: other for k in alike.values() for own, other in zip(k, [*k[1:], k[0]], strict=True)
    }


def _earlier(
    own: Mapping[str, Seen], others: list[Mapping[str, Seen]], next_to: Mapping[str, str]
) -> Found:
    found: Found = {}
    for side in ("right", "left"):
        both = []
        for place in (lambda name: name, next_to.get):
            spans = (
                np.concatenate([getattr(x[place(name)], side) for x in others], axis=1)
                for name in own
            )
            each = [
                share(getattr(seen, side), span)
                for seen, span in zip(own.values(), spans, strict=True)
            ]
            both.append(float(np.mean(each)))
        found[f"earlier, {side}"] = both[0], both[1]
    return found


def _energies(own: Mapping[str, Seen], other: Mapping[str, Seen], shapes: Mapping) -> tuple:
    """Bits a component as differences from the layer before and the component before, and as
    differences from the other adapter."""

    def powers(seen: Mapping[str, Seen]) -> dict[str, np.ndarray]:
        return {k: np.round(OCTAVE * np.log2(np.maximum(s.sizes, 1e-30))) for k, s in seen.items()}

    mine, theirs = powers(own), powers(other)
    before, found = {}, []
    for name, values in mine.items():
        first = values[0] - before.get(shapes[name], values[0])
        found += [first, *np.diff(values)]
        before[shapes[name]] = values[0]
    between = np.concatenate([mine[name] - theirs[name] for name in mine])
    return entropy(np.array(found)), entropy(between)


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    out, seeds = plain.pop("out", None), numbers(plain, "seeds", [plain["seed"]])
    plain = shrink(plain) if plain["tiny"] else plain
    rows = list(measure(plain, prepare(plain), seeds))
    table = Table(*COLUMNS[3:])
    for row in rows:
        table.add_row(*(str(row[column]) for column in COLUMNS[3:]))
    Console().print(table)
    csv_file.put_out(out, "known_to_both.csv", COLUMNS, rows, ("experiment", "base", "seed"))


if __name__ == "__main__":
    cache_compilations()
    program()
