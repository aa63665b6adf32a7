"""B95: the fewest bytes at which a codec keeps 0.95 of what the adapter gained over its base.

Of the files that were measured, so it is as fine as their sizes are, and one lucky file decides it:
read it beside the curve.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paper_figures.rows import TITLE, titles
from paper_figures.tables import bar

SHARE = 0.95
_RUN = ("base", "task", "adapter", "tiny", "group")
_CODEC = (*_RUN, "codec", "basis", "atoms")


def name(row: Mapping[str, Any]) -> str:
    """A codec as one line of the table: `solar` is as many as it has bases and kinds of atoms."""
    return " ".join(str(row[k]) for k in ("codec", "basis", "atoms") if row.get(k) is not None)


def fewest(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per codec and seed of tidy rows: codec (its `name`), and label, bytes, ratio_fp32 and
    retained of the smallest file that keeps SHARE; these are None where none does."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("codec") not in ("limit", "none"):
            where = (*(row.get(k) for k in _CODEC), row.get("seed"))
            groups.setdefault(where, []).append(row)
    found = []
    for members in groups.values():
        enough = [row for row in members if (row.get("retained") or 0.0) >= SHARE]
        best = min(enough, key=lambda row: row["bytes"], default={})
        about = {k: members[0].get(k) for k in (*_RUN, "seed")}
        own = {k: best.get(k) for k in ("label", "bytes", "ratio_fp32", "retained")}
        found.append({**about, "codec": name(members[0]), **own})
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table per base, task and configuration of what `fewest` found: a line a codec, a column a
    seed, and mean ± standard deviation where every seed has a file that keeps enough."""
    parts: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault(tuple(row.get(k) for k in TITLE), []).append(row)
    found = []
    for title, members in zip(titles(parts), parts.values(), strict=True):
        seeds = sorted({row["seed"] for row in members})
        lines = [f"**{title}: fewest bytes that retain {SHARE}**", ""]
        lines.append(bar("codec", *(f"seed {seed}" for seed in seeds), "mean"))
        lines.append(bar("---", *["---:"] * (len(seeds) + 1)))
        codecs: dict[str, dict[Any, int | None]] = {}
        for row in members:
            codecs.setdefault(row["codec"], {})[row["seed"]] = row["bytes"]
        for codec, sizes in codecs.items():
            own = [sizes.get(seed) for seed in seeds]
            shown = ["-" if size is None else f"{size:,}" for size in own]
            lines.append(bar(codec, *shown, "-" if None in own else _mean(own)))
        found.append("\n".join(lines))
    return "\n\n".join(found)


def _mean(sizes: Sequence[int]) -> str:
    mean = f"{statistics.fmean(sizes):,.0f}"
    return f"{mean} ± {statistics.stdev(sizes):,.0f}" if len(sizes) > 1 else mean
