"""Choose: what is sent of an update that is seen in the metric, so that a budget is used best.

The dials of profiled.py are found by trial (allot.py): which components are sent, their steps, and
how fast the energy of a factor falls with the eigenvalues, for inputs and for outputs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from solar.codec import allot, bands, framed, metric, profiled
from solar.codec.container import Base
from solar.codec.frame_file import OCTAVE, FramesFile
from solar.codec.framed import Offsets
from solar.codec.profiled import Dials, Lines, Quantised

SLOPES = range(8, 31, 2)  # of the profile of inputs, in 16ths; what the sender chooses from
OUTS = range(0, 31, 2)  # of that of outputs
FIRST = 16  # where both begin: factors that lie no way in particular in the space of the weights
LOWER = 8  # quarters of an octave by which the largest energy may be below what is possible
SPARE = 0.01  # share of a budget that may be left where nothing is to change
RELATIVE = 0.25  # how far errors count relative to the layer's own change


def _bands(
    known: Base, ranks: tuple[int, ...], frames: FramesFile, seen: Sequence[metric.Seen | None],
    dials: Dials,
) -> Offsets:  # fmt: skip
    """The offsets of the profiles that these factors have."""
    parts: dict[tuple[int, int], list] = {}
    plain = framed.profiles(known, ranks, frames, dials, framed.NONE)
    for own, shape, both in zip(seen, known.shapes, plain, strict=True):
        if own is not None:
            shares = [(side**2).T / own.sizes[:, None] for side in (own.left, own.right)]
            lead = own.sizes[0] ** (-dials.relative / 255)
            weights = (lead * own.sizes) ** (2 * bands.WEIGHT)
            parts.setdefault(shape, []).append((shares, weights, np.split(both[0], shape[:1])))
    return {shape: bands.measured(*zip(*own, strict=True)) for shape, own in parts.items()}


def offsets_of(known: Base, ranks: tuple[int, ...], offsets: Offsets) -> np.ndarray:
    """What a file of these ranks has of them."""
    if not offsets:
        return bands.NONE
    sent = dict.fromkeys(shape for shape, rank in zip(known.shapes, ranks, strict=True) if rank)
    return np.stack([offsets[shape] for shape in sent]) if sent else bands.NONE


Size = Callable[[np.ndarray, float], int]


class Choice(NamedTuple):
    """What a sender has decided: how many components of every layer are sent, the dials, and the
    price of a bit, a float32."""

    ranks: tuple[int, ...]
    dials: Dials
    price: float = 1.0


class Decided(NamedTuple):
    """An update in the metric, layer by layer, None for one without any, and what was decided for
    its file."""

    seen: Sequence[metric.Seen | None]
    choice: Choice


class Plan(NamedTuple):
    """What is sent of an update: all its components, the mask (c,) of those that are, and how;
    price: of a bit, by which the sender quantises; quantised: what comes of it, None where that was
    not found on the way."""

    own: Lines
    sent: np.ndarray
    dials: Dials
    offsets: Offsets
    price: float = 1.0
    quantised: Quantised | None = None


def sizes_of(seen: Sequence[metric.Seen | None], overhead: Callable[..., int], heads: int) -> Size:
    """Bytes of a file that sends the components of a mask (c,), whose cells have so many bits;
    overhead: of container.py, for the ranks; heads: bytes of packed heads."""

    def size(sent: np.ndarray, bits: float) -> int:
        body = profiled.length(int(sent.sum()), bits)
        return overhead(ranks_of(seen, sent)) + heads + body

    return size


def ranks_of(seen: Sequence[metric.Seen | None], sent: np.ndarray) -> tuple[int, ...]:
    ranks = [len(s.sizes) if s else 0 for s in seen]
    layer = np.repeat(np.arange(len(ranks)), ranks)
    return tuple(np.bincount(layer[sent], minlength=len(ranks)).tolist())


def plan(
    known: Base,
    frames: FramesFile,
    seen: Sequence[metric.Seen | None],
    size: Size,
    budget_bytes: int,
    relative: float = RELATIVE,
    like: Choice | None = None,
    spare: float = SPARE,
) -> Plan:
    """The components and dials that make the most of a budget. seen: every layer's update in the
    metric, None for a layer without one. like: what was decided for much the same update:
    components and slopes hold, and steps too where they leave no more than `spare` of the budget;
    energies and the offsets of the profile are what this update has."""
    ranks = tuple(len(s.sizes) if s else 0 for s in seen)
    sizes = np.concatenate([s.sizes for s in seen if s] or [np.zeros(0)])
    logs = OCTAVE * np.log2(np.maximum(sizes, 1e-300))
    power = int(np.ceil(logs.max())) - profiled.ENERGIES + 1 if len(logs) else 0
    if like and like.dials.power - LOWER <= power <= like.dials.power:
        power = like.dials.power
    energies = np.clip(np.round(logs - power), 0, profiled.ENERGIES - 1).astype(np.int64)
    values = [np.concatenate([s.left.T, s.right.T], axis=1).ravel() for s in seen if s]
    whole = np.concatenate(values) if values else np.zeros(0)
    dials = Dials(power, 0, 0, round(255 * relative), FIRST, FIRST)
    if like:
        moved = round((2 - 2 * like.dials.relative / 255) * (power - like.dials.power))
        dials = like.dials._replace(power=power, step=like.dials.step - moved)  # as wide as before

    def lines(dials: Dials, offsets: Offsets = framed.NONE) -> Lines:
        return framed.lines_of(known, ranks, frames, dials, energies, whole, offsets)

    if not len(energies):
        return Plan(lines(dials), np.zeros(0, bool), dials._replace(boost=0, banded=0), framed.NONE)
    if not like:
        dials = _sloped(lines, dials, size, budget_bytes)
    # What the factors hold beside the profile is worth more than trials by the scalar quantiser
    # say, since components are chosen by it too: it is sent where it is a small part of the file.
    room = budget_bytes - size(np.zeros(len(energies), bool), 0.0)
    offsets = _bands(known, ranks, frames, seen, dials)
    spent = bands.bits(np.stack([*offsets.values()]))
    if like.dials.banded if like else spent < bands.MOST * 8 * room:
        dials, size = dials._replace(banded=1), _with(size, spent)
    else:
        offsets = framed.NONE
    own = lines(dials, offsets)
    if like:
        place = np.arange(len(energies)) - own.first
        sent = place < np.repeat(like.ranks, ranks)
        found = allot.again(own, sent, dials, like.price, size, budget_bytes, spare)
    else:
        found = allot.fill(own, dials, size, budget_bytes)
    dials = found.dials if found.sent.any() else found.dials._replace(banded=0)
    return Plan(own, found.sent, dials, offsets, found.price, found.quantised)


def _sloped(lines: Callable[[Dials], Lines], dials: Dials, size: Size, budget: int) -> Dials:
    """Dials with the slopes by which the components that are worth it cost least."""
    about, sent = allot.outline(lines(dials), dials, size, budget)
    if not sent.any():
        return dials

    def cost(dials: Dials) -> float:
        return allot.cost(profiled.only(lines(dials), sent), about)

    dials = dials._replace(out=_lowest(OUTS, lambda x: cost(dials._replace(out=x))))
    return dials._replace(slope=_lowest(SLOPES, lambda x: cost(dials._replace(slope=x))))


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
    part = profiled.only(plan.own, plan.sent)
    decoded = (plan.quantised or profiled.quantise(part, plan.dials, plan.price)).decoded
    found, at = [], 0
    for (m, n), rank in zip(known.shapes, ranks_of(seen, plan.sent), strict=True):
        table = decoded[at : at + rank * (m + n)].reshape(rank, m + n)
        found.append((table[:, :m].T, table[:, m:].T))
        at += rank * (m + n)
    return found
