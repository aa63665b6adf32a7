"""Random words: the published generator to the bit, jax.random's layout, golden values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solar.codec.noise import gaussian
from solar.codec.threefry import encrypt, fold, words

SEED = 2**40 + 5
standard = jax.jit(lambda keys, count: gaussian(words(keys, count)), static_argnums=1)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [  # the known answers that come with Random123
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, expected):
    parts = [np.array([part], np.uint32) for part in (*key, *counter)]
    assert tuple(int(word[0]) for word in encrypt(*parts)) == expected


def test_golden_words():
    keys = fold(SEED, 3, 0, np.array([0, 1, 511]))
    golden = [
        [2410300373, 2512871594, 654329720],
        [3077303060, 200670328, 2614859009],
        [3301940777, 1291479929, 3508734311],
    ]
    assert words(keys, 3).tolist() == golden
    assert np.asarray(jax.jit(words, static_argnums=1)(keys, 3)).tolist() == golden
    values = standard(keys, 3)[0]
    np.testing.assert_allclose(values, [0.153991386, 0.214890197, -1.02641499], rtol=3e-7)


def test_the_layout_is_that_of_jax_random():
    key = jax.random.key(123456789, impl="threefry2x32")
    for number in (60, 1, 4000000000):
        key = jax.random.fold_in(key, number)
    with jax.threefry_partitionable(True):
        expected = np.asarray(jax.random.bits(key, (7, 3), jnp.uint32))
    found = words(fold(123456789, 60, 1, 4000000000), 21)
    np.testing.assert_array_equal(found.reshape(7, 3), expected)


def test_folding_broadcasts():
    together = fold(SEED, np.arange(3)[:, None], np.arange(2)[:, None, None], np.arange(4))
    assert together.shape == (2, 3, 4, 2)
    np.testing.assert_array_equal(together[1, 2, 3], fold(SEED, 2, 1, 3)[0])


def test_gaussian_ends_and_moments():
    ends = np.asarray(jax.jit(gaussian)(np.array([0, 2**32 - 1], np.uint32)))
    assert np.isfinite(ends).all() and ends[0] == -ends[1]
    values = np.asarray(standard(fold(0, np.arange(6)), 20000), np.float64)
    assert abs(values.mean()) < 0.01 and abs(values.var() - 1) < 0.02
    assert abs((values**4).mean() - 3) < 0.15
