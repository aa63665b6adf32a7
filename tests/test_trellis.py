"""The trellis that both entropy-coded methods quantise with, and what else is in their streams."""

import math

import numpy as np
import pytest
from constriction import stream

from solar.codec import bands, energies, trellis
from solar.codec.container import PacketError
from solar.codec.frame_file import OCTAVE


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def passed(write, read):
    """What `read` makes of the words of `write`; the decoder has nothing else."""
    coder = stream.queue.RangeEncoder()
    write(coder)
    words = coder.get_compressed()
    return read(stream.queue.RangeDecoder(words)), words


def test_states_lead_where_they_are_reached_from():
    own = trellis.machine()
    for which in (0, 1):
        before, parity = own.before[which], own.parity[which]
        assert (own.after[before, parity] == np.arange(trellis.STATES)).all()
    # The two ways into a state differ, and both quantisers are in use in as many states.
    assert (own.before[0] != own.before[1]).all()
    reached = {0}
    for _ in range(trellis.REGISTERS):
        reached |= {int(n) for s in reached for n in own.after[s]}
    assert len(reached) == trellis.STATES


@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_cells_of_mixed_classes_come_back(count):
    drawn = draw(count)
    classes = drawn.integers(trellis.LEAST, trellis.MOST + 1, count)
    classes = classes[trellis.order(classes)]
    values = drawn.standard_normal(count) * trellis.deviation(classes)
    values[::11] *= 30  # what does not follow its class
    cells, contexts = trellis.quantise(values, classes)
    found, words = passed(
        lambda coder: trellis.write(coder, cells, contexts, classes),
        lambda decoder: trellis.read(decoder, classes),
    )
    assert (found[0] == cells).all() and (found[1] == contexts).all()
    spent = trellis.bits(cells, contexts, classes).sum()
    assert abs(32 * len(words) - spent) <= 64 + 1e-3 * spent


@pytest.mark.parametrize("index", [-10, -6, -2, 4, 12, 13, 30, 60])
def test_classes_cost_what_the_table_says_and_little_more_than_shannon(index):
    classes = np.full(2**16, index)
    scale = trellis.deviation(classes[:1])[0]
    values = draw(index + 50).standard_normal(len(classes))
    values *= scale / values.std()
    cells, contexts = trellis.quantise(values, classes)
    bits = trellis.bits(cells, contexts, classes).mean()
    error = np.mean((values - trellis.decoded(cells, contexts, classes)) ** 2)
    level = 1 / (2 * math.log(2))
    least = level + 0.5 * math.log2(scale**2 / level)
    # The best uniform scalar quantiser is 0.2 to 0.25 above.
    assert 0 < bits + error - least < 0.1
    expected = trellis.point(index)
    assert bits == pytest.approx(expected[0], abs=0.03)
    assert error / scale**2 == pytest.approx(expected[1], rel=0.03)


def test_threads_change_no_cell(monkeypatch):
    values = 8 * draw(5).standard_normal(3000)
    classes = np.sort(draw(6).integers(trellis.LEAST, 20, 3000))[::-1].astype(np.int64)
    monkeypatch.setattr(trellis.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(trellis, "TOGETHER", 10**6)
    alone = trellis.quantise(values, classes)
    monkeypatch.setattr(trellis, "TOGETHER", 2)
    assert trellis.lanes(len(values)) >= 3 * trellis.TOGETHER
    for one, other in zip(alone, trellis.quantise(values, classes), strict=True):
        assert (one == other).all()


def test_chances_are_multiples_that_no_rounding_moves():
    for index in range(trellis.LEAST, trellis.MOST + 1):
        own = trellis.table(index)
        whole = own.chances / trellis.GRAIN
        assert (whole == np.round(whole)).all() and own.chances.min() >= 2 * trellis.GRAIN
        assert np.allclose(own.chances.sum(axis=1), 1, atol=0.03)


def test_numbers_that_are_nothing_but_rounding_have_no_sign():
    values, classes = draw(3).standard_normal(4000) * 3, np.zeros(4000, np.int64)
    values[::3] = draw(4).standard_normal(len(values[::3])) * 1e-9
    cells, _ = trellis.quantise(values, classes)
    assert not cells[::3].any() and cells[1::3].any()


def test_energies_come_back_in_fewer_bits_than_bytes():
    drawn = draw(8)
    ranks = drawn.integers(1, 5, 60)
    first = np.repeat(np.cumsum(ranks) - ranks, ranks)
    shapes = np.array([(48, 96), (96, 96)])[np.arange(60) % 2]
    lengths = np.repeat(shapes, ranks, axis=0)
    own = np.zeros(len(first), np.int64)
    for at, rank in zip(np.cumsum(ranks) - ranks, ranks, strict=True):
        own[at : at + rank] = drawn.integers(190, 230) - np.cumsum(drawn.integers(0, 9, rank))
    bits, shape = energies.shape(own, first, lengths)
    found, words = passed(
        lambda coder: energies.write(coder, own, first, lengths, shape),
        lambda decoder: energies.read(decoder, first, lengths, shape),
    )
    assert (found == own).all()
    assert 32 * len(words) <= bits + 64 and bits < 5.5 * len(own)


def test_energies_out_of_range_are_refused():
    first, lengths = np.arange(3), np.full((3, 2), 8)
    shape = energies.Shape(100, 0, 0, 0)  # 200 and 100 more
    with pytest.raises(PacketError, match="not in its one form"):
        passed(
            lambda coder: energies.write(coder, np.array([300, 400, 500]), first, lengths, shape),
            lambda decoder: energies.read(decoder, first, lengths, shape),
        )
    for broken in (shape._replace(ratio=16), shape._replace(later=-1)):
        with pytest.raises(PacketError, match="not in its one form"):
            energies.check(broken)


def test_offsets_come_back_and_too_large_ones_are_refused():
    own = draw(5).integers(-8, 8, (3, 2, 2, len(bands.STARTS)))
    found, words = passed(lambda c: bands.write(c, own), lambda d: bands.read(d, 3))
    assert (found == own).all() and abs(32 * len(words) - bands.bits(own)) < 64
    own[0, 0, 0, 3] = bands.LARGEST + 1
    with pytest.raises(PacketError, match="not in its one form"):
        passed(lambda c: bands.write(c, own), lambda d: bands.read(d, 3))


def test_measured_offsets_are_those_that_the_energy_was_moved_by():
    profile = np.round(-8 * np.log2(1.0 + np.arange(96))).astype(np.int64)
    table = np.array([[3, 0, -2, 0, 1, 0, 0, 0], [-6, 0, 0, 2, 0, 0, 0, -1]])
    true = bands.adjusted(profile, table)
    assert np.allclose((2.0 ** (true / OCTAVE)).sum(axis=1), 1, atol=0.1)
    shares = 2.0 ** (true[[0, 1, 1]] / OCTAVE)
    plain = profile - OCTAVE * np.log2((2.0 ** (profile / OCTAVE)).sum())
    side = shares / shares.sum(axis=1, keepdims=True)
    found = bands.measured([(side, side)] * 4, [np.ones(3)] * 4, [(plain, plain)] * 4)
    for one in found:
        # Up to what all have in common, which is made to go away, and rounding.
        away = (one - table) - np.round((one - table).mean(axis=1, keepdims=True))
        assert np.abs(away).max() <= 1
