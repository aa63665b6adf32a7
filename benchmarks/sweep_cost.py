"""What a sweep costs beside its evaluations: runs one with no scores known and prints the split.

    python -m benchmarks.sweep_cost [--home DIR] [--bare 3] experiment=sweep_basis [key=value ...]

A bare evaluation is the compiled function on one decoded adapter, its first call apart. It is timed
within the sweep (the median of all) and again after it, in this process and with nothing of the
sweep's around it. What training, bases and that many bare evaluations take is what a sweep cannot
do without; the last line says how much longer it took. A DIR where this has run, or DIR/whole of
benchmarks.sweep_kill, is read and not run again.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sweep_kill import Sweep, environment, finished
from solar import evaluate, record
from solar.compilation import cache_compilations


def records(home: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and record of every point, in the order in which they were finished."""
    found = sorted(home.glob("outputs/**/result.json"), key=lambda path: path.stat().st_mtime)
    return [(path.parent, record.read(path)) for path in found]


def scored(points: Sequence[tuple[Path, dict[str, Any]]]) -> Iterator[tuple[Path, dict]]:
    """Every file with the job that it was scored under, once each."""
    seen = set()
    for folder, result in points:
        job = json.loads((folder / "evaluation.json").read_text())["job"]
        for row in result["rows"]:
            path = (folder / row["packet"]).resolve()
            if (place := evaluate.score_path(path, job)) not in seen:
                seen.add(place)
                yield path, job


def bare(files: Sequence[tuple[Path, dict]]) -> float:
    """Median seconds of scoring files in this process, after one that compiles."""
    evaluate.score_file(*files[0])
    return statistics.median(evaluate.score_file(*one)["seconds"] for one in files)


def split(wall: float, points: Sequence[tuple[Path, dict]]) -> tuple[dict[str, float], int]:
    """Seconds of a sweep by what they went to, which add up to ``wall``, and the median of a bare
    evaluation; and how many evaluations there were.
    """
    seconds = [evaluate.bare_seconds(path, job) for path, job in scored(points)]
    usual = statistics.median(seconds)
    parts = {part: [r["wall_s"][part] for _, r in points] for part in points[0][1]["wall_s"]}
    coding = statistics.median(parts["compression"])
    bases = max(0.0, parts["compression"][0] - coding)
    told = {
        "training": sum(parts["training"]),
        "bases (what the first encoding took longer)": bases,
        "bare evaluations of the points": usual * len(points),
        "bare evaluations of base and LoRA": usual * (len(seconds) - len(points)),
        "compiling (what evaluations took longer)": sum(seconds) - usual * len(seconds),
        "evaluation process: start, base, decoding": sum(parts["evaluation"]) - sum(seconds),
        "encoding": sum(parts["compression"]) - bases,
        "base and task": sum(parts["base and task"]),
    }
    told["the program: start, configurations, records"] = wall - sum(told.values())
    return told, len(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep_cost", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--home", type=Path, default=None, help="a new folder; default: temporary")
    parser.add_argument("--bare", type=int, default=3, help="evaluations timed after the sweep")
    parser.add_argument("overrides", nargs="+", help="the sweep, as for experiments.compare")
    given = parser.parse_args(arguments)
    home = (given.home or Path(tempfile.mkdtemp(prefix="sweep-cost-"))).resolve()
    wall = finished(Sweep(home, tuple(given.overrides)))
    os.environ["SOLAR_CACHE"] = environment(home)["SOLAR_CACHE"]
    points = records(home)
    told, count = split(wall, points)
    for part, seconds in told.items():
        print(f"{seconds:9.1f} s  {seconds / wall:6.1%}  {part}")
    print(f"{wall:9.1f} s          {len(points)} points, {count} evaluations")
    needed = sum(list(told.values())[:3])
    print(f"{wall / needed:9.2f}    times (training + bases + {len(points)} bare evaluations)")
    cache_compilations()
    start = time.monotonic()
    again = bare(list(scored(points))[: given.bare])
    per = told["bare evaluations of the points"] / len(points)
    print(f"a bare evaluation: {per:.2f} s in the sweep, {again:.2f} s by itself "
          f"(median of {given.bare}, timed in {time.monotonic() - start:.0f} s)")  # fmt: skip


if __name__ == "__main__":
    main()
