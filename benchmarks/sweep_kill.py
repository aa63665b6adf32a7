"""Kills a sweep at random moments, finishes it, and compares its table with an undisturbed one's.

    python -m benchmarks.sweep_kill [--kills 5] [--seed 0] [--home DIR] experiment=sweep_basis \
        evaluate.examples=60

The sweep runs in two folders of DIR, each with scores of its own (and, where SOLAR_CACHE has none,
adapters and bases of its own). In one it is left alone; in the other it gets SIGKILL, each time
once another share of the points is there and a random time has passed. Then the same command runs
to its end. Exit status 1 where the two tables differ in any digit, or the sweep ended before it had
been killed as often as asked.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from solar.packages import cache_dir

ROOT = Path(__file__).resolve().parent.parent


class Sweep(NamedTuple):
    """A sweep's working folder and its command, without the interpreter."""

    home: Path
    arguments: tuple[str, ...]

    def start(self) -> subprocess.Popen:
        """Starts it there, in a process group of its own; its output goes to HOME/log.txt."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "experiments.compare", *self.arguments, "-m"],
                cwd=self.home, env=environment(self.home), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def points(self) -> int:
        return sum(1 for _ in self.home.glob("outputs/**/result.json"))

    def log(self) -> str:
        return (self.home / "log.txt").read_text(errors="replace")


def environment(home: Path, own: Sequence[str] = ("scores",)) -> dict[str, str]:
    """The environment of a process in ``home``: a cache of its own, in which all but the entries
    ``own`` is what SOLAR_CACHE holds.
    """
    cache = home / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for entry in cache_dir().resolve().glob("*") if cache_dir().is_dir() else ():
        if entry.name not in own and not (cache / entry.name).is_symlink():
            (cache / entry.name).symlink_to(entry)
    return {**os.environ, "SOLAR_CACHE": str(cache), "PYTHONPATH": str(ROOT)}


def table(sweep: Sweep) -> list[list[str]]:
    """The sweep's table by `experiments.collect`: the names of the columns, then the rows, sorted.

    Raises RuntimeError where collect has nothing to give.
    """
    tiny = ["--tiny"] if "tiny=true" in sweep.arguments else []
    out = sweep.home / "table.csv"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.collect", "outputs", "--out", str(out), *tiny],
        cwd=sweep.home, env=environment(sweep.home), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode or ", 0 left out" not in done.stderr:
        raise RuntimeError(f"collect: {done.stderr}\n{sweep.log()}")
    with out.open(newline="") as file:
        names, *rows = csv.reader(file)
    return [names, *sorted(rows)]


def differences(one: list[list[str]], other: list[list[str]]) -> list[str]:
    """Every line in which two tables differ."""
    differing = [f"{a} | {b}" for a, b in zip(one, other, strict=False) if a != b]
    if len(one) != len(other):
        differing.append(f"{len(one)} lines | {len(other)} lines")
    return differing


def show(differing: Sequence[str]) -> None:
    """Prints the first lines that differ."""
    print("\n".join(differing[:20]), end="\n" if differing else "")


def run(sweep: Sweep) -> float:
    """Runs a sweep to its end; the seconds that took, which HOME/seconds.txt keeps. Raises
    RuntimeError with the end of its log where it fails.
    """
    start = time.monotonic()
    if sweep.start().wait():
        raise RuntimeError(f"the sweep failed:\n{sweep.log()[-4000:]}")
    seconds = time.monotonic() - start
    (sweep.home / "seconds.txt").write_text(f"{seconds}\n")
    return seconds


def finished(sweep: Sweep) -> float:
    """The seconds that a sweep took; run where HOME has none."""
    kept = sweep.home / "seconds.txt"
    return float(kept.read_text()) if kept.is_file() else run(sweep)


def disturb(sweep: Sweep, kills: int, points: int, most_s: float, chance: random.Random) -> int:
    """Starts and kills a sweep ``kills`` times: the i-th time when i / kills of its points are
    there and up to ``most_s`` more seconds have passed. How often it was killed before its end.
    """
    killed = 0
    for i in range(kills):
        process = sweep.start()
        while process.poll() is None and sweep.points() < i * points / kills:
            time.sleep(0.05)
        try:
            process.wait(chance.uniform(0, most_s))
        except subprocess.TimeoutExpired:
            # Itself or with all that it started: a machine that goes down spares nobody.
            (os.killpg if chance.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        print(f"killed {killed} times, {sweep.points()} of {points} points", flush=True)
    return killed


def compared(
    arguments: Sequence[str], home: Path, kills: int, chance: random.Random
) -> tuple[int, list[str]]:
    """How often the sweep was killed, and every line in which the tables differ."""
    whole = Sweep(home / "whole", tuple(arguments))
    broken = Sweep(home / "killed", tuple(arguments))
    seconds = run(whole)
    points = whole.points()
    print(f"undisturbed: {points} points in {seconds:.0f} s", flush=True)
    killed = disturb(broken, kills, points, seconds / (kills + 1), chance)
    print(f"the last run: {run(broken):.0f} s, {broken.points()} points", flush=True)
    return killed, differences(table(whole), table(broken))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep_kill", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None, help="of the random moments")
    parser.add_argument("--home", type=Path, default=None, help="a new folder; default: temporary")
    parser.add_argument("overrides", nargs="+", help="the sweep, as for experiments.compare")
    given = parser.parse_args(arguments)
    home = given.home or Path(tempfile.mkdtemp(prefix="sweep-kill-"))
    killed, differing = compared(
        given.overrides, home.resolve(), given.kills, random.Random(given.seed)
    )
    print(f"killed {killed} times; {len(differing)} lines differ ({home})")
    show(differing)
    raise SystemExit(bool(differing) or killed < given.kills)


if __name__ == "__main__":
    main()
