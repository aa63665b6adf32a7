"""Channel: an adapter trained on through the file that it will be sent in (adapters/aware.py), by
whoever sends it: on a task, or on nothing but inputs, to answer them as it did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from solar import moments, train
from solar.adapters import aware
from solar.adapters.adapter import Adapter
from solar.adapters.aware import AwareConfig
from solar.codec.choose import Decided
from solar.codec.container import Base as Known
from solar.codec.factors import Factors
from solar.codec.frame_file import FramesFile
from solar.errors import SolarError
from solar.matching import matching
from solar.pictures import pictures
from solar.score import make_scorer
from solar.tasks.task import Task, identity_of
from solar.train import TrainConfig
from solar.weights.base import Base

STEPS, TOGETHER, RATE = 80, 16, 2e-2  # of the training that compress does
MEASURED = 256  # inputs by which it is judged, not trained on
MOST_TOKENS = 128  # of a line of calibration text

Heads = Mapping[str, np.ndarray]


class Start(NamedTuple):
    """What is gone on from: an adapter, and what coding it takes, as adapters/aware.py has it."""

    adapter: Adapter
    known: Known
    frames: FramesFile
    names: tuple[str, ...] | None


def send_through(
    base: Base,
    start: Start,
    settings: AwareConfig,
    task: Task,
    config: TrainConfig,
    folder: Path | None = None,
    resources: str = "",
) -> tuple[Adapter, Decided, list[float]]:
    """What is to be coded instead of the adapter, what was decided for its file, and the loss of
    every step. folder, resources: as train.py has them."""
    known, frames = start.known, start.frames
    done = train.train(base, aware.method(*start), settings, task, config, folder, None, resources)
    own = aware.adapter(done.trainable, done.frozen, known, frames)
    return own, aware.decided(done.trainable, done.frozen, known), done.losses


def calibrated(
    base: Base, start: Start, task: Task, budget_bytes: int, seed: int = 0
) -> tuple[Adapter, Decided]:
    """What is to be coded instead of the adapter, and what was decided for its file, so that it
    answers the inputs of `task` alike in `budget_bytes`, heads apart."""
    config = TrainConfig(STEPS, TOGETHER, learning_rate=RATE, seed=seed)
    alike = matching(base, task, start.adapter, STEPS * TOGETHER)
    own, decided, _ = send_through(base, start, AwareConfig(budget_bytes), alike, config)
    return own, decided


def divergence(
    base: Base, start: Adapter, task: Task, sent: Sequence[tuple[Mapping[str, Factors], Heads]]
) -> list[float]:
    """Mean KL in nats from what `start` answers to what each update with its heads answers, on the
    first MEASURED inputs of `task`."""
    score = make_scorer(
        base, task, start.ranks, "train", TOGETHER, MEASURED,
        reference=(start.update, start.heads),
    )  # fmt: skip
    return [
        float(score({k: (f.left, f.right) for k, f in factors.items()}, heads)["kl"])
        for factors, heads in sent
    ]


def unlabelled(base: Base, data: str | Path) -> Task:
    """A task of inputs alone. data: for a language model a text file with an input a line, at most
    MOST_TOKENS long; for an image model a folder of images. Raises SolarError."""
    path = Path(data)
    if base.family == "vit":
        train_split, objective = _images(base, path), "image_class"
    else:
        train_split, objective = _lines(base, path), "next_token"
    identity = identity_of({"train": train_split})
    return Task("calibration", objective, train_split, {}, {}, identity=identity)


def own_inputs(base: Base, count: int, seed: int = 0) -> Task:
    """A task of inputs alone that need no data: what a language model writes itself (moments.py),
    or pictures for an image model (pictures.py)."""
    if base.family == "vit":
        pixels = pictures(count, base.config.image_size, seed)
        split = {"pixels": pixels, "label": np.zeros(count, np.int32)}
        objective = "image_class"
    else:
        tokens = moments.written(base, count, seed)
        target = np.ones(tokens.shape, bool)
        target[:, 0] = False
        split = {"tokens": tokens, "mask": np.ones_like(target), "target_mask": target}
        objective = "next_token"
    return Task("own inputs", objective, split, {}, {}, identity=identity_of({"train": split}))


def count(task: Task) -> int:
    """How many inputs it has."""
    return len(next(iter(task.train.values())))


def parted(task: Task, seed: int = 0) -> tuple[Task, Task]:
    """A task of inputs alone in two: those to train on and, a quarter but no more than MEASURED,
    those to judge by. Of fewer than four inputs both parts have all."""
    whole = count(task)
    held = min(MEASURED, whole // 4)
    order = np.random.default_rng(seed).permutation(whole)
    parts = (order[held:], order[:held]) if held else (order, order)
    cut = [{k: v[part] for k, v in task.train.items()} for part in parts]
    first, second = (replace(task, train=own, identity=identity_of({"train": own})) for own in cut)
    return first, second


def _lines(base: Base, path: Path) -> dict[str, np.ndarray]:
    if base.tokenizer is None:
        raise SolarError(f"{base.source} has no tokenizer, which calibration text needs")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SolarError(f"cannot read calibration text {path}: {error}") from None
    if not lines:
        raise SolarError(f"{path} holds no text; give a file with an input a line")
    found = base.tokenizer(lines, add_special_tokens=False)["input_ids"]
    most = min(MOST_TOKENS, getattr(base.config, "n_positions", MOST_TOKENS)) - 1
    found = [tokens[:most] for tokens in found]
    width = max(map(len, found)) + 1  # the answer to a whole line counts: one more place
    end = base.tokenizer.eos_token_id or 0
    mask = np.arange(width)[None, :] < np.array([len(x) + 1 for x in found])[:, None]
    tokens = np.array([x + [end] * (width - len(x)) for x in found], np.int32)
    target = mask.copy()
    target[:, 0] = False
    return {"tokens": tokens, "mask": mask, "target_mask": target}


def _images(base: Base, path: Path) -> dict[str, np.ndarray]:
    from PIL import Image

    from solar.tasks.images import read_image

    kinds = {kind for kind, form in Image.registered_extensions().items() if form in Image.OPEN}
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in kinds) if path.is_dir() else []
    if not files:
        raise SolarError(f"{path} is no folder with images; give one as calibration data")
    size = (base.config.image_size,) * 2
    pixels = [np.asarray(read_image(file, "calibration").resize(size, 2)) for file in files]
    return {"pixels": np.stack(pixels), "label": np.zeros(len(pixels), np.int32)}
