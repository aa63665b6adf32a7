"""Scores adapters from files only: a process of its own opens each file, decodes it, and measures.

``python -m solar.evaluate`` is that process; :func:`score_files` asks it. Scores are kept in the
cache under the identity of the job and the SHA-256 of the file, so a stopped evaluation goes on
where it was and a file that was scored once is not scored again. The job fixes the shapes of the
hooks, so every file goes through the same compiled function. By hand, and keeping nothing:

    python -m solar.evaluate RUN/evaluation.json
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from solar import evaluator, frame_store, packages, record
from solar.adapters import peft_io, targets
from solar.codec import packet
from solar.compilation import cache_compilations
from solar.errors import SolarError
from solar.files import only_one, write_whole
from solar.models.structure import structure
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
        return adapter.update, dict(adapter.heads)
    decoded = packet.decode(
        path.read_bytes(),
        Weights(base),
        usual_names=usual_names(base),
        cache=packages.cache_dir() / "bases",
        frames=frame_store.by_hash,
    )
    return {k: (f.left, f.right) for k, f in decoded.factors.items()}, dict(decoded.heads)


def digest(path: Path) -> str:
    """SHA-256 of a packet, or of the weights and config in a PEFT directory."""
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = [path / name for name in names] if path.is_dir() else [path]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def score_path(path: Path, job: Mapping[str, Any]) -> Path:
    """Where the score of a file under a job is kept."""
    return packages.cache_dir() / "scores" / record.identity(job)[:24] / f"{digest(path)}.json"


def known_score(path: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """What :func:`make_scorer`'s function gave for a file; None where that was not measured yet."""
    place = score_path(path, job)
    return json.loads(place.read_text())["values"] if place.is_file() else None


def bare_seconds(path: Path, job: Mapping[str, Any]) -> float:
    """What the model's forward passes took when a known score was measured, compilation
    included.
    """
    return json.loads(score_path(path, job).read_text())["seconds"]


def score_files(
    job: Mapping[str, Any], files: Sequence[Path], folder: Path
) -> list[dict[str, Any]]:
    """Scores of ``files`` in their order; those not known yet are measured by the evaluation
    process.

    ``job`` has ``base`` {spec, overrides}, ``task`` (its config), ``task_identity``, ``ranks``
    {layer: of the hooks}, ``seed``, ``split``, ``batch_size`` and ``examples``, and what
    :func:`extras` reads. Of several processes that want the score of one file, one has it measured.
    Raises SolarError with the evaluation process's one line where it fails.
    """
    left = [f for f in files if known_score(f, job) is None]
    if left:
        document = {"job": job, "files": [os.path.abspath(f) for f in left]}
        write_whole(folder / "evaluation.json", json.dumps(document).encode())
    # First what nobody else is at, then what the others may not have finished.
    console = Console(stderr=True)
    busy = [f for f in track(left, "evaluate", console=console, disable=len(left) < 2)
            if not _measure(f, job, None)]  # fmt: skip
    for path in busy:
        _measure(path, job, f"waiting for another process, which evaluates {path.name}")
    return [known_score(f, job) for f in files]


def _measure(path: Path, job: Mapping[str, Any], waiting: str | None) -> bool:
    """Has a file scored and keeps the score; False where another process is at it."""
    with only_one(score_path(path, job), waiting) as mine:
        if mine and known_score(path, job) is None:
            answer = evaluator.ask({"job": job, "file": os.path.abspath(path)})
            write_whole(score_path(path, job), json.dumps(answer).encode())
        return mine


# ------------------------------------------------------------------ in the evaluation process


# What the last job needed, each made of the ones before; the next job is likely to need the same.
_PARTS = ("base", "task", "scorer")
_kept: dict[str, tuple[Any, Any]] = {}


def _keep(part: str, key: Any, make: Callable[[], Any]) -> Any:
    if part not in _kept or _kept[part][0] != key:
        for old in _PARTS[_PARTS.index(part) :]:
            _kept.pop(old, None)  # first: there may be no room for two
        _kept[part] = key, make()
    return _kept[part][1]


def score_file(path: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """The ``values`` that the scorer gives for a file, and the ``seconds`` that it took.

    Base, task and compiled function stay for the next file with the same job. Raises SolarError for
    a file that this base refuses and for a task that is no longer what it was.
    """
    named = job["base"]
    base = _keep("base", named, lambda: load(named["spec"], **named["overrides"]))
    wanted = (named, job["task"], job["seed"])
    task = _keep("task", wanted, lambda: task_for(base, job["task"], job["seed"]))
    if task.identity != job["task_identity"]:
        raise SolarError(
            f"task {task.name} has changed since the job was made; start the run again"
        )
    how = (job["split"], job["batch_size"], job["examples"])
    score = _keep(
        "scorer", dict(job),
        lambda: make_scorer(base, task, job["ranks"], *how, **extras(base, job)),
    )  # fmt: skip
    update, heads = open_file(path, base)
    start = time.monotonic()
    values = score(update, heads)
    return {"values": values, "seconds": time.monotonic() - start}


def serve(questions: IO[str], answers: IO[str]) -> None:
    """Answers ``{job, file}`` lines until there are no more; then the process ends at once, in the
    middle of a file too, because nobody is left to read the answer.
    """
    arrived: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in questions:
            arrived.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        question = json.loads(arrived.get())
        try:
            answer = score_file(Path(question["file"]), question["job"])
        except SolarError as error:
            answer = {"mistake": str(error)}
        except Exception:
            answer = {"bug": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


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
    """Serves, or with the name of a job document prints the scores of its files."""
    cache_compilations()
    if not arguments:
        # Ctrl-C goes to the whole group; it is for the process that asks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints is no answer
        serve(sys.stdin, answers)
    try:
        document = record.read(Path(arguments[0]))
        for file in document["files"]:
            print(file, json.dumps(score_file(Path(file), document["job"])["values"]))
    except KeyError as error:
        print(
            f"{arguments[0]} lacks {error}; compare writes evaluation.json whole", file=sys.stderr
        )
        return 2
    except (OSError, SolarError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
