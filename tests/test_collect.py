"""Collecting runs: Parquet of fixed types, points of a sweep that share rows, B95, many runs.

The records here are made up; `test_figures.py` has what becomes of them in CSV, tables and figures.
"""

import os
import time

import pyarrow
import pytest
from pyarrow import parquet

from experiments import b95, collect
from solar.record import write


def record(seed=0, points=((16, 0.0, 0.5),), **changes):
    """A run with base, LoRA, and a SOLAR row for every (N, eps, retained)."""
    shared = {"method": "lora", "seed": seed, "score_base": 0.5, "score_adapter": 0.9}

    def row(codec, label, size, kept, **more):
        measured = {"bytes": size, "score": 0.5 + 0.4 * (kept or 0), "retained": kept, "loss": 1.0}
        return {"codec": codec, "label": label, **more, **shared, **measured}

    rows = [row("float32", "LoRA", 6400, 1.0), row("none", "base", 62, 0.0)]
    for size, eps, kept in points:
        dials = {"basis": "singular", "atoms": "vector", "N": size, "eps": eps, "keep": None}
        rows.append(row("solar", f"N{size}-eps{eps:g}", 100 * size, kept, **dials))
    config = {"seed": seed, "model": {"name": "b"}, "task": {"name": "t"}, "rank": 4}
    config["codec"] = {"points": [list(point) for point in points]}
    found = {"rows": rows, "config": config, "adapter": {"bytes": 6400}, "tiny": False}
    return found | {"limit": [[0.5, 0.9], [64.0, 0.1]], "status": "complete"} | changes


def test_a_sweep_with_a_folder_a_point_is_one_table(tmp_path):
    for i, point in enumerate([(16, 0.0, 0.5), (16, 1.0, 0.4), (32, 0.0, 0.96)]):
        for seed in (0, 1):
            write(tmp_path / f"{i}-{seed}" / "result.json", record(seed, [point]))
    rows, left_out = collect.gather([tmp_path])
    assert left_out == []
    labels = [(row["label"], row["seed"]) for row in rows if row["codec"] != "limit"]
    names = ("LoRA", "base", "N16-eps0", "N16-eps1", "N32-eps0")
    assert sorted(labels) == sorted((name, seed) for name in names for seed in (0, 1))
    assert len({row["group"] for row in rows}) == 1
    assert sum(row["codec"] == "limit" for row in rows) == 4  # two points a seed, not a run
    # The same grid in one run a seed is the same table, but for the order.
    whole = [(16, 0.0, 0.5), (16, 1.0, 0.4), (32, 0.0, 0.96)]
    for seed in (0, 1):
        write(tmp_path / "whole" / f"{seed}" / "result.json", record(seed, whole))
    again = collect.gather([tmp_path / "whole"]).rows
    assert sorted(map(str, again)) == sorted(map(str, rows))
    # One that says something else of a point that was measured before is told of.
    other = record(0, [(16, 0.0, 0.7)])
    write(tmp_path / "other" / "result.json", other)
    os.utime(tmp_path / "other" / "result.json", (2**33, 2**33))
    rows, left_out = collect.gather([tmp_path])
    assert [r["retained"] for r in rows if r["label"] == "N16-eps0" and r["seed"] == 0] == [0.7]
    assert any("measured otherwise later" in line for line in left_out)


def test_folders_stand_in_the_order_of_their_numbers(tmp_path):
    for rank in (2, 16, 1):
        own = record(points=[(16, 0.0, 0.5)])
        own["config"]["rank"] = rank
        own["rows"][0]["label"] = str(rank)
        write(tmp_path / f"r={rank},seed=0" / "result.json", own)
    rows = collect.gather([tmp_path]).rows
    assert [row["label"] for row in rows if row["codec"] == "float32"] == ["1", "2", "16"]


def test_parquet_has_the_same_types_whatever_the_runs_hold(tmp_path, capsys):
    write(tmp_path / "a" / "result.json", record())
    bare = record(1, [])
    bare["rows"] = [{"codec": "bits", "label": "1-bit", "seed": 1, "bytes": 9, "bleu": 1, "x": "y"}]
    bare["rows"].append(
        {**bare["rows"][0], "label": "other", "bleu": 0.5, "x": 3, "keep": "budget"}
    )
    write(tmp_path / "b" / "result.json", bare)
    for name in "ab":
        collect.main([str(tmp_path / name), "--out", str(tmp_path / f"{name}.parquet")])
    tables = [parquet.read_table(tmp_path / f"{name}.parquet") for name in "ab"]
    assert "wrote" in capsys.readouterr().err
    known = list(collect.COLUMNS)
    assert tables[0].schema.names[: len(known)] == tables[1].schema.names[: len(known)] == known
    assert all(a.schema.field(n) == b.schema.field(n) for a, b in [tables] for n in known)
    types = {field.name: field.type for field in tables[1].schema}
    assert types["seed"] == pyarrow.int64() and types["score"] == pyarrow.float64()
    assert types["basis"] == pyarrow.string() and types["tiny"] == pyarrow.bool_()
    assert types["bleu"] == pyarrow.float64() and types["x"] == pyarrow.string()
    # Value for value what the CSV's rows are.
    rows = collect.gather([tmp_path / "a"]).rows
    for ours, theirs in zip(tables[0].to_pylist(), rows, strict=True):
        assert {k: v for k, v in ours.items() if v is not None} == {
            k: v for k, v in theirs.items() if v is not None
        }
    pyarrow.concat_tables([t.select(known) for t in tables])
    with pytest.raises(SystemExit):
        collect.main([str(tmp_path / "a"), "--out", str(tmp_path / "a.xlsx")])
    assert ".parquet" in capsys.readouterr().err.splitlines()[-1]


def test_tiny_runs_never_join_real_ones(tmp_path):
    write(tmp_path / "real" / "result.json", record())
    write(tmp_path / "small" / "result.json", record(1, tiny=True))
    for tiny in (False, True):
        rows, left_out = collect.gather([tmp_path], tiny)
        assert {row["tiny"] for row in rows} == {tiny} and len(left_out) == 1


def test_a_run_in_a_folder_of_any_name_is_found(tmp_path):
    write(tmp_path / "model.spec=/data/checkpoints/packets" / "result.json", record())
    write(tmp_path / "model.spec=/data/checkpoints/packets/wandb/x" / "result.json", record(1))
    assert {row["seed"] for row in collect.gather([tmp_path]).rows} == {0}


def test_a_base_that_was_made_anew_is_another(tmp_path):
    for seed, base in enumerate("xy"):
        write(tmp_path / base / "result.json", record(seed, identities={"base": base}))
    rows = collect.gather([tmp_path]).rows
    assert len({row["group"] for row in rows}) == 2
    assert b95.markdown(b95.fewest(rows)).count("**b, t, ") == 2  # tables that tell which is which


def test_b95_is_the_smallest_file_that_keeps_enough_by_codec_and_seed(tmp_path, capsys):
    points = [(16, 0.0, 0.94), (32, 0.0, 0.96), (24, 1.0, 0.95), (64, 0.0, 0.9)]
    write(tmp_path / "0" / "result.json", record(0, points))
    write(tmp_path / "1" / "result.json", record(1, [(16, 0.0, 0.3), (64, 0.0, 0.99)]))
    found = b95.fewest(collect.gather([tmp_path]).rows)
    own = {(row["codec"], row["seed"]): row for row in found}
    assert set(own) == {(c, s) for c in ("float32", "solar singular vector") for s in (0, 1)}
    best = own["solar singular vector", 0]
    assert (best["bytes"], best["label"], best["retained"]) == (2400, "N24-eps1", 0.95)
    assert best["ratio_fp32"] == pytest.approx(6400 / 2400)
    assert own["solar singular vector", 1]["bytes"] == 6400
    collect.main([str(tmp_path), "--b95"])
    said = capsys.readouterr().out
    assert "| solar singular vector | 2,400 | 6,400 | 4,400 ± 2,828 |" in said
    out = tmp_path / "b95.parquet"
    collect.main([str(tmp_path), "--b95", "--out", str(out)])
    assert parquet.read_table(out).schema.names == list(collect.B95_COLUMNS)
    # No file keeps enough: a dash, and no mean over the others.
    write(tmp_path / "2" / "result.json", record(2, [(16, 0.0, None)]))
    capsys.readouterr()
    collect.main([str(tmp_path), "--b95"])
    assert "| solar singular vector | 2,400 | 6,400 | - | - |" in capsys.readouterr().out


def test_hundreds_of_runs_are_collected_in_seconds(tmp_path):
    for seed in range(300):
        write(tmp_path / f"{seed}" / "result.json", record(seed))
    start = time.process_time()
    rows, left_out = collect.gather([tmp_path])
    collect.write_parquet(rows, tmp_path / "all.parquet")
    assert len(rows) == 1500 and left_out == []
    assert time.process_time() - start < 5
