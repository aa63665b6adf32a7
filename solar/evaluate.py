"""Scores adapters from files only: a process of its own opens each file, decodes it, and measures.

``python -m solar.evaluate JOB.json`` is that process; :func:`score_files` starts it. Scores are
kept in the cache under the identity of the job and the SHA-256 of the file, so a stopped evaluation
goes on where it was and a file that was scored once is not scored again.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from solar import packages
from solar.adapters import peft_io, targets
from solar.codec import packet
from solar.compilation import cache_compilations
from solar.errors import SolarError
from solar.files import write_whole
from solar.models.structure import structure
from solar.record import identity
from solar.score import make_scorer
from solar.tasks import build
from solar.tasks.task import Task
from solar.weights.base import Base, load, oriented


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
    """The projections that this family's adapters usually change: their names need not be sent."""
    return targets.usual_names(base.family, structure(base.config).linears)


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


def score_path(path: Path, job: Mapping[str, Any]) -> Path:
    """Where the score of a file under a job is kept."""
    return packages.cache_dir() / "scores" / identity(job)[:24] / f"{digest(path)}.json"


def known_score(path: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    place = score_path(path, job)
    return json.loads(place.read_text()) if place.is_file() else None


def score_files(
    job: Mapping[str, Any], files: Sequence[Path], folder: Path
) -> list[dict[str, Any]]:
    """Scores of ``files`` in their order; those not known yet are measured by a fresh process.

    ``job`` has ``base`` {spec, overrides}, ``task`` (its config), ``task_identity``, ``seed``,
    ``split``, ``batch_size`` and ``examples``, and what :func:`extras` reads. Raises SolarError
    with that process's one line where it fails.
    """
    left = [str(f) for f in files if known_score(f, job) is None]
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
    return [known_score(f, job) for f in files]


def run_job(document: Mapping[str, Any]) -> None:
    """Measures every file of a job document and writes each score as soon as it is there."""
    job = document["job"]
    base = load(job["base"]["spec"], **job["base"]["overrides"])
    task = task_for(base, job["task"], job["seed"])
    if task.identity != job["task_identity"]:
        raise SolarError(
            f"task {task.name} has changed since the job was made; start the run again"
        )
    files = [Path(f) for f in document["files"]]
    opened = [open_file(f, base) for f in files]
    ranks: dict[str, int] = {}
    more = extras(base, job)
    for update, _ in [*opened, *filter(None, [more.get("reference")])]:
        for name, (left, _) in update.items():
            ranks[name] = max(ranks.get(name, 0), left.shape[1])
    how = (job["split"], job["batch_size"], job["examples"])
    score = make_scorer(base, task, ranks, *how, **more)
    console = Console(file=sys.stdout)
    for path, (update, heads) in track(
        list(zip(files, opened, strict=True)), "evaluate", console=console
    ):
        write_whole(score_path(path, job), json.dumps(score(update, heads)).encode())


def extras(base: Base, job: Mapping[str, Any]) -> dict[str, Any]:
    """What a job wants measured beside score and loss, as :func:`solar.score.make_scorer` takes
    it: ``reference``, a file to whose outputs the others' divergence is told; ``text``; ``also``,
    further tasks by name.
    """
    found = {"text": job.get("text")}
    if job.get("reference"):
        found["reference"] = open_file(Path(job["reference"]), base)
    further = job.get("also") or {}
    found["also"] = {name: task_for(base, task, job["seed"]) for name, task in further.items()}
    return found


def task_for(base: Base, config: Mapping[str, Any], seed: int) -> Task:
    """The task as ``base`` sees it: its tokenizer or its image size."""
    if base.family == "vit":
        return build(config, image_size=base.config.image_size, seed=seed)
    if base.tokenizer is None:
        raise SolarError(f"{base.source} has no tokenizer; use a folder that holds tokenizer.json")

    def encode(text: str) -> list[int]:
        return base.tokenizer.encode(text, add_special_tokens=False)

    pad, end = base.tokenizer.pad_token_id, base.tokenizer.eos_token_id
    return build(config, encode=encode, pad_id=0 if pad is None else pad, eos_id=end, seed=seed)


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
