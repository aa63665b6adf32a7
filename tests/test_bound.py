"""The bounds: they hold, they are tight where they should be, and a wrong one is caught."""

import numpy as np
import pytest

from solar.codec import bound, tail
from solar.codec.basis import atoms
from solar.codec.blas import one_thread
from solar.codec.factors import Factors
from solar.codec.kinds import Sides
from solar.codec.recipe import Recipe


def random_factors(rng, count, m=14, n=10, r=3):
    scale = np.exp(rng.normal(size=(count, 1, 1)) * 2)
    return (rng.normal(size=(count, m, r)) * scale, rng.normal(size=(count, n, r)) / scale)


def as_layers(left, right):
    return {f"{i:04d}": Factors(x, y) for i, (x, y) in enumerate(zip(left, right, strict=True))}


def test_certificate_holds_over_a_thousand_cases():
    rng = np.random.default_rng(0)
    left, right = random_factors(rng, 1000)
    size = np.exp(rng.uniform(-12, 3, size=(2, 1000, 1, 1)))  # errors from 1e-5 to 20 of the norm
    left_ = left + size[0] * rng.normal(size=left.shape)
    right_ = right + size[1] * rng.normal(size=right.shape)
    checked = bound.check(as_layers(left, right), as_layers(left_, right_))
    dense = np.linalg.norm(left @ right.swapaxes(1, 2) - left_ @ right_.swapaxes(1, 2), axis=(1, 2))
    measured = np.array([x.measured for x in checked.values()])
    certificate = np.array([x.certificate for x in checked.values()])
    np.testing.assert_allclose(measured, dense, rtol=1e-7)
    assert (dense <= certificate).all() and len(checked) == 1000
    assert all(0 <= x.slack < 1 for x in checked.values())


def tight_case(both=False):
    """All error in one column, where the other side has its largest singular value."""
    rng = np.random.default_rng(1)
    right, _ = np.linalg.qr(rng.normal(size=(10, 3)))
    left, _ = np.linalg.qr(rng.normal(size=(14, 3)))
    left, right = left * [3, 1, 0.5], right * [2, 1, 0.5]
    left_, right_ = left.copy(), right.copy()
    left_[:, 0] *= 1.1
    if both:  # parallel and of one sign: all three terms add up
        right_[:, 0] *= 1.2
    return {"x": Factors(left, right)}, {"x": Factors(left_, right_)}


@pytest.mark.parametrize("both", [False, True])
def test_certificate_is_tight_on_a_constructed_case(both):
    layer = bound.check(*tight_case(both))["x"]
    assert 0 <= layer.slack < 1e-9
    assert layer.measured == pytest.approx(6 * ((1.1 * 1.2 if both else 1.1) - 1), rel=1e-9)


def test_a_wrong_certificate_is_caught(monkeypatch):
    def wrong(left, right, left_, right_):
        right_error = bound.frobenius(right_ - right)
        return (
            bound.frobenius(left_ - left) * bound.spectral(right)
            + bound.spectral(left) * right_error
            - bound.spectral(left_ - left) * right_error  # the sign of this term is turned
        )

    monkeypatch.setattr(bound, "certificate", wrong)
    with pytest.raises(bound.BoundViolated, match="certificate of layer x is violated"):
        bound.check(*tight_case(both=True))


def test_not_a_number_never_passes():
    with pytest.raises(bound.BoundViolated):
        bound.hold("x", float("nan"), 1.0)
    with pytest.raises(bound.BoundViolated):
        bound.hold("x", 1.0, float("nan"))


def test_nothing_and_everything_lost():
    original, _ = tight_case()
    gone = {"x": Factors(np.zeros((14, 0)), np.zeros((10, 0)))}
    layer = bound.check(original, gone)["x"]
    assert layer.measured == pytest.approx(layer.norm)
    zero = bound.check(gone, gone)["x"]
    assert zero == (0, 0, 0) and zero.slack == 0
    same = bound.summary(bound.check(original, original))
    assert same["relative_error"] == same["bound"] == same["slack"] == 0


def test_summary_names_the_worst():
    rng = np.random.default_rng(2)
    left, right = random_factors(rng, 3)
    moved = left.copy()
    moved[1] *= 1.5
    report = bound.summary(bound.check(as_layers(left, right), as_layers(moved, right)))
    assert report["worst"]["name"] == "0001" and len(report["layers"]) == 3
    assert 0 < report["relative_error"] <= report["bound"]


def test_outputs_stay_within_their_bound():
    rng = np.random.default_rng(3)
    left, right = (x[0] for x in random_factors(rng, 1))
    left_ = left + 0.1 * rng.normal(size=left.shape)
    x = rng.normal(size=(50, 10))
    measured, limit = bound.output_bound(Factors(left, right), Factors(left_, right), x)
    difference = left_ @ right.T - left @ right.T
    np.testing.assert_allclose(measured, np.linalg.norm(x @ difference.T, axis=1))
    assert (measured <= limit).all()
    top = np.linalg.svd(difference)[2][:1]
    measured, limit = bound.output_bound(Factors(left, right), Factors(left_, right), top)
    assert measured[0] == pytest.approx(limit[0], rel=1e-9)


# -------------------------------------------------------------------------------- before encoding

spectral_upper = one_thread(tail.spectral_upper)  # as the codec runs it


def test_spectral_upper_bounds_closely():
    rng = np.random.default_rng(4)
    matrices = rng.normal(size=(60, 12, 20)).astype(np.float32)
    matrices[1] = matrices[1, :1] * np.arange(1, 13)[:, None]  # rank one
    matrices[2] = 0
    truth = np.linalg.norm(matrices.astype(np.float64), 2, axis=(1, 2))
    found = np.asarray(spectral_upper(matrices), np.float64)
    assert (found >= truth * (1 - 1e-6)).all()
    assert np.median(found / np.maximum(truth, 1e-30)) < 1.05


@pytest.mark.parametrize("count", [16, 96, 192])
def test_spectral_upper_of_noise_is_never_far_off(count):
    """Eigenvalues crowd at the edge here; a bound twice too large would call the tail vacuous."""
    matrices = np.random.default_rng(8).normal(size=(30, count, 192)).astype(np.float32)
    truth = np.linalg.norm(matrices.astype(np.float64), 2, axis=(1, 2))
    found = np.asarray(spectral_upper(matrices), np.float64) / truth
    assert (1 < found).all() and found.max() < 1.03


@pytest.mark.parametrize("shape", [(60, 576), (192, 192), (300, 192)])
def test_spectral_upper_takes_the_edge_of_noise_for_a_guess(shape, monkeypatch):
    matrices = np.random.default_rng(9).normal(size=(30, *shape)).astype(np.float32)
    truth = np.linalg.norm(matrices.astype(np.float64), 2, axis=(1, 2))
    searched = []
    lanczos = tail._largest
    monkeypatch.setattr(tail, "_largest", lambda gram: searched.append(1) or lanczos(gram))
    found = spectral_upper(matrices, noise=True) / truth
    assert (1 < found).all() and found.max() < 1.05 and np.median(found) < 1.03
    assert len(searched) < 6
    matrices[0, 0] *= 20  # what is no noise is bounded as well
    truth = np.linalg.norm(matrices[:1].astype(np.float64), 2, axis=(1, 2))
    assert truth < spectral_upper(matrices[:1], noise=True) < 1.05 * truth


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.05, 0.3])
def test_tail_bound_holds(eps):
    rng = np.random.default_rng(5)
    plain = np.stack([np.linalg.qr(rng.normal(size=(30, 12)))[0].T for _ in range(250)])
    moved = eps * rng.normal(size=plain.shape) / np.sqrt(30)
    # Half of the targets lie almost in the unperturbed span, where the second term is all.
    inside = rng.normal(size=(250, 2, 12)) @ plain
    outside = rng.normal(size=(250, 2, 30)) * np.where(np.arange(250) % 2, 1.0, 1e-3)[:, None, None]
    targets = (inside + outside).astype(np.float32)
    norms = np.linalg.norm(moved, 2, axis=(1, 2))
    limits = tail.tail_bound(targets, plain.astype(np.float32), norms)
    for i in range(250):
        residual = tail.exact_residual(targets[i], plain[i] + moved[i])
        assert residual <= limits[i] + 1e-6 * np.linalg.norm(targets[i])
    assert np.isfinite(limits).all() == (norms.max() < 1)


def test_tail_bound_is_tight_without_perturbation_and_vacuous_with_much():
    rng = np.random.default_rng(6)
    plain = np.linalg.qr(rng.normal(size=(20, 6)))[0].T[None]
    targets = rng.normal(size=(1, 3, 20)).astype(np.float32)
    exact = tail.exact_residual(targets[0], plain[0])
    assert tail.tail_bound(targets, plain, np.zeros(1))[0] == pytest.approx(exact, rel=1e-5)
    assert tail.tail_bound(targets, plain, np.array([1.0]))[0] == np.inf


def test_random_columns_keep_their_share_in_the_mean():
    dim, size, seeds = 24, 9, 400
    group = Sides(np.arange(seeds, dtype=np.uint32), np.zeros(seeds, np.uint32), dim, 1)
    ids = np.tile(np.arange(size, dtype=np.uint32), (seeds, 1))
    found = np.asarray(atoms(Recipe("random", size, seed=11), group, ids, None)[0])[:, :, 0]
    x = np.random.default_rng(7).normal(size=(1, dim))
    energy = [tail.exact_residual(x, basis) ** 2 for basis in found]
    expected = tail.expected_tail(float(np.linalg.norm(x)), size, dim) ** 2
    error = np.std(energy) / np.sqrt(seeds)
    assert abs(np.mean(energy) - expected) < 4 * error
    assert error < 0.02 * expected
