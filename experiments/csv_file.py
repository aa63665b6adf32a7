"""A CSV file that several runs fill: each replaces its own rows and leaves the others."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from solar.errors import SolarError
from solar.files import write_whole


def put(path: Path, columns: Sequence[str], rows: list[dict[str, Any]], own: Sequence[str]) -> None:
    """Writes `rows` in the place of those that have the values of one of them in the columns `own`.
    Raises SolarError for a file of other columns, which it leaves as it is."""
    kept = []
    if path.is_file():
        mine = {tuple(str(row[column]) for column in own) for row in rows}
        with path.open(newline="", encoding="utf-8") as file:
            found = csv.DictReader(file)
            if (found.fieldnames or columns) != list(columns):
                raise SolarError(
                    f"{path} has the columns {', '.join(found.fieldnames)}, not "
                    f"{', '.join(columns)}; give another +out"
                )
            kept = [r for r in found if tuple(r[c] for c in own) not in mine]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_whole(path, text.getvalue().encode())


def put_out(
    out: str | None, name: str, columns: Sequence[str], rows: list[dict[str, Any]],
    own: Sequence[str],
) -> None:  # fmt: skip
    """As `put`, into the file `out`, or without one into `name` in the folder of this Hydra run,
    and says where."""
    path = Path(out) if out else Path(HydraConfig.get().runtime.output_dir) / name
    put(path, columns, rows, own)
    Console().print(f"wrote {path}", highlight=False)
