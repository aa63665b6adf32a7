"""Scores adapters from files only: a process of its own opens each file, decodes it, and measures.

``python -m solar.evaluate JOB.json`` is that process; :func:`score_files` starts it. The adapter is
an argument of one compiled function, so nothing recompiles from file to file. Every score is
written beside its file with the file's SHA-256, so that a stopped evaluation goes on where it was.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from solar import packages
from solar.adapters import peft_io, targets
from solar.codec import packet
from solar.compilation import cache_compilations
from solar.errors import SolarError
from solar.files import write_whole
from solar.models.structure import assemble, structure
from solar.objective import Outcome, aim_of, measure
from solar.record import identity
from solar.tasks import build
from solar.tasks.task import Task
from solar.weights.base import Base, load, oriented

WIDTH_STEP = 16  # token widths are rounded up to this, so that few shapes are compiled

Update = Mapping[str, tuple[np.ndarray, np.ndarray]]


def batches(arrays: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of equal size; text is sorted by length and cut to the batch's width, rows that only
    fill up the last batch have weight 0.
    """
    count = len(next(iter(arrays.values())))
    order = np.arange(count)
    if "mask" in arrays:
        order = np.argsort(arrays["mask"].sum(1), kind="stable")
    for first in range(0, count, size):
        index = order[first : first + size]
        fill = np.concatenate([index, np.full(size - len(index), index[-1])])
        batch = {k: v[fill] for k, v in arrays.items()}
        if "mask" in batch:
            longest = int(batch["mask"].sum(1).max())
            width = -(-longest // WIDTH_STEP) * WIDTH_STEP
            for name in ("tokens", "mask", "target_mask"):
                if name in batch:
                    batch[name] = batch[name][:, :width]
        batch["weight"] = (np.arange(size) < len(index)).astype(np.float32)
        yield batch


def make_scorer(
    base: Base, task: Task, ranks: Mapping[str, int], split: str = "test", batch_size: int = 32
) -> Callable[[Update, Mapping[str, np.ndarray]], dict[str, float]]:
    """A function ``(update, heads) -> {score, loss, count}`` on one split of a right-padded task.

    score is accuracy in [0, 1] (of tokens, for next_token); loss is the mean cross-entropy in nats.
    Raises SolarError for an empty split.
    """
    arrays = getattr(task, split)
    if not arrays or len(next(iter(arrays.values()))) == 0:
        raise SolarError(
            f"task {task.name} has no {split} examples; check its source and split sizes"
        )
    shape, aim = structure(base.config, ranks), aim_of(task, base)
    params = {k: jnp.asarray(v) for k, v in base.params.items()}
    parts = list(batches(arrays, batch_size))

    @jax.jit
    def run(params, leaves, batch):
        return measure(assemble(shape, {**params, **leaves}), aim, batch)

    def score(update: Update, heads: Mapping[str, np.ndarray]) -> dict[str, float]:
        given = {
            k: jnp.asarray(v) for k, v in {**hook_leaves(base, update, ranks), **heads}.items()
        }
        check_complete(base, given, heads)
        total = Outcome(0.0, 0.0, 0.0)
        for part in parts:
            # One small read a batch keeps the device's queue short and Ctrl-C prompt.
            outcome = jax.device_get(run(params, given, part))
            total = Outcome(*(a + float(b) for a, b in zip(total, outcome, strict=True)))
        count = max(total.count, 1.0)
        return {"score": total.correct / count, "loss": total.loss / count, "count": total.count}

    return score


def check_complete(base: Base, given: Mapping, heads: Mapping) -> None:
    """Raises SolarError where the base lacks a head that the file does not bring either."""
    lacking = structure(base.config).leaves.keys() - base.params.keys() - given.keys()
    if lacking:
        raise SolarError(
            f"neither the base nor the file holds {', '.join(sorted(lacking))}; train it with modules_to_save"
        )


def hook_leaves(base: Base, update: Update, ranks: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Leaves of the low-rank hooks for ``dW = L R^T``: zero columns up to the rank, zeros where
    nothing came.
    """
    if unknown := sorted(update.keys() - ranks.keys()):
        raise SolarError(f"the file updates {unknown[0]}, which this evaluation has no hook for")
    leaves = {}
    linears = structure(base.config).linears
    for name, rank in ranks.items():
        outputs, inputs, _ = linears[name]
        a, b = np.zeros((rank, inputs), np.float32), np.zeros((outputs, rank), np.float32)
        if name in update:
            left, right = update[name]
            a[: right.shape[1]], b[:, : left.shape[1]] = right.T, left
        leaves[f"{name}.lora_A"], leaves[f"{name}.lora_B"] = a, b
    return leaves


class Weights(Mapping):
    """The adapted base weights as the codec wants them, (outputs, inputs) float32, read when asked
    for.
    """

    def __init__(self, base: Base):
        self.base, self.names = base, sorted(structure(base.config).linears)

    def __getitem__(self, name: str) -> np.ndarray:
        if name + ".weight" not in self.base.params:
            raise KeyError(name)
        return oriented(self.base, name)

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def usual_names(base: Base) -> tuple[str, ...]:
    """The projections that an adapter of this family usually changes: their names need not be sent."""
    return targets.select(structure(base.config).linears, targets.DEFAULTS[base.family])


def open_file(path: Path, base: Base) -> tuple[dict, dict[str, np.ndarray]]:
    """Update ``{layer: (L, R)}`` and heads of a ``.solar`` packet or a PEFT directory."""
    if path.is_dir():
        adapter = peft_io.read(path, base)
        update = {k: (b * np.float32(s), a.T) for k, (b, a, s) in adapter.pairs.items()}
        return update, dict(adapter.heads)
    decoded = packet.decode(
        path.read_bytes(),
        Weights(base),
        usual_names=usual_names(base),
        cache=packages.cache_dir() / "bases",
    )
    return {k: (f.left, f.right) for k, f in decoded.factors.items()}, dict(decoded.heads)


def digest(path: Path) -> str:
    """SHA-256 of a packet, or of the weights and config in a PEFT directory."""
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = [path / name for name in names] if path.is_dir() else [path]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def score_path(path: Path, job: str) -> Path:
    """Where the score of a file under a job (its identity) is kept."""
    return path.parent / f"{path.name}.{job[:12]}.score.json"


def known_score(path: Path, job: str) -> dict[str, Any] | None:
    place = score_path(path, job)
    if place.is_file():
        found = json.loads(place.read_text())
        if found["sha256"] == digest(path):
            return found
    return None


def score_files(
    job: Mapping[str, Any], files: Sequence[Path], folder: Path
) -> list[dict[str, Any]]:
    """Scores of ``files`` in their order; those not known yet are measured by a fresh process.

    ``job`` has ``base`` {spec, overrides}, ``task`` (its config), ``seed``, ``split`` and
    ``batch_size``. Raises SolarError with that process's one line where it fails.
    """
    own = identity(job)
    left = [str(f) for f in files if known_score(Path(f), own) is None]
    if left:
        place = write_whole(
            folder / "evaluation.json", json.dumps({"job": job, "files": left}).encode()
        )
        done = subprocess.run(
            [sys.executable, "-m", "solar.evaluate", str(place)], stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            if done.returncode == 2:
                raise SolarError(lines[-1])
            raise RuntimeError("the evaluation process failed:\n" + "\n".join(lines[-20:]))
    return [known_score(Path(f), own) for f in files]


def run_job(document: Mapping[str, Any]) -> None:
    """Measures every file of a job document and writes each score beside its file."""
    job = document["job"]
    own = identity(job)
    base = load(job["base"]["spec"], **job["base"]["overrides"])
    task = task_for(base, job["task"], job["seed"])
    files = [Path(f) for f in document["files"]]
    opened = [open_file(f, base) for f in files]
    ranks: dict[str, int] = {}
    for update, _ in opened:
        for name, (left, _) in update.items():
            ranks[name] = max(ranks.get(name, 0), left.shape[1])
    score = make_scorer(base, task, ranks, job["split"], job["batch_size"])
    console = Console(file=sys.stdout)
    for path, (update, heads) in track(
        list(zip(files, opened, strict=True)), "evaluate", console=console
    ):
        found = {**score(update, heads), "sha256": digest(path), "task": task.identity}
        write_whole(score_path(path, own), json.dumps(found).encode())


def task_for(base: Base, config: Mapping[str, Any], seed: int) -> Task:
    """The task as ``base`` sees it: its tokenizer or its image size."""
    if base.family == "vit":
        return build(config, image_size=base.config.image_size, seed=seed)
    if base.tokenizer is None:
        raise SolarError(f"{base.source} has no tokenizer; use a folder that holds tokenizer.json")

    def encode(text: str) -> list[int]:
        return base.tokenizer.encode(text, add_special_tokens=False)

    pad = base.tokenizer.pad_token_id
    return build(config, encode=encode, pad_id=0 if pad is None else pad, seed=seed)


def main(arguments: Sequence[str]) -> int:
    cache_compilations()
    try:
        run_job(json.loads(Path(arguments[0]).read_text()))
    except SolarError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
