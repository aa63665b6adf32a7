"""Supports: what goes in comes out, in the bits that entropy allows, and nothing else is read."""

import numpy as np
import pytest

from solar.codec import supports


def drawn(seed, sizes, shares):
    rng = np.random.default_rng(seed)
    found = []
    for size, share in zip(sizes, shares, strict=True):
        positions = np.sort(rng.permutation(size)[: round(size * share)])
        found.append((positions, size, len(positions) / size))
    return found


SIZES, SHARES = [1, 2, 9, 300, 300, 4000, 5, 7], [0, 0.5, 0.4, 0.02, 0.9, 0.3, 1, 0]


def test_round_trip():
    own = drawn(0, SIZES, SHARES)
    data = supports.pack(own)
    back = supports.unpack(data, SIZES, [chance for _, _, chance in own])
    for (positions, _, _), found in zip(own, back, strict=True):
        np.testing.assert_array_equal(found, positions)


def test_what_is_known_costs_nothing():
    own = drawn(1, [40, 40], [0, 1])
    assert supports.pack(own) == b""
    assert [len(x) for x in supports.unpack(b"", [40, 40], [0.0, 1.0])] == [0, 40]


def test_the_stream_has_the_length_of_its_entropy():
    own = drawn(2, [5000, 800, 20000], [0.1, 0.5, 0.003])
    bits = sum(float(supports.bits(len(p), size)) for p, size, _ in own)
    assert bits / 8 < len(supports.pack(own)) < bits / 8 + 8


def test_a_density_of_one_byte_costs_little():
    rng = np.random.default_rng(3)
    for kept in (1, 3, 40, 299, 573, 575):
        positions = np.sort(rng.permutation(576)[:kept])
        chance = supports.density(kept, 576) / supports.ALL
        own = supports.pack([(positions, 576, chance)] * 50)
        assert len(own) < 50 * (float(supports.bits(kept, 576)) + 2.5) / 8 + 8
    assert supports.density(0, 9) == 0 and supports.density(9, 9) == supports.ALL


def test_other_bytes_are_refused():
    own = drawn(4, SIZES, SHARES)
    data, chances = supports.pack(own), [chance for _, _, chance in own]
    rng = np.random.default_rng(5)
    for broken in (data[:-1], data + b"\0\0\0\0", data[4:], b"", rng.bytes(len(data))):
        with pytest.raises(ValueError, match="stream of supports"):
            supports.unpack(broken, SIZES, chances)
    other = same = 0
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        try:
            found = supports.unpack(bytes(broken), SIZES, chances)
        except ValueError:
            other += 1
            continue
        # Read without complaint, so it must be what somebody would have written for it.
        assert supports.pack(zip(found, SIZES, chances, strict=True)) == bytes(broken)
        same += 1
    assert other and same


def test_long_supports_are_coded_in_runs(monkeypatch):
    rng = np.random.default_rng(3)
    sizes, chances = [1000, 64, 5], [0.1, 0.5, 1.0]
    marked = [np.flatnonzero(rng.random(n) < p) for n, p in zip(sizes, chances, strict=True)]
    whole = supports.pack(zip(marked, sizes, chances, strict=True))
    for run in (1, 7, 64):
        monkeypatch.setattr(supports, "RUN", run)
        assert supports.pack(zip(marked, sizes, chances, strict=True)) == whole
        found = supports.unpack(whole, sizes, chances)
        assert all(np.array_equal(a, b) for a, b in zip(found, marked, strict=True))


def test_fewest_positions_of_a_density():
    for size in (1, 2, 24, 255, 1000):
        codes = np.array([supports.density(k, size) for k in range(size + 1)])
        for code in np.unique(codes):
            least = int(np.flatnonzero(codes == code)[0])
            assert least - 1 <= supports.fewest(np.array([code], np.uint8), size)[0] <= least
