"""Canonical factors: what they promise about gauge, sign, rank and the error."""

import jax
import numpy as np
import pytest

from solar.codec.factors import Factors, canonical, leading_sign, relative_error
from solar.errors import SolarError


def update(seed, m=24, n=40, r=4):
    """B (m, r), A (r, n), scale with distinct singular values."""
    rng = np.random.default_rng(seed)
    spectrum = 2.0 ** -np.arange(r)
    b = (rng.normal(size=(m, r)) * spectrum).astype(np.float32)
    return b, rng.normal(size=(r, n)).astype(np.float32), 0.5


def product(factors: Factors) -> np.ndarray:
    return np.asarray(factors.left, np.float64) @ np.asarray(factors.right, np.float64).T


def test_product_balance_and_order():
    b, a, scale = update(0)
    left, right = canonical({"x": (b, a, scale)})["x"]
    assert left.dtype == right.dtype == np.float32
    assert left.shape == (24, 4) and right.shape == (40, 4)
    truth = scale * b.astype(np.float64) @ a
    np.testing.assert_allclose(left @ right.T, truth, atol=2e-6 * np.linalg.norm(truth))
    s = np.linalg.svd(truth, compute_uv=False)[:4]
    np.testing.assert_allclose(left.T @ left, np.diag(s), atol=1e-5 * s[0])
    np.testing.assert_allclose(right.T @ right, np.diag(s), atol=1e-5 * s[0])


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e3])
def test_gauge_does_not_matter(condition):
    rng = np.random.default_rng(1)
    b, a, scale = update(2)
    pairs = {"plain": (b, a, scale)}
    for i in range(20):
        u, _, vt = np.linalg.svd(rng.normal(size=(4, 4)))
        gauge = u @ np.diag(np.geomspace(condition, 1, 4)) @ vt
        # The gauge itself in float64: what rounding it to float32 loses is not the codec's doing.
        pairs[f"gauge{i:02d}"] = (b @ gauge, np.linalg.solve(gauge, a), scale)
    found = canonical(pairs)
    for name in pairs:
        for side in (0, 1):
            np.testing.assert_allclose(found[name][side], found["plain"][side], atol=1e-5)


def test_float32_gauge_changes_the_update_by_its_rounding_only():
    rng = np.random.default_rng(3)
    b, a, scale = update(4)
    u, _, vt = np.linalg.svd(rng.normal(size=(4, 4)))
    gauge = u @ np.diag(np.geomspace(1e3, 1, 4)) @ vt
    turned = ((b @ gauge).astype(np.float32), np.linalg.solve(gauge, a).astype(np.float32), scale)
    found = canonical({"plain": (b, a, scale), "turned": turned})
    assert relative_error({"x": found["plain"]}, {"x": found["turned"]}) < 1e-4


def test_default_matmul_precision_does_not_matter():
    pairs = {"x": update(5)}
    plain = canonical(pairs)["x"]
    with jax.default_matmul_precision("bfloat16"):
        low = canonical(pairs)["x"]
    for side in (0, 1):
        np.testing.assert_array_equal(plain[side], low[side])


def test_sign_rule():
    rows = np.array([[0.1, -0.9, 0.8], [0.5, 0.5, -0.5], [-0.7, 0.7 + 1e-9, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(leading_sign(rows)[:, 0], [-1, 1, -1, 1])
    left, _ = canonical({"x": update(6)})["x"]
    assert (left[np.argmax(np.abs(left), axis=0), range(4)] > 0).all()


def test_small_components_are_dropped_and_zero_stays_zero():
    b, a, scale = update(7)
    b = b.astype(np.float64)
    b[:, 3] *= 1e-9
    factors = canonical({"thin": (b, a, scale), "zero": (0 * b, a, scale), "full": update(8)})
    assert factors["thin"].left.shape == (24, 3)
    assert factors["zero"].left.shape == (24, 0) and factors["zero"].right.shape == (40, 0)
    assert factors["full"].left.shape == (24, 4)


def test_rank_above_the_dimension():
    b, a, scale = update(9, m=3, n=40, r=8)
    left, right = canonical({"x": (b, a, scale)})["x"]
    assert left.shape == (3, 3)
    np.testing.assert_allclose(left @ right.T, scale * b @ a, atol=1e-4)


def test_mixed_shapes_keep_their_own_layers():
    pairs = {"b": update(10, m=8, n=6, r=2), "a": update(11, m=6, n=8, r=2), "c": update(12)}
    factors = canonical(pairs)
    assert list(factors) == ["a", "b", "c"]
    for name, (b, a, scale) in pairs.items():
        truth = scale * b.astype(np.float64) @ a
        np.testing.assert_allclose(product(factors[name]), truth, atol=1e-5)


def test_bad_input_is_named():
    b, a, scale = update(13)
    with pytest.raises(SolarError, match="update of q"):
        canonical({"q": (b, a.T, scale)})
    with pytest.raises(SolarError, match="update of q holds non-finite"):
        canonical({"q": (b * np.nan, a, scale)})


def test_relative_error_equals_the_dense_one():
    original = canonical({"x": update(14), "y": update(15, m=10, n=7, r=3)})
    rng = np.random.default_rng(16)
    decoded = {
        name: Factors(*(s + 0.1 * rng.normal(size=s.shape).astype(np.float32) for s in pair))
        for name, pair in original.items()
    }
    decoded["y"] = Factors(decoded["y"].left[:, :1], decoded["y"].right[:, :1])  # another rank
    dense = np.sqrt(sum(np.linalg.norm(product(original[k]) - product(decoded[k])) ** 2
                        for k in original))  # fmt: skip
    total = np.sqrt(sum(np.linalg.norm(product(x)) ** 2 for x in original.values()))
    assert relative_error(original, decoded) == pytest.approx(dense / total, rel=1e-10)


def test_relative_error_keeps_its_digits_when_small():
    original = canonical({"x": update(17)})
    left, right = original["x"]
    step = np.zeros_like(left)
    step[0, 0] = np.float32(2.0**-30)
    moved = {"x": Factors(left.astype(np.float64) + step, right)}
    truth = 2.0**-30 * np.linalg.norm(right[:, 0].astype(np.float64))
    expected = truth / np.linalg.norm(product(original["x"]))
    assert relative_error(original, moved) == pytest.approx(expected, rel=1e-6)
    assert relative_error(original, original) == 0


def test_relative_error_of_nothing():
    zero = {"x": Factors(np.zeros((3, 0), np.float32), np.zeros((4, 0), np.float32))}
    assert relative_error(zero, zero) == 0
    with pytest.raises(SolarError, match="only one"):
        relative_error(zero, {})
