"""Heads: trained full tensors that travel in a packet beside the update, and are counted apart."""

import math
import struct
from collections.abc import Mapping

import numpy as np

from solar.codec.container import MAX_NAME, PacketError, plain
from solar.codec.quantize import FLOATS, restore
from solar.codec.reader import Reader
from solar.errors import SolarError

DTYPES = ("float16", "float32", "int8")  # the byte in the file is the index


def pack_heads(heads: Mapping[str, np.ndarray] | None, dtype: str = "float16") -> bytes:
    """Trained full tensors: name, dtype, shape and values, one after another in sorted order.

    int8 is symmetric with a float32 step for every row (slice of the first axis, the whole of a
    vector), steps first. Raises SolarError where a value does not fit `dtype`.
    """
    if dtype not in DTYPES:
        raise SolarError(f"head dtype {dtype!r} is unknown; choose one of {DTYPES}")
    parts = []
    for name in sorted(heads or {}):
        array = np.asarray(heads[name], np.float32)
        if array.size == 0:
            raise SolarError(f"head {name} is empty; leave it out")
        if not np.isfinite(array).all():
            raise SolarError(f"head {name} holds non-finite values; train the adapter again")
        if dtype == "int8":
            rows = array.reshape(_rows(array.shape), -1)
            steps = (np.max(np.abs(rows), axis=1, keepdims=True) / 127).astype("<f4")
            whole = np.round(rows / np.where(steps > 0, steps, 1))
            stored = steps.tobytes() + np.clip(whole, -127, 127).astype(np.int8).tobytes()
        else:
            with np.errstate(over="ignore"):
                values = array.astype(FLOATS[dtype])
            if not np.isfinite(values).all():
                raise SolarError(f"head {name} holds values beyond {dtype}; store heads as float32")
            stored = values.tobytes()
        encoded = name.encode()
        if len(encoded) > MAX_NAME or array.ndim > 8:
            raise SolarError(f"head {name[:40]} has too long a name or more than 8 dimensions")
        if not plain(name):
            raise SolarError(f"head {name!r} has characters that no module's name has")
        parts.append(struct.pack("<HBB", len(encoded), DTYPES.index(dtype), array.ndim))
        parts.append(encoded + np.array(array.shape, "<u4").tobytes() + stored)
    return b"".join(parts)


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 1 else 1


def unpack_heads(data: bytes) -> dict[str, np.ndarray]:
    """Heads by name, float32. Raises PacketError where a length does not fit."""
    heads: dict[str, np.ndarray] = {}
    reader = Reader(data, "a head is longer than its part of the file")
    take = reader.take
    while reader.left:
        length, code, ndim = struct.unpack("<HBB", take(4))
        if length > MAX_NAME or code >= len(DTYPES) or ndim > 8:
            raise PacketError("packet is altered: a head has an unknown type or shape")
        try:
            name = take(length).decode()
        except UnicodeDecodeError:
            raise PacketError("packet is altered: a head has a broken name") from None
        if not plain(name):
            raise PacketError("packet is altered: a head has a broken name")
        shape = tuple(int(x) for x in np.frombuffer(take(4 * ndim), "<u4"))
        if 0 in shape:
            raise PacketError("packet is altered: a head is empty")
        if DTYPES[code] == "int8":
            steps = np.frombuffer(take(4 * _rows(shape)), "<f4")[:, None]
            whole = np.frombuffer(take(math.prod(shape)), np.int8).reshape(len(steps), -1)
            with np.errstate(over="ignore", invalid="ignore"):  # refused below where it matters
                values = whole.astype(np.float32) * steps
        else:
            item = FLOATS[DTYPES[code]].itemsize
            values = restore(take(math.prod(shape) * item), DTYPES[code], 0)
        if name in heads or (heads and name < next(reversed(heads))):
            raise PacketError("packet is altered: its heads are not a sorted table")
        heads[name] = values.reshape(shape)
        if not np.isfinite(heads[name]).all():
            raise PacketError(f"packet is altered: head {name} holds non-finite values")
    return heads
