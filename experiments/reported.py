"""What a record says beside the scores: sizes that ratios refer to, alignment, bounds by layer."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from solar.codec.alignment import alignment
from solar.codec.factors import Factors
from solar.codec.recipe import SIDES

KINDS = ("singular", "random", "expected")
DIGITS = 7  # of numbers by layer: of which a record has thousands
# Above the bound by no more than those digits leave open is not a violation.
_OPEN = 10.0 ** (1 - DIGITS)


def sizes(home: Path) -> dict[str, int]:
    """Length of the adapter's safetensors file as it is (`bytes`, float32) and with the same
    tensors in float16 (`bytes_fp16`)."""
    path = home / "adapter_model.safetensors"
    with safe_open(path, "numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        about = opened.metadata()
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    return {"bytes": path.stat().st_size, "bytes_fp16": len(save(halves, about))}


def ratios(row: Mapping[str, Any], adapter: Mapping[str, int]) -> dict[str, float | None]:
    """How many times smaller a row's file is than the adapter's in float32 and in float16; None for
    the empty packet, which compresses nothing."""
    some = row["codec"] != "none"
    files = {"ratio_fp32": adapter["bytes"], "ratio_fp16": adapter["bytes_fp16"]}
    return {name: size / row["bytes"] if some else None for name, size in files.items()}


def aligned(
    factors: Mapping[str, Factors],
    base: Mapping[str, np.ndarray],
    leading: Sequence[int],
    cache: Path | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Share of the adapter's energy in the `leading` N singular vectors of its base weights.

    A record per N and side: {"N", "side", "singular", "random", "expected"}, over all layers, each
    with its own energy; `random` is the same share for a seeded random subspace of N dimensions,
    `expected` its mean.
    """
    if not leading:
        return []
    energy = {
        (name, side): float(np.sum(np.square(matrix, dtype=np.float64)))
        for name, pair in factors.items()
        for side, matrix in zip(SIDES, pair, strict=True)
    }
    found: dict[tuple[int, str], dict[str, float]] = {}
    # One call per N, because N is cut to the rank of a weight, and then has the name of that rank.
    for size in leading:
        for share in alignment(factors, base, [size], cache, seed=seed):
            total = found.setdefault((size, share["side"]), {"energy": 0.0})
            weight = energy[share["name"], share["side"]]
            total["energy"] += weight
            for kind in KINDS:
                total[kind] = total.get(kind, 0.0) + share[kind] * weight
    return [
        {"N": size, "side": side, **{kind: total[kind] / total["energy"] for kind in KINDS}}
        for (size, side), total in found.items()
    ]


def by_layer(report: Mapping[str, Any]) -> dict[str, Any]:
    """Error, every bound and slack of one encoding as lists over its layers, in sorted order.

    norm, measured, certificate: Frobenius norms of dW, of its error, and the bound of that; slack:
    1 - measured / certificate; worst: the layer with the largest error. Where the bound before
    encoding is known for the kind of atoms: tail_bound of dW, and tail of every side (measured,
    bound, expected; a bound that is None is vacuous, `why` says so in words).
    """
    layers = report["layers"]
    found: dict[str, Any] = {"worst": report["worst"], "smallest_slack": report["smallest_slack"]}
    found["name"] = [layer["name"] for layer in layers]
    for figure in ("norm", "measured", "certificate", "slack", "tail_bound"):
        _put(found, figure, [layer.get(figure) for layer in layers])
    tails: dict[str, Any] = {}
    for side in SIDES:
        sides = [layer.get("tail", {}).get(side, {}) for layer in layers]
        for figure in ("measured", "bound", "expected"):
            _put(tails.setdefault(side, {}), figure, [tail.get(figure) for tail in sides])
        if why := sorted({tail["why"] for tail in sides if tail.get("why")}):
            tails["why"] = sorted({*tails.get("why", ()), *why})
    return found | ({"tail": tails} if any(tails.values()) else {})


def _put(into: dict[str, Any], name: str, numbers: list[float | None]) -> None:
    if any(number is not None for number in numbers):
        into[name] = [None if x is None else float(f"{x:.{DIGITS}g}") for x in numbers]


def bounds_of(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Takes `layers`, what `by_layer` made, out of the rows that have it: {"layers": their names
    once, "codes": a record per row, by its label}."""
    taken = [(row["label"], row.pop("layers", None)) for row in rows]
    codes = [{"label": label, **layers} for label, layers in taken if layers]
    names = codes[0]["name"] if codes else []
    for code in codes:
        if code["name"] == names:
            del code["name"]
    return {"layers": names, "codes": codes}


def bound_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bound check of a result record as a table: a row per code and layer, and for every code
    one for all layers together.

    Columns: label, seed, layer, norm, measured, certificate, slack, tail_bound (None where there is
    none), holds.
    """
    bounds = record.get("bounds") or {"codes": ()}
    seeds = {row["label"]: row.get("seed") for row in record.get("rows", ())}
    found = []
    for code in bounds["codes"]:
        names = code.get("name", bounds["layers"])
        tails = code.get("tail_bound") or [None] * len(names)
        figures = [code[figure] for figure in ("norm", "measured", "certificate")]
        # The whole is as the codec's own summary has it: roots of sums of squares.
        whole = [float(np.linalg.norm(figure)) for figure in figures]
        lines = [("all", *whole, None), *zip(names, *figures, tails, strict=True)]
        for layer, norm, measured, certificate, tail in lines:
            found.append(
                {
                    "label": code["label"],
                    "seed": seeds.get(code["label"]),
                    "layer": layer,
                    "norm": norm,
                    "measured": measured,
                    "certificate": certificate,
                    "slack": 1 - measured / certificate if certificate > 0 else 0.0,
                    "tail_bound": tail,
                    "holds": measured <= certificate * (1 + _OPEN) + 1e-9 * norm,
                }
            )
    return found
