"""Rows of results as the figures and tables use them: read from CSV, joined over seeds, cut into
lines of a plot.

A row is one packet of one seed (`experiments.collect` describes the columns). A point is what
several seeds of the same setting have in common: the mean of every measure, and its standard
deviation under the measure's name plus `_std` (n - 1 in the denominator, None for a single seed).
Rows whose `codec` is `limit` are points of the rate-distortion limit.
"""

import csv
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MEASURES = (
    *("bytes", "payload", "header", "heads", "ratio_fp32", "ratio_fp16"),
    *("score", "loss", "score_base", "score_adapter", "retained"),
    *("relative_error", "bound", "slack"),
    *("bleu", "nist", "meteor", "rouge_l", "cider", "kl"),
)
ALSO = "also_"  # begins the names of further tasks' scores, which are measures too

# What makes two rows the same setting; everything but the seed and what was measured.
SETTING = (
    *("base", "task", "adapter", "group", "method", "codec", "label"),
    *("basis", "atoms", "dtype", "eps", "N", "keep", "rank", "bits"),
)

TITLE = ("base", "task", "adapter", "group")  # of a panel

# What a line of SOLAR says of itself, unless it is the paper's own form.
USUAL = {"basis": "singular", "atoms": "vector", "dtype": "float16"}
_UNUSUAL = {"basis": "{} basis", "atoms": "{} atoms", "dtype": "{}"}

PRESETS = ("compact", "weights")  # codecs that fill a budget: a line each, by their own names
# compact files that the adapter was trained on through: on no data, on inputs, on the task
TRAINED = ("refit", "unlabelled", "aware")

_NAMES = {
    "float32": "LoRA, float32",
    "float16": "LoRA, float16",
    "truncate": "rank truncation",
}


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of a CSV file with a header: numbers as int or float, empty cells as None, true and
    false as bool.

    Raises ValueError, in one line, for a file that is missing, holds no row, or holds one with more
    cells than the header.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
    except OSError as error:
        raise ValueError(
            f"cannot read {path} ({error.strerror}): make it with `python -m experiments.collect`"
        ) from None
    if not found:
        raise ValueError(f"{path} holds no row: make it with `python -m experiments.collect`")
    if long := [i for i, row in enumerate(found, 1) if None in row]:
        raise ValueError(f"row {long[0]} of {path} has more cells than its header")
    return [{k: _value(v) for k, v in row.items()} for row in found]


def check(
    rows: Sequence[Mapping[str, Any]], columns: Iterable[str], what: str, program: str
) -> None:
    """Raises ValueError where `what` rows, which `program` makes, lack a column, or there are
    none."""
    if missing := [column for column in columns if not rows or column not in rows[0]]:
        raise ValueError(
            f"{what} rows lack {', '.join(missing)}: make them with `python -m {program}`"
        )


def adapters(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Experiment -> what its adapter is called: by its base, and where several are of one base by
    the experiment too."""
    bases = {row["experiment"]: row["base"] for row in rows}
    several = {base for base in bases.values() if list(bases.values()).count(base) > 1}
    return {own: f"{base}, {own}" if base in several else base for own, base in bases.items()}


def _value(text: str | None) -> Any:
    if text is None or text == "":
        return None
    if text in ("True", "true", "False", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def over_seeds(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One point per setting, in order of first appearance; limit rows are left out.

    A point has the setting's columns, `seeds` (how many), and mean and `_std` of each measure over
    the rows that have it; `without_head` is bytes less those of trained heads. Raises ValueError if
    a seed appears twice in a setting: a mean over it would count it twice.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("codec") != "limit":
            groups.setdefault(tuple(row.get(k) for k in SETTING), []).append(row)
    points = []
    for setting, members in groups.items():
        seeds = [row.get("seed") for row in members]
        if len(set(seeds)) != len(seeds):
            raise ValueError(
                f"{members[0].get('label')} has seed {_repeated(seeds)} more than once: "
                "collect one run per seed"
            )
        point = dict(zip(SETTING, setting, strict=True)) | {"seeds": len(members)}
        also = dict.fromkeys(k for row in members for k in row if str(k).startswith(ALSO))
        for measure in (*MEASURES, *also, "without_head"):
            values = [v for row in members if (v := _measured(row, measure)) is not None]
            point[measure] = statistics.fmean(values) if values else None
            point[f"{measure}_std"] = statistics.stdev(values) if len(values) > 1 else None
        points.append(point)
    return points


def _measured(row: Mapping[str, Any], measure: str) -> float | None:
    if measure != "without_head":
        return row.get(measure)
    return row["bytes"] - row["heads"] if row.get("bytes") and row.get("heads") else None


def _repeated(values: list) -> Any:
    return next(v for i, v in enumerate(values) if v in values[:i])


def lines(points: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The lines of a plot: name -> points by rising bytes. SOLAR first, then baselines, then codes
    with no name here.

    SOLAR has a line per basis, atoms, dtype, eps, and whether N or the number of kept coefficients
    is what moves along it; its name says what is not the paper's own form. Quantised factors with a
    `rank` of their own (truncated first) are a line apart. The empty packet is on no line: its
    score is the base's.
    """
    points = [p for p in points if p.get("codec") != "none"]
    solar = [p for p in points if p.get("codec") == "solar"]
    families: dict[tuple, list[Mapping[str, Any]]] = {}
    for point in solar:
        family = (*(point.get(k) for k in USUAL), point.get("keep") is not None)
        families.setdefault(family, []).append(point)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for (*kinds, kept), members in families.items():
        parts = _form(dict(zip(USUAL, kinds, strict=True)))
        several_eps = len({p.get("eps") for p in members}) > 1
        several_sizes = kept and len({p.get("N") for p in members}) > 1
        for point in sorted(members, key=lambda p: (p.get("eps") or 0, p.get("N") or 0)):
            last = [f"$\\epsilon$ = {point['eps']:g}"] if several_eps else []
            if kept:
                last.append(f"top $K$ of {point['N']}" if several_sizes else "top $K$")
            found.setdefault(", ".join([*parts, *last]), []).append(point)
    for preset in (*PRESETS, *TRAINED):
        found[preset] = [p for p in points if p.get("codec") == preset]
    for codec, name in _NAMES.items():
        found[name] = [p for p in points if p.get("codec") == codec]
    for truncated in (False, True):
        chosen = [p for p in points if p.get("codec") == "bits"]
        chosen = [p for p in chosen if (p.get("rank") is not None) == truncated]
        widths = sorted({p["bits"] for p in chosen if p.get("bits") is not None}, reverse=True)
        name = " ".join([", ".join(map(str, widths)), "bit" if widths == [1] else "bits"]).strip()
        found[f"{name}, lower rank" if truncated else name] = chosen
    for point in points:
        if point.get("codec") not in ("solar", "bits", *PRESETS, *TRAINED, *_NAMES):
            found.setdefault(str(point.get("codec")), []).append(point)
    return {name: sorted(line, key=lambda p: p["bytes"]) for name, line in found.items() if line}


def _form(point: Mapping[str, Any]) -> list[str]:
    """SOLAR, and what of basis, atoms and dtype is not the paper's own."""
    unusual = (k for k, usual in USUAL.items() if point.get(k) not in (None, usual))
    return ["SOLAR", *(_UNUSUAL[k].format(point[k]) for k in unusual)]


def describe(point: Mapping[str, Any]) -> str:
    """What a point is, in words for matplotlib and LaTeX alike: symbols stand between dollars."""
    if point.get("codec") == "solar":
        dials = (("$N$", "N"), ("$\\epsilon$", "eps"), ("$K$", "keep"))
        known = [f"{sign} = {point[k]:g}" for sign, k in dials if point.get(k) is not None]
        return ", ".join([*_form(point), *known])
    if point.get("codec") == "float16":
        return _NAMES["float16"]
    return str(point.get("label") or point.get("codec"))


class Panel(NamedTuple):
    """What belongs into one picture or table: a base, a task and a configuration."""

    title: str
    rows: list[Mapping[str, Any]]
    points: list[dict[str, Any]]


def panels(
    rows: Iterable[Mapping[str, Any]], chosen: Callable[[Mapping[str, Any]], bool]
) -> list[Panel]:
    """A panel per base, task and configuration, with all its rows and the points of the `chosen`
    ones; panels without a point are left out."""
    parts: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault(tuple(row.get(k) for k in TITLE), []).append(row)
    points = {where: over_seeds(r for r in part if chosen(r)) for where, part in parts.items()}
    points = {where: found for where, found in points.items() if found}
    return [
        Panel(title, parts[where], found)
        for title, (where, found) in zip(titles(points), points.items(), strict=True)
    ]


def titles(places: Iterable[tuple]) -> list[str]:
    """Of values of the columns TITLE each as few as tell one from the others: the adapter only
    where two share base and task, and the configuration where they share that too."""
    places, found = list(places), []
    for own in places:
        long = 2
        while long < len(TITLE) and sum(other[:long] == own[:long] for other in places) > 1:
            long += 1
        found.append(", ".join(str(part) for part in own[:long] if part))
    return found


def on_grid(row: Mapping[str, Any]) -> bool:
    """Whether a row is the paper's own form at a basis size N and a perturbation eps, and scored:
    every coefficient of the leading N singular vectors, in float16."""
    own = row.get("codec") == "solar" and row.get("keep") is None
    own = own and all(row.get(k) in (None, usual) for k, usual in USUAL.items())
    return own and all(row.get(k) is not None for k in ("N", "eps", "score"))


def limit(rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """The rate-distortion limit as (bytes, relative error), joined over seeds.

    Every seed has its own curve, sampled at its own places; the joined one is the geometric mean of
    the bytes that each needs at the same relative error, over the errors that all of them reach.
    """
    curves: dict[Any, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("codec") == "limit" and row["bytes"] > 0:
            curve = curves.setdefault((row.get("group"), row.get("seed")), [])
            curve.append((float(row["relative_error"]), float(row["bytes"])))
    if not curves:
        return []
    sampled = [sorted(curve) for curve in curves.values()]
    if len(sampled) == 1:
        return [(size, error) for error, size in reversed(sampled[0])]
    low = max(curve[0][0] for curve in sampled)
    high = min(curve[-1][0] for curve in sampled)
    errors = [error for error, _ in sampled[0] if low <= error <= high]
    return [
        (math.exp(statistics.fmean(_log_bytes(curve, error) for curve in sampled)), error)
        for error in reversed(errors)
    ]


def _log_bytes(curve: list[tuple[float, float]], error: float) -> float:
    """Logarithm of the bytes at `error` on a curve sorted by error, linear between its samples."""
    for (e0, b0), (e1, b1) in zip(curve, curve[1:], strict=False):
        if e0 <= error <= e1:
            share = (error - e0) / (e1 - e0) if e1 > e0 else 0.0
            return (1 - share) * math.log(b0) + share * math.log(b1)
    return math.log(curve[0][1])
