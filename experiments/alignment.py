"""How much of a trained adapter lies in the leading singular subspace of its base: the paper's
premise, measured.

    python -m experiments.alignment experiment=smollm2_sentiment [seed=0] [+out=FILE.csv]

Trains the adapter of the experiment, or takes it from the cache, and writes ``alignment.csv`` to
the run's folder, or its rows into FILE.csv: for every adapted layer and side the share of energy
in the leading N singular vectors, beside the share in a seeded random subspace of N dimensions and
N / dimension. ``paper_figures.alignment`` draws it.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments import csv_file
from experiments.compare import shrink
from experiments.finetune import finetune, prepare
from experiments.kinds import kinds
from experiments.program import main
from paper_figures.alignment import COLUMNS
from solar import packages
from solar.adapters import peft_io
from solar.codec.alignment import alignment
from solar.codec.factors import canonical
from solar.compilation import cache_compilations
from solar.evaluate import Weights

SIZES = (16, 64)


def measure(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per adapted layer, side and size, with the columns of the figure and the seed."""
    setup = prepare(config)
    adapter = peft_io.read(finetune(config, setup), setup.base)
    cache = packages.cache_dir() / "bases"
    factors, kind = canonical(adapter.pairs), kinds(adapter.pairs)
    shares = alignment(factors, Weights(setup.base), SIZES, cache, seed=config["seed"])
    for share in shares:
        yield {
            "experiment": config["name"],
            "base": config["model"]["name"],
            "seed": config["seed"],
            "layer": kind[share["name"]][0],
            "module": kind[share["name"]][1],
            "side": share["side"],
            "size": share["size"],
            "alignment": share["singular"],
            "random": share["random"],
            "chance": share["expected"],
        }


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    out = plain.pop("out", None)
    rows = list(measure(shrink(plain) if plain["tiny"] else plain))
    csv_file.put_out(out, "alignment.csv", [*COLUMNS, "seed"], rows, ("experiment", "base", "seed"))


if __name__ == "__main__":
    cache_compilations()
    program()
