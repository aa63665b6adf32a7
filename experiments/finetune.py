"""A trained adapter for a config: taken from the cache where the same config was trained before.

Same means the same base weights, task arrays, adapter, training settings and seed. Training goes on
from its last checkpoint where it was stopped. Of several processes that want the same adapter one
trains it and the others wait.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from solar import packages, train
from solar.adapters import lora, peft_io
from solar.errors import SolarError
from solar.evaluate import task_for
from solar.files import only_one, write_whole
from solar.record import identity, plain
from solar.tasks.task import Task
from solar.weights.base import Base, fingerprint, load


class Setup(NamedTuple):
    """A base and a task that fit each other; ``overrides`` are those that :func:`load` got,
    ``fingerprint`` is the base's.
    """

    base: Base
    task: Task
    spec: str
    overrides: dict[str, Any]
    fingerprint: str


def prepare(config: Mapping[str, Any]) -> Setup:
    """Loads the base and builds the task; an image classifier gets as many labels as the task has
    classes. The last pair stays in memory, so that the points of a sweep share it.
    """
    parts = config["model"], config["task"], config["data_seed"], packages.cache_dir()
    key = json.dumps(plain(parts))
    if key not in _latest:
        _latest.clear()  # first: there may be no room for two bases
        _latest[key] = _load(config)
    return _latest[key]


# The setup that `prepare` gave last, by what it was asked for.
_latest: dict[str, Setup] = {}


def _load(config: Mapping[str, Any]) -> Setup:
    spec, overrides = config["model"]["spec"], dict(config["model"]["overrides"])
    base = load(spec, **overrides)
    task = task_for(base, config["task"], config["data_seed"])
    if base.family == "vit" and base.config.num_labels != len(task.classes):
        overrides["num_labels"] = len(task.classes)
        base = load(spec, **overrides)
    return Setup(base, task, spec, overrides, fingerprint(base))


def adapter_config(node: Mapping[str, Any]) -> lora.LoraConfig:
    """The LoRA settings of a config node; raises SolarError for an unknown method or key."""
    fields = {k: v for k, v in node.items() if k != "method"}
    if node.get("method") != "lora":
        raise SolarError(f"adapter method {node.get('method')!r} is unknown; there is 'lora'")
    if unknown := sorted(fields.keys() - lora.LoraConfig.__dataclass_fields__.keys()):
        raise SolarError(f"LoRA has no setting {unknown[0]!r}; remove it from the adapter config")
    return lora.LoraConfig(**fields)


def finetune(
    config: Mapping[str, Any],
    setup: Setup,
    log: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """The PEFT directory of the trained adapter, with ``training.json`` beside (losses,
    identities).
    """
    base, task = setup.base, setup.task
    settings = adapter_config(config["adapter"])
    training = train.parse(config["train"], config["seed"])
    own = {
        "base": setup.fingerprint,
        "config": repr(replace(base.config, remat=False)),
        "task": task.identity,
        "adapter": config["adapter"],
        "train": config["train"],
        "seed": config["seed"],
    }
    if lora.plan(base, settings).keys() & base.gains.keys():
        own["written"] = "before LayerScale"  # earlier versions wrote what comes after it
    folder = packages.cache_dir() / "adapters" / identity(own)[:24]
    done = folder / "training.json"
    if done.is_file():
        return folder
    with only_one(folder, f"waiting for another process, which trains {folder.name}"):
        if not done.is_file():
            _train(setup, settings, training, own, folder, log)
    return folder


def _train(setup: Setup, settings, training, own: dict, folder: Path, log) -> None:
    """Trains into ``folder``; ``own`` are the identities, written last."""
    base = setup.base
    trained = train.train(
        base, lora.METHOD, settings, setup.task, training, folder, log, resources=own["base"]
    )
    adapter = lora.adapter(trained.trainable, trained.frozen)
    peft_io.write(folder, adapter, base.family, base.source, settings, own["seed"], base.gains)
    write_whole(folder / "training.json", json.dumps({"losses": trained.losses, **own}).encode())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
