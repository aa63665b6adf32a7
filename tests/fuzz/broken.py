"""The broken packets of `broken/`: one small file for every fault that the reader names.

    python -m tests.fuzz.broken

writes them anew from the seeds. What the reader says of each stands here beside how it is made, and
tests/test_hostile.py compares both.
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from solar.codec.container import CHECKSUM

from .mutate import DIALS, HEADER, RECIPE, cut, join, sign
from .seeds import PACKETS

BROKEN = Path(__file__).parent / "broken"
FIRST = 50  # offset of the parameters
NAN = b"\0\0\xc0\x7f"


def head(name: bytes, shape=(2,), values: bytes = bytes(4), code: int = 0) -> bytes:
    dims = np.array(shape, "<u4").tobytes()
    return struct.pack("<HBB", len(name), code, len(shape)) + name + dims + values


def _seed(name: str) -> bytes:
    return (PACKETS / f"{name}.solar").read_bytes()


def _set(data: bytes, field: str, value, first: int = 0) -> bytes:
    """The packet with a field of its header, or where `first` is FIRST of its recipe, changed."""
    at, form = (RECIPE if first else HEADER)[field]
    broken = bytearray(data)
    struct.pack_into("<" + form, broken, first + at, value)
    return sign(bytes(broken))


def _part(data: bytes, **parts) -> bytes:
    """The packet with whole parts replaced, the lengths right."""
    return sign(join(cut(data)._replace(**parts), data[-CHECKSUM:]))


def _body(seed: str, change: Callable[[bytes], bytes]) -> bytes:
    """A seed whose payload is changed."""
    data = _seed(seed)
    return _part(data, payload=change(cut(data).payload))


def _dial(field: str, value: int) -> bytes:
    """The seed `activation` with a field of its payload's head changed."""
    at, form = DIALS[field]
    new = struct.pack("<" + form, value)
    return _body("activation", lambda payload: payload[:at] + new + payload[at + len(new) :])


def _filled(seed: str, byte: bytes) -> bytes:
    """A seed with this byte all over its payload."""
    return _body(seed, lambda payload: byte * len(payload))


def _ranks(data: bytes, table: bytes) -> bytes:
    """The packet with this table of ranks that differ."""
    own = cut(data)
    return _part(data, fixed=(*own.fixed[:3], own.fixed[3] | 8, *own.fixed[4:]), table=table)


def _listed(data: bytes, text: bytes, layers: int) -> bytes:
    """The packet with `text` for its table of names."""
    own = cut(data)
    fixed = (*own.fixed[:3], 1, own.fixed[4], layers)
    return _part(data, fixed=fixed, names=zlib.compress(text, 9))


def cases() -> dict[str, tuple[bytes, str]]:
    """Bytes and a part of the message, by name."""
    plain, heads, listed, bits = map(_seed, ("sign", "heads-float16", "listed", "4-bits"))
    own, layers = cut(plain), cut(plain).fixed[5]
    seen = _seed("activation")
    flipped = bytearray(plain)
    flipped[120] ^= 4
    recipe = {
        field: _set(plain, field, value, FIRST)
        for field, value in [
            ("kind", 9), ("selection", 2), ("atoms", 2), ("dtype", 7), ("eps", np.nan),
            ("K", 65534), ("power", 32767), ("seed", 1), ("offset", 9), ("basis checksum", 0),
        ]
    }  # fmt: skip
    return {
        "empty": (b"", "not a .solar packet"),
        "foreign": (b"PK\x03\x04" + plain[4:], "not a .solar packet"),
        "magic-alone": (b"SOLR", "truncated: 4 bytes are less than its header"),
        "header-alone": (plain[:50], "truncated: 50 bytes are less than its header"),
        "cut": (plain[:-1], f"truncated: {len(plain) - 1} bytes of {len(plain)}"),
        "longer": (plain + b"\0", "altered: 1 bytes after its end"),
        "twice": (plain + plain, f"altered: {len(plain)} bytes after its end"),
        "bit": (bytes(flipped), "its checksum does not match"),
        "newer": (_set(plain, "version", 2), "format version 2, this program reads 1"),
        "older": (_set(plain, "version", 0), "no format version 0"),
        "method": (_set(plain, "method", 200), "uses method 200, unknown"),
        "flags": (_set(plain, "flags", 16), "flags 16, unknown"),
        "flags-none": (_set(plain, "flags", 0), "flags 0, unknown"),
        "flags-embedded-baseline": (_set(bits, "flags", 6), "flags 6, unknown"),
        "names-without": (_set(plain, "flags", 1), "layer names contradict its flags"),
        "no-layer": (_set(plain, "layers", 0), "it adapts no layer"),
        "layers": (_set(plain, "layers", 65535), "it adapts 65535 layers"),
        "base": (_set(plain, "base hash", 0), "for another base: it needs adapted weights"),
        "length-payload": (_set(plain, "length of payload", 2**62), "truncated"),
        "length-heads": (_set(plain, "length of heads", 2**64 - 1), "truncated"),
        "length-names": (_set(plain, "length of names", 2**32 - 1), "truncated"),
        "parameters": (_part(plain, parameters=own.parameters[:-1]), "recipe has the wrong length"),
        "parameters-bits": (_part(bits, parameters=b"\4"), "parameters have the wrong length"),
        "number-format": (_part(bits, parameters=b"\3\0\0"), "number format 3"),
        "names-bomb": (_listed(plain, b"\n" * 2**20, 65535), "names are not a sorted table"),
        "names-zeros": (_listed(plain, bytes(2**20), 3), "layer names do not unpack"),
        "names-raw": (_part(listed, names=b"abc"), "layer names do not unpack"),
        "names-unsorted": (_listed(plain, b"b\na", 2), "names are not a sorted table"),
        "names-twice": (_listed(plain, b"a\na", 2), "names are not a sorted table"),
        "names-path": (_listed(plain, b"../x\n/etc/shadow", 2), "../x is not among the base"),
        "names-escape": (_listed(plain, b"a\x1b[2J", 1), "a layer has a broken name"),
        "names-nul": (_listed(plain, b"a\0b", 1), "a layer has a broken name"),
        "names-coding": (_listed(plain, b"\xff", 1), "layer names do not unpack"),
        "ranks-number": (_part(plain, table=b"\x80\x80"), "a broken number"),
        "ranks-count": (_part(plain, table=b"\1" * (layers - 1) + b"\2" * 2), "ranks for 4 layers"),
        "ranks-most": (_part(plain, table=b"\xff\x7f"), "rank 16383 of layer"),
        "ranks-other": (_part(plain, table=b"\4"), "altered"),
        "ranks-alike": (_ranks(plain, b"\1\0"), "ranks that do not fit their largest"),
        "ranks-beyond": (_ranks(plain, b"\1\x1f"), "a number that is no ranks"),
        "ranks-one": (_ranks(plain, b"\1"), "layer table contradicts its flags"),
        "kind": (recipe["kind"], "a kind of basis unknown"),
        "selection": (recipe["selection"], "a kind of basis unknown"),
        "atoms": (recipe["atoms"], "a kind of basis unknown"),
        "dtype": (recipe["dtype"], "a kind of basis unknown"),
        "eps": (recipe["eps"], "perturbation nan is out of range"),
        "keep": (recipe["K"], "its recipe is not in its one form"),
        "power": (recipe["power"], "its power of two, 32767, is out of range"),
        "seed": (recipe["seed"], "basis mismatch"),
        "offset": (recipe["offset"], "basis mismatch"),
        "basis-checksum": (recipe["basis checksum"], "basis mismatch"),
        "size-none": (_set(plain, "N", 0, FIRST), "basis size 0 is out of range"),
        "size-more": (_set(_seed("int8"), "N", 65535, FIRST), "payload is too short"),
        "coefficient": (_body("sign", lambda x: x[:-1] + bytes([x[-1] ^ 1])), "basis mismatch"),
        "coefficients-nan": (_filled("float32", b"\xff"), "non-finite coefficients"),
        "payload-none": (_body("sign", lambda x: b""), "payload is too short"),
        "payload-more": (_body("int8", lambda x: x + b"\0"), "payload does not fit"),
        "supports-length": (_body("sign", lambda x: b"\xff" * 4 + x[4:]), "payload is too short"),
        "supports-broken": (_body("sign", lambda x: b"\3\0\0\0" + x[4:]), "of a broken length"),
        "supports-other": (_body("sign", lambda x: x[:4] + bytes(4) + x[8:]), "stream of supports"),
        "densities": (_filled("budget-int4", b"\xff"), "payload is too short"),
        "entropy-price": (_body("entropy", lambda x: NAN + x[4:]), "price is no positive number"),
        "entropy-free": (_body("entropy", lambda x: bytes(4) + x[4:]), "payload is too short"),
        "entropy-short": (_body("entropy", lambda x: x[:-1]), "payload is too short"),
        "entropy-more": (_body("entropy", lambda x: x + bytes(4)), "not in its one form"),
        "embedded-nan": (_body("embedded", lambda x: x[:-2] + b"\xff\xff"), "basis holds non-fin"),
        "embedded-short": (_body("embedded", lambda x: x[:-2]), "payload is too short"),
        "bits-short": (_body("4-bits", lambda x: x[:9]), "payload does not fit"),
        "bits-nan": (_filled("4-bits", b"\xff"), "non-finite entries"),
        "floats-short": (_body("float32-factors", lambda x: x[:-4]), "payload does not fit"),
        "frames": (_part(seen, parameters=bytes(16) + cut(seen).parameters[16:]), "needs the fram"),
        "frames-parameters": (_part(seen, parameters=own.parameters), "parameters have the wrong"),
        "frames-checksum": (
            _part(seen, parameters=cut(seen).parameters[:-1] + b"\0"), "basis mismatch",
        ),
        "profiled-power": (_dial("power", 2**12 + 1), "its power, 4097, is out of range"),
        "profiled-boost": (_dial("boost", 2**16 - 1), "payload is not in its one form"),
        "profiled-finest": (_dial("step", -(2**15)), "payload is too short for its layer table"),
        "profiled-coarsest": (_dial("step", 2**15 - 1), "a stream that is not in its one form"),
        "profiled-large": (_dial("power", 2**12), "non-finite coefficients"),
        "profiled-banded": (_dial("banded", 2), "payload is not in its one form"),
        "profiled-ratio": (_dial("ratio", 16), "payload is not in its one form"),
        "profiled-later": (_dial("later", -1), "payload is not in its one form"),
        "profiled-middle": (_dial("middle", 127), "altered"),
        "profiled-relative": (_dial("relative", 0), "altered"),
        "profiled-none": (_body("activation", lambda x: b""), "payload is too short"),
        "profiled-short": (_body("activation", lambda x: x[:-4]), "altered"),
        "profiled-more": (_body("activation", lambda x: x + bytes(4)), "not in its one form"),
        "profiled-nothing": (
            _body("activation-nothing", lambda x: x + bytes(4)), "not in its one form",
        ),
        "head-path": (_part(heads, heads=head(b"../../x\0.weight")), "a head has a broken name"),
        "head-line": (_part(heads, heads=head(b"a\nb.weight")), "a head has a broken name"),
        "head-coding": (_part(heads, heads=head(b"\xff")), "a head has a broken name"),
        "head-shape": (_part(heads, heads=head(b"a.b", (2**32 - 1,) * 8)), "longer than its part"),
        "head-none": (_part(heads, heads=head(b"a.b", (0,), b"")), "a head is empty"),
        "head-type": (_part(heads, heads=head(b"a.b", code=9)), "unknown type or shape"),
        "head-nan": (_part(heads, heads=head(b"a.b", values=b"\0\x7c\0\0")), "non-finite values"),
        "head-twice": (_part(heads, heads=head(b"a.b") * 2), "heads are not a sorted table"),
        "head-module": (_part(heads, heads=head(b"weight")), "weight is not a parameter"),
        "head-lora": (
            _part(heads, heads=head(b"model.layers.0.self_attn.q_proj.lora_A.weight")),
            "is not a parameter of a module",
        ),
    }  # fmt: skip


def main() -> None:
    BROKEN.mkdir(exist_ok=True)
    for path in BROKEN.iterdir():
        path.unlink()
    found = cases()
    for name, (data, _) in found.items():
        (BROKEN / f"{name}.solar").write_bytes(data)
    size = sum(len(data) for data, _ in found.values())
    print(f"{len(found)} packets, {size:,} bytes, in {BROKEN}")


if __name__ == "__main__":
    main()
