"""Sweeps: a folder a point, what is shared by the points, kills, launchers and sweepers."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from benchmarks import sweep_kill
from experiments import compare, finetune
from experiments.program import composed
from solar import evaluate, evaluator, record
from solar.errors import SolarError
from solar.files import only_one
from solar.packages import cache_dir

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("tiny=true", "tracking=disabled", "model=tiny-llama", "task=synthetic_text", "name=sweep")
POINTS = ("codec=point", "codec.size=2,4,8", "codec.perturbation=0.0,0.1")


def make_cache(folder: Path) -> str:
    """A cache in which nothing is known but compiled programs."""
    programs = cache_dir().resolve() / "xla"
    programs.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    (folder / "xla").symlink_to(programs)
    return str(folder)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Such a cache; the evaluation process ends with the test."""
    monkeypatch.setenv("SOLAR_CACHE", make_cache(tmp_path / "empty"))
    yield
    evaluator.stop()


def here(monkeypatch, folder: Path, *arguments: str) -> int:
    """Exit status of ``python -m experiments.compare`` in this process and that folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["compare", *arguments])
    try:
        compare.program()
    except SystemExit as end:
        return end.code or 0
    return 0


# ------------------------------------------------------------------------------------- one point


def test_a_point_and_a_point_of_a_grid_are_the_same():
    codec = yaml.safe_load((ROOT / "configs" / "codec" / "paper.yaml").read_text())
    point = yaml.safe_load((ROOT / "configs" / "codec" / "point.yaml").read_text())
    every = list(compare.settings(codec, seed=3))
    assert len(every) == 4 * 3 + 2 + 1
    for one, given in zip(every, compare.points(codec), strict=True):
        assert list(compare.settings(point | given, seed=3)) == [one]
    labels = [label for _, label, *_ in every]
    assert labels[0] == "singular-vector-N16-eps0"
    assert labels[-1] == "singular-matrix-N1000-eps1-K100"


def test_two_settings_never_have_one_label():
    point = yaml.safe_load((ROOT / "configs" / "codec" / "point.yaml").read_text())
    others = [
        {}, {"kind": "random"}, {"size": 32}, {"perturbation": 0.5}, {"keep": 3},
        {"atoms": "matrix"}, {"selection": "sampled"}, {"dtype": "int4"}, {"budget_bytes": 3000},
        {"keep": "budget", "dtype": "entropy", "budget_bytes": 3000},
        {"keep": "budget", "dtype": "entropy", "budget_bytes": 3000, "relative": 1.0},
    ]  # fmt: skip
    found = [next(compare.settings(point | other, 0)) for other in others]
    assert len({label for _, label, *_ in found}) == len(others)
    assert [codec for codec, *_ in found] == ["solar"] * 9 + ["weights"] * 2


def test_the_objective_is_bytes_where_enough_is_kept_and_else_how_far_it_is_off():
    def result(*points):
        rows = [{"codec": "float32", "bytes": 900, "retained": 1.0}]
        rows += [{"codec": "solar", "bytes": size, "retained": kept} for size, kept in points]
        return {"rows": rows, "adapter": {"bytes": 900}}

    assert compare.objective(result((500, 0.96))) == 500
    assert compare.objective(result((500, 0.96), (300, 0.95), (100, 0.9))) == 300
    far, near = compare.objective(result((10, 0.1))), compare.objective(result((10, 0.9)))
    assert far > near > 900
    assert compare.objective(result((10, None))) > 900
    assert compare.objective(result()) > 900


def test_of_an_adapter_that_gained_nothing_no_share_is_kept():
    """A worse score than that of a harmful adapter would count as several times its gain."""
    rows = [{"label": label} for label in ("LoRA, float32", "base", "worst")]
    scores = [{"score": score, "loss": 1.0} for score in (0.7, 0.8, 0.3)]
    compare.add_scores(rows, scores)
    assert [row["retained"] for row in rows] == [None, None, None]
    compare.add_scores(rows, [*scores[1::-1], scores[2]])
    assert [row["retained"] for row in rows] == pytest.approx([1, 0, -4])


@pytest.mark.parametrize("name", ("ablation_basis", "offline_ablation_basis"))
def test_a_small_grid_has_every_point_once(name):
    config = compare.shrink(composed("compare", f"experiment={name}"))
    compare.check_labels(config)
    grids = config["codec"]["grids"]
    grids["again"] = dict(next(iter(grids.values())))
    with pytest.raises(SolarError, match="is in the grids of codec more than once"):
        compare.check_labels(config)


# ------------------------------------------------------------------------------ what is shared


def test_the_points_of_a_sweep_share_all_that_takes_long(
    tmp_path, empty_cache, monkeypatch, capsys
):
    loads, trainings = [], []
    load, train = finetune.load, finetune.train.train
    monkeypatch.setattr(finetune, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    monkeypatch.setattr(
        finetune.train, "train", lambda *a, **k: trainings.append(a) or train(*a, **k)
    )
    asked, processes = [], set()
    ask = evaluator.ask

    def noted(question):
        asked.append(question)
        answer = ask(question)
        processes.add(evaluator._running.process.pid)
        return answer

    monkeypatch.setattr(evaluator, "ask", noted)
    monkeypatch.setattr(finetune, "_latest", {})
    assert here(monkeypatch, tmp_path, *SMALL, *POINTS, "-m") == 0
    assert (len(loads), len(trainings), len(processes)) == (1, 1, 1)
    folders = sorted(p.parent.name for p in tmp_path.glob("outputs/sweep/*/result.json"))
    assert folders == [
        f"codec.perturbation={eps},codec.size={size},codec=point,model=tiny-llama,"
        "task=synthetic_text"
        for eps in ("0.0", "0.1") for size in (2, 4, 8)
    ]  # fmt: skip
    # LoRA, base and one file a point: nothing is evaluated twice, and all by the same function.
    assert len(asked) == 2 + 6
    assert len({json.dumps(question["job"]) for question in asked}) == 1
    out = capsys.readouterr().out
    assert out.count(" bytes, score ") == 6
    # A finished point is read; one that lost its record is measured from what is kept.
    lost = tmp_path / "outputs" / "sweep" / folders[2] / "result.json"
    before = record.read(lost)
    lost.unlink()
    assert here(monkeypatch, tmp_path, *SMALL, *POINTS, "-m") == 0
    assert record.read(lost)["rows"] == before["rows"]
    assert len(asked) == 2 + 6 and len(trainings) == 1
    # A folder of another config is refused, and the other points go on.
    note = tmp_path / "outputs" / "sweep" / folders[0] / "identity.txt"
    note.write_text("another")
    assert here(monkeypatch, tmp_path, *SMALL, *POINTS, "-m") == 2
    assert "another config" in capsys.readouterr().err
    assert "another config" in (note.parent / "error.txt").read_text()


def test_files_of_a_job_share_one_compiled_function(tmp_path, empty_cache, monkeypatch):
    assert here(monkeypatch, tmp_path, *SMALL, *POINTS, "-m") == 0
    scorers, sizes = [], []
    make = evaluate.make_scorer
    monkeypatch.setattr(
        evaluate, "make_scorer", lambda *a, **k: scorers.append(make(*a, **k)) or scorers[-1]
    )
    for folder in sorted(tmp_path.glob("outputs/sweep/*")):
        if not folder.is_dir():
            continue
        job = json.loads((folder / "evaluation.json").read_text())["job"]
        for row in record.read(folder / "result.json")["rows"]:
            path = (folder / row["packet"]).resolve()
            found = evaluate.score_file(path, job)["values"]
            # Base, float32 LoRA and every packet of whatever rank: the same shapes, so one program
            # for each width of batches, and the same numbers as the evaluation process gave.
            assert found == evaluate.known_score(path, job)
            run = dict(zip(scorers[0].__code__.co_freevars, scorers[0].__closure__, strict=True))
            sizes.append(run["run"].cell_contents._cache_size())
    assert len(scorers) == 1
    assert len(set(sizes)) == 1 and sizes[0] > 0


# ------------------------------------------------------------------------------ several processes


HOLD = """
import sys, time
from solar.files import only_one
from solar.packages import cache_dir
with only_one(sys.argv[1], None) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_one_process_makes_a_file_and_its_death_frees_it(tmp_path, capsys):
    place = tmp_path / "wanted"
    command = [sys.executable, "-c", HOLD, str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout.readline() == b"True\n"
        with only_one(place, None) as mine:
            assert not mine
        threading.Timer(0.5, holder.kill).start()
        start = time.monotonic()
        with only_one(place, "waiting for the other") as mine:
            assert mine and time.monotonic() - start > 0.3
    assert capsys.readouterr().err == "waiting for the other\n"


def test_a_killed_evaluation_process_is_named_and_replaced(tmp_path, empty_cache, monkeypatch):
    assert here(monkeypatch, tmp_path, *SMALL, "codec=point", "codec.size=2") == 0
    folder = tmp_path / "outputs" / "sweep" / "seed=0"
    job = json.loads((folder / "evaluation.json").read_text())["job"]
    path = sorted((folder / "packets").glob("*.solar"))[0].resolve()
    question = {"job": job, "file": str(path)}
    first = evaluator._running.process
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(SolarError, match="killed by signal 9.*resumes"):
        evaluator.ask(question)
    answer = evaluator.ask(question)
    assert answer["values"] == evaluate.known_score(path, job)
    assert evaluator._running.process.pid != first.pid
    # A bug there is a traceback here, and a mistake is one line.
    with pytest.raises(RuntimeError, match="KeyError"):
        evaluator.ask({"job": {}, "file": str(path)})
    with pytest.raises(SolarError, match="has changed"):
        evaluator.ask({"job": {**job, "task_identity": "other"}, "file": str(path)})


ASK = """
import json, sys
from solar import evaluator
evaluator._start()
print(evaluator._running.process.pid, flush=True)
sys.stdin.read()
"""


def test_the_evaluation_process_ends_with_the_one_that_asks(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SOLAR_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", ASK]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=environment) as asking:
        child = int(asking.stdout.readline())
        asking.kill()
    gone = time.monotonic() + 60  # it may still be importing what it needs to listen
    while time.monotonic() < gone:
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # nobody here reaps what it left to the system
            return
        time.sleep(0.1)
    pytest.fail("it outlived the process that asked")


@pytest.mark.real  # many processes start one after another: minutes on a busy machine
def test_a_sweep_killed_five_times_gives_the_undisturbed_table(tmp_path, empty_cache):
    chance = random.Random()
    arguments = (*SMALL, *POINTS)
    killed, differing = sweep_kill.compared(arguments, tmp_path, 5, chance)
    assert killed >= 4, "the moments were not in the sweep"
    assert differing == []
    assert len(sweep_kill.table(sweep_kill.Sweep(tmp_path / "killed", arguments))) > 6


# ------------------------------------------------------------------------ launchers and sweepers


@pytest.fixture(scope="module")
def basic(tmp_path_factory):
    """The table of a small sweep by the basic launcher, from a cache of its own."""
    home = tmp_path_factory.mktemp("basic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOLAR_CACHE", make_cache(home / "empty"))
        sweep = sweep_kill.Sweep(home, (*SMALL, *POINTS))
        sweep_kill.run(sweep)
        return sweep_kill.table(sweep)


LAUNCHERS = [
    "joblib",
    "submitit_local",
    pytest.param("ray_local", marks=pytest.mark.real),
]


@pytest.mark.real
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_gives_the_same_table(launcher, basic, tmp_path, empty_cache):
    sweep = sweep_kill.Sweep(tmp_path, (*SMALL, *POINTS, f"launcher={launcher}"))
    sweep_kill.run(sweep)
    assert sweep_kill.table(sweep) == basic
    # Whichever worker was first trained; the others took the adapter.
    assert len(list((tmp_path / "cache" / "adapters").glob("*/training.json"))) == 1


@pytest.mark.real
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_mistake_in_a_worker_is_one_line_and_the_others_go_on(launcher, tmp_path, empty_cache):
    arguments = (*SMALL, "codec=point", "codec.size=2", "codec.kind=sideways,random")
    sweep = sweep_kill.Sweep(tmp_path, (*arguments, f"launcher={launcher}"))
    assert sweep.start().wait() == 2
    errors = [line for line in sweep.log().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "codec.kind=sideways" in errors[0] and ": basis kind 'sideways' is" in errors[0]
    assert "Traceback" not in sweep.log()
    assert sweep.points() == 1


def test_a_plugin_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    from hydra.core.plugins import Plugins

    if any(p.__name__ == "RayLauncher" for p in Plugins.instance().discover()):
        pytest.skip("it is installed here")
    assert here(monkeypatch, tmp_path, "launcher=ray_local", "-m") == 2
    assert capsys.readouterr().err == (
        "error: the launcher ray is not installed: run `make launchers`, or "
        "pip install -r requirements.txt -r requirements-launchers.txt\n"
    )


@pytest.mark.real
def test_optuna_searches_and_repeats_a_search_from_what_it_found(tmp_path, empty_cache):
    arguments = (*SMALL, "codec=point", "sweeper=optuna", "hydra.sweeper.n_trials=4")
    sweep = sweep_kill.Sweep(tmp_path, (*arguments, "codec.size=range(2,9)"))
    sweep_kill.run(sweep)
    best = tmp_path / "outputs" / "sweep" / "optimization_results.yaml"
    found = best.read_text()
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("outputs/sweep/*/result.json")}
    assert 1 <= len(stamps) <= 4
    values = [compare.objective(record.read(p)) for p in stamps]
    assert yaml.safe_load(found)["best_value"] == min(values)
    sweep_kill.run(sweep)
    assert best.read_text() == found
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
