"""The figure of a run: result records in, `curve.png` and `curve.pdf` out.

The drawing itself is the paper figure's (`paper_figures.accuracy_vs_bytes`), so a run and the paper
show the same picture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.collect import tidy
from paper_figures import accuracy_vs_bytes
from solar.errors import SolarError


def draw(
    record: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    folder: str | Path,
    score: str = "test score",
) -> list[Path]:
    """Draw one result record, or one per seed (mean and standard deviation), into `folder`.

    `score` labels the upper axis. Returns the paths of the PNG and the PDF; raises SolarError when
    no row has a score.
    """
    records = [record] if isinstance(record, Mapping) else record
    rows = [row for one in records for row in tidy(one)]
    try:
        return accuracy_vs_bytes.draw(rows, folder, name="curve", score=score)
    except ValueError as error:
        raise SolarError(str(error)) from None
