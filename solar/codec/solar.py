"""SOLAR: factors as few coefficients in atoms that the base weights and a recipe give both ends.

Encoding walks factors -> atoms -> select -> quantize -> packet; decoding rebuilds the atoms that
carry a coefficient and adds them up. Both ends run the same `rebuild`, so what is measured here is
what the file decodes to. A layer whose decoded update is no better than nothing is sent as nothing.

Parameters in the packet (32 bytes): kind, selection, atoms, dtype (1 byte each), N (2), K (2, 0 for
all), eps (float32), seed (8), power of two (2), offset of the basis checksum (2), the checksum (8).

Payload: for every coded layer in sorted order, left then right, the support (absent where all
coefficients are sent); then in the same order the coefficients, component by component.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from solar.codec import basis, bound, checksum, container, quantize
from solar.codec.basis import KINDS, SELECTIONS, Recipe
from solar.codec.blas import one_thread
from solar.codec.coefficients import (
    ATOMS,
    DTYPES,
    Coefficients,
    Frames,
    Setting,
    Side,
    coded_sides,
    counts_of,
    fit,
    rebuild,
)
from solar.codec.container import Base, Encoded, Packet, PacketError
from solar.codec.factors import Factors
from solar.codec.tail import Tail
from solar.errors import SolarError

PARAMETERS = struct.Struct("<BBBBHHfQhH")  # the basis checksum follows


# --------------------------------------------------------------------------------------- encoding


@one_thread
def encode(
    factors: Mapping[str, Factors],
    base: Mapping[str, np.ndarray],
    setting: Setting | None = None,
    *,
    heads: Mapping[str, np.ndarray] | None = None,
    head_dtype: str = "float16",
    usual_names: Iterable[str] | None = None,
    cache: Path | None = None,
) -> Encoded:
    """A `.solar` file of canonical factors, what it decodes to, and the record of the encoding.

    factors: by layer, left (m, r) and right (n, r) float32. base: adapted weights (m, n) by layer,
    float32. heads: trained full tensors. Names are left out of the file where they are
    `usual_names`. cache: folder for singular vectors. Raises SolarError on input that does not fit
    and BoundViolated where a bound fails.
    """
    setting = Setting() if setting is None else setting
    known = container.identify(base, factors)
    ordered = container.in_order(known, factors)
    sides = coded_sides(known.shapes, [f.left.shape[1] for f in ordered])
    frames = Frames(base, known, sides, setting.recipe, cache)
    fitted, tails = fit(setting, sides, ordered, frames)

    power = quantize.exponent(
        np.concatenate([fitted[s].values for s in sides]) if sides else np.zeros(0), setting.dtype
    )
    sent = {}
    for side in sides:
        support, values = fitted[side]
        stored = quantize.store(values, setting.dtype, power)
        sent[side] = Coefficients(support, quantize.restore(stored, setting.dtype, power))
    original = dict(zip(known.names, ordered, strict=True))
    ranks = tuple(f.left.shape[1] for f in ordered)
    left_out: list[str] = []
    while True:
        rebuilt, numbers = rebuild(setting, sides, [sent[s] for s in sides], frames)
        decoded = container.assemble(known, {(s.layer, s.side): x for s, x in rebuilt.items()})
        measured = bound.check(original, decoded)
        worse = [k for k, r in zip(known.names, ranks, strict=True)
                 if r and measured[k].measured >= measured[k].norm]  # fmt: skip
        if not worse:
            break
        # Which layers are coded shapes the batches: rebuild as the decoder will.
        left_out += worse
        ranks = tuple(0 if k in worse else r for k, r in zip(known.names, ranks, strict=True))
        sides = coded_sides(known.shapes, ranks)

    offset = checksum.choose_offset(numbers)
    recipe = setting.recipe
    fixed = PARAMETERS.pack(
        KINDS.index(recipe.kind), SELECTIONS.index(recipe.selection), ATOMS.index(setting.atoms),
        DTYPES.index(setting.dtype), recipe.size, setting.keep or 0, recipe.perturbation,
        recipe.seed, power, offset,
    )  # fmt: skip
    parameters = fixed + checksum.checksum(numbers, offset, fixed)
    supports = (
        b""
        if setting.keep is None
        else b"".join(quantize.pack_support(sent[side].support) for side in sides)
    )
    values = b"".join(quantize.store(sent[s].values, setting.dtype, power) for s in sides)
    packet = Packet(
        "solar", parameters, known.hash, container.listed(known, usual_names), ranks,
        supports + values, container.pack_heads(heads, head_dtype),
    )  # fmt: skip
    data = container.pack(packet)
    report = {"method": "solar", "setting": asdict(setting), "left_out": left_out}
    report |= bound.summary(measured) | {"bytes": container.byte_counts(packet, len(data))}
    _add_tails(report, ordered, tails, frames)
    return Encoded(data, decoded, report)


def _add_tails(
    report: dict[str, Any], factors: list[Factors], tails: Mapping[Side, Tail], frames: Frames
) -> None:
    """Tail records by layer, the bound they give on dW, and the smallest gap of the spectrum."""
    by_layer: dict[int, dict[str, Tail]] = {}
    for side, record in tails.items():
        by_layer.setdefault(side.layer, {})[basis.SIDES[side.side]] = record
    for layer, entry in enumerate(report["layers"]):
        sides = by_layer.get(layer, {})
        entry["tail"] = {side: record._asdict() for side, record in sides.items()}
        entry["tail_bound"] = None
        if sides and all(record.bound is not None for record in sides.values()):
            left, right = (sides[side].bound for side in basis.SIDES)
            norms = [float(bound.spectral(x[None])[0]) for x in factors[layer]]
            # The certificate with these in place of the errors; ||E||_2 <= ||E||_F.
            entry["tail_bound"] = left * norms[1] + norms[0] * right + left * right
    if frames.loaded:
        size = report["setting"]["recipe"]["size"]
        report["smallest_gap"] = min(
            basis.smallest_gap(left.values, size) for left, _ in frames.loaded.values()
        )


# --------------------------------------------------------------------------------------- decoding


def read_parameters(parameters: bytes) -> tuple[Setting, int, int, bytes]:
    """Setting, power of two, checksum offset and checksum. Raises PacketError."""
    fixed, mark = parameters[: PARAMETERS.size], parameters[PARAMETERS.size :]
    if len(fixed) != PARAMETERS.size or len(mark) != checksum.LENGTH:
        raise PacketError("packet is altered: its recipe has the wrong length")
    kind, selection, atoms, dtype, size, keep, eps, seed, power, offset = PARAMETERS.unpack(fixed)
    try:
        recipe = Recipe(KINDS[kind], size, eps, SELECTIONS[selection], seed)
        setting = Setting(recipe, ATOMS[atoms], keep or None, DTYPES[dtype])
    except IndexError:
        raise PacketError("packet uses a kind of basis unknown here; update solar") from None
    except SolarError as error:
        raise PacketError(f"packet is altered: {error}") from None
    if (setting.keep or 0) != keep or recipe.perturbation != eps:
        raise PacketError("packet is altered: its recipe is not in its one form")
    return setting, power, offset, mark


def _read_payload(
    setting: Setting, sides: list[Side], power: int, payload: bytes
) -> list[Coefficients]:
    item = quantize.FLOATS[setting.dtype].itemsize
    counts = [counts_of(setting, side) for side in sides]
    values_length = item * sum(k for _, k in counts)
    # Checked before any support is sized, so that a hostile table cannot ask for more than it sent.
    if values_length > len(payload):
        raise PacketError("packet is altered: its payload is too short for its layer table")
    lengths = [0 if setting.keep is None else quantize.support_bytes(n, k) for n, k in counts]
    if sum(lengths) + values_length != len(payload):
        raise PacketError("packet is altered: its payload does not fit its layer table")
    values = quantize.restore(payload[sum(lengths) :], setting.dtype, power)
    if not np.isfinite(values).all():
        raise PacketError("packet is altered: it holds non-finite coefficients")
    sent, at, first = [], 0, 0
    for (n, k), length in zip(counts, lengths, strict=True):
        try:
            support = quantize.unpack_support(payload[at : at + length], n, k)
        except ValueError as error:
            raise PacketError(f"packet is altered: it holds a {error}") from None
        sent.append(Coefficients(support, values[first : first + k]))
        at, first = at + length, first + k
    return sent


def decode(
    packet: Packet, base: Mapping[str, np.ndarray], known: Base, cache: Path | None
) -> dict[str, Factors]:
    """Factors of an unpacked packet for a resolved base; layers sent as nothing have rank 0.

    Raises PacketError, also where the basis rebuilt here is not the sender's.
    """
    setting, power, offset, mark = read_parameters(packet.parameters)
    sides = coded_sides(known.shapes, packet.ranks)
    sent = _read_payload(setting, sides, power, packet.payload)
    try:
        frames = Frames(base, known, sides, setting.recipe, cache)
        rebuilt, numbers = rebuild(setting, sides, sent, frames)
    except SolarError as error:
        raise PacketError(f"packet does not fit this base: {error}") from None
    fixed = packet.parameters[: PARAMETERS.size]
    if not np.isfinite(numbers).all() or checksum.checksum(numbers, offset, fixed) != mark:
        raise PacketError(
            "basis mismatch: the basis rebuilt here differs from the sender's; "
            "clear the cache folder and try again, or decode on another machine"
        )
    return container.assemble(known, {(s.layer, s.side): x for s, x in rebuilt.items()})


def describe(packet: Packet) -> dict[str, Any]:
    """Header fields of this method, for `inspect`."""
    setting, _, _, mark = read_parameters(packet.parameters)
    recipe = asdict(setting.recipe)
    return {"recipe": recipe, "seed": recipe["seed"], "atoms": setting.atoms,
            "keep": setting.keep, "dtype": setting.dtype, "basis_checksum": mark.hex()}  # fmt: skip
