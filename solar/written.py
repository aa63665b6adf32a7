"""What a model writes for a task's prompts, scored against all the answers that the task has for
each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from solar.errors import SolarError
from solar.generate import beam_search, generate
from solar.metrics import METRICS, measure_text
from solar.tasks.task import Task
from solar.weights.base import Base

WIDTH_STEP = 16  # prompt widths are rounded up to this, so that few shapes are compiled


@dataclass(frozen=True)
class TextConfig:
    """How text is written and scored: for the first ``prompts`` different prompts (None: all), up
    to ``tokens`` tokens each, greedily or by the best of ``beams``.

    ``synonyms``: whether METEOR matches WordNet's (see solar.metrics).
    """

    metrics: tuple[str, ...] = tuple(METRICS)
    prompts: int | None = None
    tokens: int = 64
    beams: int = 1
    length_penalty: float = 1.0
    batch_size: int = 16
    synonyms: bool = True


def parse(node: Mapping[str, Any]) -> TextConfig:
    """The settings of a config node; raises SolarError for an unknown key or metric."""
    if unknown := sorted(node.keys() - TextConfig.__dataclass_fields__.keys()):
        known = ", ".join(TextConfig.__dataclass_fields__)
        raise SolarError(f"evaluate.text has no setting {unknown[0]!r}; it has {known}")
    config = TextConfig(**{**node, "metrics": tuple(node.get("metrics", METRICS))})
    if unknown := [name for name in config.metrics if name not in METRICS]:
        raise SolarError(f"no metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
    return config


def cases(
    arrays: Mapping[str, np.ndarray], decode: Callable[[list[int]], str]
) -> tuple[list[list[int]], list[list[str]]]:
    """The different prompts of a split, in order of first appearance, and the answers of each.

    A prompt is what stands before the first target; rows with the same one share it.
    """
    answers: dict[tuple[int, ...], list[str]] = {}
    for tokens, mask, target in zip(
        arrays["tokens"], arrays["mask"], arrays["target_mask"], strict=True
    ):
        first = int(target.argmax())
        text = decode(tokens[mask & target].tolist()).strip()
        if first and text:
            answers.setdefault(tuple(tokens[:first].tolist()), []).append(text)
    return [list(prompt) for prompt in answers], list(answers.values())


def make_writer(
    base: Base, task: Task, arrays: Mapping[str, np.ndarray], config: TextConfig
) -> Callable[[Mapping[str, Any], Mapping[str, int]], dict[str, float]]:
    """A function ``(leaves, ranks) -> {metric: value}``: writes with the hooks and heads in
    ``leaves`` and scores what was written.

    Raises SolarError for a task without targets to write.
    """
    if task.objective != "next_token" or base.tokenizer is None:
        raise SolarError(
            f"task {task.name} ({task.objective}) has no text to write; remove evaluate.text"
        )

    def decode(tokens: list[int]) -> str:
        return base.tokenizer.decode(tokens, skip_special_tokens=True)

    prompts, references = cases(arrays, decode)
    prompts, references = prompts[: config.prompts], references[: config.prompts]
    if not prompts:
        raise SolarError(f"task {task.name} has no prompt to write for; give it a target")
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    stop = base.tokenizer.eos_token_id

    def write(leaves: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
        written = [""] * len(prompts)
        for first in range(0, len(prompts), config.batch_size):
            index = by_length[first : first + config.batch_size]
            filled = index + index[-1:] * (config.batch_size - len(index))
            batch = [prompts[i] for i in filled]
            width = -(-len(batch[-1]) // WIDTH_STEP) * WIDTH_STEP
            common = {"leaves": leaves, "ranks": ranks, "stop": stop, "width": width}
            if config.beams > 1:
                beams = {"beams": config.beams, "length_penalty": config.length_penalty}
                found = beam_search(base, batch, config.tokens, **beams, **common)
            else:
                found = generate(base, batch, config.tokens, **common)
            for i, tokens in zip(index, found, strict=False):
                written[i] = decode(tokens).strip()
        return measure_text(config.metrics, written, references, config.synonyms)

    return write
