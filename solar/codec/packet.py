"""Packet: a `.solar` file opened, decoded, inspected or written. The bytes are container.py's.

Decoding shares nothing with encoding but the file and the base weights.
"""

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solar.codec import activation, baselines, container, solar
from solar.codec.blas import one_thread
from solar.codec.container import Decoded, Packet, PacketError, Watch, unwatched
from solar.codec.frame_file import FramesFile
from solar.codec.heads import unpack_heads
from solar.files import write_whole

__all__ = ["Decoded", "PacketError", "decode", "inspect", "read", "write"]


def read(path: str | os.PathLike) -> bytes:
    """The bytes of a packet file. Raises PacketError where there is no such file, or one whose
    first bytes and length are no packet's: it is not read then, for it may be of any size."""
    try:
        known = os.stat(path)
        if not stat.S_ISREG(known.st_mode):
            raise PacketError(f"cannot read packet {path}: it is not a file")
        with open(path, "rb") as file:
            first = file.read(container.FIXED.size)
            container.check_length(first, known.st_size)
            return first + file.read(known.st_size - len(first))
    except OSError as error:
        raise PacketError(f"cannot read packet {path}: {error.strerror}") from None


def write(path: str | os.PathLike, data: bytes) -> None:
    """Writes to a temporary name beside `path` and renames: no half-written file is ever seen."""
    write_whole(Path(path), data)


def _header(packet: Packet, total: int) -> dict[str, Any]:
    own = {"solar": solar, "activation": activation}.get(packet.method, baselines).describe(packet)
    return {
        "version": container.VERSION,
        "method": packet.method,
        **own,
        "base_hash": packet.base_hash.hex(),
        "layers": len(packet.ranks),
        "ranks": list(packet.ranks),
        "names": None if packet.names is None else list(packet.names),
        "bytes": container.byte_counts(packet, total),
    }


def inspect(data: bytes) -> dict[str, Any]:
    """What the header says and bytes by part; no base needed, nothing decoded, checksum verified.

    Raises PacketError.
    """
    packet = container.unpack(data)
    header = _header(packet, len(data))
    shapes = {name: list(head.shape) for name, head in unpack_heads(packet.heads).items()}
    return header | {"heads": shapes}


@one_thread
def decode(
    data: bytes,
    base: Mapping[str, np.ndarray],
    *,
    usual_names: Iterable[str] | None = None,
    cache: Path | None = None,
    frames: Callable[[bytes], FramesFile | None] | None = None,
    watch: Watch = unwatched,
) -> Decoded:
    """Updates and heads of a packet.

    base: adapted weights (m, n) float32 by layer. usual_names: the layers a packet without names
    speaks of, by default all of `base`. cache: folder for singular vectors; frames: finds the
    frames file of a hash, for packets of method activation; watch(iterable, length, what) may show
    progress while the basis is computed. Layers sent as nothing come back with rank 0.
    Raises PacketError where anything is wrong with packet, base or basis.
    """
    packet = container.unpack(data)
    header = _header(packet, len(data))
    known = container.resolve(packet, base, usual_names, watch)
    if packet.method == "solar":
        factors = solar.decode(packet, base, known, cache, watch)
    elif packet.method == "activation":
        found = frames(activation.frames_hash(packet)) if frames else None
        factors = activation.decode(packet, known, found)
    else:
        factors = baselines.decode(packet, known)
    return Decoded(factors, unpack_heads(packet.heads), header)
