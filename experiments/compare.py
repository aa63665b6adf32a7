"""The comparison: fine-tune, compress over a grid, decode in a fresh process, score, record, draw.

    python -m experiments.compare [experiment=NAME] [key=value ...] [-m seed=0,1,2]

Writes packets, ``result.json`` (last), ``curve.png`` and ``curve.pdf`` to ``outputs/NAME/seed=S``.
Everything that took long is kept as it is done, so the same command continues an interrupted run
and repeats a finished one at once.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track as progress

from experiments import plot, table
from experiments.collect import tidy
from experiments.finetune import Setup, finetune, prepare
from experiments.program import main
from solar import packages, record, track
from solar.adapters import peft_io
from solar.api import setting_for
from solar.codec import baselines, limit
from solar.codec.container import Encoded
from solar.codec.encode import encode
from solar.codec.factors import Factors, canonical
from solar.codec.recipe import Recipe, Setting
from solar.compilation import cache_compilations
from solar.errors import SolarError
from solar.evaluate import Weights, score_files, usual_names
from solar.files import write_whole
from solar.tasks.stand_in import with_stand_in

TINY = {
    "train": {"steps": 4, "batch_size": 8, "checkpoint_every": 2},
    "evaluate": {"batch_size": 16},
}
TINY_TASK = {"train": 64, "validation": 16, "test": 32}
TINY_TEXT = {"prompts": 8, "tokens": 8, "synonyms": False}
TINY_SIZE = 8


def shrink(config: dict) -> dict:
    """The same experiment on a random model of the same family, a few steps and examples."""
    model = config["model"]
    if not model["spec"].startswith("tiny:"):
        model["spec"] = f"tiny:{model['family']}"
        model["overrides"] = {k: v for k, v in model["overrides"].items() if k != "image_size"}
    for node, values in TINY.items():
        config[node] |= values
    evaluate, config["task"] = config["evaluate"], shrink_task(config["task"])
    if evaluate.get("also"):
        evaluate["also"] = {name: shrink_task(task) for name, task in evaluate["also"].items()}
    if evaluate.get("text"):
        evaluate["text"] |= TINY_TEXT
    config["codec"]["budgets"] = config["codec"]["budgets"][:1]
    for grid in config["codec"]["grids"].values():
        grid["sizes"] = sorted({min(size, TINY_SIZE) for size in grid["sizes"]})
        grid["keep"] = [None if k is None else min(k, 2) for k in grid["keep"]]
    return config


def shrink_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """A few rows of a task, and none that would have to be fetched."""
    small = with_stand_in(task) | TINY_TASK
    return small | {"shots_per_class": 1} if small.get("shots_per_class") else small


def settings(codec: Mapping[str, Any], seed: int) -> Iterator[tuple[str, dict, Setting]]:
    """Label, row columns and setting of every point of the grids."""
    for grid in codec["grids"].values():
        points = itertools.product(grid["sizes"], grid["perturbations"], grid["keep"])
        for size, eps, keep in points:
            recipe = Recipe(grid["kind"], size, eps, grid["selection"], seed)
            setting = Setting(recipe, atoms=grid["atoms"], keep=keep, dtype=grid["dtype"])
            label = f"{grid['kind']}-{grid['atoms']}-N{size}-eps{eps:g}" + (
                f"-K{keep}" if keep else ""
            )
            columns = {"basis": grid["kind"], "N": size, "eps": eps, "keep": keep}
            yield label, columns | {"atoms": grid["atoms"], "dtype": grid["dtype"]}, setting


def encode_all(
    config: Mapping[str, Any], factors: dict[str, Factors], heads: dict, setup: Setup
) -> Iterator[tuple[str, str, dict, Encoded]]:
    """Codec, label, row columns and packet of everything that is to be scored."""
    weights, names = Weights(setup.base), usual_names(setup.base)
    common = {"heads": heads, "usual_names": names}
    cache = packages.cache_dir() / "bases"
    nothing = {k: Factors(f.left[:, :0], f.right[:, :0]) for k, f in factors.items()}
    yield "none", "base", {}, baselines.encode(nothing, weights, "float16", **common)
    plain = config["codec"]["baselines"]
    yield "float16", "float16", {}, baselines.encode(factors, weights, "float16", **common)
    for rank in plain["truncate"]:
        coded = baselines.encode(factors, weights, "truncate", rank=rank, **common)
        yield "truncate", f"rank {rank}, float16", {"rank": rank}, coded
    for rank, bits in [(None, b) for b in plain["bits"]] + list(plain["truncate_bits"]):
        coded = baselines.encode(factors, weights, "bits", bits=bits, rank=rank, **common)
        label = f"{bits}-bit" + (f", rank {rank}" if rank else "")
        yield "bits", label, {"bits": bits, "rank": rank}, coded
    console = Console(stderr=True)
    compact = setting_for("compact", config["seed"], embed_basis=False)
    for size in progress(config["codec"]["budgets"], "budgets", console=console):
        coded = encode(factors, weights, compact, cache=cache, budget_bytes=size, **common)
        columns = {"basis": compact.recipe.kind, "atoms": compact.atoms, "dtype": compact.dtype}
        yield "compact", f"compact, {size:,} bytes", columns, coded
    points = list(settings(config["codec"], config["seed"]))
    for label, columns, setting in progress(points, "compress", console=console):
        coded = encode(factors, weights, setting, cache=cache, **common)
        yield "solar", label, columns, coded


def compare(config: dict, folder: Path) -> dict[str, Any]:
    """Runs or resumes one comparison in ``folder`` and returns its record."""
    own = record.identity({k: v for k, v in config.items() if k != "tracking"})
    claim(folder, own)
    if (folder / "result.json").is_file():
        return record.read(folder / "result.json")
    clock = {"start": time.monotonic()}
    name, tracking = config["name"], config["tracking"]
    run_name = f"{name}-{config['seed']}"
    tracker = track.start(
        tracking["mode"], tracking["project"], run_name, config, folder, group=name
    )
    result = None
    try:
        result = measure(config, folder, tracker, clock)
        record.write(folder / "result.json", result)
    finally:
        # After the record is safe: tracking may wait for a network.
        rows = result["rows"] if result else ()
        files = [folder / row["packet"] for row in rows if row["packet"].endswith(".solar")]
        summary = {k: result[k] for k in ("base", "adapter")} if result else {}
        track.finish(tracker, rows, summary, files, failed=result is None)
    return result


def measure(config: dict, folder: Path, tracker, clock: dict[str, float]) -> dict[str, Any]:
    """Trains, writes the packets, scores them: the record of a comparison, as SPEC section 6 lists
    it."""
    setup = prepare(config)
    clock["base and task"] = time.monotonic()
    home = finetune(config, setup, lambda step, values: track.log(tracker, values, step))
    clock["training"] = time.monotonic()
    adapter = peft_io.read(home, setup.base)
    factors = canonical(adapter.pairs)
    rows, files = write_packets(config, folder / "packets", factors, adapter.heads, setup)
    rows.insert(0, {"codec": "float32", "label": "LoRA, float32", "relative_error": 0.0,
                    "bytes": (home / "adapter_model.safetensors").stat().st_size})  # fmt: skip
    files.insert(0, home)
    clock["compression"] = time.monotonic()
    job = {
        "base": {"spec": setup.spec, "overrides": setup.overrides},
        "task": config["task"],
        "task_identity": setup.task.identity,
        "seed": config["data_seed"],
        **config["evaluate"],
        **({"reference": str(home)} if config["evaluate"].get("kl") else {}),
    }
    scores = score_files(job, files, folder)
    clock["evaluation"] = time.monotonic()
    for row, file in zip(rows, files, strict=True):
        row |= {"method": config["adapter"]["method"], "seed": config["seed"],
                "packet": os.path.relpath(file, folder)}  # fmt: skip
    base, full = add_scores(rows, scores)
    return {
        "rows": rows,
        "config": config,
        "identities": {
            "task": setup.task.identity,
            "base": json.loads((home / "training.json").read_text())["base"],
            "adapter": home.name,
        },
        "about": setup.task.about,
        "versions": record.versions(),
        "base": {"score": base["score"], "loss": base["loss"]},
        "adapter": {"score": full["score"], "loss": full["loss"], "bytes": rows[0]["bytes"]},
        "limit": [list(point) for point in limit.rate_distortion(factors)],
        "model": asdict(setup.base.config),
        "tiny": config["tiny"],
        "wall_s": {b: clock[b] - clock[a] for a, b in itertools.pairwise(clock)},
        "status": "complete",
    }


def write_packets(
    config: Mapping[str, Any], folder: Path, factors: dict[str, Factors], heads: dict, setup: Setup
) -> tuple[list[dict[str, Any]], list[Path]]:
    """A row and a file for every packet of the comparison; files that are there already stay."""
    rows, files = [], []
    for codec, label, columns, coded in encode_all(config, factors, heads, setup):
        name = "".join(c if c.isalnum() or c in "-." else "_" for c in label)
        path = folder / f"{name}.solar"
        if not path.is_file() or path.read_bytes() != coded.data:
            write_whole(path, coded.data)
        sizes = dict(coded.report["bytes"])
        sizes["bytes"] = sizes.pop("total")
        if sizes["bytes"] != path.stat().st_size:
            raise RuntimeError(
                f"{path} has {path.stat().st_size} bytes, the report says {sizes['bytes']}"
            )
        worst = {k: coded.report.get(k) for k in ("relative_error", "bound", "slack")}
        if codec == "none":  # coded without loss, but what it codes is no update at all
            worst = {"relative_error": 1.0}
        rows.append({"codec": codec, "label": label, **columns, **sizes, **worst})
        files.append(path)
    return rows, files


def add_scores(rows: list[dict[str, Any]], scores: list[dict[str, Any]]) -> tuple[dict, dict]:
    """Adds score, loss and what is retained to every row; returns the base's and the adapter's."""
    by_label = {row["label"]: score for row, score in zip(rows, scores, strict=True)}
    base, full = by_label["base"], by_label["LoRA, float32"]
    gain = full["score"] - base["score"]
    for row, score in zip(rows, scores, strict=True):
        row |= {k: v for k, v in score.items() if k != "count"}
        row |= {
            "score_base": base["score"],
            "score_adapter": full["score"],
            "retained": (score["score"] - base["score"]) / gain if gain else None,
        }
    return base, full


def claim(folder: Path, own: str) -> None:
    """Makes the folder this config's; raises SolarError where it belongs to another."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "identity.txt"
    if place.is_file() and place.read_text() != own:
        raise SolarError(
            f"{folder} holds a run of another config; give this one its own name=..., "
            "or remove the folder"
        )
    write_whole(place, own.encode())


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    folder = Path(HydraConfig.get().runtime.output_dir)
    result = compare(shrink(plain) if plain["tiny"] else plain, folder)
    table.show(tidy(result))
    for path in plot.draw(result, folder, score="test accuracy"):
        Console().print(f"wrote {path}", highlight=False)


if __name__ == "__main__":
    cache_compilations()
    program()
