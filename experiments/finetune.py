"""A trained adapter for a config: taken from the cache where the same config was trained before.

Same means the same base weights, task arrays, adapter, training settings and seed. Training goes on
from its last checkpoint where it was stopped.
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
from solar.files import write_whole
from solar.record import identity
from solar.tasks.task import Task
from solar.weights.base import Base, fingerprint, load


class Setup(NamedTuple):
    """A base and a task that fit each other; ``overrides`` are those that :func:`load` got."""

    base: Base
    task: Task
    spec: str
    overrides: dict[str, Any]


def prepare(config: Mapping[str, Any]) -> Setup:
    """Loads the base and builds the task; an image classifier gets as many labels as the task has
    classes.
    """
    spec, overrides = config["model"]["spec"], dict(config["model"]["overrides"])
    base = load(spec, **overrides)
    task = task_for(base, config["task"], config["data_seed"])
    if base.family == "vit" and base.config.num_labels != len(task.classes):
        overrides["num_labels"] = len(task.classes)
        base = load(spec, **overrides)
    return Setup(base, task, spec, overrides)


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
        "base": fingerprint(base),
        "config": repr(replace(base.config, remat=False)),
        "task": task.identity,
        "adapter": config["adapter"],
        "train": config["train"],
        "seed": config["seed"],
    }
    folder = packages.cache_dir() / "adapters" / identity(own)[:24]
    if (folder / "training.json").is_file():
        return folder
    trained = train.train(
        base, lora.METHOD, settings, task, training, folder, log, resources=own["base"]
    )
    adapter = lora.adapter(trained.trainable, trained.frozen)
    peft_io.write(folder, adapter, base.family, base.source, settings, config["seed"])
    write_whole(folder / "training.json", json.dumps({"losses": trained.losses, **own}).encode())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder
