"""Tracking: offline leaves a run on disk, disabled touches nothing, and a failure costs nothing."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from solar import track
from solar.errors import SolarError
from tests.wandb_server import Server

ROWS = [
    {"codec": "solar", "label": "N=8", "bytes": 100, "score": 0.5, "seed": 0}
    | {"relative_error": 0.9, "bound": 1.0, "slack": 0.1, "packet": "packets/a.solar"},
    {"codec": "float16", "label": "LoRA float16", "bytes": 900, "score": 0.8, "seed": 0}
    | {"relative_error": None, "bound": None, "slack": None, "packet": None},
]
BOUNDS = [
    {"label": "N=8", "seed": 0, "layer": layer, "norm": 2.0, "measured": 0.5, "certificate": bound}
    | {"slack": 1 - 0.5 / bound, "tail_bound": None, "holds": bound >= 0.5}
    for layer, bound in (("all", 1.0), ("layers.0.q", 0.75), ("layers.0.v", 0.25))
]


def _runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def _records(run: Path) -> dict[str, list[dict]]:
    """The log of a run by kind of record, as W&B's own program reads it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(run), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    found: dict[str, list[dict]] = {}
    for line in said.stdout.splitlines():
        record = json.loads(line)
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def _summary(records: dict[str, list[dict]]) -> dict:
    found: dict = {}
    for record in records["summary"]:
        found |= record["update"]
    return found


def _table(run: Path, records: dict[str, list[dict]], name: str) -> list[dict]:
    """The rows of a logged table, from the file that the run's summary names."""
    file = run / "files" / _summary(records)[f"{name}.path"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == _summary(records)[f"{name}.sha256"]
    table = json.loads(file.read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def _stored(artifact: dict) -> dict[str, bytes]:
    """The files of a logged artifact by name; each is where its manifest says that it lies."""
    entries = artifact["manifest"]["contents"]
    return {entry["path"]: Path(entry["local_path"]).read_bytes() for entry in entries}


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "cache" / "0123abcd"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_an_offline_run_holds_everything_and_says_nothing(tmp_path, adapter, capfd, monkeypatch):
    import wandb

    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    packet = tmp_path / "a.solar"
    packet.write_bytes(b"packet")
    config = OmegaConf.create({"seed": 0, "model": {"name": "tiny"}, "grid": [1, 2]})
    for job in range(2):  # two jobs of a multirun: two runs
        run = track.start("offline", "solar-tests", f"a job/{job}", config, tmp_path, group="g")
        for step in (1, 2):
            track.log(run, {"loss": np.float32(1.5) / step}, step)
        rest = {"bounds": BOUNDS, "adapter": adapter}
        track.finish(run, ROWS, {"adapter": {"score": 0.5}}, [packet], **rest)
        assert run.live is None
        track.finish(run, ROWS)  # a second finish, as in a finally, does nothing
    assert capfd.readouterr() == ("", "")
    wandb.teardown()  # what the end of a process does: the last writes reach the disk
    assert "WANDB_DATA_DIR" not in os.environ
    runs = _runs(tmp_path)
    assert len(runs) == 2
    names = set()
    for run in runs:
        records = _records(run)
        (own,) = records["run"]
        names.add(own["display_name"])
        assert own["project"] == "solar-tests" and own["run_group"] == "g"
        config = own["config"]["update"]
        assert config["model"] == {"name": "tiny"} and config["grid"] == [1, 2]
        losses = [r["item"] for r in records["history"] if "loss" in r["item"]]
        assert [(item["step"], item["loss"]) for item in losses] == [(1, 1.5), (2, 0.75)]
        assert records["exit"][0].get("exit_code", 0) == 0

        curve = _table(run, records, "curve")
        assert [row["label"] for row in curve] == ["N=8", "LoRA float16"]
        assert [(row["bytes"], row["score"]) for row in curve] == [(100, 0.5), (900, 0.8)]
        assert _table(run, records, "bound_check") == BOUNDS
        summary = _summary(records)
        assert (summary["bound_check/passed"], summary["bound_check/failed"]) == (2, 1)
        assert summary["bound_check/result"] == "fail" and summary["adapter"] == {"score": 0.5}
        (chart,) = [c for c in records["config"] if "visualize.score against bytes" in str(c)]
        assert "wandb/line/v0" in str(chart) and "'x': 'bytes'" in str(chart)

        artifacts = {artifact["type"]: artifact for artifact in records["artifact"]}
        used, made = artifacts["adapter"], artifacts["packets"]
        assert used["name"] == "adapter-0123abcd" and used["use_after_commit"] is True
        assert _stored(used)["adapter_model.safetensors"] == b"weights"
        assert _stored(made) == {"a.solar": b"packet"} and "use_after_commit" not in made
        about = json.loads(made["metadata"])
        assert about == {"adapter": used["name"], "adapter_digest": used["digest"]}
        staged = [e["local_path"] for e in used["manifest"]["contents"]]
        assert all(Path(place).is_relative_to(run) for place in staged)
    assert names == {"a job/0", "a job/1"}


def test_a_failed_job_is_a_run_that_crashed(tmp_path):
    run = track.start("offline", "solar-tests", "n", {}, tmp_path)
    track.log(run, {"loss": 2.0}, 1)
    track.finish(run, failed=True)
    (folder,) = _runs(tmp_path)
    records = _records(folder)
    assert records["exit"][0]["exit_code"] == 1
    assert "artifact" not in records and records["history"][0]["item"]["loss"] == 2.0


_TRACKED = """
import sys
from pathlib import Path
from solar import track
mode, folder, adapter = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
run = track.start(mode, "solar-tests", "n", {"seed": 0}, folder)
track.log(run, {"loss": 1.5}, 7)
rows = [{"codec": "solar", "label": "N=8", "bytes": 6, "score": 0.5}]
bounds = [{"label": "N=8", "layer": "all", "holds": True}]
track.finish(run, rows, {}, [folder / "a.solar"], bounds=bounds, adapter=adapter)
"""


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_server_receives_the_run_at_once_or_by_wandb_sync(mode, tmp_path, adapter, monkeypatch):
    (tmp_path / "a.solar").write_bytes(b"packet")
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_SILENT", "true")

    def call(*arguments):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "W&B" not in call("-c", _TRACKED, mode, tmp_path, adapter)
    if mode == "offline":
        assert server.operations == []
        (run,) = _runs(tmp_path)
        call("-m", "wandb", "sync", "--yes", run)
    server.shutdown()

    assert {bucket["project"] for bucket in server.inputs("UpsertBucket")} == {"solar-tests"}
    history = [json.loads(line) for line in server.streamed["wandb-history.jsonl"]]
    assert [(h["step"], h["loss"]) for h in history if "loss" in h] == [(7, 1.5)]
    tables = [json.loads(v) for k, v in server.uploads.items() if k.endswith(".table.json")]
    assert {tuple(table["columns"]) for table in tables} == {
        ("codec", "label", "bytes", "score"),
        ("label", "layer", "holds"),
    }
    assert b"seed" in server.uploads["config.yaml"]
    made = {made["artifactCollectionName"]: made for made in server.inputs("CreateArtifact")}
    assert {"n-packets", "adapter-0123abcd"} <= set(made)
    assert json.loads(made["n-packets"]["metadata"])["adapter"] == "adapter-0123abcd"
    (used,) = server.inputs("UseArtifact")  # the lineage: adapter -> run -> packets
    assert used["artifactID"] == "id of adapter-0123abcd"
    assert used["runName"] == server.inputs("UpsertBucket")[0]["name"]


def test_disabled_never_imports_wandb(tmp_path):
    program = (
        "import sys; from solar import track\n"
        f"run = track.start('disabled', 'p', 'n', {{}}, {str(tmp_path)!r})\n"
        "track.log(run, {'loss': 1.0}, 0); track.finish(run, [{'bytes': 1}])\n"
        "sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_mode_is_a_user_error(tmp_path):
    with pytest.raises(SolarError, match="'on'.*offline, online, disabled"):
        track.start("on", "p", "n", {}, tmp_path)


def test_online_without_a_connection_becomes_offline_in_one_line(tmp_path, capfd, monkeypatch):
    import wandb

    begin = wandb.init

    def unreachable(**options):
        if options["mode"] == "online":
            raise wandb.errors.CommError("no route\nto host")
        return begin(**options)

    monkeypatch.setattr(wandb, "init", unreachable)
    run = track.start("online", "solar-tests", "n", {}, tmp_path)
    track.finish(run, failed=True)
    assert len(_runs(tmp_path)) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "no route to host" in err and "offline" in err


def test_a_failing_wandb_is_one_line_and_no_exception(tmp_path, capsys, monkeypatch):
    import wandb

    def broken(**_):
        raise RuntimeError("no disk")

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", broken)
        run = track.start("offline", "p", "n", {}, tmp_path)
    assert run.live is None
    assert capsys.readouterr().err == "W&B: not tracked, because no disk\n"

    class Broken:
        name = id = "n"
        summary: dict = {}

        def log(self, _):
            raise RuntimeError("gone")

        finish = define_metric = lambda self, *_, **__: None

    run = track.Run(Broken())
    for step in range(3):
        track.log(run, {"loss": 1.0}, step)
    assert capsys.readouterr().err == "W&B: no longer tracked, because gone\n"
    run = track.Run(Broken())
    track.finish(run, ROWS)
    assert capsys.readouterr().err == "W&B: not everything was logged, because gone\n"
