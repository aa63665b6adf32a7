"""What a preset costs beside the paper's, on the adapter of an experiment, measured in one run.

    python -m benchmarks.presets [--rounds 5] experiment=dinov2_budgets [key=value ...]

`compress` and `expand` by `paper`, `weights` and `compact` take turns, in one process, bases and
frames cached, with a 64th of the adapter's file as budget, trained heads apart; so do the commands
`python -m solar compress`, each in a process of its own. Printed are medians of the rounds and
their ratios to `paper`; the first call, which compiles and fills the caches, is left out. A
`compact` above 3 times `paper`, in one process or as a command, is a fault, and the program ends
with status 1.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.codec_speed import timed
from experiments.compare import shrink
from experiments.finetune import finetune, prepare
from experiments.program import composed
from solar import api
from solar.errors import SolarError

PRESETS = ("paper", "weights", "compact")
MOST = 3.0  # times paper that compact may take
WORKS = ("compress", "command", "expand")


def command(adapter: Path, base: str, file: Path, preset: str) -> None:
    """`compress` as a user gives it."""
    own = ["compress", adapter, "--base", base, "--out", file, "--preset", preset]
    subprocess.run([sys.executable, "-m", "solar", *own], check=True, capture_output=True)


def measure(adapter: Path, base: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """A dict a preset: bytes of its file, and median seconds of WORKS."""
    spent: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for preset in PRESETS:
            file, out = folder / f"{preset}.solar", folder / preset
            works = {
                "compress": lambda p=preset, f=file: api.compress(adapter, base, f, preset=p),
                "command": lambda p=preset, f=file: command(adapter, base, f, p),
                "expand": lambda f=file, o=out: api.expand(f, base, o, force=True),
            }
            for name, work in works.items():
                seconds = timed(work)
                if turn:
                    spent.setdefault((preset, name), []).append(seconds)
    return [
        {"preset": preset, "bytes": (folder / f"{preset}.solar").stat().st_size}
        | {name: statistics.median(spent[preset, name]) for name in WORKS}
        for preset in PRESETS
    ]


def ratios(found: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
    """Of WORKS, to the first preset."""
    return [tuple(row[k] / found[0][k] for k in WORKS) for row in found]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.presets", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="an experiment, as for experiments.compare")
    given = parser.parse_args(arguments)
    try:
        config = composed("compare", *given.overrides)
        config = shrink(config) if config["tiny"] else config
        setup = prepare(config)
        adapter = finetune(config, setup)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(adapter, setup.spec, given.rounds, Path(folder))
    except SolarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table("preset", "bytes", *(x for k in WORKS for x in (f"{k}, s", "times paper")))
    for row, times in zip(found, ratios(found), strict=True):
        cells = [(f"{row[k]:.2f}", f"{slower:.1f}") for k, slower in zip(WORKS, times, strict=True)]
        table.add_row(row["preset"], f"{row['bytes']:,}", *(x for pair in cells for x in pair))
    Console(width=100).print(table)
    return int(max(ratios(found)[-1]) > MOST)


if __name__ == "__main__":
    sys.exit(main())
