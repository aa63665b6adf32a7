"""Mutations of packets: blind ones, and hostile ones that know the format.

Every mutation takes a random generator, a packet and another one, and returns what it did in a few
words and the new bytes, whose checksum no longer fits; `sign` makes it fit.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from solar.codec import activation, checksum, profiled, rank_table, solar
from solar.codec.container import CHECKSUM, DIFFER, FIXED, MAGIC

# Fields of the fixed header and of SOLAR's parameters behind it: name -> (offset, struct format).
HEADER = {
    "version": (4, "B"),
    "method": (5, "B"),
    "flags": (6, "B"),
    "length of parameters": (7, "B"),
    "base hash": (8, "Q"),
    "layers": (24, "H"),
    "length of names": (26, "I"),
    "length of table": (30, "I"),
    "length of payload": (34, "Q"),
    "length of heads": (42, "Q"),
}
RECIPE = {
    "kind": (0, "B"),
    "selection": (1, "B"),
    "atoms": (2, "B"),
    "dtype": (3, "B"),
    "N": (4, "H"),
    "K": (6, "H"),
    "eps": (8, "f"),
    "seed": (12, "Q"),
    "power": (20, "h"),
    "offset": (22, "H"),
    "basis checksum": (24, "Q"),
}
# The same for activation: its parameters, and the head of its payload with an energy behind it.
FRAMES = {"frames": (0, "Q"), "offset": (16, "H"), "basis checksum": (18, "Q")}
DIALS = {
    "power": (0, "h"),
    "step": (2, "h"),
    "boost": (4, "H"),
    "relative": (6, "B"),
    "slope": (7, "B"),
    "out": (8, "B"),
    "banded": (9, "B"),
    "middle": (10, "b"),
    "ratio": (11, "B"),
    "later": (12, "b"),
    "later_ratio": (13, "B"),
}
FLOATS = (np.nan, np.inf, -np.inf, -0.0, 1e-45, 1e-30, 1.0, 1e30, -1.0)
SIZES = (0, 1, 2, 3, 12, 20, 24, 25, 40, 64, 255, 1000, 16383, 32767, 65534, 65535)
RANKS = (0, 1, 2, 3, 4, 12, 13, 24, 25, 127, 128, 255, 1000, 16383)

Mutation = tuple[str, bytes]


class Parts(NamedTuple):
    """A packet cut at its own lengths; `fixed` holds the fields of FIXED before the lengths."""

    fixed: tuple
    parameters: bytes
    names: bytes
    table: bytes
    payload: bytes
    heads: bytes


def sign(data: bytes) -> bytes:
    """The bytes with a checksum that fits, as someone hostile would send them."""
    return data[:-CHECKSUM] + hashlib.sha256(data[:-CHECKSUM]).digest()[:CHECKSUM]


def cut(data: bytes) -> Parts:
    magic, version, method, flags, in_parameters, base, layers, *lengths = FIXED.unpack_from(data)
    parts, at = [], FIXED.size
    for length in (in_parameters, *lengths):
        parts.append(data[at : at + length])
        at += length
    return Parts((magic, version, method, flags, base, layers), *parts)


def join(parts: Parts, end: bytes) -> bytes:
    """The packet of `parts`, its lengths right and its checksum `end`."""
    magic, version, method, flags, base, layers = parts.fixed
    lengths = [len(part) for part in parts[2:]]
    fixed = FIXED.pack(
        magic, version, method, flags, len(parts.parameters) & 255, base, layers, *lengths
    )
    return b"".join((fixed, *parts[1:], end))


def mend(data: bytes) -> bytes:
    """The bytes with a length of the payload that makes the lengths fit, where one does."""
    if len(data) < FIXED.size + CHECKSUM:
        return data
    _, _, _, _, parameters, _, _, names, table, _, heads = FIXED.unpack_from(data)
    payload = len(data) - FIXED.size - parameters - names - table - heads - CHECKSUM
    at = HEADER["length of payload"][0]
    return data if payload < 0 else data[:at] + struct.pack("<Q", payload) + data[at + 8 :]


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _extreme(rng: np.random.Generator, form: str, now: int):
    """A value for a field: an end of its range, a neighbour, a round number, or any."""
    if form == "f":
        return _pick(rng, FLOATS)
    bits = 8 * struct.calcsize(form)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if form in "bh" else (0, 2**bits - 1)
    some = [low, high, high - 1, high // 2 + 1, now + 1, now - 1, now * 2, *SIZES]
    some += [int(rng.integers(low, high, endpoint=True, dtype=np.int64 if low else np.uint64))]
    return min(max(_pick(rng, some), low), high)


# ------------------------------------------------------------------------------------------ blind


def flip(rng, data, _) -> Mutation:
    broken = bytearray(data)
    for at in rng.integers(8 * len(data), size=int(rng.integers(1, 9))).tolist():
        broken[at // 8] ^= 1 << at % 8
    return "bits", bytes(broken)


def truncate(rng, data, _) -> Mutation:
    return "end", data[: int(rng.integers(len(data)))]


def insert(rng, data, _) -> Mutation:
    at = int(rng.integers(len(data) + 1))
    more = rng.bytes(int(rng.integers(1, 65))) if rng.integers(2) else bytes(rng.integers(1, 2000))
    return "more bytes", data[:at] + more + data[at:]


def remove(rng, data, _) -> Mutation:
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 65))
    return "fewer bytes", data[:at] + data[at + length :]


def splice(rng, data, other) -> Mutation:
    at = int(rng.integers(len(data)))
    return "two packets", data[:at] + other[int(rng.integers(len(other))) if at % 2 else at :]


# ------------------------------------------------------------------------------------------ knowing


def header(rng, data, _) -> Mutation:
    """Fields of the fixed header set to extremes."""
    return _fields(rng, data, HEADER, 0)


def recipe(rng, data, _) -> Mutation:
    """Fields of the parameters set to extremes, or dials; the baselines' are a byte and a power."""
    own = cut(data)
    if len(own.parameters) == solar.PARAMETERS.size + checksum.LENGTH:
        return _fields(rng, data, RECIPE, FIXED.size)
    if len(own.parameters) == activation.FIXED.size + checksum.LENGTH:
        first = FIXED.size + sum(map(len, (own.parameters, own.names, own.table)))
        if len(own.payload) > profiled.HEAD.size and rng.integers(4):
            return _fields(rng, data, DIALS, first)
        return _fields(rng, data, FRAMES, FIXED.size)
    return _fields(rng, data, {"format": (0, "B"), "power": (1, "h")}, FIXED.size)


def _fields(rng, data: bytes, table: dict, first: int) -> Mutation:
    broken, names = bytearray(data), []
    for _ in range(int(rng.integers(1, 4))):
        name = _pick(rng, list(table))
        at, form = table[name]
        (now,) = struct.unpack_from("<" + form, broken, first + at)
        struct.pack_into("<" + form, broken, first + at, _extreme(rng, form, now))
        names.append(name)
    return " and ".join(sorted(set(names))), bytes(broken)


def exchange(rng, data, other) -> Mutation:
    """Whole parts of another packet, the lengths right."""
    own, theirs, names = cut(data), cut(other), []
    for name in Parts._fields:
        if rng.integers(3) == 0:
            own, names = own._replace(**{name: getattr(theirs, name)}), [*names, name]
    return " and ".join(names) or "nothing", join(own, data[-CHECKSUM:])


def inside(rng, data, other) -> Mutation:
    """Something blind done to one part, the lengths right."""
    own = cut(data)
    full = [name for name in Parts._fields[1:] if getattr(own, name)]
    name = _pick(rng, full)
    how = _pick(rng, BLIND)
    changed = how(rng, getattr(own, name), getattr(cut(other), name) or b"S")[1]
    return f"{how.__name__} in {name}", join(own._replace(**{name: changed}), data[-CHECKSUM:])


def table(rng, data, _) -> Mutation:
    """Another number of layers, other ranks."""
    own = cut(data)
    layers = int(_pick(rng, (own.fixed[5], own.fixed[5], 1, 65535)))
    ranks = [_pick(rng, RANKS)] if rng.integers(2) else rng.choice(RANKS, min(layers, 999)).tolist()
    if rng.integers(2):
        flags, packed = own.fixed[3] | DIFFER, rank_table.pack(ranks)
    else:
        flags = own.fixed[3] & ~DIFFER
        packed = b"".join(bytes([r]) if r < 128 else bytes([r & 127 | 128, r >> 7]) for r in ranks)
    own = own._replace(fixed=(*own.fixed[:3], flags, own.fixed[4], layers), table=packed)
    return "ranks", join(own, data[-CHECKSUM:])


def names(rng, data, _) -> Mutation:
    """Tables of layer names that are too long, unsorted, paths, or unpack to megabytes."""
    own = cut(data)
    layers = int(_pick(rng, (own.fixed[5], 1, 3, 65535)))
    real = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"][:layers]
    text = _pick(rng, [
        b"\n".join(n.encode() for n in real), b"\n".join(n.encode() for n in reversed(real)),
        b"../../etc/passwd\n/etc/passwd", b"a\0b", b"\x1b[2J", b"\n" * 2**22, b"\0" * 2**22,
        b"a" * 2000, "é".encode() * 2**20, b"\n".join(b"%05d" % i for i in range(layers)), b"\xff",
    ])  # fmt: skip
    packed = zlib.compress(text, 9)
    packed = _pick(rng, [packed, packed[:-3], packed + b"x", rng.bytes(40), b""])
    flags = own.fixed[3] & ~3 | int(_pick(rng, (1, 1, 2)))
    own = own._replace(fixed=(*own.fixed[:3], flags, own.fixed[4], layers), names=packed)
    return "names", join(own, data[-CHECKSUM:])


def payload(rng, data, _) -> Mutation:
    """Another payload of another length, perhaps below a recipe and ranks that it might fill."""
    own, words = cut(data), ["payload"]
    size = int(_pick(rng, (0, 1, 4, len(own.payload), len(own.payload) + 4, 3000, 20000)))
    content = _pick(rng, (bytes(size), b"\xff" * size, rng.bytes(size), own.payload * 2))
    keep = int(rng.integers(len(own.payload) + 1)) if rng.integers(2) else 0
    own = own._replace(payload=own.payload[:keep] + content[: max(0, len(content) - keep)])
    whole = join(own, data[-CHECKSUM:])
    for also in (recipe, table):
        if rng.integers(2):
            what, whole = also(rng, whole, b"")
            words.append(what)
    return " and ".join(words), whole


def heads(rng, data, _) -> Mutation:
    """Heads of extreme shapes, types and names."""
    own, entries = cut(data), []
    for _ in range(int(rng.integers(1, 4))):
        shape = rng.choice([0, 1, 2, 3, 2**16, 2**31, 2**32 - 1], int(rng.integers(0, 9)))
        if rng.integers(2):
            shape = np.array([2, 3][: int(rng.integers(3))])
        name = _pick(rng, [
            b"score.weight", b"t.bias", b"u.v.w", b"x", b".", b"../../x.y", b"/etc/passwd", b"a.\0",
            b"a\n.b", b"", b"\xff", b"n" * 1025, b"model.layers.0.self_attn.q_proj.lora_A.weight",
        ])  # fmt: skip
        count = int(np.prod(shape.astype(float)) % 1000)
        code = int(_pick(rng, (0, 1, 2, 3, 255)))
        values = _pick(rng, (rng.bytes(6 * count), bytes(6 * count), b"\xff" * 6 * count))
        entry = struct.pack("<HBB", len(name), code, len(shape)) + name
        length = (count * 2, count * 4, count + 4 * (int(shape[0]) % 99 if len(shape) > 1 else 1))
        values = values[: length[code]] if code < 3 else values
        entries.append((name, entry + shape.astype("<u4").tobytes() + values))
    if rng.integers(2):
        entries.sort()
    own = own._replace(heads=b"".join(entry for _, entry in entries))
    return "heads", join(own, data[-CHECKSUM:])


BLIND: tuple[Callable[..., Mutation], ...] = (flip, truncate, insert, remove, splice)
KNOWING: tuple[Callable[..., Mutation], ...] = (
    header, recipe, exchange, inside, table, names, payload, heads,
)  # fmt: skip
assert MAGIC == b"SOLR"  # the offsets above are of this format


def mutant(seed: int, number: int, packets: dict[str, bytes]) -> tuple[str, str, str, bytes]:
    """Mutation number `number` of a campaign: its kind, the seed's name, what it changed, and the
    bytes, not signed. The same for the same arguments, whatever was drawn before."""
    rng = np.random.default_rng([seed, number])
    options = list(packets)
    while True:
        kind = (BLIND + KNOWING)[number % len(BLIND + KNOWING)]
        name, other = _pick(rng, options), _pick(rng, options)
        what, data = kind(rng, packets[name], packets[other])
        if rng.integers(8) == 0:
            more = _pick(rng, BLIND)
            what, data = what + " and " + more.__name__, more(rng, data or b"S", packets[other])[1]
        if data not in packets.values():
            return kind.__name__, name, what, data
