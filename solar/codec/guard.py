"""Guard: how much a packet may ask of its reader for the bytes that it has.

Expanding is what the format is for, so lengths that fit the file are not enough: a hundred bytes
may name a rank of thousands for every layer of a large base, or one coefficient among millions of
positions. Here what a payload leads to is counted before anything is allocated for it. Each limit
is some times what the strongest compression asks that is worth anything, and up to a fixed amount
no file is refused at all, however short. The sender is held to the same, so it writes no packet
that is refused.
"""

from collections.abc import Mapping

import numpy as np

from solar.codec import basis
from solar.codec.coefficients import Coefficients, Side, as_group, size_of
from solar.codec.container import PacketError
from solar.codec.recipe import Setting

# (always allowed, allowed for a byte of payload)
ENTRIES = (2**23, 2**10)  # of the factors: 32 MB; half a byte to a component of 1,024 is nothing
POSITIONS = (2**23, 2**11)  # that supports choose from: some tenths of a second
NUMBERS = (2**28, 2**18)  # in the atoms in use: some seconds


def _check(what: str, asked: int, limit: tuple[int, int], payload: int) -> None:
    if asked > max(limit[0], limit[1] * payload):
        raise PacketError(
            f"packet asks for too much: {asked:,} {what} from a payload of {payload:,} bytes"
        )


def check_entries(sides: list[Side], payload: int) -> None:
    """Raises PacketError where the factors of `sides` are too large for `payload` bytes."""
    _check("factor entries", sum(s.dim * s.rank for s in sides), ENTRIES, payload)


def check_positions(sizes: list[int], chances: list[float], payload: int) -> None:
    """The same for supports among `sizes` positions; those of chance 0 or 1 are not read."""
    asked = sum(size for size, chance in zip(sizes, chances, strict=True) if 0 < chance < 1)
    _check("positions", asked, POSITIONS, payload)


def check_atoms(
    setting: Setting, sides: list[Side], sent: Mapping[Side, Coefficients], payload: int
) -> None:
    """The same for the atoms to build for coefficients, at most one for each that is not zero."""
    asked = 0
    for side in sides:
        group, size = as_group(setting.atoms, [side]), size_of(setting, side)
        if not basis.implicit(setting.recipe, group, size):
            used = min(np.count_nonzero(sent[side].values), size)
            asked += used * group.dim * group.width
    _check("numbers in atoms", asked, NUMBERS, payload)
