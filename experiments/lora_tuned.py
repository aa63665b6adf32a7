"""LoRA itself at several learning rates, lengths and ranks: what our codes are measured against.

    python -m experiments.lora_tuned experiment=smollm2_budgets [+rates=[1e-3,2e-3,4e-3]]
        [+steps=[80]] [+ranks=[4]] [+out=paper_figures/data/lora_tuned.csv]

Trains an adapter for every combination, or takes it from the cache, and scores it on the validation
split, by which a setting is chosen, and on the test split, which has no say. `gain` is the test
score less the base's (image models: with the trained classifier). The file keeps rows of other
experiments, seeds and settings.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from experiments import csv_file
from experiments.compare import shrink
from experiments.finetune import Setup, finetune, prepare
from experiments.program import main, numbers
from solar.adapters import peft_io
from solar.codec.factors import canonical
from solar.compilation import cache_compilations
from solar.score import make_scorer

OWN = ("experiment", "seed", "test", "rate", "steps", "rank")
COLUMNS = (*OWN, "base", "validation_score", "validation_loss", "test_score", "test_loss", "gain")


def measure(config: Mapping[str, Any], setup: Setup) -> dict[str, Any]:
    """The row of one setting."""
    adapter = peft_io.read(finetune(config, setup), setup.base)
    update = {k: (f.left, f.right) for k, f in canonical(adapter.pairs).items()}
    row: dict[str, Any] = {
        "experiment": config["name"], "seed": config["seed"], "base": config["model"]["name"],
        "test": config["task"]["test"],  # another number deals other examples to every split
        "rate": config["train"]["learning_rate"], "steps": config["train"]["steps"],
        "rank": config["adapter"]["r"],
    }  # fmt: skip
    for split in ("validation", "test"):
        examples = config["evaluate"]["examples"] if split == "test" else None
        score = make_scorer(
            setup.base, setup.task, adapter.ranks, split, config["evaluate"]["batch_size"], examples
        )
        found = score(update, adapter.heads)
        row |= {f"{split}_{k}": f"{found[k]:.5g}" for k in ("score", "loss")}
    return row | {"gain": f"{found['score'] - score({}, adapter.heads)['score']:.5g}"}


def settings(
    config: Mapping[str, Any], rates: list[float], steps: list[int], ranks: list[int]
) -> Iterator[dict[str, Any]]:
    """A configuration for every combination."""
    for rate, count, rank in itertools.product(rates, steps, ranks):
        yield {
            **config,
            "train": {**config["train"], "learning_rate": rate, "steps": count},
            "adapter": {**config["adapter"], "r": rank},
        }


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    out = plain.pop("out", None)
    lists = [numbers(plain, name, None) for name in ("rates", "steps", "ranks")]
    plain = shrink(plain) if plain["tiny"] else plain
    usual = (plain["train"]["learning_rate"], plain["train"]["steps"], plain["adapter"]["r"])
    table = Table(*COLUMNS)
    for own in settings(plain, *(x or [y] for x, y in zip(lists, usual, strict=True))):
        row = measure(own, prepare(own))
        csv_file.put_out(out, "lora_tuned.csv", COLUMNS, [row], OWN)  # each as soon as it is there
        table.add_row(*(str(row[column]) for column in COLUMNS))
    Console().print(table)


if __name__ == "__main__":
    cache_compilations()
    program()
