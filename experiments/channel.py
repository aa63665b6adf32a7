"""Adapters that were trained on through the channel, at each budget in bytes: their packets.

A node of `codec.channel` says what is learnt: `labels`, the task's own loss (rows `aware`), or
`adapter`, what the finished adapter answers on the training inputs, of which no label is used. The
result is kept in the cache beside the adapter that it goes on from.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track as progress

from experiments.finetune import Setup
from solar import channel, frame_store, packages, train
from solar.adapters import aware, peft_io
from solar.adapters.adapter import Adapter
from solar.codec import activation, container
from solar.codec.container import Encoded
from solar.codec.factors import canonical
from solar.codec.frame_file import FramesFile
from solar.codec.heads import pack_heads
from solar.errors import SolarError
from solar.evaluate import Weights, usual_names
from solar.files import only_one, write_whole
from solar.matching import matching
from solar.record import identity
from solar.tasks.task import Task

LEARNS = ("labels", "adapter")
TRAINING = ("steps", "batch_size", "learning_rate", "schedule", "warmup")  # what a node may set


def encoded(
    config: Mapping[str, Any], setup: Setup, home: Path
) -> Iterator[tuple[str, str, dict[str, Any], Encoded]]:
    """Name of the node, label, row columns and packet of each budget of every node in
    `codec.channel` that is not null. home: the PEFT directory of the adapter. Raises SolarError for
    a node that learns something else."""
    nodes = {k: v for k, v in (config["codec"].get("channel") or {}).items() if v}
    if not nodes:
        return
    start, weights = peft_io.read(home, setup.base), Weights(setup.base)
    known = container.identify(weights, start.pairs)
    frames = frame_store.for_base(None, setup.spec, weights, known)
    for name, node in nodes.items():
        learns = node.get("learns")
        if learns not in LEARNS:
            raise SolarError(f"codec.channel.{name} learns {learns!r}; use {' or '.join(LEARNS)}")
        task = setup.task
        if learns == "adapter":
            own = {**config["train"], **node}
            task = matching(setup.base, task, start, most=own["steps"] * own["batch_size"])
        for size in progress(node["budgets"], name, console=Console(stderr=True)):
            own, slopes = _trained(
                config, node, size, setup, (home.name, start), known, frames, task
            )
            coded = activation.encode(
                canonical(own.pairs), weights, frames, known=known, heads=own.heads,
                usual_names=usual_names(setup.base), slopes=slopes,
                budget_bytes=size + (len(pack_heads(own.heads)) if own.heads else 0),
            )  # fmt: skip
            text = f"{name}, {size:,} bytes" + (" and the head" if own.heads else "")
            columns = {"basis": "activation", "atoms": "vector", "dtype": "entropy"}
            yield name, text, columns, coded


def _trained(
    config: Mapping[str, Any], node: Mapping[str, Any], size: int, setup: Setup,
    given: tuple[str, Adapter], known: container.Base, frames: FramesFile, task: Task,
) -> tuple[Adapter, tuple[int, int]]:  # fmt: skip
    """The adapter for one budget, and the slopes to code it with: trained, or from the cache."""
    name, start = given
    training = {**config["train"], **{k: node[k] for k in TRAINING if k in node}}
    wide = {k: node[k] for k in ("directions", "slope") if k in node}
    settings = aware.AwareConfig(size, start=name, frames=frames.hash.hex(), **wide)
    own = {
        "base": setup.fingerprint,
        "method": repr(settings),
        "task": task.identity,
        "train": training,
        "seed": config["seed"],
    }
    folder = packages.cache_dir() / "adapters" / identity(own)[:24]
    done = folder / "training.json"
    with only_one(folder, f"waiting for another process, which trains {folder.name}"):
        if not done.is_file():
            listed = container.listed(known, usual_names(setup.base))
            fits = train.parse(training, config["seed"])
            result, slopes, losses = channel.send_through(
                setup.base, start, known, frames, listed, settings, task, fits, folder, own["base"]
            )
            peft_io.write(folder, result, setup.base.family, setup.base.source)
            facts = {"losses": losses, "slopes": slopes, **own}
            write_whole(done, json.dumps(facts).encode())
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    slopes = tuple(json.loads(done.read_text())["slopes"])
    return peft_io.read(folder, setup.base), slopes
