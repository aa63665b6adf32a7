"""In how many directions the energy of a trained adapter lies: in the frame of W's singular
vectors, and as the base feels it in the frame of its own activations and gradients.

    python -m experiments.energy experiment=smollm2_sentiment [seed=0] [+out=FILE.csv]

Trains the adapter of the experiment, or takes it from the cache, and writes ``energy.csv`` to the
run's folder, or its rows into FILE.csv: for each frame and side, and for leading directions of
number k, the share of energy of the factors that lies in them, in the mean of the layers and its
standard deviation over them. Frames are `singular`, `random` (as many directions of a seeded
orthogonal matrix) and `activation`, whose energy is that of the factors in the metric of preset
`compact`. ``paper_figures.energy`` draws it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from experiments import csv_file
from experiments.compare import shrink
from experiments.finetune import finetune, prepare
from experiments.program import main
from paper_figures.energy import COLUMNS
from solar import frame_store, packages
from solar.adapters import peft_io
from solar.codec import container, framed, metric
from solar.codec.alignment import alignment
from solar.codec.factors import Factors, canonical
from solar.codec.metric import Reflections
from solar.codec.recipe import SIDES
from solar.compilation import cache_compilations
from solar.evaluate import Weights

Shares = dict[tuple[str, str], list[np.ndarray]]  # (sizes,) of every layer, by frame and side


def sizes_of(base: Mapping[str, np.ndarray], names: list[str]) -> list[int]:
    """Powers of two up to the largest side, and that itself."""
    most = max(max(base[name].shape) for name in names)
    return [*(2**i for i in range((most - 1).bit_length())), most]


def in_weights(
    factors: Mapping[str, Factors], base: Mapping[str, np.ndarray], sizes: list[int],
    cache: Path | None, seed: int,
) -> Shares:  # fmt: skip
    """Of the factors in singular vectors of their weights and in random directions. A side with
    fewer directions than a size has the share of them all."""
    found: Shares = {}
    by_side: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in alignment(factors, base, sizes, cache, seed=seed):
        by_side.setdefault((record["name"], record["side"]), []).append(record)
    for (_, side), records in by_side.items():
        known = np.array([record["size"] for record in records])
        place = np.minimum(np.searchsorted(known, sizes), len(known) - 1)
        for frame in ("singular", "random"):
            own = np.array([record[frame] for record in records])
            found.setdefault((frame, side), []).append(own[place])
    return found


def in_metric(
    factors: Mapping[str, Factors], turns: Mapping[str, tuple[Reflections, Reflections]],
    sizes: list[int],
) -> Shares:  # fmt: skip
    """Of the factors as preset `compact` sees them, in the eigenvectors of either moment from the
    largest eigenvalue to the lowest. turns: of inputs and outputs, of the layers that have an
    update."""
    found: Shares = {}
    for name, (inputs, outputs) in turns.items():
        seen = metric.seen(factors[name], inputs, outputs)
        for side, columns in zip(SIDES, (seen.left, seen.right), strict=True):
            energy = np.cumsum(np.sum(columns**2, axis=1))
            place = np.minimum(sizes, len(energy)) - 1
            found.setdefault(("activation", side), []).append(energy[place] / energy[-1])
    return found


def measure(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per frame, side and size, with the columns of the figure."""
    setup = prepare(config)
    adapter = peft_io.read(finetune(config, setup), setup.base)
    factors, weights = canonical(adapter.pairs), Weights(setup.base)
    sizes = sizes_of(weights, list(factors))
    known = container.identify(weights, factors)
    frames = frame_store.for_base(None, setup.spec, weights, known)
    ranks = tuple(factors[name].left.shape[1] for name in known.names)
    turns = framed.reflections(known, ranks, frames)
    shares = in_weights(factors, weights, sizes, packages.cache_dir() / "bases", config["seed"])
    shares |= in_metric(factors, turns, sizes)
    for (frame, side), layers in shares.items():
        table = np.stack(layers)
        for size, share, spread in zip(sizes, table.mean(0), table.std(0), strict=True):
            yield {
                "experiment": config["name"],
                "base": config["model"]["name"],
                "seed": config["seed"],
                "frame": frame,
                "side": side,
                "size": size,
                "share": f"{share:.6g}",
                "spread": f"{spread:.6g}",
                "layers": len(layers),
            }


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    out = plain.pop("out", None)
    rows = list(measure(shrink(plain) if plain["tiny"] else plain))
    csv_file.put_out(out, "energy.csv", COLUMNS, rows, ("experiment", "base", "seed"))


if __name__ == "__main__":
    cache_compilations()
    program()
