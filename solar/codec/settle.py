"""Settle: numbers for the coefficients, what they decode to, and which layers are worth sending."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from solar.codec import bound, container, payload, quantize
from solar.codec.coefficients import Coefficients, Frames, Side, atoms_in_use, coded_sides, rebuild
from solar.codec.container import Base
from solar.codec.factors import Factors
from solar.codec.payload import Sent
from solar.codec.quantize import INTEGERS
from solar.codec.recipe import Setting


class Job(NamedTuple):
    """What stays the same while one adapter is coded: factors in sorted order of names, and the
    bytes of a file beside its payload as a function of the ranks."""

    known: Base
    factors: list[Factors]
    frames: Frames
    names: tuple[str, ...] | None
    heads: bytes
    overhead: Callable[[tuple[int, ...]], int]


class Coded(NamedTuple):
    """A coding of all layers: the ranks that are sent, the payload, and what it decodes to; bits of
    the payload by side, where entropy coding tells them apart; whether the payload was read as a
    receiver reads it."""

    ranks: tuple[int, ...]
    sides: list[Side]
    body: bytes
    power: int
    decoded: dict[str, Factors]
    numbers: np.ndarray
    measured: dict[str, bound.LayerBound]
    left_out: list[str]
    bits: Mapping[Side, float] = MappingProxyType({})
    read: bool = False


def quantise(
    setting: Setting, sides: list[Side], fitted: Mapping[Side, Coefficients]
) -> tuple[dict[Side, Sent], int]:
    """What is stored of every side, and the packet's power of two."""
    values = [fitted[side].values for side in sides]
    together = np.concatenate(values) if values else np.zeros(0, np.float32)
    if setting.dtype not in INTEGERS:
        power = quantize.exponent(together, setting.dtype)
        blank = np.zeros(0, np.uint8)
        return {s: Sent(fitted[s].positions, fitted[s].values, blank) for s in sides}, power
    bits = INTEGERS[setting.dtype]
    counts = [payload.counts(setting, s, fitted[s].positions) for s in sides]
    lengths = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    mask = np.arange(int(lengths.max(initial=0)))[None, :] < lengths[:, None]
    table = np.full(mask.shape, np.nan, np.float32)
    table[mask] = together
    sending = lengths > 0
    steps = np.zeros(len(lengths))
    if sending.any():
        steps[sending] = quantize.steps_for(table[sending], bits)
    scales, power = _scales(steps)
    exact = quantize.scale_steps(scales, power)
    codes = quantize.codes(table, exact, bits)
    # The step of least squares for these codes; exact where atoms are orthonormal.
    grid = np.where(mask, codes - (2**bits - 1) / 2, 0)
    best = np.nansum(np.nan_to_num(table) * grid, 1) / np.maximum(np.sum(grid**2, 1), 1e-300)
    scales, power = _scales(np.where(sending & (best > 0), best, 0))
    numbers = np.split(codes[mask], np.cumsum([len(v) for v in values])[:-1]) if values else []
    own = np.split(scales, np.cumsum([len(c) for c in counts])[:-1]) if counts else []
    return {
        side: Sent(fitted[side].positions, n, s)
        for side, n, s in zip(sides, numbers, own, strict=True)
    }, power


def _scales(steps: np.ndarray) -> tuple[np.ndarray, int]:
    """Bytes of steps (g,), 0 where nothing is sent, and the power of two they are relative to."""
    power = quantize.scale_power(float(np.max(steps, initial=0)))
    return np.where(steps > 0, quantize.scale_bytes(steps, power), 0).astype(np.uint8), power


def _gains(
    setting: Setting, sides: list[Side], sent: dict[Side, Sent], power: int,
    factors: list[Factors], rebuilt: Mapping[Side, np.ndarray],
) -> tuple[dict[Side, Sent], int]:  # fmt: skip
    """Steps fitted again to what they decode to: atoms that are not orthonormal add up rounding
    errors, and one gain a component takes back what it can."""
    axis = 0 if setting.atoms == "vector" else None
    steps = []
    for side in sides:
        true = factors[side.layer][side.side][:, : side.rank].astype(np.float64)
        seen = rebuilt[side].astype(np.float64)
        size = np.sum(seen**2, axis=axis)
        gain = np.where(size > 0, np.sum(true * seen, axis=axis) / np.where(size > 0, size, 1), 1)
        gain = np.where((gain > 0.25) & (gain < 4), gain, 1)
        own = sent[side].scales
        steps.append(np.where(own > 0, quantize.scale_steps(own, power), 0) * np.atleast_1d(gain))
    scales, power = _scales(np.concatenate(steps))
    pieces = np.split(scales, np.cumsum([len(s) for s in steps])[:-1])
    return {s: sent[s]._replace(scales=p) for s, p in zip(sides, pieces, strict=True)}, power


def settle(
    job: Job, setting: Setting, ranks: tuple[int, ...], fitted: Mapping[Side, Coefficients],
    orthonormal: bool,
) -> Coded:  # fmt: skip
    """Numbers for the coefficients, what they decode to, and no layer that is worse than none."""
    sides = coded_sides(job.known.shapes, ranks)
    sent, power = quantise(setting, sides, fitted)
    if setting.dtype in INTEGERS and not orthonormal and sides:
        values = {s: payload.values_of(setting, s, sent[s], power) for s in sides}
        rebuilt, _ = rebuild(setting, sides, values, job.frames)
        sent, power = _gains(setting, sides, sent, power, job.factors, rebuilt)
    left_out: list[str] = []
    while True:
        values = {s: payload.values_of(setting, s, sent[s], power) for s in sides}
        vectors, decoded, numbers, measured = receive(job, setting, sides, values)
        worse = [k for k, r in zip(job.known.names, ranks, strict=True)
                 if r and measured[k].measured >= measured[k].norm]  # fmt: skip
        if not worse:
            body = payload.pack(setting, sides, sent, power) + vectors
            return Coded(ranks, sides, body, power, decoded, numbers, measured, left_out)
        # Which layers are coded shapes the batches: rebuild as the decoder will.
        left_out += worse
        ranks = tuple(0 if k in worse else r for k, r in zip(job.known.names, ranks, strict=True))
        sides = coded_sides(job.known.shapes, ranks)


def receive(
    job: Job, setting: Setting, sides: list[Side], values: Mapping[Side, Coefficients]
) -> tuple[bytes, dict[str, Factors], np.ndarray, dict[str, bound.LayerBound]]:
    """The vectors that travel along, the update that a receiver gets, the numbers of the basis
    checksum, and the error of every layer, its bounds checked. Raises BoundViolated."""
    vectors, packed = None, b""
    if setting.embed:
        atoms = atoms_in_use(setting, sides, values, job.frames)
        vectors = {s: a.astype(np.float16).astype(np.float32) for s, a in atoms.items()}
        packed = payload.pack_vectors(vectors, sides)
    rebuilt, numbers = rebuild(setting, sides, values, job.frames, vectors)
    decoded = container.assemble(job.known, {(s.layer, s.side): x for s, x in rebuilt.items()})
    original = dict(zip(job.known.names, job.factors, strict=True))
    return packed, decoded, numbers, bound.check(original, decoded)
