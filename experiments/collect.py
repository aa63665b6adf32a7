"""Gather the results of any number of runs into one tidy table: CSV, Parquet or Markdown.

    python -m experiments.collect FOLDER... [--out FILE.csv or .parquet] [--markdown] [--b95]
        [--tiny]

Every `result.json` under the folders counts if it is complete; runs without one, and unreadable
ones, are listed on stderr and left out. Tiny runs (`tiny=true`, or a random base) are left out, or
with --tiny they are the only ones in: a table never mixes them. A run repeated with the same
configuration and seed counts once, the newest, and so does a point that several runs have measured,
as base and LoRA are by every point of a sweep.

A row per packet and seed. Beside the columns of the result row: base, task (with its shots, where
it has few), `adapter` (rank and layers), tiny, `adapter_bytes` (the LoRA safetensors file), and
`group`, eight hex digits of the configuration without its seed and
its codec: a mean over seeds never joins two groups, and the codec's settings are columns. Points of
the rate-distortion limit are rows with codec `limit`. In Parquet the types are the same for any
runs. With --b95 the table has a row per codec and seed instead: the fewest bytes that retain 0.95
of LoRA's gain.
"""

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import b95
from paper_figures.rows import ALSO
from paper_figures.tables import markdown
from solar.errors import SolarError
from solar.files import write_whole
from solar.record import identity, read

# The first columns of every table, in this order, and their types; what else the rows carry
# follows. bool, int, float or str.
COLUMNS: dict[str, type] = {
    **dict.fromkeys(("base", "task", "adapter"), str),
    **{"tiny": bool, "group": str, "seed": int},
    **dict.fromkeys(("method", "codec", "label", "basis"), str),
    **{"N": int, "eps": float, "keep": int, "atoms": str, "dtype": str, "rank": int, "bits": int},
    "bytes": float,  # of the limit, which is no file, in fractions
    **dict.fromkeys(("payload", "header", "heads", "adapter_bytes"), int),
    **dict.fromkeys(("ratio_fp32", "ratio_fp16", "score", "loss"), float),
    **dict.fromkeys(("score_base", "score_adapter", "retained"), float),
    **dict.fromkeys(("relative_error", "bound", "slack"), float),
    **dict.fromkeys(("kl", "bleu", "nist", "meteor", "rouge_l", "cider"), float),
}
B95_COLUMNS: dict[str, type] = {
    **{name: COLUMNS[name] for name in ("base", "task", "tiny", "group", "seed", "codec", "label")},
    **{"bytes": float, "ratio_fp32": float, "retained": float},
}

# Entries of a configuration that say where and how loudly it ran, not what it computed.
_SURROUNDINGS = frozenset(
    {"seed", "seeds", "tracking", "launcher", "sweeper", "hydra", "out", "cache", "paths"}
    | {"alignment"}
)
# Every run leaves one of these: at its start, when it fails, when it ends.
_MARKS = {"identity.txt", "error.txt", "result.json"}
_INSIDE = {"wandb", "packets", "checkpoints"}  # folders of a run that hold no other run
# Columns of a row that were measured, or say where the file lies, rather than what the point is.
_MEASURED = {name for name in COLUMNS if COLUMNS[name] is float and name != "eps"}
_MEASURED |= {"payload", "header", "heads", "adapter_bytes", "packet"}


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
    settled = {k: v for k, v in config.items() if k != "codec"}
    settled["base"] = record.get("identities", {}).get("base")  # a name can come to mean another
    shared = {
        "base": _name(config, "model"),
        "task": _task(config),
        "adapter": _adapter(config.get("adapter")),
        "tiny": bool(record.get("tiny", False)),
        "group": identity(_without_surroundings(settled))[:8],
        "adapter_bytes": adapter_bytes,
    }
    found = []
    for row in rows:
        row = {**row, **shared}
        if not isinstance(row.get("keep"), int):
            row["keep"] = None  # the budget decided
        if "ratio_fp32" not in row and adapter_bytes and row["codec"] != "none":
            row["ratio_fp32"] = adapter_bytes / row["bytes"]
        found.append(row)
    seed = rows[0].get("seed") if rows else config.get("seed")
    for size, error in record.get("limit") or ():
        point = {"codec": "limit", "label": "rate-distortion limit", "seed": seed}
        found.append({**point, **shared, "bytes": size, "relative_error": error})
    return found


def _name(config: Mapping[str, Any], node: str) -> str | None:
    part = config.get(node)
    return part.get("name") if isinstance(part, Mapping) else part


def _task(config: Mapping[str, Any]) -> str | None:
    task = config.get("task")
    shots = task.get("shots_per_class") if isinstance(task, Mapping) else None
    return f"{_name(config, 'task')}, {shots} shots" if shots else _name(config, "task")


def _adapter(config: Any) -> str | None:
    """Rank and layers of an adapter's config, as a table tells adapters of one base apart."""
    if not isinstance(config, Mapping) or "r" not in config:
        return None
    layers = config.get("target_modules") or "usual layers"
    return f"r {config['r']}, {layers if isinstance(layers, str) else ' '.join(layers)}"


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
    left_out: list[str] = []
    newest: dict[str, tuple[float, Path, list[dict[str, Any]]]] = {}
    for run in sorted({found.resolve() for folder in folders for found in _runs(Path(folder))}):
        path = run / "result.json"
        try:
            record = read(path) if path.exists() else {"status": None}
        except SolarError as error:
            left_out.append(str(error))
            continue
        if why := _unfit(run, record, tiny):
            left_out.append(f"{run}: {why}")
            continue
        seeds = sorted({str(row.get("seed")) for row in record["rows"]})
        key = identity({"of": _without_surroundings(record.get("config", {})), "seeds": seeds})
        age = path.stat().st_mtime
        if key in newest:
            older = min((age, run), newest[key][:2])[1]
            left_out.append(f"{older}: the same configuration and seed was run again later")
            if older == run:
                continue
        newest[key] = (age, run, tidy(record))  # the rest of a record is much larger
    return Gathered(_once(newest.values(), left_out), left_out)


def _runs(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise SolarError(f"no folder {folder}: give the output folders of runs")
    for place, inside, files in os.walk(folder, followlinks=True):
        if not _MARKS.isdisjoint(files):
            yield Path(place)
            inside[:] = [name for name in inside if name not in _INSIDE]


def _unfit(run: Path, record: Mapping[str, Any], tiny: bool) -> str | None:
    """Why a run does not belong into the table; None where it does."""
    if record.get("status") is None and not (run / "result.json").exists():
        return _failure(run)
    if record.get("status") != "complete":
        return f"status is {record.get('status')!r}, not 'complete'"
    if bool(record.get("tiny", False)) != tiny:
        return "not a tiny run" if tiny else "a tiny run"
    return None if record.get("rows") else "no rows"


def _failure(run: Path) -> str:
    note = run / "error.txt"
    if not note.exists():
        return "not finished"
    lines = note.read_text(encoding="utf-8").strip().splitlines()
    return f"failed: {lines[-1].strip() if lines else 'no message'}"


def _once(
    runs: Iterable[tuple[float, Path, list[dict[str, Any]]]], left_out: list[str]
) -> list[dict[str, Any]]:
    """The rows of all runs in the order of their folders, a point and seed that several have
    measured from the newest alone, and likewise the limit."""
    taken: dict[tuple, tuple[Path, dict[str, Any]]] = {}
    chosen: dict[Path, list[dict[str, Any]]] = {}
    for _, run, rows in sorted(runs, key=lambda run: run[:2], reverse=True):
        differing = 0
        own = chosen.setdefault(run, [])
        for row in rows:
            newer, same = taken.setdefault(_point(row), (run, row))
            if newer == run:
                own.append(row)
            elif row["codec"] != "limit":
                differing += any(row.get(k) != same.get(k) for k in ("bytes", "score"))
        if differing:
            left_out.append(f"{run}: {differing} of its rows were measured otherwise later")
    return [row for run in sorted(chosen, key=_by_number) for row in chosen[run]]


def _by_number(run: Path) -> list[str | int]:
    """A folder's place among others: `r=2` is before `r=16`."""
    return [int(x) if i % 2 else x for i, x in enumerate(re.split(r"(\d+)", str(run)))]


def _point(row: Mapping[str, Any]) -> tuple:
    """What two rows have in common that measure the same point with the same seed; the whole limit
    is one point."""
    if row["codec"] == "limit":
        return row["group"], row["seed"]
    return tuple(
        (column, str(value))
        for column, value in sorted(row.items())
        if column not in _MEASURED and not column.startswith(ALSO) and value is not None
    )


def write_csv(
    rows: Sequence[Mapping[str, Any]], path: str | Path, first: Iterable[str] = COLUMNS
) -> Path:
    """Write rows under `path`, whole or not at all, the `first` columns before others. Columns that
    no row fills are left out."""
    every = dict.fromkeys((*first, *(column for row in rows for column in row)))
    columns = [c for c in every if any(row.get(c) is not None for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_whole(path, text.getvalue().encode())


def write_parquet(
    rows: Sequence[Mapping[str, Any]], path: str | Path, first: Mapping[str, type] = COLUMNS
) -> Path:
    """Write rows under `path`, whole or not at all.

    Every `first` column is there, filled or not, and has its type: what one collection wrote fits
    to the next. A column beyond them is bool, float64 or string by what it holds. Raises SolarError
    for a value that is not of its column's type.
    """
    import pyarrow
    from pyarrow import parquet

    names = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    types = dict(first)
    for row in rows:
        for column, value in row.items():
            if column not in first and value is not None:
                types[column] = _wider(types.get(column), value)
    arrays, fields = [], []
    for column, kind in types.items():
        values = [row.get(column) for row in rows]
        if kind is str:
            values = [None if value is None else str(value) for value in values]
        try:
            arrays.append(pyarrow.array(values, names.get(kind, pyarrow.string())))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise SolarError(f"column {column} is to hold {kind.__name__}: {error}") from None
        fields.append(pyarrow.field(column, arrays[-1].type))
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields)), sink)
    return write_whole(path, sink.getvalue())


def _wider(known: type | None, value: Any) -> type:
    own = bool if isinstance(value, bool) else float if isinstance(value, int | float) else str
    return own if known in (None, own) else str


def main(arguments: Sequence[str] | None = None) -> None:
    """The program: exit status 2 and one line when there is nothing to collect."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.collect", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folders", nargs="+", help="output folders, searched to any depth")
    parser.add_argument("--out", help="file to write, .csv or .parquet")
    parser.add_argument("--markdown", action="store_true", help="print a table, mean ± std")
    parser.add_argument("--b95", action="store_true", help="fewest bytes that retain 0.95")
    parser.add_argument("--tiny", action="store_true", help="only runs made with tiny=true")
    given = parser.parse_args(arguments)
    try:
        out = Path(given.out) if given.out else None
        if out and out.suffix not in (".csv", ".parquet"):
            raise SolarError(f"--out {out} ends neither in .csv nor in .parquet; choose one")
        rows, left_out = gather(given.folders, given.tiny)
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        if not rows:
            raise SolarError(f"no finished run under {', '.join(given.folders)}: run compare first")
        columns, shown = COLUMNS, markdown
        if given.b95:
            rows, columns, shown = b95.fewest(rows), B95_COLUMNS, b95.markdown
        if out:
            (write_parquet if out.suffix == ".parquet" else write_csv)(rows, out, columns)
            print(f"wrote {out}: {len(rows)} rows, {len(left_out)} left out", file=sys.stderr)
        if given.markdown or (given.b95 and not out):
            print(shown(rows))
        elif not out:
            print(f"{len(rows)} rows: give --out FILE.csv or --markdown to keep or see them")
    except SolarError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
