"""SOLAR: factors as few coefficients in atoms that the base weights and a recipe give both ends.

Encoding walks factors -> atoms -> select -> quantize -> packet; decoding rebuilds the atoms that
carry a coefficient and adds them up. Both ends run the same `_rebuild`, so what is measured here is
what the file decodes to. A layer whose decoded update is no better than nothing is sent as nothing.

Parameters in the packet (32 bytes): kind, selection, atoms, dtype (1 byte each), N (2), K (2, 0 for
all), eps (float32), seed (8), power of two (2), offset of the basis checksum (2), the checksum (8).

Payload: for every coded layer in sorted order, left then right, the support (absent where all
coefficients are sent); then in the same order the coefficients, component by component.
"""

import math
import os
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solar.codec import basis, bound, checksum, container, quantize, select
from solar.codec.basis import KINDS, SELECTIONS, Frame, Recipe, Sides
from solar.codec.blas import one_thread
from solar.codec.container import Base, Encoded, Packet, PacketError
from solar.codec.factors import Factors
from solar.errors import SolarError

ATOMS = ("vector", "matrix")
DTYPES = tuple(quantize.FLOATS)
PARAMETERS = struct.Struct("<BBBBHHfQhH8s")
CHUNK_BYTES = 2**28  # atoms alive at once
BUCKET = 32  # counts of atoms in use are rounded up to this, so few shapes are compiled


@dataclass(frozen=True)
class Setting:
    """How to code an adapter.

    atoms: `vector` gives every component N coefficients of its own, `matrix` one coefficient per
    stack of r vectors. keep: K coefficients are sent per component (vector atoms; shared among the
    components of a side by what they are worth) or per side (matrix atoms); None sends all N.
    dtype: of the coefficients. ridge: relative to the mean diagonal of the Gram matrix.
    """

    recipe: Recipe = field(default_factory=Recipe)
    atoms: str = "vector"
    keep: int | None = None
    dtype: str = "float16"
    ridge: float = 1e-4

    def __post_init__(self):
        if self.atoms not in ATOMS:
            raise SolarError(f"atoms {self.atoms!r} are unknown; choose one of {ATOMS}")
        if self.dtype not in DTYPES:
            raise SolarError(f"coefficient dtype {self.dtype!r} is unknown; choose from {DTYPES}")
        if self.keep is not None and self.keep < 1:
            raise SolarError(f"keep {self.keep} is out of range; choose 1 or more, or none for all")
        if not 0 < self.ridge < 1:
            raise SolarError(f"ridge {self.ridge} is out of range; choose between 0 and 1")
        if self.keep is not None and self.keep >= self.recipe.size:
            object.__setattr__(self, "keep", None)


class Side(NamedTuple):
    """One side of one coded layer: index of the layer, 0 left or 1 right, d and r."""

    layer: int
    side: int
    dim: int
    rank: int


class Coefficients(NamedTuple):
    """What is sent for one side, component by component: values (k,) on a support (n,) bool."""

    support: np.ndarray
    values: np.ndarray


def _coded_sides(shapes: Iterable[tuple[int, int]], ranks: Iterable[int]) -> list[Side]:
    return [
        Side(layer, side, shape[side], rank)
        for layer, (shape, rank) in enumerate(zip(shapes, ranks, strict=True))
        if rank > 0
        for side in (0, 1)
    ]


def _targets_per_side(setting: Setting, side: Side) -> int:
    return side.rank if setting.atoms == "vector" else 1


def _counts(setting: Setting, side: Side) -> tuple[int, int]:
    """Coefficients of a side (n) and how many of them are sent (k)."""
    per_target = setting.recipe.size if setting.keep is None else setting.keep
    targets = _targets_per_side(setting, side)
    return setting.recipe.size * targets, per_target * targets


def _batches(setting: Setting, sides: list[Side], size: int) -> list[list[Side]]:
    """Sides of equal shape, in batches whose atoms (`size` each) fit in CHUNK_BYTES."""
    groups: dict[tuple[int, int], list[Side]] = {}
    for side in sides:
        width = 1 if setting.atoms == "vector" else side.rank
        groups.setdefault((side.dim, width), []).append(side)
    batches = []
    for (dim, width), members in groups.items():
        pieces = math.ceil(len(members) * size * dim * width * 4 / CHUNK_BYTES)
        step = math.ceil(len(members) / max(1, pieces))
        batches += [members[i : i + step] for i in range(0, len(members), step)]
    return batches


def _as_group(setting: Setting, batch: list[Side]) -> Sides:
    return Sides(
        np.array([s.layer for s in batch], np.uint32),
        np.array([s.side for s in batch], np.uint32),
        batch[0].dim,
        1 if setting.atoms == "vector" else batch[0].rank,
    )


def _rows(matrices: list[np.ndarray], atoms: str) -> np.ndarray:
    """Targets (b, t, D) float32 of factors (d, r): one row per component, or all in one row."""
    if atoms == "matrix":
        return np.stack([matrix.T.reshape(1, -1) for matrix in matrices])
    width = max(matrix.shape[1] for matrix in matrices)
    rows = np.zeros((len(matrices), width, matrices[0].shape[0]), np.float32)
    for i, matrix in enumerate(matrices):
        rows[i, : matrix.shape[1]] = matrix.T
    return rows


class _Frames:
    """Singular frames of the base weights of coded layers, loaded once for one call."""

    def __init__(
        self, base: Mapping[str, np.ndarray], known: Base, sides: list[Side], recipe: Recipe,
        cache: Path | None,
    ):  # fmt: skip
        def load(layer: int) -> tuple[Frame, Frame]:
            name = known.names[layer]
            return basis.singular_frames(
                name, lambda: container.read_weight(base, name),
                known.shapes[layer], known.digests[layer], cache,
            )  # fmt: skip

        self.loaded: dict[int, tuple[Frame, Frame]] = {}
        if recipe.kind == "singular":
            layers = sorted({side.layer for side in sides})
            # LAPACK lets other threads run, so weights are factorised side by side.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                self.loaded = dict(zip(layers, pool.map(load, layers), strict=True))

    def for_batch(self, batch: list[Side]) -> list[Frame] | None:
        return [self.loaded[side.layer][side.side] for side in batch] if self.loaded else None


def _rebuild(
    setting: Setting, sides: list[Side], sent: list[Coefficients], frames: _Frames
) -> tuple[dict[Side, np.ndarray], np.ndarray]:
    """Factors (d, r) float32 of every coded side, and the numbers of the basis checksum."""
    size = setting.recipe.size
    tables = {}
    for side, (support, values) in zip(sides, sent, strict=True):
        table = np.zeros(support.shape, np.float32)
        table[support] = values
        tables[side] = table.reshape(-1, size), support.reshape(-1, size).any(axis=0)
    decoded: dict[Side, np.ndarray] = {}
    numbers: dict[Side, np.ndarray] = {}
    most = max((int(used.sum()) for _, used in tables.values()), default=0)
    count = min(size, math.ceil(most / BUCKET) * BUCKET)
    for batch in _batches(setting, sides, count):
        # Only atoms that carry a coefficient are built; unused places repeat atom 0 times zero.
        ids = np.zeros((len(batch), count), np.uint32)
        width = max(_targets_per_side(setting, side) for side in batch)
        coefficients = np.zeros((len(batch), count, width), np.float32)
        for i, side in enumerate(batch):
            table, used = tables[side]
            which = np.flatnonzero(used)
            ids[i, : len(which)] = which
            coefficients[i, : len(which), : len(table)] = table[:, which].T
        group = _as_group(setting, batch)
        unperturbed = basis.sources(setting.recipe, group, ids, frames.for_batch(batch))
        atoms, _ = basis.atoms(setting.recipe, group, ids, unperturbed)
        flat = atoms.reshape(len(batch), count, -1)
        rows = np.asarray(select.combine(coefficients, flat))
        rows = rows.reshape(len(batch), -1, batch[0].dim)
        for i, (side, marks) in enumerate(zip(batch, checksum.sketch(rows), strict=True)):
            decoded[side] = np.ascontiguousarray(rows[i, : side.rank].T)
            numbers[side] = marks[: side.rank].ravel()
    ordered = [numbers[side] for side in sides]
    return decoded, np.concatenate(ordered) if ordered else np.zeros(0)


# --------------------------------------------------------------------------------------- encoding


def _tails(
    setting: Setting, batch: list[Side], rows: np.ndarray, unperturbed: np.ndarray | None,
    atoms, norms, ranks: np.ndarray, residuals: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    """What was known before encoding about each side's error with all N atoms, and what it is."""
    recipe, width = setting.recipe, atoms.shape[2]
    dim = rows.shape[-1]
    records = []
    if recipe.kind == "singular" and (width == 1 or recipe.selection == "leading"):
        # Atoms past the first lap repeat vectors; leaving them out keeps P_0 orthonormal, and the
        # span only shrinks, so the bound still holds.
        first = (np.arange(recipe.size)[None, :] < ranks[:, None])[:, :, None]
        shape = (len(batch), recipe.size, dim)
        plain = unperturbed.reshape(shape) / np.float32(np.sqrt(width)) * first
        if norms is None:
            off = np.zeros(len(batch))
        else:
            scaled = atoms * norms[..., None] if width == 1 else atoms
            moved = np.float32(1 / np.sqrt(width)) * (scaled - unperturbed)
            moved = moved.reshape(shape) * first
            # No norm is below this; where it reaches 1 there is nothing left to find out.
            off = np.linalg.norm(moved, axis=(1, 2)) / np.sqrt(min(shape[1:]))
            if off.min() < 1:
                off = np.asarray(bound.spectral_upper(moved))
        limits, totals = bound.tail(rows, plain, off)
        for i, side in enumerate(batch):
            measured = float(residuals[i])
            if measured > limits[i] + bound.TAIL_SLACK * totals[i]:
                # Ridge leaves more than the projection does, and the bound is on the projection.
                measured = bound.exact_residual(rows[i], np.asarray(atoms[i]).reshape(shape[1:]))
            bound.hold(
                f"tail bound of layer {side.layer}, {basis.SIDES[side.side]} side",
                measured, limits[i] + bound.TAIL_SLACK * totals[i],
            )  # fmt: skip
            known = float(limits[i]) if np.isfinite(limits[i]) else None
            why = "holds" if known is not None else f"vacuous: ||F||_2 near {off[i]:.3g} reaches 1"
            records.append({"measured": measured, "bound": known, "expected": None, "why": why})
        return records
    for i in range(len(batch)):
        expected, why = None, "none is known for this kind of basis"
        if recipe.kind == "random" and width == 1:
            expected = bound.expected_tail(float(np.linalg.norm(rows[i])), recipe.size, dim)
            why = "root mean square over seeds"
        records.append(
            {"measured": float(residuals[i]), "bound": None, "expected": expected, "why": why}
        )
    return records


def _fit(
    setting: Setting, sides: list[Side], factors: list[Factors], frames: _Frames
) -> tuple[dict[Side, Coefficients], dict[Side, dict[str, Any]]]:
    """Coefficients of every side before quantisation, and the record of its tail."""
    recipe = setting.recipe
    sent: dict[Side, Coefficients] = {}
    tails: dict[Side, dict[str, Any]] = {}
    for batch in _batches(setting, sides, recipe.size):
        group = _as_group(setting, batch)
        ids = np.broadcast_to(np.arange(recipe.size, dtype=np.uint32), (len(batch), recipe.size))
        own = frames.for_batch(batch)
        unperturbed = basis.sources(recipe, group, ids, own)
        atoms, norms = basis.atoms(recipe, group, ids, unperturbed)
        ranks = np.array([len(f.values) for f in own] if own else [group.dim] * len(batch))
        orthonormal = (
            setting.atoms == "vector" and recipe.kind != "random" and norms is None
            and recipe.size <= int(ranks.min())
        )  # fmt: skip
        rows = _rows([factors[s.layer][s.side] for s in batch], setting.atoms)
        weights = np.ones(rows.shape[:2], np.float32)
        if setting.atoms == "vector":
            for i, side in enumerate(batch):
                # An error in this component of L is multiplied by the same component of R.
                other = factors[side.layer][1 - side.side]
                weights[i, : side.rank] = np.linalg.norm(other, axis=0)
        counts = np.array([_counts(setting, side)[1] for side in batch], np.int32)
        flat = atoms.reshape(len(batch), recipe.size, -1)
        fitted = select.fit(
            flat, rows, weights, counts,
            np.float32(setting.ridge), orthonormal=orthonormal, sparse=setting.keep is not None,
        )  # fmt: skip
        coefficients, support, residual = map(np.asarray, fitted)
        if setting.keep is not None and not orthonormal:
            most = math.ceil(int(support.sum(axis=1).max()) / BUCKET) * BUCKET
            coefficients = np.asarray(select.refit(
                flat, rows, support, np.float32(setting.ridge), most=min(most, recipe.size)
            ))  # fmt: skip
        records = _tails(setting, batch, rows, unperturbed, atoms, norms, ranks, residual)
        for i, side in enumerate(batch):
            targets = _targets_per_side(setting, side)
            flat = support[i].T[:targets].ravel()
            sent[side] = Coefficients(flat, coefficients[i].T[:targets].ravel()[flat])
            tails[side] = records[i]
    return sent, tails


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
    sides = _coded_sides(known.shapes, [f.left.shape[1] for f in ordered])
    frames = _Frames(base, known, sides, setting.recipe, cache)
    fitted, tails = _fit(setting, sides, ordered, frames)

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
        rebuilt, numbers = _rebuild(setting, sides, [sent[s] for s in sides], frames)
        decoded = container.assemble(known, {(s.layer, s.side): x for s, x in rebuilt.items()})
        measured = bound.check(original, decoded)
        worse = [k for k, r in zip(known.names, ranks, strict=True)
                 if r and measured[k].measured >= measured[k].norm]  # fmt: skip
        if not worse:
            break
        # Which layers are coded shapes the batches: rebuild as the decoder will.
        left_out += worse
        ranks = tuple(0 if k in worse else r for k, r in zip(known.names, ranks, strict=True))
        sides = _coded_sides(known.shapes, ranks)

    offset = checksum.choose_offset(numbers)
    recipe = setting.recipe
    parameters = PARAMETERS.pack(
        KINDS.index(recipe.kind), SELECTIONS.index(recipe.selection), ATOMS.index(setting.atoms),
        DTYPES.index(setting.dtype), recipe.size, setting.keep or 0, recipe.perturbation,
        recipe.seed, power, offset, checksum.checksum(numbers, offset),
    )  # fmt: skip
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
    _add_tails(report, known, ordered, tails, frames)
    return Encoded(data, decoded, report)


def _add_tails(report, known: Base, factors: list[Factors], tails, frames: _Frames) -> None:
    """Tail records by layer, the bound they give on dW, and the smallest gap of the spectrum."""
    by_layer: dict[int, dict[str, Any]] = {}
    for side, record in tails.items():
        by_layer.setdefault(side.layer, {})[basis.SIDES[side.side]] = record
    for layer, entry in enumerate(report["layers"]):
        sides = by_layer.get(layer)
        entry["tail"], entry["tail_bound"] = sides, None
        if sides and all(record["bound"] is not None for record in sides.values()):
            left, right = (sides[side]["bound"] for side in basis.SIDES)
            norms = [float(bound.spectral(x[None])[0]) for x in factors[layer]]
            entry["tail_bound"] = left * norms[1] + norms[0] * right + left * right
    if frames.loaded:
        size = report["setting"]["recipe"]["size"]
        report["smallest_gap"] = min(
            basis.smallest_gap(left.values, size) for left, _ in frames.loaded.values()
        )


# --------------------------------------------------------------------------------------- decoding


def read_parameters(parameters: bytes) -> tuple[Setting, int, int, bytes]:
    """Setting, power of two, checksum offset and checksum. Raises PacketError."""
    if len(parameters) != PARAMETERS.size:
        raise PacketError("packet is altered: its recipe has the wrong length")
    kind, selection, atoms, dtype, size, keep, eps, seed, power, offset, mark = PARAMETERS.unpack(
        parameters
    )
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
    counts = [_counts(setting, side) for side in sides]
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
    sides = _coded_sides(known.shapes, packet.ranks)
    sent = _read_payload(setting, sides, power, packet.payload)
    try:
        frames = _Frames(base, known, sides, setting.recipe, cache)
        rebuilt, numbers = _rebuild(setting, sides, sent, frames)
    except SolarError as error:
        raise PacketError(f"packet does not fit this base: {error}") from None
    if not np.isfinite(numbers).all() or checksum.checksum(numbers, offset) != mark:
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
