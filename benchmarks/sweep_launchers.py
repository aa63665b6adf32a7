"""Runs one sweep through several launchers and compares their tables, to the last digit.

    python -m benchmarks.sweep_launchers [--launchers basic,joblib,submitit_local,ray_local] \
        [--home DIR] experiment=sweep_basis evaluate.examples=60

Each has a folder DIR/LAUNCHER with scores of its own; adapters and bases are those of SOLAR_CACHE.
A folder where the sweep is finished is read and not run again. Exit status 1 where a table differs
from the first one's in any digit. Ray needs `make launchers`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sweep_kill import Sweep, differences, finished, show, table

LAUNCHERS = ("basic", "joblib", "submitit_local", "ray_local")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep_launchers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--launchers", default=",".join(LAUNCHERS), help="by commas")
    parser.add_argument("--home", type=Path, default=None, help="a folder; default: temporary")
    parser.add_argument("overrides", nargs="+", help="the sweep, as for experiments.compare")
    given = parser.parse_args(arguments)
    home = (given.home or Path(tempfile.mkdtemp(prefix="sweep-launchers-"))).resolve()
    first, failed = None, False
    for launcher in given.launchers.split(","):
        sweep = Sweep(home / launcher, (*given.overrides, f"launcher={launcher}"))
        seconds = finished(sweep)
        found = table(sweep)
        first = first or found
        differing = differences(first, found)
        failed |= bool(differing)
        print(f"{launcher}: {len(found) - 1} rows of {sweep.points()} points in {seconds:.0f} s, "
              f"{len(differing)} lines differ", flush=True)  # fmt: skip
        show(differing)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
