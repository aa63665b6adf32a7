"""Gather the results of many runs into one tidy CSV, or print them as the README's table.

    python -m experiments.collect FOLDER... [--out FILE.csv] [--markdown] [--tiny]

Every `result.json` under the folders counts if it is complete; runs without one, and unreadable
ones, are listed on stderr and left out. Tiny runs (`tiny=true`) are left out, or with --tiny they
are the only ones in: a CSV never mixes them. A run repeated with the same configuration and seed
counts once, the newest.

The CSV has a row per packet and seed. Beside the columns of the result row: base, task, tiny,
`adapter_bytes` (the LoRA safetensors file), `ratio` (that over bytes), and `group`, eight hex
digits of the configuration without its seed, so that a mean over seeds never joins two
configurations. Points of the rate-distortion limit are rows with codec `limit`.
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paper_figures.tables import markdown
from solar.errors import SolarError
from solar.files import write_whole
from solar.record import identity, read

# The first columns of every CSV, in this order; whatever else the rows carry follows.
COLUMNS = (
    *("base", "task", "tiny", "group", "seed", "method", "codec", "label"),
    *("basis", "N", "eps", "keep", "atoms", "dtype", "rank", "bits"),
    *("bytes", "payload", "header", "heads", "adapter_bytes", "ratio"),
    *("score", "loss", "score_base", "score_adapter", "retained"),
    *("relative_error", "bound", "slack"),
)

# Entries of a configuration that say where and how loudly it ran, not what it computed.
_SURROUNDINGS = frozenset(
    {"seed", "seeds", "tracking", "launcher", "hydra", "out", "cache", "paths"}
)


class Gathered(NamedTuple):
    """Tidy rows, and for every run that was left out a line saying which and why."""

    rows: list[dict[str, Any]]
    left_out: list[str]


def tidy(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one result record with the columns that the module docstring names, limit rows
    included.
    """
    config = record.get("config", {})
    adapter_bytes = record.get("adapter", {}).get("bytes")
    rows = record.get("rows", [])
    shared = {
        "base": _name(config, "model"),
        "task": _name(config, "task"),
        "tiny": bool(record.get("tiny", False)),
        "group": identity(_without_surroundings(config))[:8],
        "adapter_bytes": adapter_bytes,
    }
    found = []
    for row in rows:
        # The empty packet (codec `none`, the base itself) compresses nothing.
        measured = adapter_bytes and row.get("bytes") and row.get("codec") != "none"
        ratio = adapter_bytes / row["bytes"] if measured else None
        found.append({**row, **shared, "ratio": ratio})
    seed = rows[0].get("seed") if rows else config.get("seed")
    for size, error in record.get("limit") or ():
        point = {"codec": "limit", "label": "rate-distortion limit", "seed": seed}
        found.append({**point, **shared, "bytes": size, "relative_error": error})
    return found


def _name(config: Mapping[str, Any], node: str) -> str | None:
    part = config.get(node)
    return part.get("name") if isinstance(part, Mapping) else part


def _without_surroundings(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {
            k: _without_surroundings(v) for k, v in config.items() if str(k) not in _SURROUNDINGS
        }
    return config


def gather(folders: Iterable[str | Path], tiny: bool = False) -> Gathered:
    """Tidy rows of every complete run under `folders`. Raises SolarError for a folder that does not
    exist.
    """
    runs: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise SolarError(f"no folder {folder}: give the output folders of runs")
        # Every run leaves one of these: at its start, when it fails, when it ends.
        for mark in ("identity.txt", "error.txt", "result.json"):
            runs.update((found.parent.resolve(), None) for found in folder.rglob(mark))
    left_out: list[str] = []
    newest: dict[tuple, tuple[float, Path, list[dict[str, Any]]]] = {}
    for run in sorted(runs):
        path = run / "result.json"
        if not path.exists():
            left_out.append(f"{run}: {_failure(run)}")
            continue
        try:
            record = read(path)
        except SolarError as error:
            left_out.append(str(error))
            continue
        if record.get("status") != "complete":
            left_out.append(f"{run}: status is {record.get('status')!r}, not 'complete'")
            continue
        if bool(record.get("tiny", False)) != tiny:
            left_out.append(f"{run}: {'not a tiny run' if tiny else 'a tiny run'}")
            continue
        rows = tidy(record)
        if not rows:
            left_out.append(f"{run}: no rows")
            continue
        key = (rows[0]["group"], tuple(sorted({str(row.get("seed")) for row in rows})))
        age = path.stat().st_mtime
        if key in newest:
            older = min((age, run), newest[key][:2])[1]
            left_out.append(f"{older}: the same configuration and seed was run again later")
            if older == run:
                continue
        newest[key] = (age, run, rows)
    return Gathered([row for _, _, rows in newest.values() for row in rows], left_out)


def _failure(run: Path) -> str:
    note = run / "error.txt"
    if not note.exists():
        return "not finished"
    lines = note.read_text(encoding="utf-8").strip().splitlines()
    return f"failed: {lines[-1].strip() if lines else 'no message'}"


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write tidy rows under `path`, whole or not at all. Columns that no row fills are left out."""
    every = dict.fromkeys((*COLUMNS, *(column for row in rows for column in row)))
    columns = [c for c in every if any(row.get(c) is not None for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_whole(path, text.getvalue().encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """The program: exit status 2 and one line when there is nothing to collect."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.collect", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folders", nargs="+", help="output folders, searched to any depth")
    parser.add_argument("--out", help="CSV file to write")
    parser.add_argument("--markdown", action="store_true", help="print a table, mean ± std")
    parser.add_argument("--tiny", action="store_true", help="only runs made with tiny=true")
    given = parser.parse_args(arguments)
    try:
        rows, left_out = gather(given.folders, given.tiny)
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        if not rows:
            raise SolarError(f"no finished run under {', '.join(given.folders)}: run compare first")
        if given.out:
            write_csv(rows, given.out)
        if given.markdown:
            print(markdown(rows))
        if not (given.out or given.markdown):
            print(f"{len(rows)} rows: give --out FILE.csv or --markdown to keep or see them")
    except SolarError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
