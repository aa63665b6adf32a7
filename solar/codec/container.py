"""Container: the bytes of a `.solar` file, format version 1; the payload is the method's.

    offset  size
    0       4      magic "SOLR"
    4       1      format version
    5       1      method (METHODS)
    6       1      flags: 1 names listed, 2 names implied by the usual targets; 4 basis embedded;
                   8 a layer table of ranks that differ (rank_table.py; without it one varint for
                   all layers, or in files of before 2026-11-26 one a layer)
    7       1      length of the method's parameters (recipe, seed, basis checksum)
    8       16     first half of SHA-256 over names, shapes and exact bytes of the adapted weights
    24      2      number of layers
    26      4      length of names        (zlib, "\\n" between; 0 where implied)
    30      4      length of layer table
    34      8      length of payload
    42      8      length of heads
    50      ...    parameters, names, table, payload, heads
    end-8   8      first bytes of SHA-256 over everything before

All integers are little-endian. Every length is compared with the file before anything is read or
allocated by it; whatever is wrong raises PacketError and names the fault.
"""

import hashlib
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from solar.codec import rank_table
from solar.codec.factors import Factors
from solar.errors import SolarError

MAGIC = b"SOLR"
VERSION = 1
METHODS = ("solar", "float", "bits", "activation")  # the byte in the file is the index
LISTED, IMPLIED, EMBEDDED, DIFFER = 1, 2, 4, 8
FIXED = struct.Struct("<4sBBBB16sHIIQQ")
CHECKSUM = 8
MAX_NAME = 1024  # bytes in one name
MAX_NAMES = 2**22  # bytes in all listed names, which a few kilobytes may unpack to
HASHERS = 2
TOGETHER = 2**22  # bytes of weights that are hashed in one go, but for a weight that has more


# (iterable, length, what) -> the same items: a caller may show progress.
Watch = Callable[[Iterable, int, str], Iterable]


def unwatched(iterable: Iterable, _length: int, _what: str) -> Iterable:
    return iterable


class PacketError(SolarError):
    """The packet is truncated, altered, newer, foreign, or does not fit this base."""


class Packet(NamedTuple):
    """A packet taken apart: names None where implied; ranks (layers,) in sorted order of names;
    embedded: the payload brings the basis."""

    method: str
    parameters: bytes
    base_hash: bytes
    names: tuple[str, ...] | None
    ranks: tuple[int, ...]
    payload: bytes
    heads: bytes
    embedded: bool = False


class Base(NamedTuple):
    """Adapted weights of a base as the codec sees them, in sorted order of names."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    digests: tuple[bytes, ...]
    hash: bytes


class Encoded(NamedTuple):
    """The file's bytes, what they decode to, and the record of errors, bounds and sizes."""

    data: bytes
    factors: dict[str, Factors]
    report: dict[str, Any]


class Decoded(NamedTuple):
    """What a packet holds: updates by layer, trained heads by name (float32), and its header."""

    factors: dict[str, Factors]
    heads: dict[str, np.ndarray]
    header: dict[str, Any]


# -------------------------------------------------------------------------------------- the base


def read_weight(base: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The weight (m, n) float32 of a layer. Raises SolarError where it is missing or not 2-D."""
    _check_there(base, name)
    weight = np.ascontiguousarray(base[name], "<f4")
    if weight.ndim != 2:
        raise SolarError(f"base weight {name} has shape {weight.shape}; only 2-D weights are coded")
    return weight


def _check_there(base: Mapping[str, np.ndarray], name: str) -> None:
    if name not in base:
        raise SolarError(f"layer {name} is not among the base weights; is this the right base?")


def identify(
    base: Mapping[str, np.ndarray], names: Iterable[str], watch: Watch = unwatched
) -> Base:
    """Names, shapes and hashes of the adapted weights, each read once and let go again."""
    names = tuple(sorted(names))
    for name in names:  # before work is planned for as many as a hostile file may list
        _check_there(base, name)

    with ThreadPoolExecutor(HASHERS) as pool:
        found = list(watch(_identities(base, names, pool), len(names), "base weights"))
    whole = hashlib.sha256()
    for name, (_, digest) in zip(names, found, strict=True):
        encoded = name.encode()
        whole.update(struct.pack("<I", len(encoded)) + encoded + digest)
    shapes, digests = (tuple(own[i] for own in found) for i in (0, 1))
    return Base(names, shapes, digests, whole.digest()[:16])


def _identities(
    base: Mapping[str, np.ndarray], names: tuple[str, ...], pool: ThreadPoolExecutor
) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Shape and digest of every weight, in order.

    Hashing lets the interpreter's lock go, de-quantising takes it hundreds of times a weight, and
    handing it over takes long: two threads that read get in each other's way. So one thread reads
    and others hash, several small weights at a time. docs/lab-notes.md has the figures.
    """

    def digested(weights: list[np.ndarray]) -> list[tuple[tuple[int, int], bytes]]:
        found = []
        while weights:
            weight = weights.pop(0)  # let go when it is hashed
            whole = hashlib.sha256(np.array(weight.shape, "<u8").tobytes())
            whole.update(weight.data)
            found.append((weight.shape, whole.digest()))
        return found

    waiting: deque[Future] = deque()
    held: list[np.ndarray] = []
    for name in names:
        held.append(read_weight(base, name))
        if sum(weight.nbytes for weight in held) >= TOGETHER:
            waiting.append(pool.submit(digested, held))
            held = []
        if len(waiting) == HASHERS:
            yield from waiting.popleft().result()
    for found in waiting:
        yield from found.result()
    yield from digested(held)


def resolve(
    packet: Packet,
    base: Mapping[str, np.ndarray],
    usual_names: Iterable[str] | None,
    watch: Watch = unwatched,
) -> Base:
    """The adapted weights a packet speaks of. Raises PacketError where they are not these."""
    if packet.names is not None:
        names = packet.names
    else:
        names = tuple(sorted(base if usual_names is None else usual_names))
        if len(names) != len(packet.ranks):
            raise PacketError(
                f"packet is for another base: it adapts {len(packet.ranks)} layers, "
                f"the usual targets of this one are {len(names)}"
            )
    try:
        known = identify(base, names, watch)
    except SolarError as error:
        raise PacketError(f"packet is for another base: {error}") from None
    if known.hash != packet.base_hash:
        raise PacketError(
            f"packet is for another base: it needs adapted weights with hash "
            f"{packet.base_hash.hex()}, these have {known.hash.hex()}"
        )
    for name, rank, shape in zip(names, packet.ranks, known.shapes, strict=True):
        if rank > min(shape):
            raise PacketError(f"packet is altered: rank {rank} of layer {name} exceeds its {shape}")
    return known


# ------------------------------------------------------------------------------------- the bytes


def _unpack_ranks(data: bytes, layers: int, differ: bool) -> tuple[int, ...]:
    try:
        ranks = (rank_table.unpack if differ else rank_table.unpack_varints)(data, layers)
    except ValueError as error:
        raise PacketError(f"packet is altered: its layer table has {error}") from None
    if differ and len(set(ranks)) == 1:
        raise PacketError("packet is altered: its layer table contradicts its flags")
    return ranks


def _unpack_names(data: bytes, layers: int) -> tuple[str, ...]:
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(data, min(layers * (MAX_NAME + 1), MAX_NAMES))
    except zlib.error:
        raise PacketError("packet is altered: its layer names do not unpack") from None
    if not inflate.eof or inflate.unused_data:
        raise PacketError("packet is altered: its layer names do not unpack")
    if raw.count(b"\n") != layers - 1:
        raise PacketError("packet is altered: its layer names are not a sorted table")
    try:
        names = tuple(name.decode() for name in raw.split(b"\n"))
    except UnicodeDecodeError:
        raise PacketError("packet is altered: its layer names do not unpack") from None
    if list(names) != sorted(set(names)):
        raise PacketError("packet is altered: its layer names are not a sorted table")
    if not all(map(plain, names)):
        raise PacketError("packet is altered: a layer has a broken name")
    return names


def plain(name: str) -> bool:
    """Whether a module or parameter may have this name. Names are shown to people and become keys
    of a file, so there is no control character among them."""
    return name.isprintable() and 0 < len(name.encode()) <= MAX_NAME


def _pack_names(names: tuple[str, ...] | None) -> bytes:
    if names is None:
        return b""
    if not all(map(plain, names)):
        raise SolarError(f"a layer name exceeds {MAX_NAME} bytes or holds unprintable characters")
    if sum(len(name.encode()) + 1 for name in names) > MAX_NAMES:
        raise SolarError(f"layer names exceed {MAX_NAMES:,} bytes, the most a packet lists")
    return zlib.compress("\n".join(names).encode(), 9)


def overhead(names: tuple[str, ...] | None, parameters: int) -> Callable[[tuple[int, ...]], int]:
    """The bytes of a file beside payload and heads, as a function of its ranks."""
    fixed = FIXED.size + parameters + len(_pack_names(names)) + CHECKSUM
    return lambda ranks: fixed + rank_table.length(ranks)


def check_budget(budget_bytes: int, least: int, heads: int) -> None:
    """Raises SolarError where a budget is less than `least`, the bytes of a file that sends nothing
    but trained heads, which have `heads` of them."""
    if budget_bytes < least:
        told = f", {heads} of them for its trained heads" if heads else ""
        raise SolarError(
            f"a budget of {budget_bytes} bytes is too small: a file for this adapter that sends "
            f"nothing has {least}{told}; give more"
        )


def pack(packet: Packet) -> bytes:
    """The file's bytes. Raises SolarError where something does not fit the format."""
    if not 0 < len(packet.ranks) < 2**16:
        raise SolarError(f"{len(packet.ranks)} adapted layers; a packet holds 1 to 65535")
    if max(packet.ranks) > rank_table.MOST:
        raise SolarError(
            f"rank {max(packet.ranks)} exceeds {rank_table.MOST}, the most a packet holds"
        )
    names, table = _pack_names(packet.names), rank_table.pack(packet.ranks)
    flags = (IMPLIED if packet.names is None else LISTED) | (EMBEDDED if packet.embedded else 0)
    flags |= DIFFER if len(set(packet.ranks)) > 1 else 0
    fixed = FIXED.pack(
        MAGIC, VERSION, METHODS.index(packet.method), flags,
        len(packet.parameters), packet.base_hash, len(packet.ranks),
        len(names), len(table), len(packet.payload), len(packet.heads),
    )  # fmt: skip
    body = b"".join((fixed, packet.parameters, names, table, packet.payload, packet.heads))
    return body + hashlib.sha256(body).digest()[:CHECKSUM]


def check_length(first: bytes, total: int) -> None:
    """Raises PacketError where a file of `total` bytes that begins with `first` (FIXED.size bytes,
    or all there are) is no packet of that length."""
    if first[:4] != MAGIC[: len(first)] or not first:
        raise PacketError("not a .solar packet: it does not begin with SOLR")
    if len(first) > 4 and first[4] != VERSION:
        raise PacketError(
            f"packet has format version {first[4]}, this program reads {VERSION}; update solar"
            if first[4] > VERSION
            else f"packet is altered: there is no format version {first[4]}"
        )
    if len(first) < FIXED.size or total < FIXED.size + CHECKSUM:
        raise PacketError(f"packet is truncated: {total} bytes are less than its header")
    _, _, _, _, in_parameters, _, _, *lengths = FIXED.unpack_from(first)
    expected = FIXED.size + in_parameters + sum(lengths) + CHECKSUM
    if total < expected:
        raise PacketError(f"packet is truncated: {total} bytes of {expected}")
    if total > expected:
        raise PacketError(f"packet is altered: {total - expected} bytes after its end")


def unpack(data: bytes) -> Packet:
    """A packet taken apart, its checksum verified. Raises PacketError naming what is wrong."""
    check_length(data[: FIXED.size], len(data))
    _, _, method, flags, in_parameters, base_hash, layers, *lengths = FIXED.unpack_from(data)
    if hashlib.sha256(data[:-CHECKSUM]).digest()[:CHECKSUM] != data[-CHECKSUM:]:
        raise PacketError("packet is altered: its checksum does not match; fetch the file again")
    if method >= len(METHODS):
        raise PacketError(f"packet uses method {method}, unknown to this program; update solar")
    names_as = flags & ~(EMBEDDED | DIFFER)
    if names_as not in (LISTED, IMPLIED) or (flags & EMBEDDED and METHODS[method] != "solar"):
        raise PacketError(f"packet has flags {flags}, unknown to this program; update solar")
    if layers == 0:
        raise PacketError("packet is altered: it adapts no layer")
    parts, at = [], FIXED.size
    for length in (in_parameters, *lengths):
        parts.append(data[at : at + length])
        at += length
    parameters, names, table, payload, heads = parts
    if (names_as == IMPLIED) != (not names):
        raise PacketError("packet is altered: its layer names contradict its flags")
    return Packet(
        METHODS[method], parameters, base_hash,
        None if names_as == IMPLIED else _unpack_names(names, layers),
        _unpack_ranks(table, layers, bool(flags & DIFFER)), payload, heads, bool(flags & EMBEDDED),
    )  # fmt: skip


def byte_counts(packet: Packet, total: int) -> dict[str, int]:
    """Bytes by part; header is everything but payload and heads, the checksum included."""
    payload, heads = len(packet.payload), len(packet.heads)
    return {"total": total, "payload": payload, "header": total - payload - heads, "heads": heads}


# ----------------------------------------------------------------------------------- the factors


def in_order(known: Base, factors: Mapping[str, Factors]) -> list[Factors]:
    """Factors in sorted order of names. Raises SolarError where a shape or value does not fit."""
    for name, shape in zip(known.names, known.shapes, strict=True):
        left, right = factors[name]
        if (left.shape[0], right.shape[0]) != shape or left.shape[1] != right.shape[1]:
            raise SolarError(
                f"update of {name} has factors {left.shape} and {right.shape}, "
                f"the base weight is {shape}; is this the right base?"
            )
        if left.shape[1] > min(shape):
            raise SolarError(f"update of {name} has rank {left.shape[1]} above its shape {shape}")
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            raise SolarError(f"update of {name} holds non-finite values; train the adapter again")
    return [factors[name] for name in known.names]


def assemble(known: Base, sides: Mapping[tuple[int, int], np.ndarray]) -> dict[str, Factors]:
    """Factors by name from sides[layer, 0 or 1] (d, r); a layer without sides has rank 0."""
    return {
        name: Factors(*(sides.get((i, j), np.zeros((shape[j], 0), np.float32)) for j in (0, 1)))
        for i, (name, shape) in enumerate(zip(known.names, known.shapes, strict=True))
    }


def listed(known: Base, usual_names: Iterable[str] | None) -> tuple[str, ...] | None:
    """The names to list in the file, None where `usual_names` implies them."""
    implied = usual_names is not None and tuple(sorted(usual_names)) == known.names
    return None if implied else known.names
