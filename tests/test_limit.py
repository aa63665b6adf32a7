"""The rate-distortion limit: closed forms, a brute-force optimiser, and the shape of the curve."""

import numpy as np
import pytest
from scipy.optimize import minimize

from solar.codec import baselines, metric_limit
from solar.codec.factors import Factors, canonical
from solar.codec.frame_file import OCTAVE
from solar.codec.limit import allocate, bytes_at, rate_distortion, spectrum
from solar.codec.profiled import Dials, Lines


def factors_with(spectra, m=32, n=32, seed=0):
    """One layer per spectrum, balanced factors with exactly these singular values."""
    rng = np.random.default_rng(seed)
    result = {}
    for i, s in enumerate(spectra):
        s = np.asarray(s, np.float64)
        u, _ = np.linalg.qr(rng.normal(size=(m, len(s))))
        v, _ = np.linalg.qr(rng.normal(size=(n, len(s))))
        pair = (u * np.sqrt(s), v * np.sqrt(s))
        result[f"layer{i}"] = Factors(*(x.astype(np.float32) for x in pair))
    return result


def brute_force(s, m, n, error):
    """Fewest bytes at a relative error: gradient search over every delta, many starts."""
    s, m, n = (np.asarray(x, float) for x in (s, m, n))
    total = np.sum(s**2)

    def split(x):
        delta = np.exp(-np.exp(np.clip(x, -20, 3)))
        return delta[: len(s)], delta[len(s) :]

    def size(x):
        left, right = split(x)
        return -np.sum(m * np.log(left) + n * np.log(right)) / (16 * np.log(2))

    def excess(x):
        left, right = split(x)
        return error**2 - np.sum(s**2 * (left + right - left * right)) / total

    best = np.inf
    for start in np.random.default_rng(0).uniform(-1.5, 1.5, size=(6, 2 * len(s))):
        found = minimize(size, start, method="SLSQP", options={"maxiter": 500},
                         constraints={"type": "ineq", "fun": excess})  # fmt: skip
        if found.success and excess(found.x) > -1e-9:
            best = min(best, size(found.x))
    return best


def test_spectrum_is_that_of_the_updates():
    s, m, n = spectrum(factors_with([[3.0, 1.0], [2.0]], m=20, n=12))
    np.testing.assert_allclose(np.sort(s), [1, 2, 3], rtol=1e-6)
    assert set(m) == {20} and set(n) == {12}


def test_equal_components_follow_the_closed_form():
    # All components alike and m = n: error^2 = 1 - (1 - delta)^2 with the same delta everywhere.
    curve = rate_distortion(factors_with([[2.0, 2.0], [2.0, 2.0]]))
    for error in (0.5, 0.2, 0.05, 0.01):
        delta = 1 - np.sqrt(1 - error**2)
        expected = 4 * 64 / 2 * np.log2(1 / delta) / 8
        assert bytes_at(curve, error) == pytest.approx(expected, rel=2e-3)


def test_small_errors_are_plain_reverse_water_filling():
    # Entries of variance s / d weighted by s: distortion theta on every entry, error^2 = sum theta.
    s, m, n = np.array([4.0, 1.0, 0.5]), 24, 48
    curve = rate_distortion(factors_with([s], m=m, n=n))
    error = 3e-3
    theta = error**2 * np.sum(s**2) / (3 * (m + n))
    bits = 0.5 * sum(d * np.sum(np.log2(s**2 / d / theta)) for d in (m, n))
    assert bytes_at(curve, error) == pytest.approx(bits / 8, rel=2e-3)


@pytest.mark.parametrize("error", [0.4, 0.15, 0.03])
def test_brute_force_agrees(error):
    spectra = [[3.0, 1.0], [1.5, 0.2]]
    curve = rate_distortion(factors_with(spectra, m=24, n=40))
    truth = brute_force(np.concatenate(spectra), [24] * 4, [40] * 4, error)
    assert bytes_at(curve, error) == pytest.approx(truth, rel=1e-2)


def test_no_price_is_beaten_by_a_grid():
    s, m, n = np.array([1.3]), np.array([16.0]), np.array([48.0])
    grid = np.geomspace(1e-5, 1, 400)
    left, right = np.meshgrid(grid, grid)
    for price in np.geomspace(1e-4, 0.2, 12):
        error, nats = allocate(s, m, n, np.array([price]))
        cost = s**2 * (left + right - left * right) - price / 2 * (
            m * np.log(left) + n * np.log(right)
        )
        assert error[0, 0] + price * nats[0, 0] <= cost.min() * (1 + 1e-12)
        assert error[0, 0] + price * nats[0, 0] >= cost.min() * (1 - 1e-3)


def test_curve_is_monotone_and_convex():
    rng = np.random.default_rng(5)
    spectra = [np.sort(rng.lognormal(sigma=2, size=3))[::-1] for _ in range(7)]
    size, error = np.array(rate_distortion(factors_with(spectra, m=20, n=36))).T
    assert size[0] == 0 and error[0] == 1 and error[-1] < 1.5e-4
    assert (np.diff(size) > 0).all() and (np.diff(error) < 0).all()
    slope = np.diff(error) / np.diff(size)
    assert (np.diff(slope) > 0).all()


def test_no_baseline_beats_it():
    rng = np.random.default_rng(6)
    base = {f"w{i}": rng.normal(size=(96, 64)).astype(np.float32) for i in range(4)}
    factors = canonical(
        {k: (rng.normal(size=(96, 3)) * [1, 0.4, 0.1], rng.normal(size=(3, 64)), 1.0) for k in base}
    )
    curve = rate_distortion(factors)
    for kind in ({"bits": 1}, {"bits": 1, "rank": 1}, {"bits": 2}, {"bits": 4}, {"bits": 8}):
        report = baselines.encode(factors, base, "bits", **kind).report
        assert report["bytes"]["payload"] > bytes_at(curve, report["relative_error"])


def test_zero_update():
    zero = {"x": Factors(np.zeros((3, 0), np.float32), np.zeros((4, 0), np.float32))}
    assert rate_distortion(zero) == [(0.0, 0.0)]


def test_beyond_the_curve():
    curve = rate_distortion(factors_with([[1.0]]))
    assert bytes_at(curve, 1e-9) == float("inf")
    assert bytes_at(curve, 1.0) == 0


def lines_of(profiles):
    """Two layers of two components, sides of 16 and 64 entries, with these profiles."""
    energies = np.array([3 * OCTAVE, 2 * OCTAVE, 2 * OCTAVE, OCTAVE])
    return Lines(energies, np.array([0, 0, 2, 2]), np.array([[16, 64]] * 4), np.tile(profiles, 4))


@pytest.mark.parametrize("relative", [0, 255])
def test_without_profiles_the_metric_has_the_limit_of_the_spectrum(relative):
    dials = Dials(0, 0, 0, relative, 0, 0)
    even = lines_of(np.repeat([-4 * OCTAVE, -6 * OCTAVE], [16, 64]))
    steep = lines_of(np.concatenate([-2 * np.arange(16), -2 * np.arange(64)]))
    for error in (0.2, 0.05, 0.01):
        free = metric_limit.unprofiled(even, dials, error)
        assert free == pytest.approx(metric_limit.least_bytes(even, dials, error), rel=1e-9)
        assert free == metric_limit.unprofiled(steep, dials, error)
        assert metric_limit.least_bytes(steep, dials, error) < 0.9 * free
    small = [f(even, dials, 1e-12) for f in (metric_limit.unprofiled, metric_limit.least_bytes)]
    assert small[0] == pytest.approx(small[1], rel=1e-4)  # far below where limit.py's curve ends
    assert metric_limit.unprofiled(even, dials, 1.0) == 0
    spectra = [[1.0, 0.5], [1.0, 0.5]] if relative else [[8.0, 4.0], [4.0, 2.0]]
    curve = rate_distortion(factors_with(spectra, m=16, n=64))
    assert free == pytest.approx(bytes_at(curve, 0.1), rel=1e-4)


def test_time_is_shared_where_a_component_begins():
    own, dials = lines_of(np.zeros(80, int)), Dials(0, 0, 0, 255, 0, 0)
    half = metric_limit.unprofiled(own, dials, 0.95)  # all of the first components begin alike
    assert 0 < half == pytest.approx(metric_limit.unprofiled(own, dials, 0.9) / 2, rel=1e-6)


@pytest.mark.parametrize("error", [0.9, 0.6, 0.3, 0.05])
def test_the_limit_with_profiles_is_the_least_over_the_levels_of_both_sides(error):
    left, right = -2 * np.arange(16), -3 * np.arange(32)
    own = Lines(np.zeros(1, int), np.zeros(1, int), np.array([[16, 32]]), np.r_[left, right])
    lost, nats = [], []
    for side in (left, right):
        share = 2.0 ** (side / OCTAVE)
        share /= share.sum()
        level = np.geomspace(1e-4, 1, 400)[:, None]
        lost.append(np.minimum(share, level).sum(axis=1))
        nats.append(np.log(np.maximum(share / level, 1)).sum(axis=1) / 2)
    missing = 1 - np.outer(1 - lost[0], 1 - lost[1])
    size = np.add.outer(*nats) / (8 * np.log(2))
    # The lower convex hull of what all pairs of levels reach, and nothing for nothing.
    hull = max(
        min(np.min(size + price * missing), price) - price * error
        for price in np.geomspace(1, 1e3, 300)
    )
    assert metric_limit.least_bytes(own, Dials(*[0] * 6), error) == pytest.approx(hull, rel=5e-3)
