"""Singular vectors where a LAPACK driver may choose: the same rows from all of them."""

import numpy as np
import pytest

from solar.codec import singular
from solar.errors import SolarError

RNG = np.random.default_rng(0)


def orthonormal(count, dim):
    """Random orthonormal rows (count, dim)."""
    return np.linalg.qr(RNG.normal(size=(dim, count)))[0].T


def frames(weight, name, monkeypatch):
    monkeypatch.setenv("SOLAR_SVD", name)
    return singular.singular_frames("w", lambda: weight, weight.shape, b"", None)


def spectrum(values, m, n):
    return (orthonormal(len(values), m).T * values) @ orthonormal(len(values), n)


WEIGHTS = {
    "random": RNG.normal(size=(30, 24)),
    "tall and thin": RNG.normal(size=(60, 5)),
    "identity": np.eye(24),
    "repeated block": np.kron(np.eye(3), RNG.normal(size=(8, 8))),
    "orthogonal": spectrum(np.ones(24), 24, 24),
    "pairs": spectrum(np.repeat([5.0, 3.0, 2.0, 1.0, 0.4], 2), 30, 24),
    "near pairs": spectrum([5, 5 - 1e-9, 3, 3 - 1e-9, 2, 2 - 1e-9], 30, 24),
    "rank 4 of 24": spectrum([3.0, 3.0, 1.0, 0.5], 24, 30),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("driver", ["gesvd", "gram"])
def test_every_driver_gives_the_same_frames(name, driver, monkeypatch):
    weight = WEIGHTS[name]
    for one, other in zip(
        frames(weight, "gesdd", monkeypatch), frames(weight, driver, monkeypatch), strict=True
    ):
        np.testing.assert_allclose(one.rows, other.rows, atol=1e-6)
        np.testing.assert_allclose(one.values, other.values, rtol=1e-7)


@pytest.mark.parametrize("name", WEIGHTS)
def test_frames_span_the_weight(name, monkeypatch):
    weight = WEIGHTS[name]
    left, right = frames(weight, "gesdd", monkeypatch)
    for rows in (left.rows, right.rows):
        np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-6)
    np.testing.assert_allclose(
        left.rows.T @ (left.rows @ weight @ right.rows.T) @ right.rows, weight, atol=1e-5
    )


@pytest.mark.parametrize("count", [2, 3, 7, 20])
def test_a_group_does_not_depend_on_the_basis_it_came_in(count):
    span = orthonormal(count, 20)
    first = singular.canonical_group(span)
    np.testing.assert_allclose(first @ first.T, np.eye(count), atol=1e-12)
    np.testing.assert_allclose(first.T @ first, span.T @ span, atol=1e-12)
    for _ in range(20):
        turn = orthonormal(count, count)
        np.testing.assert_allclose(singular.canonical_group(turn @ span), first, atol=1e-12)


def test_a_group_with_ties_does_not_depend_on_the_basis_either():
    """Coordinate axes that lie equally deep in the span: the first of them counts."""
    axes = np.eye(12)[[1, 4, 7, 10]]
    flat = np.kron(np.eye(3), np.full((1, 4), 0.5))
    for span in (axes, flat):
        expected = singular.canonical_group(span)
        np.testing.assert_allclose(np.sort(np.abs(expected), axis=0), np.sort(span, axis=0))
        for _ in range(20):
            turn = orthonormal(len(span), len(span))
            found = singular.canonical_group(turn @ span)
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_identity_has_the_coordinate_axes(monkeypatch):
    for name in singular.DRIVERS:
        for frame in frames(np.eye(9), name, monkeypatch):
            np.testing.assert_allclose(frame.rows, np.eye(9), atol=1e-12)


def test_groups_are_runs_of_near_values():
    values = np.array([4.0, 4.0 - 1e-9, 3.0, 2.0, 2.0 - 3e-8, 2.0 - 6e-8, 1.0])
    assert singular.groups(values) == [slice(0, 2), slice(3, 6)]
    assert singular.groups(values * 1e-5) == [slice(0, 2), slice(3, 6)]
    assert singular.groups(np.ones(5)) == [slice(0, 5)]
    assert singular.groups(np.ones(1)) == [] == singular.groups(np.arange(3, 0, -1.0))


def test_an_unknown_driver_is_refused(monkeypatch):
    with pytest.raises(SolarError, match="SOLAR_SVD=jacobi is unknown; choose one of"):
        frames(np.eye(3), "jacobi", monkeypatch)


def test_every_driver_has_its_own_cache(tmp_path, monkeypatch):
    weight, asked = WEIGHTS["random"], []
    for name in (*singular.DRIVERS, *singular.DRIVERS):
        monkeypatch.setenv("SOLAR_SVD", name)
        singular.singular_frames(
            "w", lambda name=name: asked.append(name) or weight, weight.shape, b"key", tmp_path
        )
    assert asked == list(singular.DRIVERS)
