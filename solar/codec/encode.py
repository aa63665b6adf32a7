"""Encode: canonical factors to a `.solar` file by SOLAR's form, the sender's half.

The walk: factors -> atoms -> coefficients -> which are sent -> numbers -> packet. Both ends run the
same `rebuild`, so what is measured here is what the file decodes to, and every bound is checked on
it. A layer whose decoded update is no better than nothing is sent as nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from solar.codec import bound, checksum, container, fill, singular, solar
from solar.codec.blas import one_thread
from solar.codec.coefficients import Frames, Side, coded_sides
from solar.codec.container import Encoded, Packet, Watch, unwatched
from solar.codec.factors import Factors
from solar.codec.fit import fit
from solar.codec.heads import pack_heads
from solar.codec.recipe import BUDGET, ENTROPY, SIDES, Setting
from solar.codec.settle import Coded, Job, settle
from solar.codec.tail import Tail
from solar.errors import SolarError


@one_thread
def encode(
    factors: Mapping[str, Factors],
    base: Mapping[str, np.ndarray],
    setting: Setting | None = None,
    *,
    budget_bytes: int | None = None,
    heads: Mapping[str, np.ndarray] | None = None,
    head_dtype: str = "float16",
    usual_names: Iterable[str] | None = None,
    cache: Path | None = None,
    watch: Watch = unwatched,
) -> Encoded:
    """A `.solar` file of canonical factors, what it decodes to, and the record of the encoding.

    factors: by layer, left (m, r) and right (n, r) float32. base: adapted weights (m, n) by layer,
    float32. budget_bytes: the most the whole file may have; with keep="budget" coefficients are
    spread over layers, sides and components until it is full, otherwise N and K are chosen, alike
    for all layers. heads: trained full tensors. Names are left out of the file where they are
    `usual_names`. cache: folder for singular vectors; watch(iterable, length, what) may show
    progress while they are computed. Raises SolarError on input that does not fit and BoundViolated
    where a bound fails.
    """
    setting = Setting() if setting is None else setting
    if setting.keep == BUDGET and budget_bytes is None:
        raise SolarError("keep='budget' needs budget_bytes; give it, or a number to keep")
    known = container.identify(base, factors, watch)
    ordered = container.in_order(known, factors)
    names, packed = container.listed(known, usual_names), pack_heads(heads, head_dtype)
    ranks = tuple(f.left.shape[1] for f in ordered)
    sides = coded_sides(known.shapes, ranks)
    overhead = container.overhead(names, solar.PARAMETERS.size + checksum.LENGTH)
    job = Job(
        known, ordered, Frames(base, known, sides, setting.recipe, cache, watch), names, packed,
        overhead,
    )  # fmt: skip
    if setting.dtype == ENTROPY:
        coded, tails = fill.entropy(job, setting, sides, budget_bytes)
    elif setting.keep == BUDGET:
        setting, coded, tails = fill.spread(job, setting, sides, budget_bytes)
    else:
        if budget_bytes is not None:
            setting = fill.uniform(job, setting, sides, budget_bytes)
        fitted, tails, orthonormal = fit(setting, sides, ordered, job.frames)
        coded = settle(job, setting, ranks, fitted, orthonormal)
    return _finish(job, setting, coded, tails)


def _finish(job: Job, setting: Setting, coded: Coded, tails: Mapping[Side, Tail]) -> Encoded:
    # A receiver refuses what asks too much for its bytes, and so does the sender.
    if not coded.read:
        solar.read_payload(setting, coded.sides, coded.power, coded.body)
    offset = checksum.choose_offset(coded.numbers)
    fixed = solar.pack_parameters(setting, coded.power, offset)
    own = solar.bound_to(fixed, coded.body)
    packet = Packet(
        "solar", fixed + checksum.checksum(coded.numbers, offset, own), job.known.hash, job.names,
        coded.ranks, coded.body, job.heads, setting.embed,
    )  # fmt: skip
    data = container.pack(packet)
    report = {"method": "solar", "setting": asdict(setting), "left_out": coded.left_out}
    report |= bound.summary(coded.measured) | {"bytes": container.byte_counts(packet, len(data))}
    for side, bits in coded.bits.items():
        report["layers"][side.layer].setdefault("bits", {})[SIDES[side.side]] = bits
    _add_tails(report, job.factors, tails, job.frames)
    return Encoded(data, coded.decoded, report)


def _add_tails(
    report: dict[str, Any], factors: list[Factors], tails: Mapping[Side, Tail], frames: Frames
) -> None:
    """Tail records by layer, the bound they give on dW, and the smallest gap of the spectrum."""
    by_layer: dict[int, dict[str, Tail]] = {}
    for side, record in tails.items():
        by_layer.setdefault(side.layer, {})[SIDES[side.side]] = record
    for layer, entry in enumerate(report["layers"]):
        sides = by_layer.get(layer, {})
        entry["tail"] = {side: record._asdict() for side, record in sides.items()}
        entry["tail_bound"] = None
        if sides and all(record.bound is not None for record in sides.values()):
            left, right = (sides[side].bound for side in SIDES)
            norms = [float(bound.spectral(x[None])[0]) for x in factors[layer]]
            # The certificate with these in place of the errors; ||E||_2 <= ||E||_F.
            entry["tail_bound"] = left * norms[1] + norms[0] * right + left * right
    if frames.loaded:
        size = report["setting"]["recipe"]["size"]
        report["smallest_gap"] = min(
            singular.smallest_gap(left.values, size) for left, _ in frames.loaded.values()
        )
