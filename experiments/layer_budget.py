"""Where `weights` spends the bytes of one budget: rank, bits and error of every adapted layer.

    python -m experiments.layer_budget experiment=smollm2_sentiment [seed=0] [+budget=7500]
        [+out=paper_figures/data/layer_budget.csv]

Trains the adapter of the experiment, or takes it from the cache, codes it once, and writes for
every adapted layer and side the rank that is sent, the bits spent (entropy-coded cells, and the
bytes of energies, of which one that serves both sides counts half to each), and the relative error
of the layer's update, the same for both sides. Weights only: nothing is scored. Rows go to
``layer_budget.csv`` in the run's folder, or to FILE, replacing those of the same experiment,
base, seed and budget. ``paper_figures.layer_budget`` draws it.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments import csv_file
from experiments.compare import shrink
from experiments.finetune import finetune, prepare
from experiments.kinds import kinds
from experiments.program import main
from paper_figures.layer_budget import COLUMNS
from solar import packages
from solar.adapters import peft_io
from solar.api import setting_for
from solar.codec.encode import encode
from solar.codec.factors import canonical
from solar.compilation import cache_compilations
from solar.errors import SolarError
from solar.evaluate import Weights, usual_names

BUDGET = 7_500  # bytes of the file: what the signs of rank-1 factors take on SmolLM2's q and v


def measure(config: dict[str, Any], budget: int) -> Iterator[dict[str, Any]]:
    """A row per adapted layer and side, with the columns of the figure."""
    setup = prepare(config)
    adapter = peft_io.read(finetune(config, setup), setup.base)
    coded = encode(
        canonical(adapter.pairs),
        Weights(setup.base),
        setting_for("weights", config["seed"], embed_basis=False),
        budget_bytes=budget,
        usual_names=usual_names(setup.base),
        cache=packages.cache_dir() / "bases",
    )
    kind = kinds(adapter.pairs)
    for layer in coded.report["layers"]:
        name = layer["name"]
        error = layer["measured"] / layer["norm"] if layer["norm"] > 0 else 0.0
        for side in ("left", "right"):
            yield {
                "experiment": config["name"],
                "base": config["model"]["name"],
                "task": config["task"]["name"],
                "seed": config["seed"],
                "budget": budget,
                "layer": kind[name][0],
                "module": kind[name][1],
                "side": side,
                "rank": coded.factors[name].left.shape[1],
                "bits": round(layer.get("bits", {}).get(side, 0.0), 1),
                "relative_error": f"{error:.6g}",
            }


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    out, budget = plain.pop("out", None), plain.pop("budget", BUDGET)
    if type(budget) is not int or budget < 1:
        raise SolarError(f"budget is {budget!r}; give a number of bytes")
    rows = list(measure(shrink(plain) if plain["tiny"] else plain, budget))
    csv_file.put_out(
        out, "layer_budget.csv", COLUMNS, rows, ("experiment", "base", "seed", "budget")
    )


if __name__ == "__main__":
    cache_compilations()
    program()
