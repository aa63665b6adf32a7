"""Programs that measure an adapter's weights and score nothing: alignment, energy, reach, layer
budget, and what presets cost."""

import csv

import numpy as np
import pytest

from benchmarks import presets
from experiments import alignment, csv_file, energy, layer_budget, lora_tuned, reach
from experiments.kinds import kinds
from paper_figures import layer_budget as figure
from solar.codec.factors import Factors
from solar.codec.metric import Reflections
from solar.errors import SolarError

TINY = ["tiny=true", "model=tiny-gpt2", "task=synthetic_text", "codec=tiny", "tracking=disabled"]


def run(monkeypatch, tmp_path, module, *arguments) -> list[dict[str, str]]:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "rows.csv"
    monkeypatch.setattr("sys.argv", [module.__name__, *TINY, f"+out={out}", *arguments])
    module.program()
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def test_alignment_writes_every_layer_and_keeps_other_seeds(monkeypatch, tmp_path):
    rows = run(monkeypatch, tmp_path, alignment)
    assert {row["module"] for row in rows} == {"c_attn"} and {row["layer"] for row in rows} >= {"0"}
    for row in rows:
        assert 0 <= float(row["alignment"]) < 1.001 and 0 <= float(row["random"]) < 1.001
    twice = run(monkeypatch, tmp_path, alignment, "seed=1")
    assert len(twice) == 2 * len(rows) and {row["seed"] for row in twice} == {"0", "1"}
    assert len(run(monkeypatch, tmp_path, alignment, "seed=1")) == len(twice)
    more = run(monkeypatch, tmp_path, alignment, "name=other")  # another adapter of the base
    assert len(more) == 3 * len(rows) and {row["experiment"] for row in more[-3:]} == {"other"}


def test_energy_adds_up_in_every_frame(monkeypatch, tmp_path):
    rows = run(monkeypatch, tmp_path, energy)
    lines = {}
    for row in rows:
        lines.setdefault((row["frame"], row["side"]), []).append(row)
    assert len(lines) == 6
    for own in lines.values():
        shares = [float(row["share"]) for row in own]
        assert [int(row["size"]) for row in own][:4] == [1, 2, 4, 8]
        assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] < 1 + 1e-6
    # All directions of a side hold all of it; W has fewer right singular vectors than outputs.
    assert {key for key, own in lines.items() if float(own[-1]["share"]) > 1 - 1e-6} == {
        ("activation", "left"),
        ("activation", "right"),
        ("singular", "right"),
        ("random", "right"),
    }


def test_energy_in_the_metric_is_where_the_eigenvalues_are():
    """Factors that lie no way in particular, in a steep spectrum on one side."""

    def unturned(eigenvalues):
        return Reflections(np.zeros((len(eigenvalues), 1)), np.zeros(1), np.sqrt(eigenvalues))

    rng = np.random.default_rng(0)
    own = {"a": Factors(rng.normal(size=(48, 2)), rng.normal(size=(32, 2)))}
    steep = np.append(np.full(4, 1.0), np.full(28, 1e-4))
    shares = energy.in_metric(own, {"a": (unturned(steep), unturned(np.ones(48)))}, [4, 32, 48])
    (right,), (left,) = shares["activation", "right"], shares["activation", "left"]
    assert 0.99 < right[0] < 1 and right[1] == right[2] == 1
    assert 0.01 < left[0] < 0.3 and left[1] < 0.95 and left[2] == 1


def test_reach_compares_every_code_with_the_limit(monkeypatch, tmp_path):
    rows = run(monkeypatch, tmp_path, reach)
    found = {row["code"] for row in rows}
    assert {"4-bit", "1-bit, rank 1", "paper, N 192", "weights", "compact"} <= found
    for row in rows:
        # No code that looks at weights alone is below the bound of their spectrum.
        assert float(row["ratio"]) > 1 or row["code"] == "compact"
        assert bool(row["profiled_limit"]) == (row["code"] == "compact")
        assert int(row["payload"]) < int(row["bytes"])


def test_layer_budget_accounts_for_the_bytes_of_the_file(monkeypatch, tmp_path, capsys):
    rows = run(monkeypatch, tmp_path, layer_budget, "+budget=700")
    assert tuple(rows[0]) == figure.COLUMNS
    spent = sum(float(row["bits"]) for row in rows) / 8
    assert 300 < spent < 700  # what is left is the header
    for left, right in zip(rows[::2], rows[1::2], strict=True):
        assert (left["side"], right["side"]) == ("left", "right")
        for column in ("layer", "module", "rank", "relative_error"):
            assert left[column] == right[column]
        for row in (left, right):
            assert (float(row["bits"]) > 0) == (int(row["rank"]) > 0)
        assert 0 <= float(left["relative_error"]) < 1.2
    monkeypatch.setattr("sys.argv", ["layer_budget", *TINY, "+budget=8kB"])
    with pytest.raises(SystemExit):
        layer_budget.program()
    assert capsys.readouterr().err == "error: budget is '8kB'; give a number of bytes\n"
    more = run(monkeypatch, tmp_path, layer_budget, "+budget=1400")
    assert len(more) == 2 * len(rows)  # another budget has rows of its own
    errors = [sum(float(r["relative_error"]) for r in more if r["budget"] == b)
              for b in ("700", "1400")]  # fmt: skip
    assert errors[1] < errors[0]


def test_rows_of_others_stay(tmp_path):
    path = tmp_path / "a.csv"
    csv_file.put(path, ["who", "x"], [{"who": "a", "x": 1}], ["who"])
    csv_file.put(path, ["who", "x"], [{"who": "b", "x": 2}, {"who": "b", "x": 3}], ["who"])
    csv_file.put(path, ["who", "x"], [{"who": "a", "x": 4}], ["who"])
    assert path.read_text().split() == ["who,x", "b,2", "b,3", "a,4"]
    with pytest.raises(SolarError, match="has the columns who, x, not who, y; give another"):
        csv_file.put(path, ["who", "y"], [{"who": "a", "y": 1}], ["who"])
    assert path.read_text().split() == ["who,x", "b,2", "b,3", "a,4"]


def test_a_part_of_the_codes_replaces_its_own_rows_alone(monkeypatch, tmp_path):
    rows = run(monkeypatch, tmp_path, reach)
    again = run(monkeypatch, tmp_path, reach, "+only=bit")
    order = lambda row: (row["code"], int(row["bytes"]))  # noqa: E731
    assert sorted(again, key=order) == sorted(rows, key=order)
    assert again[-1]["code"].endswith("rank 1") and rows[-1]["code"] != again[-1]["code"]


def test_layers_are_told_apart_by_as_little_of_their_path_as_it_takes():
    gpt2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    found = kinds([f"transformer.h.{i}.{name}" for i in (0, 11) for name in gpt2])
    assert found["transformer.h.11.mlp.c_proj"] == (11, "mlp.c_proj")
    assert [kind for _, kind in found.values()] == [*gpt2, *gpt2]
    assert kinds(["a.0.x.q", "a.0.y.v", "b.0.y.q"]) == {
        "a.0.x.q": (0, "q"), "a.0.y.v": (0, "v"), "b.0.y.q": (0, "q"),
    }  # fmt: skip
    with pytest.raises(ValueError, match="lm_head is in no numbered block"):
        kinds(["lm_head"])


def test_presets_take_turns_and_a_slow_one_is_a_fault(monkeypatch, capsys):
    given = ["--rounds", "1", *TINY]
    monkeypatch.setattr(presets, "MOST", 1e9)
    assert presets.main(given) == 0
    told = capsys.readouterr().out
    assert all(preset in told for preset in presets.PRESETS)
    monkeypatch.setattr(presets, "MOST", 0.0)
    assert presets.main(given) == 1
    assert presets.main(["no_such=1"]) == 2
    found = [(2.0, 4.0, 4.0), (3.0, 4.0, 1.0)]
    found = [dict(zip(presets.WORKS, row, strict=True)) for row in found]
    assert presets.ratios(found) == [(1, 1, 1), (1.5, 1, 0.25)]


def test_lora_at_every_rate_and_length(monkeypatch, tmp_path):
    given = "+rates=[1e-3,3e-2]", "+steps=[6]"
    rows = run(monkeypatch, tmp_path, lora_tuned, *given)
    assert [(row["rate"], row["steps"]) for row in rows] == [("0.001", "6"), ("0.03", "6")]
    assert float(rows[1]["validation_loss"]) < float(rows[0]["validation_loss"])
    assert run(monkeypatch, tmp_path, lora_tuned, *given) == rows
    more = run(monkeypatch, tmp_path, lora_tuned, "+steps=[2]", "+ranks=[1]")
    assert more[:2] == rows and [(row["steps"], row["rank"]) for row in more[2:]] == [("2", "1")]


@pytest.mark.parametrize("given", ("+rates=1e-3", "+rates=[]", "+rates=[fast]"))
def test_rates_are_a_list_of_numbers(monkeypatch, capsys, given):
    monkeypatch.setattr("sys.argv", ["lora_tuned", *TINY, given])
    with pytest.raises(SystemExit) as left:
        lora_tuned.program()
    assert left.value.code == 2
    assert "give a list of numbers, as in +rates=[1,2]" in capsys.readouterr().err
