"""Plain factors in the same file: sizes, errors, refusals."""

import math

import numpy as np
import pytest

from solar.codec import baselines, container, packet
from solar.codec.container import PacketError
from solar.codec.factors import Factors, canonical, relative_error
from solar.errors import SolarError

M, N, R, LAYERS = 80, 150, 3, 4


@pytest.fixture(scope="module")
def base():
    rng = np.random.default_rng(0)
    return {f"w{i}": rng.normal(size=(M, N)).astype(np.float32) for i in range(LAYERS)}


@pytest.fixture(scope="module")
def update(base):
    rng = np.random.default_rng(1)
    return canonical(
        {k: (rng.normal(size=(M, R)) * [1, 0.5, 0.1], rng.normal(size=(R, N)), 1e-3) for k in base}
    )


CASES = [
    ("float32", {}, LAYERS * R * (M + N) * 4),
    ("float16", {}, LAYERS * R * (M + N) * 2),
    ("truncate", {"rank": 2}, LAYERS * 2 * (M + N) * 2),
    ("bits", {"bits": 8}, LAYERS * R * (2 * (2 + 3) + M + N)),
    ("bits", {"bits": 4}, LAYERS * R * (2 * (2 + 3) + (M + N) // 2)),
    ("bits", {"bits": 2}, LAYERS * R * (2 * 2 + (M + N) / 4)),
    ("bits", {"bits": 1}, math.ceil(LAYERS * R * (2 * 2 + (M + N) / 8))),
    ("bits", {"bits": 1, "rank": 1}, LAYERS * (2 * 2 + (M + N) / 8)),
]


@pytest.mark.parametrize(("kind", "options", "payload"), CASES)
def test_round_trip_and_size(base, update, kind, options, payload):
    heads = {"head": np.ones((2, 3))}
    made = baselines.encode(update, base, kind, heads=heads, usual_names=base, **options)
    found = packet.decode(made.data, base)
    for name in update:
        for side in (0, 1):
            np.testing.assert_array_equal(found.factors[name][side], made.factors[name][side])
    np.testing.assert_array_equal(found.heads["head"], heads["head"])
    counts = made.report["bytes"]
    assert counts["payload"] == math.ceil(payload)
    assert (
        counts["total"]
        == len(made.data)
        == sum(counts[part] for part in ("payload", "header", "heads"))
    )
    error = relative_error(update, found.factors)
    assert made.report["relative_error"] == pytest.approx(error, rel=1e-9, abs=1e-15)
    assert made.report["relative_error"] <= made.report["bound"] + 1e-15


def test_errors_fall_with_bytes(base, update):
    errors = {}
    for kind, options, _ in CASES:
        report = baselines.encode(update, base, kind, **options).report
        errors[kind, *options.values()] = report["relative_error"]
    assert errors["float32",] == 0
    assert errors["float16",] < 5e-4
    s = [np.linalg.norm(x.left, axis=0) ** 2 for x in update.values()]
    lost = math.sqrt(sum(x[2] ** 2 for x in s) / sum((x**2).sum() for x in s))
    assert errors["truncate", 2] == pytest.approx(lost, rel=1e-3)
    ordered = [errors["bits", b] for b in (8, 4, 2, 1)]
    assert ordered == sorted(ordered) and ordered[0] < 0.02 and ordered[-1] < 0.85
    assert errors["bits", 1] <= errors["bits", 1, 1]


def test_one_bit_is_sign_and_mean(base, update):
    made = baselines.encode(update, base, "bits", bits=1)
    for name, pair in update.items():
        for side in (0, 1):
            expected = np.where(pair[side] < 0, -1, 1) * np.abs(pair[side]).mean(axis=0)
            np.testing.assert_allclose(made.factors[name][side], expected, rtol=1e-3)


@pytest.mark.parametrize("scale", [2.0**-66, 2.0**-10, 2.0**50])
def test_scale_of_the_adapter_does_not_matter(base, update, scale):
    root = np.float32(np.sqrt(scale))
    scaled = {k: Factors(x.left * root, x.right * root) for k, x in update.items()}
    for kind, options in (("float16", {}), ("bits", {"bits": 4})):
        plain = baselines.encode(update, base, kind, **options).report["relative_error"]
        report = baselines.encode(scaled, base, kind, **options).report
        assert report["relative_error"] == pytest.approx(plain, rel=1e-6)


def test_a_packet_shorter_than_its_ranks_need_is_refused_at_once(base, update, monkeypatch):
    own = container.unpack(baselines.encode(update, base, "bits", bits=4).data)
    data = container.pack(own._replace(payload=own.payload[:9]))
    monkeypatch.setattr(baselines, "_group_lengths", None)  # as long as the ranks claim
    with pytest.raises(PacketError, match="does not fit its layer table"):
        packet.decode(data, base)


def test_zero_layers_cost_nothing(base, update):
    nothing = {k: Factors(x.left[:, :0], x.right[:, :0]) for k, x in update.items()}
    mixed = nothing | {"w1": update["w1"]}
    for factors in (nothing, mixed):
        for kind, options in (("float16", {}), ("bits", {"bits": 2})):
            made = baselines.encode(factors, base, kind, **options)
            found = packet.decode(made.data, base).factors
            assert [x.left.shape[1] for x in found.values()] == [
                x.left.shape[1] for x in factors.values()
            ]
            assert bool(made.report["bytes"]["payload"]) == (factors is mixed)


def test_another_base_and_altered_bytes_are_refused(base, update):
    few = {"w1": Factors(update["w1"].left[:, :1], update["w1"].right[:, :1])}
    for kind, options in (("float16", {}), ("bits", {"bits": 1})):
        data = baselines.encode(few, base, kind, **options).data
        with pytest.raises(PacketError, match="another base"):
            packet.decode(data, {k: v + 1 for k, v in base.items()})
        for at in range(len(data)):
            broken = bytearray(data)
            broken[at] ^= 0x10
            with pytest.raises(PacketError):
                packet.decode(bytes(broken), base)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("zip", {}), ("truncate", {}), ("truncate", {"rank": 0}), ("bits", {}), ("bits", {"bits": 3}),
     ("float16", {"bits": 4}), ("float16", {"rank": 2})],
)  # fmt: skip
def test_wrong_options_are_named(base, update, kind, options):
    with pytest.raises(SolarError):
        baselines.encode(update, base, kind, **options)
