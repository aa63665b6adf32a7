"""Pretrains gpt2-mini, the one English GPT-2 that can be had offline: ``python -m
experiments.pretrain``.

A byte-level BPE is learnt from the same text. The result is a Hugging Face folder in the cache,
which ``model=gpt2-mini`` names. The documents of its sources are read, never the labels of tasks
built from them.
"""

import json
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors.numpy import save

from experiments.program import main
from solar import packages, train
from solar.adapters import full
from solar.compilation import cache_compilations
from solar.errors import SolarError
from solar.files import write_whole
from solar.models.gpt2 import GPT2Config
from solar.models.structure import random_leaves
from solar.record import identity
from solar.score import make_scorer
from solar.tasks import running_text
from solar.tasks.task import Task, identity_of
from solar.weights.base import Base
from solar.weights.tiny import byte_level_bpe

HELD_OUT = 200  # chunks of n_positions tokens, for the loss that is printed


def chunks(tokens: list[list[int]], width: int, end: int) -> dict[str, np.ndarray]:
    """Documents laid end to end, each closed by ``end``, in rows of ``width`` tokens; the rest is
    dropped.
    """
    stream = np.array([t for document in tokens for t in (*document, end)], np.int32)
    rows = stream[: len(stream) // width * width].reshape(-1, width)
    target = np.ones(rows.shape, bool)
    target[:, 0] = False
    return {"tokens": rows, "mask": np.ones(rows.shape, bool), "target_mask": target}


def pretrain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and saves the model, or finds it; returns what is printed. Raises SolarError where no
    text can be had, and where the name is that of a model of other settings.
    """
    folder, own = packages.cache_dir() / "models" / config["name"], identity(config)
    if (folder / "config.json").is_file():
        report = json.loads((folder / "pretraining.json").read_text())
        if report.get("settings", own) == own:  # files of earlier versions lack it
            return report
        raise SolarError(
            f"{folder} holds a model of other settings; give this one its own name=..., "
            "or remove the folder"
        )
    sizes = GPT2Config(**config["model"])
    text = running_text(tuple(config["sources"]))
    documents = text.documents[:200] if config["tiny"] else text.documents
    order = np.random.default_rng(config["seed"]).permutation(len(documents))
    documents = [documents[i] for i in order]
    tokenizer = byte_level_bpe(documents, sizes.vocab_size)
    encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
    arrays = chunks(encoded, sizes.n_positions, tokenizer.eos_token_id)
    held = HELD_OUT if len(arrays["tokens"]) > 10 * HELD_OUT else len(arrays["tokens"]) // 10
    if held == 0:
        raise SolarError("the text is too short to train on; add sources")
    test = {k: v[:held] for k, v in arrays.items()}
    fit = {k: v[held:] for k, v in arrays.items()}
    task = Task("running text", "next_token", fit, {}, test, identity=identity_of({"train": fit}))
    leaves = random_leaves(jax.random.key(config["seed"], impl="threefry2x32"), sizes)
    base = Base(f"made:{config['name']}", sizes, leaves, tokenizer)
    work = folder.with_name(folder.name + ".training")
    settings = train.parse(config["train"], config["seed"])
    trained = train.train(base, full.METHOD, None, task, settings, work)
    final = {k: np.asarray(v) for k, v in trained.trainable.items()}
    scored = make_scorer(Base(base.source, sizes, final), task, {})({}, {})
    document = {"model_type": "gpt2", "activation_function": "gelu_new", **config["model"]}
    document |= {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    write_whole(folder / "model.safetensors", save(final, {"format": "pt"}))
    report = {
        "words": text.used,
        "left out": text.missing,
        "tokens": int(fit["tokens"].size),
        "held-out loss (nats a token)": round(scored["loss"], 4),
        "steps": settings.steps,
        "settings": own,
    }
    write_whole(folder / "pretraining.json", json.dumps(report, indent=2).encode())
    # Written last: a folder with a config.json is whole.
    write_whole(folder / "config.json", json.dumps(document, indent=2).encode())
    shutil.rmtree(work, ignore_errors=True)
    return report


@main("pretrain")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if plain["tiny"]:
        plain["name"] += "-tiny"
        plain["train"] |= {"steps": 4, "batch_size": 4}
        plain["model"] |= {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_positions": 32}
        plain["sources"] = ["movie_snippets"]
    Console().print(pretrain(plain))


if __name__ == "__main__":
    cache_compilations()
    program()
