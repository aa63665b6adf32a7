"""From result records to CSV, table and figures. All numbers here are made up for the test."""

import copy
import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from experiments import collect, plot, table
from paper_figures import __main__ as everything
from paper_figures import accuracy_vs_bytes, alignment, bound_vs_error, latex, parity, rows
from solar.errors import SolarError
from solar.record import write

ROOT = Path(__file__).resolve().parent.parent


def made_up(seed: int = 0, **changes) -> dict:
    """A result record with SOLAR points over N and eps, every baseline, and a limit."""
    found = []

    def add(codec, label, size, error, **more):
        score = 0.9 - 0.3 * error + 0.01 * seed
        found.append(
            {"method": "lora", "codec": codec, "label": label, "seed": seed, "bytes": size}
            | {"payload": size - 50, "header": 50, "heads": 0, "score": score, "loss": 1 - score}
            | {"score_base": 0.6, "score_adapter": 0.9, "retained": (score - 0.6) / 0.3}
            | {"relative_error": error, "bound": error + 0.1, "slack": 0.1, "basis": "singular"}
            | {"N": None, "eps": None, "packet": f"packets/{label}.solar"}
            | more
        )

    add("float32", "LoRA float32", 64_000, 0.0)
    add("float16", "LoRA float16", 32_000, 0.001)
    add("truncate", "rank 1", 8_000, 0.2)
    for bits, error in ((8, 0.01), (4, 0.1), (2, 0.3), (1, 0.6)):
        add("bits", f"{bits} bits", 2_000 * bits, error, bits=bits)
    add("bits", "1 bit, rank 1", 500, 0.7, bits=1, rank=1)
    for eps in (0.0, 0.1):
        for size in (8, 32):
            add("solar", f"N={size} eps={eps}", 100 * size, 1 - size / 64, N=size, eps=eps)
    config = {"seed": seed, "model": {"name": "tiny-base"}, "task": {"name": "words"}, "rank": 4}
    record = {"rows": found, "config": config, "adapter": {"score": 0.9, "bytes": 64_400}}
    record |= {"limit": [[2**i, math.exp(-(2**i) / 4000)] for i in range(6, 16)]}
    return record | {"status": "complete", "tiny": False} | changes


@pytest.fixture
def runs(tmp_path):
    """Three seeds, a tiny run, a failed one, an unfinished one and a broken record."""
    for seed in range(3):
        write(tmp_path / f"seed={seed}" / "result.json", made_up(seed))
    write(tmp_path / "tiny" / "result.json", made_up(tiny=True))
    for name in ("failed", "unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "identity.txt").write_text("0")
    (tmp_path / "failed" / "error.txt").write_text("the base is missing\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text('{"rows": [')
    return tmp_path


def test_collect_takes_complete_runs_and_lists_the_others(runs):
    gathered = collect.gather([runs])
    assert {row["seed"] for row in gathered.rows} == {0, 1, 2}
    assert not any(row["tiny"] for row in gathered.rows)
    listed = "\n".join(gathered.left_out)
    assert len(gathered.left_out) == 4
    for words in ("a tiny run", "failed: the base is missing", "unfinished: not finished", "JSON"):
        assert words in listed
    tiny = collect.gather([runs], tiny=True)
    assert tiny.rows and all(row["tiny"] for row in tiny.rows)


def test_a_repeated_run_counts_once_and_other_configurations_stay_apart(runs):
    again = runs / "again" / "result.json"
    newer = made_up(1)
    newer["rows"][0]["score"] = 0.123
    write(again, newer)
    os.utime(again, (2**33, 2**33))
    other = made_up(1)
    other["config"]["rank"] = 8
    write(runs / "other" / "result.json", other)
    gathered = collect.gather([runs, runs / "again"])
    assert sum("run again later" in line for line in gathered.left_out) == 1
    points = [p for p in rows.over_seeds(gathered.rows) if p["codec"] == "float32"]
    assert sorted(point["seeds"] for point in points) == [1, 3]
    scores = [r["score"] for r in gathered.rows if r["codec"] == "float32" and r["seed"] == 1]
    assert sorted(scores) == pytest.approx([0.123, 0.91])


def test_csv_holds_what_the_records_hold(runs, tmp_path, capsys):
    path = tmp_path / "out" / "curve.csv"
    collect.main([str(runs), "--out", str(path), "--markdown"])
    captured = capsys.readouterr()
    assert captured.err.count("left out: ") == 4
    assert "| LoRA float32 | 64,000 | 1.0 | 0.910 ± 0.010 |" in captured.out
    read = rows.read(path)
    gathered = collect.gather([runs]).rows
    assert len(read) == len(gathered)
    for ours, theirs in zip(read, gathered, strict=True):
        for column, value in ours.items():
            assert value == theirs.get(column)
    with path.open() as file:
        assert tuple(next(csv.reader(file))[:4]) == ("base", "task", "tiny", "group")


def test_collecting_nothing_is_a_mistake(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit) as end:
            collect.main([str(folder)])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_mean_and_standard_deviation_over_seeds():
    tidy = [row for seed in range(3) for row in collect.tidy(made_up(seed))]
    point = next(p for p in rows.over_seeds(tidy) if p["label"] == "LoRA float32")
    assert point["seeds"] == 3
    assert point["score"] == pytest.approx(0.91)
    assert point["score_std"] == pytest.approx(0.01)  # n - 1 in the denominator
    assert point["ratio_fp32"] == pytest.approx(64_400 / 64_000)
    with pytest.raises(ValueError, match="seed 0 more than once"):
        rows.over_seeds(collect.tidy(made_up(0)) * 2)
    single = rows.over_seeds(collect.tidy(made_up(0)))[0]
    assert single["score_std"] is None


def test_lines_are_cut_by_what_differs():
    def more(codec, label, **columns):
        return {"codec": codec, "label": label, "score": 0.5, "bytes": 300} | columns

    extra = [
        more("none", "base"),
        more("solar", "random", basis="random", atoms="vector", eps=0.0, N=8),
        more("solar", "K", basis="singular", atoms="matrix", eps=1.0, N=1000, keep=100),
        more("new", "some other code"),
    ]
    points = rows.over_seeds(collect.tidy(made_up()) + extra)
    lines = rows.lines(points)
    assert list(lines) == [
        *("SOLAR, $\\epsilon$ = 0", "SOLAR, $\\epsilon$ = 0.1", "SOLAR, random basis"),
        *("SOLAR, matrix atoms, top $K$", "LoRA, float32", "LoRA, float16", "rank truncation"),
        *("8, 4, 2, 1 bits", "1 bit, lower rank", "new"),
    ]
    assert [p["N"] for p in lines["SOLAR, $\\epsilon$ = 0"]] == [8, 32]
    assert [p["bits"] for p in lines["8, 4, 2, 1 bits"]] == [1, 2, 4, 8]
    assert [p["label"] for p in lines["1 bit, lower rank"]] == ["1 bit, rank 1"]
    assert sum(map(len, lines.values())) == len(points) - 1  # all but the empty packet


def test_limits_of_seeds_join_at_equal_error():
    def curve(seed, factor):
        points = [(factor * 2**i, 1 - i / 10) for i in range(6)]
        base = {"codec": "limit", "seed": seed}
        return [{**base, "bytes": size, "relative_error": error} for size, error in points]

    joined = rows.limit([*curve(0, 100), *curve(1, 400)])
    assert joined == [pytest.approx((200 * 2**i, 1 - i / 10)) for i in range(6)]
    assert rows.limit(curve(0, 100))[0] == (100, 1.0)
    assert rows.limit([]) == []


def test_table_shows_every_row_in_eighty_places(capsys):
    tidy = [row for seed in range(2) for row in collect.tidy(made_up(seed))]
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, width=80, record=True)
        table.show(tidy, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for row in tidy:
        if row["codec"] != "limit":
            assert any(line.startswith(row["label"]) for line in text.splitlines())
    assert "tiny-base, words, base 0.600, adapter 0.900, 2 seeds" in text


def _assert_drawn(paths):
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    with Image.open(paths[0]) as image:
        gray = image.convert("L")
        assert min(image.size) > 600
        assert gray.getextrema() == (0, 255)
    pdf = paths[1].read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf and b"/FontFile2" in pdf


def test_the_run_figure_draws_one_record_or_several_and_repeats_exactly(tmp_path):
    paths = plot.draw(made_up(), tmp_path / "one")
    assert [path.name for path in paths] == ["curve.png", "curve.pdf"]
    _assert_drawn(paths)
    several = plot.draw([made_up(seed) for seed in range(3)], tmp_path / "three")
    _assert_drawn(several)
    assert several[0].read_bytes() != paths[0].read_bytes()
    again = plot.draw(made_up(), tmp_path / "again")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_record_with_little_in_it_still_draws(tmp_path):
    record = made_up(limit=None)
    record["rows"] = [row for row in record["rows"] if row["codec"] in ("float32", "solar")][:2]
    for row in record["rows"]:
        row |= {"relative_error": None, "score_base": None, "score_adapter": None}
    _assert_drawn(plot.draw(record, tmp_path))
    with pytest.raises(SolarError, match="bytes and score"):
        plot.draw(made_up(rows=[]), tmp_path)


def test_the_paper_figure_draws_two_bases_from_csv(runs, tmp_path, capsys):
    second = copy.deepcopy(made_up())
    second["config"]["model"]["name"] = "other-base"
    write(runs / "second" / "result.json", second)
    path = collect.write_csv(collect.gather([runs]).rows, tmp_path / "rows.csv")
    accuracy_vs_bytes.main([str(path), "--out", str(tmp_path / "figures")])
    _assert_drawn([Path(line) for line in capsys.readouterr().out.split()])


def _alignment(path):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(alignment.COLUMNS)
        for base, layers in (("a", 4), ("b", 2)):
            for layer in range(layers):
                for module in ("q_proj", "v_proj"):
                    for side in ("left", "right"):
                        writer.writerow(
                            ("own " + base, base, layer, module, side, 16, 0.2, 0.11, 0.1)
                        )


def test_alignment_draws_from_csv_without_solar(tmp_path):
    _alignment(tmp_path / "alignment.csv")
    program = (
        "import sys; from paper_figures import accuracy_vs_bytes, alignment\n"
        "alignment.main([sys.argv[1], '--out', sys.argv[2]])\n"
        "sys.exit('solar' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "alignment.csv", tmp_path / "out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    _assert_drawn([Path(line) for line in done.stdout.split()])


def test_the_committed_bounds_hold_and_are_drawn_without_solar(tmp_path):
    path = ROOT / "paper_figures" / "data" / "bound_check.csv"
    found = rows.read(path)
    proved = [r for r in found if r["which"] != "expected"]
    assert {r["which"] for r in proved} == {"certificate", "tail", "tail on dW", "outputs"}
    assert {r["N"] for r in proved} == {16, 48, 96, 192, None}
    for row in proved:
        assert row["vacuous"] == (row["bound"] is None)
        assert row["vacuous"] or row["measured"] <= row["bound"] + 1e-5, row
    assert path.stat().st_size < 100_000
    program = (
        "import sys; from paper_figures import bound_vs_error\n"
        "bound_vs_error.main(['--out', sys.argv[1]])\n"
        "sys.exit('solar' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "out"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    _assert_drawn([Path(line) for line in done.stdout.split()])


def test_vacuous_bounds_are_drawn_apart(tmp_path):
    """The same rows with every tail vacuous: another picture, and no number is needed for it."""
    found = rows.read(ROOT / "paper_figures" / "data" / "bound_check.csv")
    before = bound_vs_error.draw(found, tmp_path / "before")[0].read_bytes()
    for row in found:
        if row["which"].startswith("tail"):
            row |= {"bound": None, "slack": None, "vacuous": True}
    paths = bound_vs_error.draw(found, tmp_path / "after")
    _assert_drawn(paths)
    assert paths[0].read_bytes() != before
    with pytest.raises(ValueError, match="bound rows lack slack, vacuous"):
        bound_vs_error.draw([dict.fromkeys(bound_vs_error.COLUMNS[:-2], 1)], tmp_path)
    with pytest.raises(ValueError, match="one trained adapter"):
        bound_vs_error.draw([r for r in found if r["which"] != "outputs"], tmp_path)


@pytest.mark.parametrize("program", [*everything.FIGURES, latex, parity])
def test_a_figure_without_its_csv_is_a_mistake(program, tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("base,layer\n")
    for name in ("missing.csv", "empty.csv"):
        with pytest.raises(SystemExit) as end:
            program.main([str(tmp_path / name)])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_csv_with_a_cell_too_many_or_a_word_for_a_number_is_a_mistake(tmp_path, capsys):
    path = tmp_path / "own.csv"
    good = dict.fromkeys(alignment.COLUMNS, "1") | {"side": "left"}
    for cells, said in (
        ([*good.values(), "1"], "row 1 of .* has more cells than its header"),
        ((good | {"alignment": "much"}).values(), "str"),
    ):
        path.write_text(f"{','.join(good)}\n{','.join(cells)}\n")
        with pytest.raises(SystemExit) as end:
            alignment.main([str(path), "--out", str(tmp_path)])
        assert end.value.code == 2
        assert re.search(f"^error: .*{said}.*\n$", capsys.readouterr().err)


def test_alignment_names_a_missing_column(tmp_path):
    with pytest.raises(ValueError, match="random, chance"):
        alignment.draw([dict.fromkeys(alignment.COLUMNS[:-2], 1)], tmp_path)


def test_made_up_numbers_are_never_committed():
    """Every committed CSV has the columns of real runs and no tiny one among its rows."""
    for path in (ROOT / "paper_figures" / "data").glob("*.csv"):
        assert not any(row.get("tiny") for row in rows.read(path)), path
