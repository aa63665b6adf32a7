"""Activation: factors coded in the frame in which the base's own activations live.

Both ends hold the same frames file of the base (frame_file.py); the packet names it by its hash. An
update is seen in the metric of each layer's input and output (metric.py), its canonical factors
there are quantised with the variances that the spectra promise (profiled.py), and taken back. A
direction that the activations hardly use, or that the base's outputs hardly notice, costs hardly
anything to leave out.

Parameters in the packet (26 bytes): hash of the frames (16), offset of the checksum (2), the
checksum (8) of what the packet decodes to. The payload is profiled.py's.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from solar.codec import (
    allot,
    bands,
    bound,
    checksum,
    container,
    frame_file,
    guard,
    metric,
    metric_limit,
    profiled,
)
from solar.codec.blas import one_thread
from solar.codec.coefficients import coded_sides
from solar.codec.container import Base, Encoded, Packet, PacketError, Watch, unwatched
from solar.codec.factors import Factors
from solar.codec.frame_file import OCTAVE, Frame, FramesFile
from solar.codec.heads import pack_heads
from solar.codec.profiled import Dials, Lines
from solar.errors import SolarError

FIXED = struct.Struct(f"<{frame_file.HASH}sH")  # the checksum follows
PARAMETERS = FIXED.size + checksum.LENGTH
SLOPES = range(8, 31, 2)  # of the profile of inputs, in 16ths; what the sender chooses from
OUTS = range(0, 31, 2)  # of that of outputs
FIRST = 16  # where both begin: factors that lie no way in particular in the space of the weights
RELATIVE = 0.25  # how far errors count relative to the layer's own change
MAX_POWER = 2**12  # quarters of an octave, either way


def _by_layer(
    known: Base, ranks: tuple[int, ...], frames: FramesFile, make: Callable[[Frame, int], Any]
) -> dict[str, tuple[Any, Any]]:
    """What `make` makes of the frames of input and output (side 0 and 1) of every layer that is
    sent, once a frame. Raises SolarError where a frame does not fit."""
    made: dict[int, Any] = {}
    found = {}
    for name, shape, rank in zip(known.names, known.shapes, ranks, strict=True):
        if rank == 0:
            continue
        for side, index in enumerate(frames.layers[name]):
            frame = frame_file.frame_of(frames, index, shape[1 - side])
            if index not in made:
                made[index] = make(frame, side)
        into, out = frames.layers[name]
        found[name] = made[into], made[out]
    return found


Offsets = Mapping[tuple[int, int], np.ndarray]  # of bands.py, by the shape of a layer
NONE: Offsets = {}


def _profiles(
    known: Base, ranks: tuple[int, ...], frames: FramesFile, dials: Dials, offsets: Offsets
) -> list:
    """Profiles (2, m + n) of the first component and of later ones of every layer that is sent,
    None of the others."""
    slopes = dials.slope, dials.out
    both = _by_layer(known, ranks, frames, lambda f, side: frame_file.profile(f, slopes[side]))
    made: dict[tuple, np.ndarray] = {}
    found = []
    for name, shape in zip(known.names, known.shapes, strict=True):
        if name not in both:
            found.append(None)
            continue
        key = (*frames.layers[name], shape)
        if key not in made:
            sides, own = both[name][::-1], offsets.get(shape)  # the left side is the output
            made[key] = np.concatenate(
                [np.stack([x, x]) for x in sides] if own is None
                else [bands.adjusted(x, own[side]) for side, x in enumerate(sides)], axis=1
            )  # fmt: skip
        found.append(made[key])
    return found


def _reflections(known: Base, ranks: tuple[int, ...], frames: FramesFile) -> dict:
    """Reflections of inputs and of outputs by the name of the layer, of those that are sent."""
    # LAPACK lets other threads run; frames are read by this one.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        begun = _by_layer(
            known, ranks, frames, lambda frame, side: pool.submit(metric.reflections, frame)
        )
        return {name: (own.result(), other.result()) for name, (own, other) in begun.items()}


def _lines(
    known: Base, ranks: tuple[int, ...], frames: FramesFile, dials: Dials, energies: np.ndarray,
    values: np.ndarray | None = None, offsets: Offsets = NONE,
) -> Lines:  # fmt: skip
    counts = np.array(ranks, np.int64)
    profiles = _profiles(known, ranks, frames, dials, offsets)
    whole = [
        p[np.minimum(np.arange(rank), 1)].ravel()
        for p, rank in zip(profiles, ranks, strict=True)
        if rank
    ]
    return Lines(
        energies,
        np.repeat(np.cumsum(counts) - counts, counts),
        np.repeat(np.array(known.shapes, np.int64).reshape(-1, 2), counts, axis=0),
        np.concatenate(whole) if whole else np.zeros(0, np.int64),
        values,
    )


def _bands(
    known: Base, ranks: tuple[int, ...], frames: FramesFile, seen: Sequence[metric.Seen | None],
    dials: Dials,
) -> Offsets:  # fmt: skip
    """The offsets of the profiles that these factors have."""
    parts: dict[tuple[int, int], list] = {}
    plain = _profiles(known, ranks, frames, dials, NONE)
    for own, shape, both in zip(seen, known.shapes, plain, strict=True):
        if own is not None:
            shares = [(side**2).T / own.sizes[:, None] for side in (own.left, own.right)]
            lead = own.sizes[0] ** (-dials.relative / 255)
            weights = (lead * own.sizes) ** (2 * bands.WEIGHT)
            parts.setdefault(shape, []).append((shares, weights, np.split(both[0], shape[:1])))
    return {shape: bands.measured(*zip(*own, strict=True)) for shape, own in parts.items()}


def _offsets_of(known: Base, ranks: tuple[int, ...], offsets: Offsets) -> np.ndarray:
    """What a file of these ranks has of them."""
    if not offsets:
        return bands.NONE
    sent = dict.fromkeys(shape for shape, rank in zip(known.shapes, ranks, strict=True) if rank)
    return np.stack([offsets[shape] for shape in sent]) if sent else bands.NONE


Size = Callable[[np.ndarray, float], int]


class Plan(NamedTuple):
    """What is sent of an update: all its components, the mask (c,) of those that are, and how."""

    own: Lines
    sent: np.ndarray
    dials: Dials
    offsets: Offsets


def sizes_of(
    known: Base, seen: Sequence[metric.Seen | None], overhead: Callable[..., int], heads: int
) -> Size:
    """Bytes of a file that sends the components of a mask (c,), whose cells have so many bits;
    overhead: of container.py, for the ranks; heads: bytes of packed heads."""

    def size(sent: np.ndarray, bits: float) -> int:
        body = profiled.length(int(sent.sum()), bits)
        return overhead(_ranks_of(seen, sent)) + heads + body

    return size


def _ranks_of(seen: Sequence[metric.Seen | None], sent: np.ndarray) -> tuple[int, ...]:
    ranks = [len(s.sizes) if s else 0 for s in seen]
    layer = np.repeat(np.arange(len(ranks)), ranks)
    return tuple(np.bincount(layer[sent], minlength=len(ranks)).tolist())


def choose(
    known: Base,
    frames: FramesFile,
    seen: Sequence[metric.Seen | None],
    size: Size,
    budget_bytes: int,
    relative: float = RELATIVE,
    slopes: tuple[int, int] | None = None,
) -> Plan:
    """The components and dials that make the most of a budget. seen: every layer's update in the
    metric, None for a layer without one. slopes: of the profile, where they are not to be found by
    trial."""
    ranks = tuple(len(s.sizes) if s else 0 for s in seen)
    sizes = np.concatenate([s.sizes for s in seen if s] or [np.zeros(0)])
    logs = OCTAVE * np.log2(np.maximum(sizes, 1e-300))
    power = int(np.ceil(logs.max())) - profiled.ENERGIES + 1 if len(logs) else 0
    energies = np.clip(np.round(logs - power), 0, profiled.ENERGIES - 1).astype(np.int64)
    values = [np.concatenate([s.left.T, s.right.T], axis=1).ravel() for s in seen if s]
    whole = np.concatenate(values) if values else np.zeros(0)
    slope, out = slopes or (FIRST, FIRST)
    dials = Dials(power, 0, 0, round(255 * relative), slope, out)

    def lines(dials: Dials, offsets: Offsets = NONE) -> Lines:
        return _lines(known, ranks, frames, dials, energies, whole, offsets)

    if not len(energies):
        return Plan(lines(dials), np.zeros(0, bool), dials, NONE)
    if not slopes:
        about, sent = allot.outline(lines(dials), dials, size, budget_bytes)

        def cost(dials: Dials) -> float:
            return allot.cost(profiled.only(lines(dials), sent), about)

    if not slopes and sent.any():
        dials = dials._replace(out=_lowest(OUTS, lambda x: cost(dials._replace(out=x))))
        dials = dials._replace(slope=_lowest(SLOPES, lambda x: cost(dials._replace(slope=x))))
    # What the factors hold beside the profile is worth more than trials by the scalar quantiser
    # say, since components are chosen by it too: it is sent where it is a small part of the file.
    room = budget_bytes - size(np.zeros(len(energies), bool), 0.0)
    offsets = _bands(known, ranks, frames, seen, dials)
    spent = bands.bits(np.stack([*offsets.values()]))
    if spent < bands.MOST * 8 * room:
        dials, size = dials._replace(banded=1), _with(size, spent)
    else:
        offsets = NONE
    own = lines(dials, offsets)
    dials, sent = allot.fill(own, dials, size, budget_bytes)
    if not sent.any():
        dials = dials._replace(banded=0)
    return Plan(own, sent, dials, offsets)


def _lowest(values: range, cost: Callable[[int], float]) -> int:
    """Where the cost is lowest: among every second value, and then those between."""
    found = {x: cost(x) for x in values[::2]}
    best = min(found, key=found.get)
    found |= {x: cost(x) for x in (best - values.step, best + values.step) if x in values}
    return min(found, key=found.get)


def _with(size: Size, spent: float) -> Size:
    return lambda sent, bits: size(sent, bits + spent)


def sent_of(
    known: Base, seen: Sequence[metric.Seen | None], plan: Plan
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What a receiver gets of every layer, in the metric: left (m, r) and right (n, r) float64 of
    the components that are sent."""
    decoded = profiled.quantise(profiled.only(plan.own, plan.sent), plan.dials).decoded
    found, at = [], 0
    for (m, n), rank in zip(known.shapes, _ranks_of(seen, plan.sent), strict=True):
        table = decoded[at : at + rank * (m + n)].reshape(rank, m + n)
        found.append((table[:, :m].T, table[:, m:].T))
        at += rank * (m + n)
    return found


@one_thread
def encode(
    factors: Mapping[str, Factors],
    base: Mapping[str, np.ndarray],
    frames: FramesFile,
    *,
    budget_bytes: int,
    relative: float = RELATIVE,
    slopes: tuple[int, int] | None = None,
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
    update is in it. slopes: how fast the energy of a factor falls with the eigenvalues, of inputs
    and of outputs in 16ths; by trial where they are not given. Raises SolarError where the frames
    do not fit the base.
    """
    known = known or container.identify(base, factors, watch)
    frame_file.check(frames, known.names, known.digests)
    ordered = container.in_order(known, factors)
    names, packed = container.listed(known, usual_names), pack_heads(heads, head_dtype)
    overhead = container.overhead(names, PARAMETERS)
    ranks = tuple(f.left.shape[1] for f in ordered)
    turns = _reflections(known, ranks, frames)
    seen = [
        metric.seen(f, *turns[name]) if rank else None
        for name, f, rank in zip(known.names, ordered, ranks, strict=True)
    ]
    size = sizes_of(known, seen, overhead, len(packed))
    least = size(np.zeros(sum(ranks), bool), 0.0)
    if budget_bytes < least:
        raise SolarError(
            f"a budget of {budget_bytes} bytes is too small: a file for this adapter that sends "
            f"nothing has {least}, {len(packed)} of them for trained heads; give more"
        )
    plan = choose(known, frames, seen, size, budget_bytes, relative, slopes)
    own, dials, kept = plan.own, plan.dials, _ranks_of(seen, plan.sent)
    part, offsets = profiled.only(own, plan.sent), _offsets_of(known, kept, plan.offsets)
    while len(body := profiled.pack(part, dials, offsets)) > budget_bytes - overhead(kept) - len(
        packed
    ):
        dials = allot.coarser(part, dials)  # the coder may need a word more than the chances say
    # The sender reads its own file, so what is measured is what arrives.
    decoded, numbers = _rebuild(known, kept, frames, body)
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
    bound needs for the same (metric_limit.py)."""
    errors, sizes = np.array(errors), np.array(sizes)
    some = sizes > 0
    if not some.any():
        return {"output_error": 0.0, "weighed_error": 0.0, "limit_bytes": 0.0}
    first = np.unique(own.first)
    weights = 2.0 ** (-2 * own.energies[first] * dials.relative / 255 / OCTAVE)
    share = float(np.sum((weights * errors)[some]) / np.sum((weights * sizes)[some]))
    return {
        "output_error": float(np.sqrt(np.mean(errors[some] / sizes[some]))),
        "weighed_error": float(np.sqrt(max(share, 0.0))),
        "limit_bytes": metric_limit.least_bytes(own, dials, share),
    }


def _bound_to(fixed: bytes, body: bytes) -> bytes:
    return fixed + hashlib.sha256(body).digest()


def _rebuild(
    known: Base, ranks: tuple[int, ...], frames: FramesFile, body: bytes
) -> tuple[dict[str, Factors], np.ndarray]:
    """The decoded update and the numbers of its checksum. Raises PacketError."""
    sides = coded_sides(known.shapes, ranks)
    guard.check_entries(sides, len(body))
    sent = [i for i, rank in enumerate(ranks) if rank]
    shapes = list(dict.fromkeys(known.shapes[i] for i in sent))
    head = profiled.read_head(body, sum(ranks), len(shapes))
    dials, offsets = head.dials, dict(zip(shapes, head.offsets, strict=False))
    if abs(dials.power) > MAX_POWER:
        raise PacketError(f"packet is altered: its power, {dials.power}, is out of range")
    profiles = _profiles(known, ranks, frames, dials, offsets)
    layers = [
        profiled.Layer(rank, shape, profile)
        for rank, shape, profile in zip(ranks, known.shapes, profiles, strict=True)
        if rank
    ]
    turns = _reflections(known, ranks, frames)
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
