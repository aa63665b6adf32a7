"""The basis checksum: rounding passes, whatever moves the update by more is refused."""

import numpy as np
import pytest

from solar.codec import checksum, packet, singular
from solar.codec.container import PacketError
from solar.codec.encode import encode
from solar.codec.factors import canonical, relative_error
from solar.codec.recipe import Recipe, Setting

LAYERS = 40
RNG = np.random.default_rng(0)
BASE = {f"{i:02d}": RNG.normal(size=(20, 20)).astype(np.float32) for i in range(LAYERS)}
UPDATE = canonical({
    name: (RNG.normal(size=(20, 3)), RNG.normal(size=(3, 20)), RNG.lognormal(0, 1))
    for name in BASE
})  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return encode(UPDATE, BASE, Setting(Recipe("singular", 20), dtype="float32"))


def turned(rows, angle, rng):
    """Rows (k, d) turned in a random plane of their span for each pair of them."""
    left, right = rng.permutation(len(rows)).reshape(2, -1)
    out = rows.copy()
    out[left] = np.cos(angle) * rows[left] + np.sin(angle) * rows[right]
    out[right] = np.cos(angle) * rows[right] - np.sin(angle) * rows[left]
    return out.astype(np.float32)


@pytest.mark.parametrize("where", ["one side of one layer", "every side"])
def test_a_basis_that_moves_the_update_is_refused(made, where, monkeypatch):
    true, rng = singular.singular_frames, np.random.default_rng(1)
    accepted, refused = [], []
    for angle in np.geomspace(1e-7, 3e-3, 60):
        only = f"{rng.integers(LAYERS):02d}"

        def moved(name, *rest, angle=angle, only=only):
            left, right = true(name, *rest)
            if where == "every side":
                return tuple(f._replace(rows=turned(f.rows, angle, rng)) for f in (left, right))
            return left._replace(
                rows=turned(left.rows, angle, rng)
            ) if name == only else left, right

        monkeypatch.setattr(singular, "singular_frames", moved)
        try:
            found = packet.decode(made.data, BASE)
            accepted.append(relative_error(made.factors, found.factors))
        except PacketError as error:
            assert "basis mismatch" in str(error)
            refused.append(angle)
    # Every tenth of an octave between rounding and a visible turn was tried.
    assert max(accepted) < 1e-5
    assert min(refused) > 1e-6 and len(refused) >= 15


def test_grids_keep_every_number_away_from_its_boundary():
    rng = np.random.default_rng(2)
    for count in (1, 40, 3000):
        numbers = rng.normal(size=count + checksum.WHOLE) * 0.3
        offset = checksum.choose_offset(numbers)
        mark = checksum.checksum(numbers, offset, b"recipe")
        assert len(mark) == checksum.LENGTH
        for _ in range(20):
            near = numbers + 1e-6 * rng.uniform(-1, 1, numbers.shape)
            assert checksum.fits(mark, near, offset, b"recipe")
        assert not checksum.fits(mark, numbers, offset, b"another")
        assert not checksum.fits(bytes([mark[0] ^ 1]) + mark[1:], numbers, offset, b"recipe")
        for i in range(checksum.WHOLE):
            far = numbers.copy()
            far[count + i] += checksum.WHOLE_STEP
            assert not checksum.fits(mark, far, offset, b"recipe")
        assert not checksum.fits(mark, numbers * np.nan, offset, b"recipe")
