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
KEYS = ("learns", "inputs", "budgets", "directions", "slope", *TRAINING)


def encoded(
    config: Mapping[str, Any], setup: Setup, home: Path
) -> Iterator[tuple[str, str, dict[str, Any], Encoded]]:
    """Name of the node, label, row columns and packet of each budget of every node in
    `codec.channel` that is not null. home: the PEFT directory of the adapter. Raises SolarError as
    `nodes_of` does."""
    nodes = nodes_of(config)
    if not nodes:
        return
    adapter, weights = peft_io.read(home, setup.base), Weights(setup.base)
    known = container.identify(weights, adapter.pairs)
    frames = frame_store.for_base(None, setup.spec, weights, known)
    listed = container.listed(known, usual_names(setup.base))
    start = channel.Start(adapter, known, frames, listed)
    for name, node in nodes.items():
        task = setup.task
        if node["learns"] == "adapter":
            own = {**config["train"], **node}
            most = own["steps"] * own["batch_size"]
            if node.get("inputs") == "own":
                task = channel.own_inputs(setup.base, most)  # of one seed, as frames are
            task = matching(setup.base, task, adapter, most=most)
        for size in progress(node["budgets"], name, console=Console(stderr=True)):
            coded = _coded(config, node, size, setup, task, (home.name, start), weights)
            text = f"{name}, {size:,} bytes" + (" and the head" if adapter.heads else "")
            columns = {"basis": "activation", "atoms": "vector", "dtype": "entropy"}
            yield name, text, columns, coded


def nodes_of(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The nodes of `codec.channel` that are not null. Raises SolarError for one that cannot be
    meant: a key that is unknown is a setting that would be left out without a word."""
    nodes = {k: v for k, v in (config["codec"].get("channel") or {}).items() if v is not None}
    for name, node in nodes.items():
        _check(f"codec.channel.{name}", node)
    return nodes


def _check(name: str, node: Any) -> None:
    """Raises SolarError; the other settings of training are train.py's to judge."""
    if not isinstance(node, Mapping):
        raise SolarError(f"{name} is {node!r}; give a table with {', '.join(KEYS)}")
    if unknown := sorted(map(str, node.keys() - set(KEYS))):
        raise SolarError(f"{name} has no setting {unknown[0]!r}; use {', '.join(KEYS)}")
    for key, options in (("learns", LEARNS), ("inputs", INPUTS)):
        if (found := node.get(key, "task" if key == "inputs" else None)) not in options:
            raise SolarError(f"{name}: {key} is {found!r}; use {' or '.join(options)}")
    if node["learns"] == "labels" and node.get("inputs") == "own":
        raise SolarError(f"{name}: own inputs have no labels; learn the adapter")
    sizes = node.get("budgets")
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise SolarError(f"{name}: budgets is {sizes!r}; give a list of bytes")
    for key in ("steps", "batch_size", "directions"):
        if key in node and not (type(node[key]) is int and node[key] > 0):
            raise SolarError(f"{name}: {key} is {node[key]!r}; give a number above 0")


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
