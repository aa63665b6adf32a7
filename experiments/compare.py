"""The comparison: fine-tune, compress over a grid, decode in a fresh process, score, record, draw.

    python -m experiments.compare [experiment=NAME] [key=value ...] [-m seed=0,1,2]

Writes packets, ``result.json`` (last), ``curve.png`` and ``curve.pdf`` to ``outputs/NAME/seed=S``.
Everything that took long is kept as it is done, so the same command continues an interrupted run
and repeats a finished one at once.

With ``codec=point`` the grid has one setting, and a sweep (``-m``) over its keys makes a folder a
point. Training, bases, model and compiled function are shared by the points that one process
computes; trained adapters, bases and scores by all processes with the same cache.
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

from experiments import channel, plot, reported, table
from experiments.collect import tidy
from experiments.finetune import Setup, finetune, prepare
from experiments.program import main
from solar import frame_store, packages, record, track
from solar.adapters import peft_io
from solar.api import setting_for
from solar.codec import activation, baselines, container, limit
from solar.codec.container import Encoded
from solar.codec.encode import encode
from solar.codec.factors import Factors, canonical
from solar.codec.heads import pack_heads
from solar.codec.recipe import ENTROPY, Recipe, Setting
from solar.compilation import cache_compilations
from solar.errors import SolarError
from solar.evaluate import Weights, digest, score_files, usual_names
from solar.files import write_whole
from solar.tasks.stand_in import with_stand_in

TINY = {
    "train": {"steps": 4, "batch_size": 8, "accumulate": 1, "checkpoint_every": 2},
    "evaluate": {"batch_size": 16},
}
TINY_TASK = {"train": 64, "validation": 16, "test": 32}
TINY_TEXT = {"prompts": 8, "tokens": 8, "synonyms": False}
TINY_SIZE = 8
B95 = 0.95  # the share of LoRA's gain over the base that counts as all of it


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
    codec = config["codec"]
    if "grids" not in codec:
        return config | {"codec": codec | {"size": min(codec["size"], TINY_SIZE)}}
    codec["budgets"] = codec["budgets"][:1]
    for node in channel.nodes_of(config).values():
        node |= {"budgets": node["budgets"][:1], "steps": 2}
    for grid in codec["grids"].values():
        grid["sizes"] = sorted({min(size, TINY_SIZE) for size in grid["sizes"]})
        grid["keep"] = list(dict.fromkeys(k and min(k, 2) for k in grid["keep"]))
    return config


def shrink_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """A few rows of a task, and none that would have to be fetched."""
    small = with_stand_in(task) | TINY_TASK
    return small | {"shots_per_class": 1} if small.get("shots_per_class") else small


def points(codec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every point of a codec config: the products of its grids, or itself where it is one point."""
    if "grids" not in codec:
        yield dict(codec)
    for grid in codec.get("grids", {}).values():
        for size, eps, keep in itertools.product(
            grid["sizes"], grid["perturbations"], grid["keep"]
        ):
            lists = ("sizes", "perturbations")
            yield {k: v for k, v in grid.items() if k not in lists} | {
                "size": size, "perturbation": eps, "keep": keep,
            }  # fmt: skip


def settings(
    codec: Mapping[str, Any], seed: int
) -> Iterator[tuple[str, str, dict, Setting, int | None]]:
    """Codec, label, row columns, setting and budget in bytes of every point."""
    for point in points(codec):
        kind, size, eps = point["kind"], point["size"], point["perturbation"]
        keep, atoms, dtype = point["keep"], point["atoms"], point["dtype"]
        selection, budget = point["selection"], point.get("budget_bytes")
        relative = point.get("relative", 0.0)
        recipe = Recipe(kind, size, eps, selection, seed)
        setting = Setting(recipe, atoms=atoms, keep=keep, dtype=dtype, relative=relative)
        label = f"{kind}-{atoms}-N{size}-eps{eps:g}" + (f"-K{keep}" if keep else "")
        # Only what is not as usual, so that a point of a grid has one name wherever it is computed.
        label += "" if selection == _usual_selection(atoms) else f"-{selection}"
        label += "" if dtype == "float16" else f"-{dtype}"
        label += f"-relative{relative:g}" if relative else ""
        label += f", {budget:,} bytes" if budget else ""
        columns = {"basis": kind, "N": size, "eps": eps, "keep": keep, "atoms": atoms}
        columns |= {"dtype": dtype}
        yield "weights" if dtype == ENTROPY else "solar", label, columns, setting, budget


def check_labels(config: Mapping[str, Any]) -> None:
    """Raises SolarError where two points would have one name, and one place in a table."""
    labels = [label for _, label, *_ in settings(config["codec"], config["seed"])]
    if twice := next((label for i, label in enumerate(labels) if label in labels[:i]), None):
        raise SolarError(f"{twice} is in the grids of codec more than once; leave one of them out")


def _usual_selection(atoms: str) -> str:
    return "sampled" if atoms == "matrix" else "leading"


def encode_all(
    config: Mapping[str, Any], factors: dict[str, Factors], heads: dict, setup: Setup, home: Path
) -> Iterator[tuple[str, str, dict, Encoded]]:
    """Codec, label, row columns and packet of everything that is to be scored."""
    weights, names = Weights(setup.base), usual_names(setup.base)
    common = {"heads": heads, "usual_names": names}
    cache = packages.cache_dir() / "bases"
    nothing = {k: Factors(f.left[:, :0], f.right[:, :0]) for k, f in factors.items()}
    yield "none", "base", {}, baselines.encode(nothing, weights, "float16", **common)
    console = Console(stderr=True)
    if "grids" in config["codec"]:
        if plain := config["codec"]["baselines"]:
            yield from encode_baselines(plain, factors, weights, common)
        yield from encode_budgets(config, factors, setup, weights, common)
        yield from channel.encoded(config, setup, home)
    every = list(settings(config["codec"], config["seed"]))
    for codec, label, columns, setting, budget in progress(
        every, "compress", console=console, disable=len(every) < 2
    ):
        coded = encode(factors, weights, setting, cache=cache, budget_bytes=budget, **common)
        yield codec, label, columns, coded


def encode_budgets(
    config: Mapping[str, Any], factors: dict[str, Factors], setup: Setup, weights: Weights,
    common: dict,
) -> Iterator[tuple[str, str, dict, Encoded]]:  # fmt: skip
    """The presets that fill a budget, at every budget; heads travel on top of it."""
    plain = setting_for("weights", config["seed"], embed_basis=False)
    cache = packages.cache_dir() / "bases"
    known = container.identify(weights, factors)
    frames = frame_store.for_base(None, setup.spec, weights, known)
    heads = common["heads"]
    carried = len(pack_heads(heads))  # the budgets are for the update alone
    for size in progress(config["codec"]["budgets"], "budgets", console=Console(stderr=True)):
        text = f"{size:,} bytes" + (" and the head" if heads else "")
        fits = common | {"budget_bytes": size + carried}
        columns = {"basis": "activation", "atoms": "vector", "dtype": ENTROPY}
        coded = activation.encode(factors, weights, frames, known=known, **fits)
        yield "compact", f"compact, {text}", columns, coded
        columns = columns | {"basis": plain.recipe.kind}
        coded = encode(factors, weights, plain, cache=cache, **fits)
        yield "weights", f"weights, {text}", columns, coded


def encode_baselines(
    plain: Mapping[str, Any], factors: dict[str, Factors], weights: Weights, common: dict
) -> Iterator[tuple[str, str, dict, Encoded]]:
    """The same for what SOLAR is compared with: plain numbers, fewer ranks, fewer bits."""
    yield "float16", "float16", {}, baselines.encode(factors, weights, "float16", **common)
    for rank in plain["truncate"]:
        coded = baselines.encode(factors, weights, "truncate", rank=rank, **common)
        yield "truncate", f"rank {rank}, float16", {"rank": rank}, coded
    for rank, bits in [(None, b) for b in plain["bits"]] + list(plain["truncate_bits"]):
        coded = baselines.encode(factors, weights, "bits", bits=bits, rank=rank, **common)
        label = f"{bits}-bit" + (f", rank {rank}" if rank else "")
        yield "bits", label, {"bits": bits, "rank": rank}, coded


def compare(config: dict, folder: Path) -> dict[str, Any]:
    """Runs or resumes one comparison in ``folder`` and returns its record."""
    # Refused before a folder is claimed and anything trained:
    channel.nodes_of(config)
    check_labels(config)
    own = record.identity({k: v for k, v in config.items() if k != "tracking"})
    claim(folder, own)
    if (folder / "result.json").is_file():
        return record.read(folder / "result.json")
    clock = {"start": time.monotonic()}
    name, tracking = config["name"], config["tracking"]
    tracker = track.start(
        tracking["mode"], tracking["project"], f"{name} {folder.name}", config, folder, group=name
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
        track.finish(
            tracker,
            rows,
            summary,
            files,
            failed=result is None,
            bounds=reported.bound_rows(result or {}),
            adapter=folder / rows[0]["packet"] if result else None,
        )
    return result


def measure(config: dict, folder: Path, tracker, clock: dict[str, float]) -> dict[str, Any]:
    """Trains, writes the packets, scores them: the record of a comparison."""
    setup = prepare(config)
    clock["base and task"] = time.monotonic()
    logged = set()

    def log(step: int, values: dict[str, float]) -> None:
        track.log(tracker, values, step)
        logged.add(step)

    home = finetune(config, setup, log)
    trained = json.loads((home / "training.json").read_text())
    for step, loss in enumerate(trained["losses"], 1):
        if step not in logged:  # trained by an earlier run, or before this one was resumed
            track.log(tracker, {"loss": loss}, step)
    clock["training"] = time.monotonic()
    adapter = peft_io.read(home, setup.base)
    factors = canonical(adapter.pairs)
    facts = reported.sizes(home)
    shares = reported.aligned(
        factors, Weights(setup.base), config["alignment"], packages.cache_dir() / "bases",
        config["seed"],
    )  # fmt: skip
    rows, files = write_packets(config, folder / "packets", factors, adapter.heads, setup, home)
    bounds = reported.bounds_of(rows)
    rows.insert(0, {"codec": "float32", "label": "LoRA, float32", "relative_error": 0.0,
                    "bytes": facts["bytes"]})  # fmt: skip
    files.insert(0, home)
    clock["compression"] = time.monotonic()
    job = {
        "base": {"spec": setup.spec, "overrides": setup.overrides},
        "task": config["task"],
        "task_identity": setup.task.identity,
        "ranks": adapter.ranks,
        "seed": config["data_seed"],
        **config["evaluate"],
        **({"reference": str(home)} if config["evaluate"].get("kl") else {}),
    }
    scores = score_files(job, files, folder)
    clock["evaluation"] = time.monotonic()
    for row, file in zip(rows, files, strict=True):
        row |= {"method": config["adapter"]["method"], "seed": config["seed"],
                **reported.ratios(row, facts),
                "packet": os.path.relpath(file, folder)}  # fmt: skip
    base, full = add_scores(rows, scores)
    return {
        "rows": rows,
        "config": config,
        "identities": {
            "task": setup.task.identity,
            "base": trained["base"],
            "adapter": home.name,
            "adapter_sha256": digest(home),
        },
        "about": setup.task.about,
        "versions": record.versions(),
        "base": {"score": base["score"], "loss": base["loss"]},
        "adapter": {"score": full["score"], "loss": full["loss"], **facts},
        "alignment": shares,
        "bounds": bounds,
        "limit": [list(point) for point in limit.rate_distortion(factors)],
        "model": asdict(setup.base.config),
        "tiny": config["tiny"] or setup.spec.startswith("tiny:"),
        "wall_s": {b: clock[b] - clock[a] for a, b in itertools.pairwise(clock)},
        "status": "complete",
    }


def write_packets(
    config: Mapping[str, Any], folder: Path, factors: dict[str, Factors], heads: dict, setup: Setup,
    home: Path,
) -> tuple[list[dict[str, Any]], list[Path]]:  # fmt: skip
    """A row and a file for every packet of the comparison; files that are there already stay."""
    rows, files = [], []
    for codec, label, columns, coded in encode_all(config, factors, heads, setup, home):
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
        layers = {} if codec == "none" else reported.by_layer(coded.report)
        rows.append({"codec": codec, "label": label, **columns, **sizes, **worst, "layers": layers})
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
            # Of no gain, or a loss, there is no share.
            "retained": (score["score"] - base["score"]) / gain if gain > 0 else None,
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


def objective(result: Mapping[str, Any]) -> float:
    """What a sweeper is to minimise: the fewest bytes that keep B95 of the gain.

    Where no row does, more than LoRA's own file, and the more the further the best row is from it.
    """
    rows = [row for row in result["rows"] if row["codec"] not in ("float32", "none")]
    enough = [row["bytes"] for row in rows if (row["retained"] or 0.0) >= B95]
    if enough:
        return float(min(enough))
    best = max((row["retained"] or 0.0 for row in rows), default=0.0)
    return result["adapter"]["bytes"] * (1.0 + B95 - best)


@main("compare")
def program(config: DictConfig) -> float:
    cache_compilations()  # here, because a launcher's worker process starts here
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    folder = Path(HydraConfig.get().runtime.output_dir)
    result = compare(shrink(plain) if plain["tiny"] else plain, folder)
    if "grids" in plain["codec"]:
        table.show(tidy(result))
        for path in plot.draw(result, folder, score="test accuracy"):
            Console().print(f"wrote {path}", highlight=False)
    else:  # no table and no figure of one point: `collect` makes those of the sweep
        row = result["rows"][-1]
        kept = "" if row["retained"] is None else f", retained {row['retained']:.1%}"
        print(f"{folder.name}: {row['bytes']:,} bytes, score {row['score']:.3f}{kept}")
    return objective(result)


if __name__ == "__main__":
    program()
