"""Bounds beside errors, on small made-up cases and as the program writes them."""

import numpy as np
import pytest

from experiments import bound_cases, bound_check
from paper_figures import bound_vs_error, rows
from solar.codec import bound, tail

POINTS = [(4, 0.0), (4, 0.1), (8, 1.0)]


@pytest.fixture(scope="module")
def cases():
    return bound_cases.cases(1, shape=(24, 32), leading=4, trailing=8)


def numbers(found):
    return [
        {k: float(v) if k in ("measured", "bound", "slack") and v is not None else v
         for k, v in row.items()}
        for row in found
    ]  # fmt: skip


@pytest.fixture(scope="module")
def table(cases):
    return numbers(bound_check.case_rows(*cases, POINTS, None, seed=3, seeds=40))


def test_every_row_of_every_case_is_there_and_holds(cases, table):
    assert len(cases[0]) == 6
    proved = [r for r in table if r["which"] != "expected"]
    assert len(proved) == 6 * len(POINTS) * 4  # certificate, tails of both sides, tail on dW
    for row in table:
        assert tuple(row) == bound_vs_error.COLUMNS
        assert row["vacuous"] == (row["bound"] is None) == (row["slack"] is None)
    for row in proved:
        assert row["vacuous"] == (row["eps"] == 1 and row["which"].startswith("tail"))
        if not row["vacuous"]:
            assert row["measured"] <= row["bound"] + 1e-5


def test_cases_press_where_they_say(table):
    def found(case, which, eps=0.0):
        return [r for r in table if (r["case"], r["which"], r["eps"]) == (case, which, eps)]

    assert all(r["measured"] < 1e-6 for r in found("inside", "tail"))
    assert all(0.01 < r["measured"] < 0.2 for r in found("inside", "tail", 0.1))
    for row in found("orthogonal", "tail"):
        assert row["measured"] == pytest.approx(1, abs=1e-4)
        assert row["slack"] == pytest.approx(0, abs=1e-5)
    (row,) = found("one side", "certificate")
    assert row["measured"] == pytest.approx(np.sqrt(0.5), rel=1e-3) and 0 <= row["slack"] < 0.01
    for row in table:
        if row["which"] == "expected":
            assert row["measured"] == pytest.approx(row["bound"], rel=0.1)


def test_the_ill_conditioned_update_survives_its_gauge(cases):
    values = np.prod([np.linalg.norm(side, axis=0) for side in cases[0]["condition"]], axis=0)
    np.testing.assert_allclose(values, np.logspace(0, -6, 4), rtol=1e-3)


def test_parallel_errors_attain_the_certificate():
    found = numbers(bound_check.parallel_rows([1e-3, 0.1, 1.0]))
    assert len(found) == 3
    assert all(abs(row["slack"]) < 1e-9 and row["measured"] > 1e-3 for row in found)


def test_an_adapter_is_its_layers_together(cases):
    factors, base = cases
    inputs = {k: np.random.default_rng(0).normal(size=(5, 32)) for k in factors}
    found = numbers(bound_check.adapter_rows("x", factors, base, [(8, 0.1)], None, 3, inputs, 2))
    whole = {r["which"]: r for r in found if r["layer"] == "all"}
    nearest = {r["which"]: r for r in found if r["layer"] != "all"}
    assert set(whole) == {"certificate", "tail", "tail on dW", "outputs", "expected"}
    each = bound_check.examine(factors, base, bound_check.Recipe("singular", 8, 0.1, seed=3), None)
    errors = np.array([[x.measured, x.norm] for x in each if x.name == "certificate"])
    expected = np.sqrt(np.sum(errors**2, axis=0))
    assert whole["certificate"]["measured"] == pytest.approx(expected[0] / expected[1], rel=1e-5)
    for which, row in nearest.items():
        assert row["slack"] <= whole[which]["slack"] + 1e-9 and row["layer"] in factors


def test_an_error_above_its_tail_is_caught(cases, monkeypatch):
    inside = ({"inside": x["inside"]} for x in cases)
    recipe = bound_check.Recipe("singular", 4, 0.1)
    factors, base = inside
    with monkeypatch.context() as patch:
        patch.setattr(bound_check, "projected", lambda atoms, matrix: 0 * matrix)
        with pytest.raises(bound.BoundViolated, match="tail of inside, left is violated"):
            bound_check.examine(factors, base, recipe, None)

    def turned(targets, plain, norms):  # the sign of the second term is turned
        return 2 * right(targets, plain, 0 * norms) - right(targets, plain, norms)

    right = tail.tail_bound
    monkeypatch.setattr(tail, "tail_bound", turned)
    with pytest.raises(bound.BoundViolated, match="tail bound of a side"):
        bound_check.examine(factors, base, recipe, None)


def test_the_program_writes_what_the_figure_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    for name, value in (("PERTURBATIONS", (0.0, 0.1)), ("NEAR_ONE", (0.9,)), ("SEEDS", 2)):
        monkeypatch.setattr(bound_check, name, value)
    small = ["tiny=true", "tracking=disabled", "model=tiny-llama", "task=synthetic_text", "name=x"]
    monkeypatch.setattr("sys.argv", ["bound_check", *small])
    bound_check.program()
    assert "wrote" in capsys.readouterr().out
    found = rows.read(tmp_path / "outputs" / "x" / "seed=0" / "bound_check.csv")
    assert tuple(found[0]) == bound_vs_error.COLUMNS
    outputs = [r for r in found if r["which"] == "outputs"]
    assert outputs and all(0 < r["measured"] <= r["bound"] for r in outputs)
    assert {"parallel", "norm near 1", "inside"} < {r["case"] for r in found}
    bound_vs_error.draw(found, tmp_path)
