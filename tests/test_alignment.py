"""Alignment: full where it is built in, chance where it is not, and the control beside it."""

import numpy as np
import pytest

from solar.codec.alignment import alignment
from solar.codec.factors import Factors


def setting(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (60, 60), "b": (20, 60)}
    return rng, {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}


def test_an_update_inside_the_leading_subspace():
    rng, base = setting()
    u, _, vt = np.linalg.svd(base["a"])
    inside = Factors(*(x.astype("f4") for x in (u[:, :5] @ rng.normal(size=(5, 2)),
                                                vt[:5].T @ rng.normal(size=(5, 2)))))  # fmt: skip
    records = alignment({"a": inside}, base, [2, 5, 30])
    assert len(records) == 6
    for record in records:
        if record["size"] >= 5:
            assert record["singular"] == pytest.approx(1, abs=1e-5)
        else:
            assert record["singular"] < 0.999
        assert record["expected"] == record["size"] / 60
        assert record["random"] == pytest.approx(record["expected"], abs=0.3)


def test_a_random_update_has_the_share_of_chance():
    rng, base = setting(1)
    factors = {
        name: Factors(*(rng.normal(size=(d, 20)).astype("f4") for d in weight.shape))
        for name, weight in base.items()
    }
    for record in alignment(factors, base, [10, 400]):
        assert record["singular"] == pytest.approx(record["expected"], abs=0.08)
        assert record["random"] == pytest.approx(record["expected"], abs=0.08)
    last = [r for r in alignment(factors, base, [400]) if r["name"] == "b"]
    assert [(r["side"], r["size"], r["dim"]) for r in last] == [("left", 20, 20), ("right", 20, 60)]


def test_the_control_does_not_align_with_anything_on_average():
    rng, base = setting(2)
    one = {"a": Factors(*rng.normal(size=(2, 60, 1)).astype("f4"))}
    found = [alignment(one, base, [15], seed=seed)[0]["random"] for seed in range(60)]
    assert np.mean(found) == pytest.approx(0.25, abs=4 * np.std(found) / np.sqrt(60))


def test_zero_updates_are_left_out():
    _, base = setting(3)
    zero = Factors(np.zeros((60, 0), "f4"), np.zeros((60, 0), "f4"))
    assert alignment({"a": zero}, base, [4]) == []
