"""SOLAR: factors as few coefficients in atoms that the base weights and a recipe give both ends.

This is the receiver's half: it rebuilds the atoms that carry a coefficient, or takes them from the
file where the sender put them there, and adds them up. encode.py is the sender's.

Parameters in the packet (32 bytes): kind, selection, atoms, dtype (1 byte each), N (2), K (2, 0 for
all, 65535 where a budget chose), eps (float32), seed (8), power of two (2), offset of the basis
checksum (2), the checksum (8). The payload is payload.py's.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from solar.codec import checksum, container, guard, payload
from solar.codec.coefficients import Frames, Side, coded_sides, rebuild
from solar.codec.container import Base, Packet, PacketError, Watch, unwatched
from solar.codec.factors import Factors
from solar.codec.recipe import (
    ATOMS,
    BUDGET,
    DTYPES,
    KINDS,
    MAX_KEEP,
    MAX_POWER,
    SELECTIONS,
    Recipe,
    Setting,
)
from solar.errors import SolarError

PARAMETERS = struct.Struct("<BBBBHHfQhH")  # the basis checksum follows


def pack_parameters(setting: Setting, power: int, offset: int) -> bytes:
    """The parameters without the basis checksum."""
    recipe, keep = setting.recipe, setting.keep or 0
    return PARAMETERS.pack(
        KINDS.index(recipe.kind), SELECTIONS.index(recipe.selection), ATOMS.index(setting.atoms),
        DTYPES.index(setting.dtype), recipe.size, MAX_KEEP + 1 if keep == BUDGET else keep,
        recipe.perturbation, recipe.seed, power, offset,
    )  # fmt: skip


def bound_to(parameters: bytes, body: bytes) -> bytes:
    """What the basis checksum covers beside the basis: whoever alters the recipe or a coefficient
    and signs the file again still has to have the base weights."""
    return parameters + hashlib.sha256(body).digest()


def read_parameters(packet: Packet) -> tuple[Setting, int, int, bytes]:
    """Setting, power of two, checksum offset and checksum. Raises PacketError."""
    fixed, mark = packet.parameters[: PARAMETERS.size], packet.parameters[PARAMETERS.size :]
    if len(fixed) != PARAMETERS.size or len(mark) != checksum.LENGTH:
        raise PacketError("packet is altered: its recipe has the wrong length")
    kind, selection, atoms, dtype, size, keep, eps, seed, power, offset = PARAMETERS.unpack(fixed)
    try:
        recipe = Recipe(KINDS[kind], size, eps, SELECTIONS[selection], seed)
        kept = BUDGET if keep > MAX_KEEP else keep or None
        setting = Setting(recipe, ATOMS[atoms], kept, DTYPES[dtype], embed=packet.embedded)
    except IndexError:
        raise PacketError("packet uses a kind of basis unknown here; update solar") from None
    except SolarError as error:
        raise PacketError(f"packet is altered: {error}") from None
    if (setting.keep or None) != kept or recipe.perturbation != eps:
        raise PacketError("packet is altered: its recipe is not in its one form")
    if abs(power) > MAX_POWER:
        raise PacketError(f"packet is altered: its power of two, {power}, is out of range")
    return setting, power, offset, mark


def read_payload(setting: Setting, sides: list[Side], power: int, body: bytes):
    """What payload.unpack returns. Raises PacketError also where the payload asks for too much."""
    guard.check_entries(sides, len(body))
    sent, vectors = payload.unpack(setting, sides, power, body)
    if vectors is None:
        guard.check_atoms(setting, sides, sent, len(body))
    return sent, vectors


def decode(
    packet: Packet,
    base: Mapping[str, np.ndarray],
    known: Base,
    cache: Path | None,
    watch: Watch = unwatched,
) -> dict[str, Factors]:
    """Factors of an unpacked packet for a resolved base; layers sent as nothing have rank 0.

    Raises PacketError, also where the basis rebuilt here is not the sender's.
    """
    setting, power, offset, mark = read_parameters(packet)
    sides = coded_sides(known.shapes, packet.ranks)
    sent, vectors = read_payload(setting, sides, power, packet.payload)
    try:
        own = () if setting.embed else sides
        frames = Frames(base, known, own, setting.recipe, cache, watch)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            rebuilt, numbers = rebuild(setting, sides, sent, frames, vectors)
    except SolarError as error:
        raise PacketError(f"packet does not fit this base: {error}") from None
    own = bound_to(packet.parameters[: PARAMETERS.size], packet.payload)
    if not checksum.fits(mark, numbers, offset, own):
        raise PacketError(
            "basis mismatch: the basis rebuilt here differs from the sender's; "
            "clear the cache folder and try again, or have it sent with --embed-basis"
        )
    return container.assemble(known, {(s.layer, s.side): x for s, x in rebuilt.items()})


def describe(packet: Packet) -> dict[str, Any]:
    """Header fields of this method, for `inspect`."""
    setting, _, _, mark = read_parameters(packet)
    recipe = asdict(setting.recipe)
    return {"recipe": recipe, "seed": recipe["seed"], "atoms": setting.atoms,
            "keep": setting.keep, "dtype": setting.dtype, "embedded": setting.embed,
            "basis_checksum": mark.hex()}  # fmt: skip
