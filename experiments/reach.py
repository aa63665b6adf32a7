"""What the codecs reach on a trained adapter, beside the rate-distortion limit.

    python -m experiments.reach experiment=smollm2_sentiment [+out=paper_figures/data/reach.csv]

Trains the adapter of the experiment, or takes it from the cache, codes it by every method at its
own sizes and at a few budgets by preset `weights` and by `absolute weights`, which is the same with
errors counted as they are in dW and not relative to each layer's update, and prints for each file
the relative error and the bytes that Shannon's bound needs for the same error. Weights only:
nothing is scored. `+out=FILE` appends the rows to a CSV, replacing those of the same adapter.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from experiments import csv_file
from experiments.compare import shrink
from experiments.finetune import finetune, prepare
from experiments.program import main
from solar import packages
from solar.adapters import peft_io
from solar.api import setting_for
from solar.codec import baselines, limit
from solar.codec.container import Encoded
from solar.codec.encode import encode
from solar.codec.factors import Factors, canonical
from solar.codec.recipe import Recipe, Setting
from solar.compilation import cache_compilations
from solar.evaluate import Weights, usual_names

BUDGETS = (2_000, 4_000, 8_000, 16_000, 32_000, 64_000)
COLUMNS = ("adapter", "seed", "code", "bytes", "payload", "relative_error", "limit", "ratio")


def codes(
    factors: dict[str, Factors], weights: Weights, names: tuple[str, ...], seed: int
) -> Iterator[tuple[str, Encoded]]:
    """Name and file of everything that is compared, heads left out."""
    cache = packages.cache_dir() / "bases"
    for bits, rank in ((4, None), (1, None), (4, 1), (2, 1), (1, 1)):
        name = f"{bits}-bit" + (f", rank {rank}" if rank else "")
        yield (
            name,
            baselines.encode(factors, weights, "bits", bits=bits, rank=rank, usual_names=names),
        )
    paper = Setting(Recipe("singular", 192, 0.1, seed=seed))
    yield "paper, N 192", encode(factors, weights, paper, usual_names=names, cache=cache)
    plain = setting_for("weights", seed, embed_basis=False)
    for name, setting in (("weights", plain), ("absolute weights", replace(plain, relative=0.0))):
        for size in BUDGETS:
            coded = encode(
                factors, weights, setting, budget_bytes=size, usual_names=names, cache=cache
            )
            yield name, coded


def measure(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per file: its bytes and error, the limit's bytes for that error, and their ratio.

    The ratio compares the payload: the limit counts header and names as free.
    """
    setup = prepare(config)
    adapter = peft_io.read(finetune(config, setup), setup.base)
    factors = canonical(adapter.pairs)
    curve = limit.rate_distortion(factors)
    for name, coded in codes(factors, Weights(setup.base), usual_names(setup.base), config["seed"]):
        error, sizes = coded.report["relative_error"], coded.report["bytes"]
        least = limit.bytes_at(curve, error)
        yield {
            "adapter": config["name"],
            "seed": config["seed"],
            "code": name,
            "bytes": sizes["total"],
            "payload": sizes["payload"],
            "relative_error": f"{error:.6g}",
            "limit": round(least),
            "ratio": f"{sizes['payload'] / least:.3f}" if least > 0 else "",
        }


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    out = plain.pop("out", None)
    rows = list(measure(shrink(plain) if plain["tiny"] else plain))
    table = Table(*COLUMNS[2:], title=f"{plain['name']}, seed {plain['seed']}")
    for row in rows:
        table.add_row(*(str(row[column]) for column in COLUMNS[2:]))
    Console().print(table)
    path = Path(out) if out else Path(HydraConfig.get().runtime.output_dir) / "reach.csv"
    csv_file.put(path, COLUMNS, rows, ("adapter", "seed"))
    Console().print(f"wrote {path}", highlight=False)


if __name__ == "__main__":
    cache_compilations()
    program()
