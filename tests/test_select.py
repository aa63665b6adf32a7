"""Coefficients: least squares, the ridge where it explodes, the kept ones and their re-fit."""

import jax
import numpy as np
import pytest

from solar.codec.blas import cholesky, lower_gram, solved
from solar.codec.omp import pursue
from solar.codec.select import Fit, fit, largest, refit


def case(a, dim, t=3, b=2, seed=0):
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(b, a, dim))
    atoms /= np.linalg.norm(atoms, axis=-1, keepdims=True)
    return atoms.astype(np.float32), rng.normal(size=(b, t, dim)).astype(np.float32)


def solve(atoms, targets, count=None, ridge=1e-5):
    """`fit` of every side, stacked."""
    weights = np.ones(targets.shape[1], np.float32)
    found = [fit(a, x, weights, count, ridge) for a, x in zip(atoms, targets, strict=True)]
    return Fit(*(np.array(own) for own in list(zip(*found, strict=True))[:3]), None)


def again(atoms, targets, support, ridge=1e-6):
    """`refit` of every side, stacked."""
    sides = zip(atoms, targets, support, strict=True)
    return np.stack([refit(*side, ridge) for side in sides])


def error(atoms, targets, coefficients):
    return np.linalg.norm(targets - np.swapaxes(coefficients, 1, 2) @ atoms, axis=(1, 2))


@pytest.mark.parametrize("a", [8, 24])
def test_well_posed_problems_get_the_least_squares_solution(a):
    atoms, targets = case(a, 32)
    found = solve(atoms, targets, ridge=1e-6)
    for i in range(2):
        truth = np.linalg.lstsq(atoms[i].T.astype(np.float64), targets[i].T, rcond=None)[0]
        np.testing.assert_allclose(found.coefficients[i], truth, atol=2e-4)
    np.testing.assert_allclose(found.residual, error(atoms, targets, found.coefficients), rtol=1e-5)


def test_both_forms_agree_across_the_square():
    # One atom more than dimensions switches the form; a zero atom makes the problems equal.
    atoms, targets = case(16, 16, seed=1)
    more = np.concatenate([atoms, np.zeros((2, 1, 16), np.float32)], axis=1)
    plain = solve(atoms, targets, ridge=1e-2).coefficients
    other = solve(more, targets, ridge=1e-2).coefficients
    np.testing.assert_allclose(plain, other[:, :-1], atol=1e-4)
    assert (other[:, -1] == 0).all()


@pytest.mark.parametrize("a", [63, 64, 65, 256])
def test_ridge_bounds_the_coefficients_near_the_square(a):
    atoms, targets = case(a, 64, b=6, seed=2)
    found = solve(atoms, targets)
    norms = np.linalg.norm(found.coefficients, axis=(1, 2))
    assert (norms < 300 * np.linalg.norm(targets, axis=(1, 2))).all()
    rounded = found.coefficients.astype(np.float16).astype(np.float32)
    left = error(atoms, targets, rounded) / np.linalg.norm(targets, axis=(1, 2))
    assert (left < (0.5 if a < 64 else 0.3)).all()


def test_plain_least_squares_would_explode():
    # The ridge is what the test above tests: take it away and the coefficients run off.
    atoms, targets = case(64, 64, b=6, seed=2)
    with_ridge = np.linalg.norm(solve(atoms, targets).coefficients, axis=(1, 2))
    without = np.linalg.norm(solve(atoms, targets, ridge=1e-12).coefficients, axis=(1, 2))
    assert (without > 2 * with_ridge).any()


def test_the_largest_weighted_coefficients_are_kept():
    atoms = np.eye(4, dtype=np.float32)
    targets = np.array([[4.0, 3.0, 2.0, 1.0], [40.0, 3.0, 2.0, 1.0]], np.float32)
    found = fit(atoms, targets, np.array([1.0, 0.01], np.float32), 3, 1e-7)
    np.testing.assert_array_equal(found.support.T, [[1, 1, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(found.coefficients.T[0], [4, 3, 2, 0], rtol=1e-5)


def test_refit_is_least_squares_on_the_support_and_beats_cutting():
    atoms, targets = case(40, 32, seed=5)
    cut = solve(atoms, targets, count=45)
    support = cut.support
    assert (support.sum(axis=(1, 2)) == 45).all()
    fitted = again(atoms, targets, support)
    assert (fitted[~support] == 0).all()
    for i in range(2):
        for t in range(3):
            on = support[i, :, t]
            basis = atoms[i][on].T.astype(np.float64)
            truth = np.linalg.lstsq(basis, targets[i, t].astype(np.float64), rcond=None)[0]
            np.testing.assert_allclose(fitted[i, on, t], truth, atol=2e-3)
    assert (error(atoms, targets, fitted) < error(atoms, targets, cut.coefficients)).all()


def greedy(atoms, targets, weights, count):
    """Orthogonal matching pursuit by the book, float64, one pseudo-inverse a step."""
    chosen = {t: [] for t in range(len(targets))}
    for _ in range(count):
        best = (-1.0, 0, 0)
        for t, target in enumerate(targets):
            own = atoms[chosen[t]].T
            rest = (
                target - own @ np.linalg.lstsq(own, target, rcond=None)[0] if own.size else target
            )
            match = np.abs(atoms @ rest) * weights[t]
            match[chosen[t]] = -1
            best = max(best, (match.max(), t, int(match.argmax())))
        chosen[best[1]].append(best[2])
    return chosen


def test_pursuit_is_the_one_by_the_book():
    atoms, targets = case(40, 24, seed=6)
    weights = np.array([[1.0, 0.5, 2.0], [1.0, 1.0, 0.1]], np.float32)
    counts = np.array([17, 9], np.int32)
    support = np.asarray(pursue(atoms, targets, weights, counts, most=17))
    for i in range(2):
        truth = greedy(atoms[i].astype(float), targets[i].astype(float), weights[i], counts[i])
        for t in range(3):
            assert set(np.flatnonzero(support[i, :, t])) == set(truth[t])


def test_pursuit_beats_the_largest_coefficients():
    atoms, targets = case(96, 32, b=8, seed=7)
    weights = np.ones((8, 3), np.float32)
    picked = np.asarray(pursue(atoms, targets, weights, np.full(8, 24, np.int32), most=24))
    assert (picked.sum(axis=(1, 2)) == 24).all()
    cut = solve(atoms, targets, count=24).support
    errors = [error(atoms, targets, again(atoms, targets, s)) for s in (picked, cut)]
    assert (errors[0] < 0.9 * errors[1]).all()


def test_pursuit_stops_where_nothing_is_left():
    atoms = np.eye(6, dtype=np.float32)[None, :4]
    targets = np.zeros((1, 1, 6), np.float32)
    targets[0, 0, :2] = 3, 1
    support = np.asarray(
        pursue(atoms, targets, np.ones((1, 1), np.float32), np.array([4], np.int32), most=4)
    )
    np.testing.assert_array_equal(support[0, :, 0], [True, True, False, False])


def test_refit_takes_the_gram_matrix_of_the_fit_or_its_own():
    atoms, targets = case(24, 32, b=1, seed=8)
    found = fit(atoms[0], targets[0], np.ones(3, np.float32), 30, 1e-5)
    own = refit(atoms[0], targets[0], found.support, 1e-5)
    np.testing.assert_allclose(
        refit(atoms[0], targets[0], found.support, 1e-5, found.gram), own, atol=1e-5
    )
    assert fit(*(np.swapaxes(atoms, 1, 2)[0], targets[0][:, :24]), np.ones(3), 3, 1e-5).gram is None


def test_a_ridge_too_small_gives_no_numbers():
    atoms = np.ones((3, 4), np.float32)
    found = fit(atoms, np.ones((1, 4), np.float32), np.ones(1, np.float32), None, 1e-30)
    assert np.isnan(found.coefficients).all()


def test_default_matmul_precision_does_not_matter():
    atoms, targets = case(96, 32, b=8, seed=7)
    weights, counts = np.ones((8, 3), np.float32), np.full(8, 24, np.int32)
    plain = np.asarray(pursue(atoms, targets, weights, counts, most=24))
    with jax.default_matmul_precision("bfloat16"):
        low = np.asarray(pursue(atoms, targets, weights, counts, most=24))
    np.testing.assert_array_equal(plain, low)


def test_cholesky_without_the_lock_is_lapacks():
    x = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    gram = np.asfortranarray(x @ x.T)
    whole = gram.copy(order="F")
    assert cholesky(whole)
    np.testing.assert_allclose(np.tril(whole), np.linalg.cholesky(gram), atol=1e-6)
    below = gram - 2 * np.linalg.norm(gram) * np.eye(5, dtype=np.float32)
    assert not cholesky(np.asfortranarray(below))
    for wrong in (
        gram.astype(np.float64),
        np.zeros((2, 3), "f4", "F"),
        np.zeros((4, 4), "f4")[::2],
    ):
        with pytest.raises(ValueError, match="cholesky needs"):
            cholesky(wrong)


def test_solving_without_the_lock_is_lapacks():
    rng = np.random.default_rng(1)
    x, right = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 9), (5, 3)))
    gram, right = np.asfortranarray(x @ x.T), np.asfortranarray(right)
    lower, before = gram.copy(order="F"), right.copy()
    assert cholesky(lower)
    np.testing.assert_allclose(solved(lower, right), np.linalg.solve(gram, right), atol=1e-5)
    assert (right == before).all()
    for wrong in ((lower, right.astype("f8")), (lower, right.copy("C")), (lower, right[:4])):
        with pytest.raises(ValueError, match="solved needs"):
            solved(*wrong)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 7)])
def test_half_a_gram_matrix_is_that_of_the_whole(shape):
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    for own in (x, x[::-1], np.asfortranarray(x)):
        np.testing.assert_allclose(lower_gram(own), np.tril(own @ own.T), atol=1e-5)
    with pytest.raises(ValueError, match="lower_gram needs"):
        lower_gram(x.astype(np.float64))


@pytest.mark.parametrize("count", [0, 1, 5, 11, 12])
def test_the_largest_are_the_first_of_a_stable_order(count):
    score = np.random.default_rng(count).integers(0, 4, (3, 4)).astype(np.float32)  # many ties
    order = np.argsort(-score.ravel(), kind="stable")[:count]
    assert (np.flatnonzero(largest(score, count)) == np.sort(order)).all()
