"""The file: what goes in comes out, its length is what is reported, and a broken one is refused."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest
from fuzz import mutate

from solar.codec import container, packet, rank_table, singular
from solar.codec.container import PacketError
from solar.codec.encode import encode
from solar.codec.factors import Factors, canonical, relative_error
from solar.codec.heads import unpack_heads
from solar.codec.recipe import Recipe, Setting
from solar.errors import SolarError

# Square layers share every compiled program between left and right.
SQUARE = {"a.q": (24, 24), "a.v": (24, 24), "b.q": (24, 24), "b.v": (24, 24)}
MIXED = {"a.q": (24, 24), "a.v": (12, 24), "b.q": (24, 24), "b.v": (12, 24)}


def weights(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def adapter(shapes, seed=1, r=3):
    rng = np.random.default_rng(seed)
    return canonical({
        name: (rng.normal(size=(m, r)) * [1, 0.4, 0.2][:r], rng.normal(size=(r, n)), 0.7)
        for name, (m, n) in shapes.items()
    })  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return weights(SQUARE)


@pytest.fixture(scope="module")
def update():
    return adapter(SQUARE)


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        for side in (0, 1):
            np.testing.assert_array_equal(one[name][side], other[name][side])


def resign(body: bytes) -> bytes:
    """The same bytes with a checksum that fits, as someone hostile would send them."""
    return body[:-8] + hashlib.sha256(body[:-8]).digest()[:8]


SETTINGS = [
    Setting(Recipe("singular", 16)),
    Setting(Recipe("singular", 30, 0.2, "sampled", 2**63), keep=7),
    Setting(Recipe("singular", 8, 0.1), dtype="float32"),
    Setting(Recipe("singular", 40, 0.1, "sampled"), "matrix", keep=9),
    Setting(Recipe("singular", 12), "matrix"),
    Setting(Recipe("random", 30, seed=3), keep=5),
    Setting(Recipe("random", 12), "matrix"),
    Setting(Recipe("orthogonal", 12), keep=6),
    Setting(Recipe("orthogonal", 12), "matrix"),
    Setting(Recipe("singular", 30, 0.2), keep=7, search="omp"),
    Setting(Recipe("singular", 16), dtype="int8"),
    Setting(Recipe("random", 20), dtype="int4", keep=5, search="omp"),
    Setting(Recipe("singular", 16, 0.1), dtype="sign", keep=9),
    Setting(Recipe("orthogonal", 24), dtype="int2"),
    Setting(Recipe("singular", 20, 0.1, "sampled"), "matrix", keep=9, dtype="int8"),
    Setting(Recipe("singular", 16, 0.1), keep=9, dtype="sign", embed=True),
]


@pytest.mark.parametrize(
    ("shapes", "setting"),
    [(SQUARE, setting) for setting in SETTINGS] + [(MIXED, SETTINGS[0]), (MIXED, SETTINGS[-1])],
)
def test_round_trip(shapes, setting, tmp_path):
    base, update = weights(shapes), adapter(shapes)
    made = encode(update, base, setting, usual_names=base, cache=tmp_path)
    assert (
        made.report["bytes"]["total"]
        == len(made.data)
        == sum(made.report["bytes"][part] for part in ("payload", "header", "heads"))
    )
    assert made.report["bytes"]["header"] <= 128 + 2 * len(base)
    found = packet.decode(made.data, base, usual_names=base)
    same(found.factors, made.factors)
    assert made.report["relative_error"] == pytest.approx(
        relative_error(update, found.factors), rel=1e-9
    )
    assert made.report["relative_error"] <= made.report["bound"]
    assert found.header == {k: v for k, v in packet.inspect(made.data).items() if k != "heads"}
    recipe = found.header["recipe"]
    assert Recipe(**recipe) == setting.recipe and found.header["keep"] == setting.keep
    json.dumps(made.report), json.dumps(packet.inspect(made.data))


def test_error_never_rises_with_an_orthonormal_basis(base, update):
    for kind in ("singular", "orthogonal"):
        errors = [
            encode(update, base, Setting(Recipe(kind, size), dtype="float32")).report
            for size in (1, 5, 24)
        ]
        errors = [report["relative_error"] for report in errors]
        assert all(b <= a + 1e-6 for a, b in zip(errors, errors[1:], strict=False))
        assert errors[-1] < 1e-5
    kept = [
        encode(update, base, Setting(Recipe("orthogonal", 24), keep=k)).report["relative_error"]
        for k in (1, 4, 12, 23, None)
    ]
    assert all(b < a for a, b in zip(kept, kept[1:], strict=False))


def test_a_larger_pool_helps_up_to_the_whole_space(base, update):
    errors = [
        encode(update, base, Setting(Recipe("random", size))).report["relative_error"]
        for size in (12, 24, 30)
    ]
    assert errors[0] > 0.5 > errors[1] > errors[2] and errors[2] < 2e-3


def test_gauge_does_not_change_the_decoded_update(base):
    rng = np.random.default_rng(5)
    pairs = {k: (rng.normal(size=(m, 3)) * [1, 0.4, 0.2], rng.normal(size=(3, n)), 1.0)
             for k, (m, n) in SQUARE.items()}  # fmt: skip
    setting = Setting(Recipe("singular", 8, 0.1), dtype="float32")
    plain = encode(canonical(pairs), base, setting).factors
    for condition in (1, 30, 1e3):
        u, _, vt = np.linalg.svd(rng.normal(size=(3, 3)))
        gauge = u @ np.diag(np.geomspace(condition, 1, 3)) @ vt
        turned = {k: ((b @ gauge).astype(np.float32), np.linalg.solve(gauge, a).astype(np.float32),
                      1.0) for k, (b, a, _) in pairs.items()}  # fmt: skip
        found = encode(canonical(turned), base, setting).factors
        assert relative_error(plain, found) < 1e-4


def test_names_are_implied_or_listed(base, update):
    setting = Setting(Recipe("random", 4))
    implied = encode(update, base, setting, usual_names=reversed(base))
    listed = encode(update, base, setting)
    assert packet.inspect(implied.data)["names"] is None
    assert packet.inspect(listed.data)["names"] == sorted(base)
    assert len(implied.data) < len(listed.data)
    same(packet.decode(implied.data, base).factors, packet.decode(listed.data, base).factors)
    few = {name: update[name] for name in ("b.q", "a.v")}
    part = encode(few, base, setting, usual_names=base)
    same(packet.decode(part.data, base, usual_names=base).factors, part.factors)
    implied_few = encode(few, base, setting, usual_names=few)
    with pytest.raises(PacketError, match="another base: it adapts 2 layers"):
        packet.decode(implied_few.data, base)


def test_zero_updates_and_ranks_that_differ(base, update):
    mixed = dict(update)
    mixed["a.v"] = Factors(np.zeros((24, 0), np.float32), np.zeros((24, 0), np.float32))
    mixed["b.q"] = Factors(update["b.q"].left[:, :1], update["b.q"].right[:, :1])
    for atoms in ("vector", "matrix"):
        made = encode(mixed, base, Setting(Recipe("orthogonal", 12), atoms), usual_names=base)
        found = packet.decode(made.data, base)
        same(found.factors, made.factors)
        assert found.header["ranks"] == [3, 0, 1, 3]
        assert found.factors["a.v"].left.shape == (24, 0)
        assert made.report["bytes"]["header"] <= 128 + 2 * len(base)
    nothing = {k: Factors(np.zeros((m, 0), np.float32), np.zeros((n, 0), np.float32))
               for k, (m, n) in SQUARE.items()}  # fmt: skip
    made = encode(nothing, base, Setting(Recipe("singular", 12)))
    assert made.report["bytes"]["payload"] == 0 and made.report["relative_error"] == 0
    same(packet.decode(made.data, base).factors, nothing)


def test_a_layer_that_is_better_left_out_is_left_out(base, update):
    # One matrix atom a side: projections of L and R that explain almost nothing, so that the two
    # errors together often exceed the update itself.
    reports = [
        encode(update, base, Setting(Recipe("random", 1, seed=seed), "matrix")).report
        for seed in range(8)
    ]
    assert any(report["left_out"] for report in reports)
    for report in reports:
        for layer in report["layers"]:
            assert layer["measured"] <= layer["norm"] * (1 + 1e-12)
            if layer["name"] in report["left_out"]:
                assert layer["measured"] == pytest.approx(layer["norm"], rel=1e-12)


def test_heads_travel_and_are_counted_apart(base, update):
    rng = np.random.default_rng(6)
    heads = {"score.weight": rng.normal(size=(5, 24)), "bias": np.float32(rng.normal(size=5)),
             "scale": np.array(0.5)}  # fmt: skip
    setting = Setting(Recipe("random", 4))
    plain = encode(update, base, setting)
    for dtype, item in (("float16", 2), ("float32", 4)):
        made = encode(update, base, setting, heads=heads, head_dtype=dtype)
        found = packet.decode(made.data, base).heads
        assert list(found) == sorted(heads)
        for name, head in heads.items():
            np.testing.assert_array_equal(found[name], head.astype(dtype).astype(np.float32))
        counts = made.report["bytes"]
        assert counts["heads"] == 126 * item + sum(4 + len(k) + 4 * heads[k].ndim for k in heads)
        assert counts["header"] == plain.report["bytes"]["header"]
        assert packet.inspect(made.data)["heads"]["score.weight"] == [5, 24]
    with pytest.raises(SolarError, match="head x holds values beyond float16"):
        encode(update, base, setting, heads={"x": np.array([1e6])})
    with pytest.raises(SolarError, match="head dtype 'int4' is unknown"):
        encode(update, base, setting, heads=heads, head_dtype="int4")


def test_heads_in_eight_bits(base, update):
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(5, 24)) * np.geomspace(1, 1e4, 5)[:, None]
    heads = {"score.weight": rows, "bias": rng.normal(size=5), "zero": np.zeros((2, 3))}
    made = encode(update, base, Setting(Recipe("random", 4)), heads=heads, head_dtype="int8")
    found = packet.decode(made.data, base).heads
    # A step per row: small rows keep their digits beside large ones.
    worst = np.abs(rows).max(axis=1) / 254 * 1.001
    assert (np.abs(found["score.weight"] - rows).max(axis=1) <= worst).all()
    assert np.abs(found["bias"] - heads["bias"]).max() <= np.abs(heads["bias"]).max() / 254 * 1.001
    assert (found["zero"] == 0).all()
    items, rows = 5 * 24 + 5 + 6, 5 + 1 + 2
    names = sum(4 + len(k) + 4 * v.ndim for k, v in heads.items())
    assert made.report["bytes"]["heads"] == items + 4 * rows + names


@pytest.fixture(scope="module")
def small(base, update):
    """A small packet with every part in it."""
    few = {"a.v": Factors(update["a.v"].left[:, :1], update["a.v"].right[:, :1])}
    made = encode(few, base, Setting(Recipe("singular", 6, 0.1), keep=2), heads={"h": np.ones(2)})
    return made.data, made.factors


def test_every_altered_byte_is_noticed(base, small):
    data, _ = small
    assert len(data) < 200
    for at in range(len(data)):
        for mask in (1, 0x80, 0xFF):
            broken = bytearray(data)
            broken[at] ^= mask
            with pytest.raises(PacketError):
                packet.decode(bytes(broken), base)


def test_every_truncation_and_extension_is_noticed(base, small):
    data, _ = small
    for length in range(len(data)):
        with pytest.raises(PacketError):
            packet.decode(data[:length], base)
    for more in (b"\0", data):
        with pytest.raises(PacketError, match="after its end"):
            packet.decode(data + more, base)


def test_altered_packets_with_a_fitting_checksum(base, small):
    data, factors = small
    parameters = container.FIXED.size
    refused = 0
    for at in range(len(data) - container.CHECKSUM):
        if parameters + 4 <= at < parameters + 8:
            continue  # N and K: the payload no longer fits, tested below without compiling anew
        broken = bytearray(data)
        broken[at] ^= 2
        broken = resign(bytes(broken))
        try:
            found = packet.decode(broken, base)
        except PacketError:
            refused += 1
            continue
        # Heads may differ, and the last bits of a coefficient: whatever changes an update by more
        # than rounding is caught by hash, table or basis checksum.
        assert relative_error(factors, found.factors) < 1e-5
    assert refused > 0.7 * len(data)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"PK\x03\x04", "not a .solar packet"),
        (4, b"\x02", "format version 2, this program reads 1"),
        (4, b"\x00", "no format version 0"),
        (5, b"\x63", "unknown to this program"),
        (6, b"\x10", "flags 16, unknown"),
        (8, b"\x00\x00", "another base"),
        (24, b"\x00\x00", "no layer"),
        (34, struct.pack("<Q", 2**62), "truncated"),
        (50, b"\x09", "kind of basis unknown"),
        (54, b"\xff\xff", "stream of supports"),
        (56, b"\x05", "payload is too short"),
        (58, struct.pack("<f", np.nan), "perturbation nan"),
        (62, b"\x01", "basis mismatch"),
    ],
)
def test_faults_are_named(base, small, at, value, message):
    broken = small[0][:at] + value + small[0][at + len(value) :]
    with pytest.raises(PacketError, match=message):
        packet.decode(resign(broken), base)


def test_plain_faults_are_named(base, small, tmp_path):
    with pytest.raises(PacketError, match="not a .solar packet"):
        packet.decode(b"", base)
    with pytest.raises(PacketError, match="truncated"):
        packet.inspect(small[0][:-1])
    with pytest.raises(PacketError, match="cannot read packet"):
        packet.read(tmp_path / "missing.solar")


def test_another_base_is_refused(base, update):
    made = encode(update, base, Setting(Recipe("random", 4)), usual_names=base)
    other = dict(base)
    other["a.q"] = np.nextafter(base["a.q"], np.float32(9))  # a single ulp
    for wrong in (other, {k: v for k, v in base.items() if k != "a.q"},
                  {k + "x": v for k, v in base.items()}, {}):  # fmt: skip
        with pytest.raises(PacketError, match="another base"):
            packet.decode(made.data, wrong)
    listed = encode(update, base, Setting(Recipe("random", 4)))
    with pytest.raises(PacketError, match="layer a.q is not among the base weights"):
        packet.decode(listed.data, {k: v for k, v in base.items() if k != "a.q"})
    reshaped = dict(base)
    reshaped["a.v"] = base["a.v"].reshape(48, 12)
    with pytest.raises(PacketError, match="another base"):
        packet.decode(made.data, reshaped)


@pytest.mark.parametrize("spoil", ["flip", "swap", "turn"])
def test_another_basis_is_refused(base, update, spoil, monkeypatch):
    made = encode(update, base, Setting(Recipe("singular", 8)))
    true = singular.singular_frames

    def spoiled(name, weight, shape, digest, cache):
        left, right = true(name, weight, shape, digest, cache)
        if name != "b.q":
            return left, right
        rows = left.rows.copy()
        if spoil == "flip":
            rows[5] *= -1
        elif spoil == "swap":
            rows[[2, 3]] = rows[[3, 2]]
        else:
            c, s = np.cos(0.01), np.sin(0.01)
            rows[[1, 2]] = np.array([[c, s], [-s, c]], np.float32) @ rows[[1, 2]]
        return left._replace(rows=rows), right

    monkeypatch.setattr(singular, "singular_frames", spoiled)
    with pytest.raises(PacketError, match="basis mismatch"):
        packet.decode(made.data, base)


def test_rounding_of_the_basis_is_accepted(base, update, monkeypatch):
    made = [encode(update, base, Setting(Recipe("singular", 8, eps))) for eps in (0, 0.3)]
    true = singular.singular_frames
    rng = np.random.default_rng(8)

    def rounded(*args):
        return tuple(
            f._replace(rows=(f.rows * (1 + 3e-7 * rng.normal(size=f.rows.shape))).astype("f4"))
            for f in true(*args)
        )

    monkeypatch.setattr(singular, "singular_frames", rounded)
    for one in made:
        for _ in range(5):
            found = packet.decode(one.data, base)
            assert relative_error(one.factors, found.factors) < 1e-5


def test_lengths_are_checked_before_anything_is_unpacked(base):
    known = container.identify(base, base)
    bomb = zlib.compress(b"\0" * 2**24, 9)
    good = container.Packet("float", b"\0\0\0", known.hash, ("a", "b"), (1, 1), b"", b"")
    data = container.pack(good)
    names = zlib.compress(b"a\nb", 9)
    broken = data.replace(names, bomb)
    broken = broken[:26] + struct.pack("<I", len(bomb)) + broken[30:]
    with pytest.raises(PacketError, match="layer names do not unpack"):
        container.unpack(resign(broken))


def test_hostile_heads():
    def head(name=b"h", code=0, shape=(2,), values=b"\0\0\0\0"):
        dims = np.array(shape, "<u4").tobytes()
        return struct.pack("<HBB", len(name), code, len(shape)) + name + dims + values

    assert list(unpack_heads(head() + head(b"i"))) == ["h", "i"]
    for broken in (
        head(shape=(2**32 - 1,) * 8), head(shape=(3,)), head(code=7), head(b"\xff"), head()[:3],
        head() + head(), head(b"i") + head(b"h"), head(shape=(0,), values=b""),
        head(values=b"\0\x7c\0\0"), struct.pack("<HBB", 1, 0, 200) + b"h",
    ):  # fmt: skip
        with pytest.raises(PacketError):
            unpack_heads(broken)


def test_rank_tables():
    rng = np.random.default_rng(0)
    drawn = tuple(rng.integers(0, 4, 60).tolist())
    some = (4, 4, 4), (0, 1, 200), (16383, 0), (127, 128), (0,) * 64 + (1,)
    for ranks in (*some, drawn, drawn * 5):
        table = rank_table.pack(ranks)
        assert rank_table.unpack(table, len(ranks)) == ranks
        assert len(table) == rank_table.length(ranks) <= 2 * len(ranks) + 2
    assert rank_table.length(drawn) == 16 and rank_table.length((*drawn[:-1], 4)) == 19
    assert rank_table.unpack_varints(b"\x01\xc8\x01", 2) == (1, 200)
    both = (b"\x80", 1), (b"\x80\x00", 1), (b"", 1)
    # A digit too many, a largest rank that no layer has, ranks alike, too short, too long.
    own = (b"\1\4", 2), (b"\2\1", 2), (b"\1\0", 2), (b"\1\3", 2), (b"\1\1", 9), (b"\1\1\0", 2)
    older = (b"\x01\x02", 3), (b"\x01\x01", 2), (b"\x01\x02\x03", 1)
    for unpack, broken in ((rank_table.unpack, own), (rank_table.unpack_varints, older)):
        for table, layers in both + broken:
            with pytest.raises(ValueError, match=r"number|ranks"):
                unpack(table, layers)


def test_files_with_the_older_rank_table_are_read(base, update):
    """A varint a layer, as was written before the table of rank_table.py."""
    data = encode(update | {"a.v": Factors(*(x[:, :1] for x in update["a.v"]))}, base).data
    new = container.unpack(data)
    assert len(set(new.ranks)) > 1
    own = mutate.cut(data)
    flags = own.fixed[3] & ~container.DIFFER
    fixed = (*own.fixed[:3], flags, *own.fixed[4:])
    older = mutate.join(own._replace(fixed=fixed, table=bytes(new.ranks)), data[-8:])
    assert container.unpack(resign(older)) == new


def test_input_that_does_not_fit_is_named(base, update):
    with pytest.raises(SolarError, match="layer c.q is not among the base weights"):
        encode({"c.q": update["a.q"]}, base)
    with pytest.raises(SolarError, match="update of a.v has factors"):
        encode({"a.v": update["a.q"]}, weights(MIXED))
    broken = Factors(update["a.q"].left * np.float32(np.nan), update["a.q"].right)
    with pytest.raises(SolarError, match="update of a.q holds non-finite"):
        encode({"a.q": broken}, base)
    with pytest.raises(SolarError, match="base weight a.q is zero"):
        encode({"a.q": update["a.q"]}, {"a.q": np.zeros((24, 24), np.float32)})
    with pytest.raises(SolarError, match="1 to 65535"):
        encode({}, base)
    for wrong in (
        {"atoms": "tensor"},
        {"keep": 0},
        {"dtype": "int3"},
        {"dtype": "auto"},
        {"keep": "most"},
        {"search": "best"},
        {"ridge": 0.0},
    ):
        with pytest.raises(SolarError):
            Setting(**wrong)


def test_default_matmul_precision_does_not_matter(base, update):
    setting = Setting(Recipe("singular", 30, 0.1), keep=7)
    plain = encode(update, base, setting).data
    with jax.default_matmul_precision("bfloat16"):
        assert encode(update, base, setting).data == plain


def test_writing_is_whole_or_not_at_all(tmp_path, small):
    path = tmp_path / "folder" / "a.solar"
    packet.write(path, small[0])
    packet.write(path, small[0])
    assert packet.read(path) == small[0]
    assert [p.name for p in path.parent.iterdir()] == ["a.solar"]


DECODER = """
import sys, numpy as np
from solar.codec import packet
base = dict(np.load(sys.argv[2]))
found = packet.decode(packet.read(sys.argv[1]), base)
sides = {f"{k}/{i}": side for k, pair in found.factors.items() for i, side in enumerate(pair)}
np.savez(sys.argv[3], **sides)
"""


def test_another_process_rebuilds_the_same_update(base, update, tmp_path):
    setting = Setting(Recipe("singular", 30, 0.1, "sampled", seed=5), keep=7)
    made = encode(update, base, setting, usual_names=base)
    packet.write(tmp_path / "a.solar", made.data)
    np.savez(tmp_path / "base.npz", **base)
    # Other defaults there, none of which the format depends on.
    env = dict(os.environ) | {"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16", "OMP_NUM_THREADS": "1",
                              "JAX_THREEFRY_PARTITIONABLE": "0", "OPENBLAS_NUM_THREADS": "1",
                              "PYTHONPATH": os.getcwd()}  # fmt: skip
    files = [tmp_path / name for name in ("a.solar", "base.npz", "out.npz")]
    subprocess.run([sys.executable, "-c", DECODER, *map(str, files)], env=env, check=True)
    with np.load(files[2]) as found:
        for name, pair in made.factors.items():
            for side in (0, 1):
                np.testing.assert_allclose(found[f"{name}/{side}"], pair[side], atol=1e-6)
