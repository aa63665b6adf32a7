"""What the codecs reach on a trained adapter, beside the rate-distortion limit.

    python -m experiments.reach experiment=smollm2_budgets seed=0
        [+out=paper_figures/data/reach.csv]

Trains the adapter of the experiment, or takes it from the cache, and codes it by every method at
its own sizes; at a few budgets, and at those where a given error is met, by preset `weights`, by
`absolute weights`, which is the same with errors counted as they are in dW and not relative to each
layer's update, and by `compact`. Printed for each file is its error, relative to sending nothing,
and the bytes that Shannon's bound needs for the same: for `compact` in its own metric, for all
others in dW. The bound is that of codes that know the spectrum, and for `compact` also that of
codes that know which variances its file promises (`profiled_limit`); records call the two
`spectrum_limit_bytes` and `limit_bytes`. Weights only: nothing is scored. `+only=compact` (or a
part of another name) leaves the others out, `+out=FILE` adds the rows to a CSV, in the place of
those of the same adapter, seed and code.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from experiments import csv_file
from experiments.compare import shrink
from experiments.finetune import Setup, finetune, prepare
from experiments.program import main
from solar import frame_store, packages
from solar.adapters import peft_io
from solar.api import setting_for
from solar.codec import activation, baselines, container, limit
from solar.codec.container import Encoded
from solar.codec.encode import encode
from solar.codec.factors import Factors, canonical
from solar.codec.recipe import Recipe, Setting
from solar.compilation import cache_compilations
from solar.errors import SolarError
from solar.evaluate import Weights, usual_names

ERRORS = (0.7, 0.5, 0.3)
TRIES, CLOSE = 8, 0.002  # of a budget for an error, and how near it is to be met
LEAST, MOST = 200, 512_000  # bytes of files that are tried for an error
BUDGETS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)
COLUMNS = (
    "adapter", "seed", "code", "bytes", "payload", "relative_error",
    "limit", "ratio", "profiled_limit", "profiled_ratio",
)  # fmt: skip


def codes(
    factors: dict[str, Factors], setup: Setup, seed: int, only: str
) -> Iterator[tuple[str, Encoded]]:
    """Name and file of everything that is compared and has `only` in its name, heads left out."""
    weights, names = Weights(setup.base), usual_names(setup.base)
    cache = packages.cache_dir() / "bases"
    for bits, rank in ((4, None), (1, None), (4, 1), (2, 1), (1, 1)):
        name = f"{bits}-bit" + (f", rank {rank}" if rank else "")
        if only in name:
            yield (
                name,
                baselines.encode(factors, weights, "bits", bits=bits, rank=rank, usual_names=names),
            )
    if only in "paper, N 192":
        paper = Setting(Recipe("singular", 192, 0.1, seed=seed))
        yield "paper, N 192", encode(factors, weights, paper, usual_names=names, cache=cache)
    plain = setting_for("weights", seed, embed_basis=False)

    def coder(setting: Setting) -> Callable[[int], Encoded]:
        return lambda size: encode(
            factors, weights, setting, budget_bytes=size, usual_names=names, cache=cache
        )

    for name, setting in (("weights", plain), ("absolute weights", replace(plain, relative=0.0))):
        if only in name:
            yield from ((name, own) for own in at_budgets(coder(setting), "relative_error"))
    if only in "compact":
        known = container.identify(weights, factors)
        frames = frame_store.for_base(None, setup.spec, weights, known)

        def compact(size: int) -> Encoded:
            return activation.encode(
                factors, weights, frames, budget_bytes=size, known=known, usual_names=names
            )

        yield from (("compact", own) for own in at_budgets(compact, "weighed_error"))


def at_budgets(code: Callable[[int], Encoded], error: str) -> Iterator[Encoded]:
    """Files of BUDGETS, and those of about the ERRORS."""
    known = []
    for size in BUDGETS:
        coded = code(size)
        known.append((math.log(size), coded.report[error]))
        yield coded
    for target in ERRORS:
        tried = sorted(known)
        for _ in range(TRIES):
            # Errors fall as files grow: between the nearest two on either side, by straight lines.
            above = [i for i, (_, e) in enumerate(tried) if e > target]
            at = min(max(above, default=0), len(tried) - 2)
            (x, e), (y, f) = tried[at], tried[at + 1]
            guess = round(math.exp(x + (y - x) * (e - target) / (e - f))) if e > f else 0
            guess = min(max(guess, LEAST), MOST)
            if any(math.log(guess) == size for size, _ in tried):
                break
            try:
                coded = code(guess)
            except SolarError:  # less than a file that sends nothing
                break
            tried = sorted([*tried, (math.log(guess), coded.report[error])])
            if abs(coded.report[error] - target) < CLOSE * target:
                yield coded
                break


def measure(config: dict[str, Any], only: str = "") -> Iterator[dict[str, Any]]:
    """A row per file: its bytes and error, the limits' bytes for that error, and their ratios.

    A ratio compares the payload: the limits count header and names as free.
    """
    setup = prepare(config)
    adapter = peft_io.read(finetune(config, setup), setup.base)
    factors = canonical(adapter.pairs)
    curve = limit.rate_distortion(factors)
    made = codes(factors, setup, config["seed"], only)
    for name, coded in made:
        report, sizes = coded.report, coded.report["bytes"]
        own = "weighed_error" in report
        error = report["weighed_error" if own else "relative_error"]
        least = report["spectrum_limit_bytes"] if own else limit.bytes_at(curve, error)
        profiled = report.get("limit_bytes", 0.0)
        yield {
            "adapter": config["name"],
            "seed": config["seed"],
            "code": name,
            "bytes": sizes["total"],
            "payload": sizes["payload"],
            "relative_error": f"{error:.6g}",
            "limit": round(least),
            "ratio": f"{sizes['payload'] / least:.3f}" if least > 0 else "",
            "profiled_limit": round(profiled) if own else "",
            "profiled_ratio": f"{sizes['payload'] / profiled:.3f}" if profiled > 0 else "",
        }


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    out, only = plain.pop("out", None), plain.pop("only", "")
    rows = list(measure(shrink(plain) if plain["tiny"] else plain, only))
    table = Table(*COLUMNS[2:], title=f"{plain['name']}, seed {plain['seed']}")
    for row in rows:
        table.add_row(*(str(row[column]) for column in COLUMNS[2:]))
    Console().print(table)
    csv_file.put_out(out, "reach.csv", COLUMNS, rows, ("adapter", "seed", "code"))


if __name__ == "__main__":
    cache_compilations()
    program()
