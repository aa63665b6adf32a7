"""Tracking: offline leaves a run on disk, disabled touches nothing, and a failure costs nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from solar import track
from solar.errors import SolarError

ROWS = [
    {"codec": "solar", "label": "N=8", "bytes": 100, "score": 0.5, "seed": 0}
    | {"relative_error": 0.9, "bound": 1.0, "slack": 0.1, "packet": "packets/a.solar"},
    {"codec": "float16", "label": "LoRA float16", "bytes": 900, "score": 0.8, "seed": 0}
    | {"relative_error": None, "bound": None, "slack": None, "packet": None},
]


def _runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def _content(log: Path) -> bytes:
    """The records of a .wandb file joined: blocks of 32 KiB would cut a word in two.

    The layout is LevelDB's log: a file header of 7 bytes, then records of checksum (4 bytes),
    length (2), type (1) and payload, with zeros where no header fits the rest of a block.
    """
    data, at, payloads = log.read_bytes(), 7, []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size = int.from_bytes(data[at + 4 : at + 6], "little")
        payloads.append(data[at + 7 : at + 7 + size])
        at += 7 + size
    return b"".join(payloads)


def test_an_offline_run_is_written_whole_and_says_nothing(tmp_path, capfd):
    import wandb

    packet = tmp_path / "a.solar"
    packet.write_bytes(b"packet")
    config = OmegaConf.create({"seed": 0, "model": {"name": "tiny"}, "grid": [1, 2]})
    for job in range(2):  # two jobs of a multirun: two runs
        run = track.start("offline", "solar-tests", f"a job/{job}", config, tmp_path)
        track.log(run, {"loss": np.float32(1.5)}, step=3)
        track.finish(run, ROWS, {"best": 0.5}, [packet])
        assert run.live is None
        track.finish(run, ROWS)  # a second finish, as in a finally, does nothing
    wandb.teardown()  # what the end of a process does: the last writes reach the disk
    runs = _runs(tmp_path)
    assert len(runs) == 2
    for run in runs:
        (log,) = run.glob("run-*.wandb")
        content = _content(log)
        for expected in (b"bound_check", b"packets", b"loss", b"best", b"a job/", b"tiny"):
            assert expected in content
        tables = [path.read_text() for path in run.rglob("*.table.json")]
        assert sum("N=8" in table and "packet" in table for table in tables) == 1
        assert sum("holds" in table for table in tables) == 1
    assert capfd.readouterr() == ("", "")


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


def test_bound_check_tells_a_violation_from_rounding():
    rows = [
        {"label": "ok", "relative_error": 0.5, "bound": 0.5 - 1e-9},
        {"label": "violated", "relative_error": 0.5, "bound": 0.4},
        {"label": "none", "relative_error": 0.5, "bound": None},
    ]
    assert [(c["label"], c["holds"]) for c in track.bound_check(rows)] == [
        ("ok", True),
        ("violated", False),
    ]
