"""A `compact` file opened with frames that were measured elsewhere: does the model answer alike?

    python -m benchmarks.frames_elsewhere [--bytes 1000] experiment=gpt2_mini_budgets [key=value]

The sender's file is written with the frames in the cache. Every row measures the frames of the base
anew, in a process of its own that has none, and decodes the file with them: with other numbers of
BLAS and XLA threads, without wide instructions in XLA, and with JAX's options changed. Printed are
whether the frames are the same file to the bit, ||dW' - dW''||_F / ||dW'||_F between what the
sender measured and what was decoded there, the difference of the score on the task's test split in
points, and the mean KL of the outputs in nats; or the refusal in the decoder's words. More than 0.2
points or 1e-3 nats without a refusal is a fault, and the program ends with status 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.portability import BLAS
from benchmarks.sweep_kill import ROOT, environment
from experiments.compare import shrink
from experiments.finetune import finetune, prepare
from experiments.program import composed
from solar import frame_store
from solar.adapters import peft_io
from solar.codec import activation, container, packet
from solar.codec.container import PacketError
from solar.codec.factors import Factors, canonical, relative_error
from solar.codec.heads import pack_heads
from solar.errors import SolarError
from solar.evaluate import Weights, usual_names
from solar.score import make_scorer
from solar.weights.base import load

POINTS, NATS = 0.2, 1e-3
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
ROWS: dict[str, dict[str, str]] = {
    "another process": {},
    "one BLAS thread": dict.fromkeys(BLAS, "1"),
    "one XLA thread": {"XLA_FLAGS": ONE_THREAD},
    "XLA for SSE4.2": {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"},  # as on an older processor
    "JAX matmul bfloat16": {"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"},
    "JAX x64": {"JAX_ENABLE_X64": "1"},
}


def receive(job: Mapping[str, Any]) -> dict[str, Any]:
    """Measures the frames and decodes the file with them into job["out"]: {"hash"} or, beside it,
    the refusal."""
    frames = frame_store.made(job["spec"])
    base = load(job["spec"], **job["overrides"])
    answer = {"hash": frames.hash.hex()}
    try:
        found = packet.decode(
            Path(job["file"]).read_bytes(), Weights(base), usual_names=usual_names(base),
            frames=lambda wanted: frames if frames.hash == wanted else None,
        ).factors  # fmt: skip
    except PacketError as error:
        return answer | {"refused": str(error)}
    np.savez(job["out"], **{f"{k}/{i}": f[i] for k, f in found.items() for i in (0, 1)})
    return answer


def elsewhere(row: str, job: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict | None]:
    """The answer of a fresh process, and what it decoded. Raises SolarError with its last line
    where it fails."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        given = environment(Path(place), own=("frames", "xla"))
        job = job | {"out": str(Path(place) / "decoded.npz")}
        options = (*BLAS, "XLA_", "JAX_")  # of the caller, but for where JAX runs
        clean = {k: v for k, v in given.items()
                 if k == "JAX_PLATFORMS" or not k.startswith(options)}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.frames_elsewhere", "--receive"], cwd=ROOT,
            env=clean | ROWS[row], input=json.dumps(job),
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise SolarError(f"{row}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
        answer = json.loads(done.stdout.splitlines()[-1])
        if "refused" in answer:
            return answer, None
        with np.load(job["out"]) as sides:
            names = dict.fromkeys(key.rpartition("/")[0] for key in sides)
            return answer, {k: Factors(sides[f"{k}/0"], sides[f"{k}/1"]) for k in names}


def measure(config: dict, size: int, rows: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """A dict a row: its name, whether the frames are the same, and differences or the refusal."""
    setup = prepare(config)
    adapter, weights = peft_io.read(finetune(config, setup), setup.base), Weights(setup.base)
    known = container.identify(weights, adapter.pairs)
    frames = frame_store.for_base(None, setup.spec, weights, known)
    sent = activation.encode(
        canonical(adapter.pairs), weights, frames, known=known, heads=adapter.heads,
        budget_bytes=size + len(pack_heads(adapter.heads)), usual_names=usual_names(setup.base),
    )  # fmt: skip
    file = folder / "sent.solar"
    packet.write(file, sent.data)
    job = {"spec": setup.spec, "overrides": setup.overrides, "file": str(file)}
    own = {k: (f.left, f.right) for k, f in sent.factors.items()}
    score = make_scorer(
        setup.base, setup.task, adapter.ranks, "test", config["evaluate"]["batch_size"],
        config["evaluate"]["examples"], reference=(own, adapter.heads),
    )  # fmt: skip
    before, found = score(own, adapter.heads)["score"], []
    for row in rows:
        answer, decoded = elsewhere(row, job, folder)
        told = {"row": row, "same": answer["hash"] == frames.hash.hex(), **answer}
        if decoded is not None:
            after = score({k: (f.left, f.right) for k, f in decoded.items()}, adapter.heads)
            told |= {
                "difference": relative_error(sent.factors, decoded),
                "points": 100 * abs(after["score"] - before),
                "kl": after["kl"],
            }
        found.append(told)
        print(f"{row}: done", file=sys.stderr)
    return found


def faulty(told: Mapping[str, Any]) -> bool:
    return "refused" not in told and not (told["points"] <= POINTS and told["kl"] <= NATS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frames_elsewhere", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--bytes", type=int, default=1000, help="of the file, heads apart")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="an experiment, as for experiments.compare")
    given = parser.parse_args(arguments)
    if given.receive:
        print(json.dumps(receive(json.load(sys.stdin))))
        return 0
    try:
        config = composed("compare", *given.overrides)
        config = shrink(config) if config["tiny"] else config
        with tempfile.TemporaryDirectory() as folder:
            found = measure(config, given.bytes, given.rows, Path(folder))
    except SolarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table("frames measured with", "the same file", "dW", "points", "KL, nats")
    for told in found:
        cells = [told["refused"]] if "refused" in told else [
            f"{told['difference']:.1e}", f"{told['points']:.2f}",
            f"{told['kl']:.1e}" + (" FAULT" if faulty(told) else ""),
        ]  # fmt: skip
        table.add_row(told["row"], "yes" if told["same"] else "no", *cells)
    Console(width=120).print(table)
    return int(any(map(faulty, found)))


if __name__ == "__main__":
    sys.exit(main())
