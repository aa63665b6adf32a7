"""Gauge: (B G, G^-1 A) is the same update for every G, so it must be the same file."""

import numpy as np
import pytest

from solar.adapters import directory, peft_io
from solar.adapters.adapter import Adapter
from solar.codec import packet
from solar.codec.encode import encode
from solar.codec.factors import canonical, relative_error
from solar.codec.recipe import BUDGET, ENTROPY, MAX_SIZE, Recipe, Setting
from solar.weights.matrices import open_matrices

RANK, SCALE = 4, 0.5
PAPER = Setting(Recipe("singular", 16, 0.1), dtype="float32")
COMPACT = Setting(Recipe("orthogonal", MAX_SIZE), keep=BUDGET, dtype=ENTROPY, relative=1.0)
BYTES = 900


@pytest.fixture(scope="module")
def base():
    return open_matrices("tiny:llama")


@pytest.fixture(scope="module")
def pairs(base):
    rng = np.random.default_rng(0)
    return {
        name: (rng.normal(size=(m, RANK)) * [1, 0.5, 0.2, 0.05], rng.normal(size=(RANK, n)), SCALE)
        for name, (m, n) in base.shapes.items()
        if name.endswith(("q_proj", "v_proj"))
    }


def gauges():
    """Twenty random matrices with condition numbers from 1 to 1000."""
    rng = np.random.default_rng(1)
    for condition in np.geomspace(1, 1e3, 20):
        u, _, vt = np.linalg.svd(rng.normal(size=(RANK, RANK)))
        yield u * np.geomspace(condition, 1, RANK) @ vt


def turned(pairs, gauge):
    return {k: (b @ gauge, np.linalg.solve(gauge, a), s) for k, (b, a, s) in pairs.items()}


def from_disk(folder, pairs, base):
    """The same pairs through a PEFT directory, whose numbers are float32."""
    peft_io.write(folder, Adapter(pairs, {}), base.family, base.source)
    return directory.read_for(folder, base.family, base.shapes).pairs


def coded(pairs, base, setting, cache):
    size = BYTES if setting.keep == BUDGET else None
    made = encode(canonical(pairs), base, setting, budget_bytes=size, cache=cache)
    return made.data, packet.decode(made.data, base, cache=cache).factors


@pytest.mark.parametrize("disk", [False, True], ids=["arrays", "directories"])
def test_float32_coefficients_decode_to_the_same_update(base, pairs, disk, tmp_path):
    _, plain = coded(pairs, base, PAPER, tmp_path)
    for i, gauge in enumerate(gauges()):
        own = turned(pairs, gauge)
        if disk:
            own = from_disk(tmp_path / str(i), own, base)
        _, found = coded(own, base, PAPER, tmp_path)
        assert relative_error(plain, found) < (1e-4 if disk else 1e-6)


def test_levels_give_the_same_bytes_for_the_same_update(base, pairs, tmp_path):
    data, plain = coded(pairs, base, COMPACT, tmp_path)
    assert relative_error(canonical(pairs), plain) < 0.5
    for gauge in gauges():
        again, _ = coded(turned(pairs, gauge), base, COMPACT, tmp_path)
        assert again == data


def test_levels_move_by_single_cells_where_float32_rounds_the_update(base, pairs, tmp_path):
    """A directory of float32 holds another update, by up to 1e-4 at a condition of 1000. Where that
    carries a coefficient over the edge of its cell the file differs in that one."""
    data, plain = coded(pairs, base, COMPACT, tmp_path)
    error = relative_error(canonical(pairs), plain)
    same = 0
    for i, gauge in enumerate(gauges()):
        again, found = coded(from_disk(tmp_path / str(i), turned(pairs, gauge), base), base,
                             COMPACT, tmp_path)  # fmt: skip
        same += again == data
        assert relative_error(canonical(pairs), found) == pytest.approx(error, rel=1e-2)
    assert same >= 10
