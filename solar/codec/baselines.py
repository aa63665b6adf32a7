"""Baselines: the balanced factors themselves, in the same file, for comparison at equal bytes.

    float32, float16   every entry of L and R
    truncate           the leading k components, float16
    bits               8, 4, 2 or 1 bits an entry with float16 steps, of all or the leading k

None of them needs the base, yet the file carries its hash like any other and refuses another base.
"float" parameters: dtype (1 byte), power of two (2). Payload: per coded layer in sorted order the
columns of L, then of R. "bits" parameters: bits (1), power of two of the steps (2). Payload: all
steps, then all codes packed; groups are 64 entries of a column at 8 and 4 bits and whole columns
at 2 and 1 bits, where a step per 64 entries would cost more than it brings.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from solar.codec import bound, container, quantize
from solar.codec.container import Base, Encoded, Packet, PacketError
from solar.codec.factors import Factors
from solar.codec.heads import pack_heads
from solar.errors import SolarError

KINDS = ("float32", "float16", "truncate", "bits")
WIDTHS = (8, 4, 2, 1)
GROUP = 64
PARAMETERS = struct.Struct("<Bh")


def _lengths(known: Base, ranks: Iterable[int]) -> np.ndarray:
    """Length of every coded column in file order: layer by layer, left columns, right columns."""
    columns = [
        length
        for shape, rank in zip(known.shapes, ranks, strict=True)
        for length in [shape[0]] * rank + [shape[1]] * rank
    ]
    return np.array(columns, np.int64)


def _split(known: Base, ranks: Iterable[int], entries: np.ndarray) -> dict[str, Factors]:
    """Factors from all entries in file order."""
    sides, at = {}, 0
    for layer, (shape, rank) in enumerate(zip(known.shapes, ranks, strict=True)):
        for side in (0, 1) if rank else ():
            count = shape[side] * rank
            columns = entries[at : at + count].reshape(rank, shape[side])
            sides[layer, side] = np.ascontiguousarray(columns.T)
            at += count
    return container.assemble(known, sides)


def _group_lengths(lengths: np.ndarray, bits: int) -> np.ndarray:
    """Entries in every group, in file order; the last group of a column may be short."""
    if bits <= 2:
        return lengths
    pieces = -(-lengths // GROUP)
    groups = np.full(int(pieces.sum()), GROUP, np.int64)
    last = np.cumsum(pieces) - 1
    groups[last] = lengths - (pieces - 1) * GROUP
    return groups


def _padded(entries: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries as (g, longest) with NaN after the end of each group, and the mask of real ones."""
    mask = np.arange(int(groups.max(initial=0)))[None, :] < groups[:, None]
    table = np.full(mask.shape, np.nan, np.float32)
    table[mask] = entries
    return table, mask


def encode(
    factors: Mapping[str, Factors],
    base: Mapping[str, np.ndarray],
    kind: str,
    *,
    rank: int | None = None,
    bits: int | None = None,
    heads: Mapping[str, np.ndarray] | None = None,
    head_dtype: str = "float16",
    usual_names: Iterable[str] | None = None,
) -> Encoded:
    """A `.solar` file of canonical factors by a baseline `kind`; arguments as in `solar.encode`.

    rank: components kept per layer (needed for `truncate`, optional for `bits`); bits: 8, 4, 2 or 1
    (needed for `bits`). Raises SolarError on anything else.
    """
    if kind not in KINDS:
        raise SolarError(f"baseline {kind!r} is unknown; choose one of {KINDS}")
    if (kind == "truncate" and rank is None) or (rank is not None and rank < 1):
        raise SolarError(f"baseline {kind} needs rank 1 or more, not {rank}")
    if rank is not None and kind.startswith("float"):
        raise SolarError(f"baseline {kind} sends every component; use truncate for rank {rank}")
    if (kind == "bits") != (bits is not None) or bits not in (None, *WIDTHS):
        raise SolarError(f"baseline {kind} with bits {bits}: choose kind bits and one of {WIDTHS}")
    known = container.identify(base, factors)
    ordered = container.in_order(known, factors)
    sent = [Factors(f.left[:, :rank], f.right[:, :rank]) for f in ordered]
    ranks = tuple(f.left.shape[1] for f in sent)
    columns = [side.T.ravel() for f in sent for side in f]
    entries = np.concatenate(columns) if columns else np.zeros(0, np.float32)
    if kind == "bits":
        packed = _pack_codes(entries, _group_lengths(_lengths(known, ranks), bits), bits)
        method, parameters, payload = "bits", *packed
    else:
        dtype = "float32" if kind == "float32" else "float16"
        power = quantize.exponent(entries, dtype)
        method, parameters = "float", PARAMETERS.pack(list(quantize.FLOATS).index(dtype), power)
        payload = quantize.store(entries, dtype, power)
    packet = Packet(
        method, parameters, known.hash, container.listed(known, usual_names), ranks, payload,
        pack_heads(heads, head_dtype),
    )  # fmt: skip
    data = container.pack(packet)
    decoded = decode(packet, known)
    report: dict[str, Any] = {"method": kind, "setting": {"rank": rank, "bits": bits}}
    report |= bound.summary(bound.check(dict(zip(known.names, ordered, strict=True)), decoded))
    report["bytes"] = container.byte_counts(packet, len(data))
    return Encoded(data, decoded, report)


def _pack_codes(entries: np.ndarray, groups: np.ndarray, bits: int) -> tuple[bytes, bytes]:
    table, mask = _padded(entries, groups)
    # Scaled so that the largest entry is near 1: no step can leave the range of float16.
    power = -np.frexp(np.max(np.abs(entries), initial=0.0))[1]
    if not len(entries):
        return PARAMETERS.pack(bits, 0), b""
    codes, steps = quantize.midrise(np.ldexp(table, power), bits)
    payload = steps.astype("<f2").tobytes() + quantize.pack_bits(codes[mask], bits)
    return PARAMETERS.pack(bits, int(power)), payload


def decode(packet: Packet, known: Base) -> dict[str, Factors]:
    """Factors of an unpacked packet for a resolved base. Raises PacketError."""
    what, power = _read_parameters(packet)
    lengths = _lengths(known, packet.ranks)
    if packet.method == "float":
        dtype = list(quantize.FLOATS)[what]
        if len(packet.payload) != int(lengths.sum()) * quantize.FLOATS[dtype].itemsize:
            raise PacketError("packet is altered: its payload does not fit its layer table")
        entries = quantize.restore(packet.payload, dtype, power)
    else:
        if 8 * len(packet.payload) < what * int(lengths.sum()):  # before anything is as large
            raise PacketError("packet is altered: its payload does not fit its layer table")
        groups = _group_lengths(lengths, what)
        split = 2 * len(groups)
        if len(packet.payload) < split:
            raise PacketError("packet is altered: its payload does not fit its layer table")
        steps = np.frombuffer(packet.payload[:split], "<f2")
        try:
            codes = quantize.unpack_bits(packet.payload[split:], what, int(lengths.sum()))
        except ValueError as error:
            raise PacketError(f"packet is altered: it holds {error}") from None
        with np.errstate(over="ignore", invalid="ignore"):  # refused below where it matters
            scale = np.repeat(np.ldexp(steps.astype(np.float64), -power), groups)
            entries = ((codes - (2**what - 1) / 2) * scale).astype(np.float32)
    if not np.isfinite(entries).all():
        raise PacketError("packet is altered: it holds non-finite entries")
    return _split(known, packet.ranks, entries)


def _read_parameters(packet: Packet) -> tuple[int, int]:
    """(index of the dtype or number of bits, power of two). Raises PacketError."""
    if len(packet.parameters) != PARAMETERS.size:
        raise PacketError("packet is altered: its parameters have the wrong length")
    what, power = PARAMETERS.unpack(packet.parameters)
    if what not in (WIDTHS if packet.method == "bits" else range(len(quantize.FLOATS))):
        raise PacketError(f"packet uses number format {what}, unknown here; update solar")
    return what, power


def describe(packet: Packet) -> dict[str, Any]:
    """Header fields of this method, for `inspect`."""
    what, _ = _read_parameters(packet)
    if packet.method == "bits":
        return {"bits": what}
    return {"dtype": list(quantize.FLOATS)[what]}
