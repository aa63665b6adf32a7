"""Adapters that were trained on through the channel, at each budget in bytes: their packets.

A node of `codec.channel` says what is learnt: `labels`, the task's own loss (rows `aware`), or
`adapter`, what the finished adapter answers on the training inputs, of which no label is used, or
where `inputs` are `own` on those that need no data (solar/channel.py). The file is kept in the
cache beside the adapter that it goes on from.
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
from solar.codec import activation, container, packet
from solar.codec.container import Encoded
from solar.codec.factors import canonical
from solar.codec.heads import pack_heads
from solar.errors import SolarError
from solar.evaluate import Weights, usual_names
from solar.files import only_one, write_whole
from solar.matching import matching
from solar.record import identity
from solar.tasks.task import Task

LEARNS = ("labels", "adapter")
INPUTS = ("task", "own")
FILE = "sent.solar"
SENDER = 3  # to be raised where the codec sends another file of the same factors
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
    adapter, weights = peft_io.read(home, setup.base), Weights(setup.base)
    known = container.identify(weights, adapter.pairs)
    frames = frame_store.for_base(None, setup.spec, weights, known)
    listed = container.listed(known, usual_names(setup.base))
    start = channel.Start(adapter, known, frames, listed)
    for name, node in nodes.items():
        learns = node.get("learns")
        if learns not in LEARNS:
            raise SolarError(f"codec.channel.{name} learns {learns!r}; use {' or '.join(LEARNS)}")
        task = setup.task
        if (inputs := node.get("inputs", "task")) not in INPUTS:
            raise SolarError(f"codec.channel.{name}: inputs {inputs!r}; use {' or '.join(INPUTS)}")
        if learns == "labels" and inputs == "own":
            raise SolarError(f"codec.channel.{name}: own inputs have no labels; learn the adapter")
        if learns == "adapter":
            own = {**config["train"], **node}
            most = own["steps"] * own["batch_size"]
            if inputs == "own":
                task = channel.own_inputs(setup.base, most)
            task = matching(setup.base, task, adapter, most=most)
        for size in progress(node["budgets"], name, console=Console(stderr=True)):
            coded = _coded(config, node, size, setup, task, (home.name, start), weights)
            text = f"{name}, {size:,} bytes" + (" and the head" if adapter.heads else "")
            columns = {"basis": "activation", "atoms": "vector", "dtype": "entropy"}
            yield name, text, columns, coded


def _coded(
    config: Mapping[str, Any], node: Mapping[str, Any], size: int, setup: Setup, task: Task,
    given: tuple[str, channel.Start], weights: Weights,
) -> Encoded:  # fmt: skip
    """The file of one budget: trained, or from the cache."""
    home, start = given
    training = {**config["train"], **{k: node[k] for k in TRAINING if k in node}}
    wide = {k: node[k] for k in ("directions", "slope") if k in node}
    settings = aware.AwareConfig(size, start=home, frames=start.frames.hash.hex(), **wide)
    own = {
        "base": setup.fingerprint,
        "channel": repr(settings),
        "sender": SENDER,
        "task": task.identity,
        "train": training,
        "seed": config["seed"],
    }
    folder = packages.cache_dir() / "adapters" / identity(own)[:24]
    done, names = folder / "training.json", usual_names(setup.base)
    with only_one(folder, f"waiting for another process, which trains {folder.name}"):
        if done.is_file():
            data = (folder / FILE).read_bytes()
            found = packet.decode(data, weights, usual_names=names, frames=lambda _: start.frames)
            return Encoded(data, found.factors, json.loads(done.read_text())["report"])
        result, decided, losses = channel.send_through(
            setup.base, start, settings, task, train.parse(training, config["seed"]), folder,
            own["base"],
        )  # fmt: skip
        coded = activation.encode(
            canonical(result.pairs), weights, start.frames, known=start.known, heads=result.heads,
            budget_bytes=size + len(pack_heads(result.heads)), usual_names=names, decided=decided,
        )  # fmt: skip
        write_whole(folder / FILE, coded.data)
        facts = {"losses": losses, "report": coded.report, **own}
        write_whole(done, json.dumps(facts).encode())
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return coded
