"""One quantiser in many frames, and what both ends know beforehand."""

import numpy as np
import pytest
from test_measuring import run

from experiments import frames_compared, known_to_both
from paper_figures import frames as table
from paper_figures import rows as results
from solar.codec import frame_file
from solar.codec.factors import Factors


def moment(width: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(4 * width, width))
    return (rows * np.arange(1, width + 1) ** -0.7).T @ rows / len(rows)


def test_eigenvectors_are_the_frame_that_is_shipped():
    own = moment(80) + moment(80).T
    found = frames_compared.in_directions(own, np.linalg.eigh(own)[1])
    shipped = frame_file.quantised(own, 64)
    assert np.abs(found.rows.astype(int) - shipped.rows).max() <= 1  # it rounds the moment
    assert (found.powers == shipped.powers).all()


def test_other_directions_tell_their_energy():
    own = np.diag(np.append(np.full(79, 2.0), 32.0))
    found = frames_compared.in_directions(own, np.eye(80))
    assert found.rows[0, 79] == 127 and not found.rows[0, :79].any()  # most energy first
    assert found.powers[0] == 4 * 5 and (found.powers[1:] == 4).all()
    alike = frames_compared.flat(own)
    assert len(set(alike.powers)) == 1 and alike.rows.shape == (64, 80)
    assert alike.powers[0] == round(4 * np.log2(190 / 80))


@pytest.mark.parametrize("kind", ["identity", "random", "singular", "singular, perturbed"])
def test_directions_are_orthonormal(kind):
    weight = np.random.default_rng(1).normal(size=(20, 30))
    inputs, outputs = frames_compared.turned(kind, weight, 0)
    assert np.allclose(inputs.T @ inputs, np.eye(30)) and np.allclose(
        outputs.T @ outputs, np.eye(20)
    )
    seen = np.abs(outputs.T @ weight @ inputs)
    off = (seen.sum() - np.trace(seen[:, :20])) / seen.sum()
    assert (off < 1e-9) == (kind == "singular")
    assert kind != "singular, perturbed" or off < 0.6  # they are still near


def test_errors_by_kind_of_layer():
    rng = np.random.default_rng(2)
    own = frames_compared.Seen(
        [moment(12), np.eye(10)], {"0.q": (0, 1), "1.q": (0, 1), "0.v": (0, 1)}
    )
    before = {k: Factors(rng.normal(size=(10, 2)), rng.normal(size=(12, 2))) for k in own.layers}
    nothing = Factors(np.zeros((10, 0)), np.zeros((12, 0)))
    found = frames_compared.felt(before, before | {"0.v": nothing}, own)
    assert found == pytest.approx({"q": 0, "v": 1}, abs=1e-6)
    after = before | {"0.q": Factors(before["0.q"].left[:, :1], before["0.q"].right[:, :1])}
    q = [before[name].left @ before[name].right.T for name in ("0.q", "1.q")]
    lost = np.outer(before["0.q"].left[:, 1], before["0.q"].right[:, 1])
    size = lambda x: np.trace(x @ own.moments[0] @ x.T)  # noqa: E731
    wanted = np.sqrt(size(lost) / sum(map(size, q)))
    assert frames_compared.felt(before, after, own)["q"] == pytest.approx(wanted)


def test_every_frame_of_every_seed_once(monkeypatch, tmp_path):
    given = "+seeds=[0,1]", "+budgets=[700]", "+text=synthetic_text"
    rows = run(monkeypatch, tmp_path, frames_compared, *given)
    assert tuple(rows[0]) == table.COLUMNS
    whole = [row for row in rows if row["layers"] == "all"]
    assert len({row["frame"] for row in whole}) == 16 and len(whole) == 32
    assert all(0 < int(row["bytes"]) <= 700 for row in whole)
    assert {row["layers"] for row in rows} == {"all", "c_attn"}
    assert all(float(row["error"]) < 1.2 for row in rows if row["layers"] == "c_attn")
    monkeypatch.setattr(frames_compared, "finetune", None)  # nothing is made anew
    assert run(monkeypatch, tmp_path, frames_compared, *given) == rows
    with pytest.raises(TypeError):  # another budget is another row, another name another adapter
        run(monkeypatch, tmp_path, frames_compared, *given[:1], "+budgets=[700,800]", given[2])
    with pytest.raises(TypeError):
        run(monkeypatch, tmp_path, frames_compared, *given, "name=other")
    told = table.markdown(results.read(tmp_path / "rows.csv"))
    assert told.count("\n") == 2 * (16 + 2) and "| frame | tiny_gpt2, 700 B |" in told.replace(
        "-", "_"
    )


def test_the_table_has_means_over_seeds():
    own = {
        "experiment": "e",
        "base": "b",
        "task": "t",
        "frame": "own, 256",
        "budget": 1000,
        "layers": "all",
    }
    rest = {"bytes": 990, "score": 0.5, "error": None}
    rows = [
        own | rest | {"seed": seed, "kl": 0.1 + seed, "retained": 0.8 + 0.2 * seed}
        for seed in (0, 1)
    ]
    rows.append(own | {"layers": "q", "seed": 0, "error": 0.25, "bytes": None, "kl": None,
                       "score": None, "retained": None})  # fmt: skip
    told = table.markdown(rows)
    assert "| own, 256 | 0.600, 90% ± 14 |" in told and "| own, 256 | 0.25 |" in told
    both = table.markdown([*rows, *(row | {"experiment": "f", "kl": 3} for row in rows[:2])])
    assert "| b, e, 1,000 B | b, f, 1,000 B |" in both and "0.600, 90% ± 14 | 3.000, 90%" in both
    with pytest.raises(ValueError, match="lack kl"):
        table.markdown([{k: v for k, v in rows[0].items() if k != "kl"}])


def test_shares_of_what_is_known():
    rng = np.random.default_rng(3)
    of, span = rng.normal(size=(40, 2)), rng.normal(size=(40, 3))
    assert known_to_both.share(of, np.concatenate([of @ rng.normal(size=(2, 2)), span], 1)) == (
        pytest.approx(1)
    )
    inside = np.linalg.lstsq(span, of, rcond=None)[0]
    wanted = np.sum((span @ inside) ** 2) / np.sum(of**2)
    assert known_to_both.share(of, span) == pytest.approx(wanted)
    assert known_to_both.entropy(np.array([1, 1, 2, 3])) == pytest.approx(1.5)


def test_an_adapter_of_few_steps_lies_where_it_began(monkeypatch, tmp_path):
    rows = run(monkeypatch, tmp_path, known_to_both, "+seeds=[0,1]")
    found = {(row["seed"], row["known"]): row for row in rows}
    assert len(found) == 2 * 5
    for seed in ("0", "1"):
        start = found[seed, "start"]
        assert float(start["share"]) > 0.9 > 2 * float(start["control"])
        assert float(found[seed, "moved"]["share"]) < 0.1
