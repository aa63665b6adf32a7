"""Activation: factors coded in the frame in which the base's own activations live.

Both ends hold the same frames file of the base (frame_file.py); the packet names it by its hash. An
update is seen in the metric of each layer's input and output (metric.py), its canonical factors
there are quantised with the variances that the spectra promise (framed.py, profiled.py), as far as
a budget reaches (choose.py), and taken back. A direction that the activations hardly use, or that
the base's outputs hardly notice, costs hardly anything to leave out.

Parameters in the packet (26 bytes): hash of the frames (16), offset of the checksum (2), the
checksum (8) of what the packet decodes to. The payload is profiled.py's.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from solar.codec import (
    allot,
    bound,
    checksum,
    choose,
    container,
    frame_file,
    framed,
    guard,
    metric,
    metric_limit,
    profiled,
)
from solar.codec.blas import one_thread
from solar.codec.coefficients import coded_sides
from solar.codec.container import Base, Encoded, Packet, PacketError, Watch, unwatched
from solar.codec.factors import Factors
from solar.codec.frame_file import OCTAVE, FramesFile
from solar.codec.heads import pack_heads
from solar.codec.profiled import Dials, Lines
from solar.errors import SolarError

FIXED = struct.Struct(f"<{frame_file.HASH}sH")  # the checksum follows
PARAMETERS = FIXED.size + checksum.LENGTH
DEARER, MOST = 1e-3, 2.0  # by how much a bit is, and times as much it may be, where files are long
MAX_POWER = 2**12  # quarters of an octave, either way


@one_thread
def encode(
    factors: Mapping[str, Factors],
    base: Mapping[str, np.ndarray],
    frames: FramesFile,
    *,
    budget_bytes: int,
    relative: float = choose.RELATIVE,
    decided: choose.Decided | None = None,
    known: Base | None = None,
    heads: Mapping[str, np.ndarray] | None = None,
    head_dtype: str = "float16",
    usual_names: Iterable[str] | None = None,
    watch: Watch = unwatched,
) -> Encoded:
    """A `.solar` file of at most `budget_bytes` with what it decodes to and its record.

    factors, base, heads, usual_names and watch as in encode.py. known: what container.identify says
    of the base's layers `factors`, where that has been asked already. relative: from 0, where
    errors count as the metric has them, to 1, where each counts relative to what the layer's own
    update is in it. decided: what was decided for this update, which is kept where its
    file fits, and the update as it was in the metric then, which float32 weights say less exactly:
    `relative` and `factors` are not looked at, but for layers that it has nothing of. Raises
    SolarError where the frames do not fit the base.
    """
    known = known or container.identify(base, factors, watch)
    frame_file.check(frames, known.names, known.digests)
    ordered = container.in_order(known, factors)
    names, packed = container.listed(known, usual_names), pack_heads(heads, head_dtype)
    overhead = container.overhead(names, PARAMETERS)
    if decided:
        ranks = tuple(len(own.sizes) if own else 0 for own in decided.seen)
    else:
        ranks = tuple(f.left.shape[1] for f in ordered)
    turns = framed.reflections(known, ranks, frames)
    seen = decided.seen if decided else [
        metric.seen(f, *turns[name]) if rank else None
        for name, f, rank in zip(known.names, ordered, ranks, strict=True)
    ]  # fmt: skip
    size = choose.sizes_of(seen, overhead, len(packed))
    least = size(np.zeros(sum(ranks), bool), 0.0)
    container.check_budget(budget_bytes, least, len(packed))
    plan = choose.plan(
        known, frames, seen, size, budget_bytes, relative, decided and decided.choice, spare=1.0
    )
    own, dials, kept = plan.own, plan.dials, choose.ranks_of(seen, plan.sent)
    part, offsets = profiled.only(own, plan.sent), choose.offsets_of(known, kept, plan.offsets)
    room, price, dearer = budget_bytes - overhead(kept) - len(packed), plan.price, 1 + DEARER
    found = plan.quantised
    while len(body := profiled.pack(part, dials, offsets, price, found)) > room:
        found = None
        # The coder may need a word more than was told. A dearer bit moves a number by a cell or
        # two at most; what is too long by more needs wider cells.
        if price > MOST * plan.price:
            dials, price, dearer = allot.coarser(part, dials), 1.0, 1 + DEARER
        else:
            price, dearer = price * dearer, dearer**2
    # The sender reads its own file, so what is measured is what arrives.
    decoded, numbers = _rebuild(known, kept, frames, body, turns)
    fixed = FIXED.pack(frames.hash, checksum.choose_offset(numbers))
    mark = checksum.checksum(numbers, FIXED.unpack(fixed)[1], _bound_to(fixed, body))
    packet = Packet("activation", fixed + mark, known.hash, names, kept, body, packed)
    data = container.pack(packet)
    original = {
        name: ordered[i] if seen[i] is None else _as_seen(seen[i], *turns[name])
        for i, name in enumerate(known.names)
    }
    measured = bound.check(original, decoded)
    errors = _outputs(own, dials, *_errors(seen, decoded, known, turns))
    report = {"method": "activation", "setting": describe(packet), "left_out": []}
    report |= bound.summary(measured) | {"bytes": container.byte_counts(packet, len(data))}
    return Encoded(data, decoded, report | errors)


def _as_seen(own: metric.Seen, inputs: metric.Reflections, outputs: metric.Reflections) -> Factors:
    """The same update in the gauge in which it was coded."""
    both = metric.out_of(outputs, own.left), metric.out_of(inputs, own.right)
    return Factors(*(x.astype(np.float32) for x in both))


def _errors(seen, decoded, known, turns) -> tuple[list[float], list[float]]:
    """By layer that has an update: squared error in the metric, and squared size."""
    errors, sizes = [], []
    for own, name in zip(seen, known.names, strict=True):
        if own is None:
            continue
        left, right = decoded[name]
        if right.shape[1]:
            inputs, outputs = turns[name]
            left, right = metric.into(outputs, left), metric.into(inputs, right)
        core = np.linalg.qr(np.concatenate([own.left, left], axis=1), mode="r")
        other = np.linalg.qr(np.concatenate([own.right, -right], axis=1), mode="r")
        errors.append(float(np.sum((core @ other.T) ** 2)))
        sizes.append(float(np.sum(own.sizes**2)))
    return errors, sizes


def _outputs(own: Lines, dials: Dials, errors: list[float], sizes: list[float]) -> dict[str, float]:
    """`output_error`: the error of a layer's output relative to the adapter's change of it, as the
    frames measure it: the root of the mean of squares over layers. `weighed_error`: the error that
    the budget was spent against, relative to that of sending nothing. `limit_bytes`: what Shannon's
    bound needs for the same, `spectrum_limit_bytes` that for codes without the frames' profiles
    (metric_limit.py)."""
    errors, sizes = np.array(errors), np.array(sizes)
    some = sizes > 0
    if not some.any():
        names = "output_error", "weighed_error", "limit_bytes", "spectrum_limit_bytes"
        return dict.fromkeys(names, 0.0)
    first = np.unique(own.first)
    weights = 2.0 ** (-2 * own.energies[first] * dials.relative / 255 / OCTAVE)
    share = float(np.sum((weights * errors)[some]) / np.sum((weights * sizes)[some]))
    return {
        "output_error": float(np.sqrt(np.mean(errors[some] / sizes[some]))),
        "weighed_error": float(np.sqrt(max(share, 0.0))),
        "limit_bytes": metric_limit.least_bytes(own, dials, share),
        "spectrum_limit_bytes": metric_limit.unprofiled(own, dials, share),
    }


def _bound_to(fixed: bytes, body: bytes) -> bytes:
    return fixed + hashlib.sha256(body).digest()


def _rebuild(
    known: Base,
    ranks: tuple[int, ...],
    frames: FramesFile,
    body: bytes,
    turns: dict[str, tuple[metric.Reflections, metric.Reflections]] | None = None,
) -> tuple[dict[str, Factors], np.ndarray]:
    """The decoded update and the numbers of its checksum. turns: the frames' reflections, where
    they are known already. Raises PacketError."""
    sides = coded_sides(known.shapes, ranks)
    guard.check_entries(sides, len(body))
    sent = [i for i, rank in enumerate(ranks) if rank]
    shapes = list(dict.fromkeys(known.shapes[i] for i in sent))
    head = profiled.read_head(body, sum(ranks), len(shapes))
    dials, offsets = head.dials, dict(zip(shapes, head.offsets, strict=False))
    if abs(dials.power) > MAX_POWER:
        raise PacketError(f"packet is altered: its power, {dials.power}, is out of range")
    profiles = framed.profiles(known, ranks, frames, dials, offsets)
    layers = [
        profiled.Layer(rank, shape, profile)
        for rank, shape, profile in zip(ranks, known.shapes, profiles, strict=True)
        if rank
    ]
    turns = turns or framed.reflections(known, ranks, frames)
    found: dict[tuple[int, int], np.ndarray] = {}
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        for i, table in zip(sent, profiled.unpack(head, layers), strict=True):
            m, (inputs, outputs) = known.shapes[i][0], turns[known.names[i]]
            both = metric.out_of(outputs, table[:, :m].T), metric.out_of(inputs, table[:, m:].T)
            for side, own in enumerate(both):
                found[i, side] = np.ascontiguousarray(own, np.float32)
    if not all(np.isfinite(x).all() for x in found.values()):
        raise PacketError("packet is altered: it holds non-finite coefficients")
    sketches, norms = [], []
    for key in sorted(found):
        rows = found[key].T[None]
        sent = checksum.energy(rows)
        sketches.append(checksum.sketch(rows, sent)[0])
        norms.append(float(np.sqrt(sent[0])))
    whole = checksum.whole(sketches, np.array(norms))
    numbers = np.concatenate([x.ravel() for x in sketches] + [whole])
    return container.assemble(known, found), numbers


def decode(packet: Packet, known: Base, frames: FramesFile | None) -> dict[str, Factors]:
    """Factors of an unpacked packet for a resolved base; layers sent as nothing have rank 0.

    Raises PacketError, also where `frames` are not those that the packet names.
    """
    wanted, offset, mark = _parameters(packet)
    if frames is None or frames.hash != wanted:
        raise PacketError(
            f"packet needs the frames {wanted.hex()} of this base: give the sender's frames file, "
            "or make it with solar frames"
        )
    try:
        frame_file.check(frames, known.names, known.digests)
        decoded, numbers = _rebuild(known, packet.ranks, frames, packet.payload)
    except PacketError:
        raise
    except SolarError as error:
        raise PacketError(f"packet cannot be decoded with these frames: {error}") from None
    own = _bound_to(packet.parameters[: FIXED.size], packet.payload)
    if not checksum.fits(mark, numbers, offset, own):
        raise PacketError(
            "basis mismatch: what this packet decodes to here differs from the sender's"
        )
    return decoded


def frames_hash(packet: Packet) -> bytes:
    """The hash of the frames that the packet needs. Raises PacketError."""
    return _parameters(packet)[0]


def _parameters(packet: Packet) -> tuple[bytes, int, bytes]:
    fixed, mark = packet.parameters[: FIXED.size], packet.parameters[FIXED.size :]
    if len(fixed) != FIXED.size or len(mark) != checksum.LENGTH:
        raise PacketError("packet is altered: its parameters have the wrong length")
    return *FIXED.unpack(fixed), mark


def describe(packet: Packet) -> dict[str, Any]:
    """Header fields of this method, for `inspect`."""
    wanted, _, mark = _parameters(packet)
    dials = profiled.dials_of(packet.payload)
    return {"kind": "activation", "frames": wanted.hex(), "relative": dials.relative / 255,
            "slopes": [dials.slope / 16, dials.out / 16], "basis_checksum": mark.hex()}  # fmt: skip
