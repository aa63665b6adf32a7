"""The record: whole or absent, finite, and identified independently of the order of its keys."""

import dataclasses
import json
import subprocess
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from omegaconf import OmegaConf

from solar import record
from solar.errors import SolarError


def test_written_and_read_back(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Setting:
        size: int
        kind: str

    given = {
        "rows": [{"bytes": np.int64(7), "score": np.float32(0.5)}, {"bytes": 3, "score": None}],
        "jax": jnp.float32(0.25),
        "array": np.arange(3),
        "bfloat16": ml_dtypes.bfloat16(1.5),
        "flag": np.bool_(True),
        "path": Path("a/b"),
        "setting": Setting(3, "µ"),
        "tuple": (1, 2.5),
        1: "integer key",
    }
    path = record.write(tmp_path / "deep" / "result.json", given)
    assert record.read(path) == {
        "rows": [{"bytes": 7, "score": 0.5}, {"bytes": 3, "score": None}],
        "jax": 0.25,
        "array": [0, 1, 2],
        "bfloat16": 1.5,
        "flag": True,
        "path": "a/b",
        "setting": {"size": 3, "kind": "µ"},
        "tuple": [1, 2.5],
        "1": "integer key",
    }


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), jnp.array([0.0, jnp.nan])])
def test_non_finite_is_refused_by_its_path_and_leaves_the_old_record(tmp_path, value):
    path = record.write(tmp_path / "result.json", {"ok": 1})
    with pytest.raises(SolarError, match=r"record\.rows\[1\]\.loss"):
        record.write(path, {"rows": [{"loss": 1.0}, {"loss": value}]})
    assert record.read(path) == {"ok": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_crash_while_writing_leaves_the_old_record(tmp_path, monkeypatch):
    path = record.write(tmp_path / "result.json", {"ok": 1})

    def crash(*_):
        raise OSError("disk gone")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="disk gone"):
        record.write(path, {"ok": 2})
    assert json.loads(path.read_text()) == {"ok": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_what_json_cannot_hold_is_named():
    with pytest.raises(SolarError, match=r"record\.a is a set"):
        record.plain({"a": {1, 2}})
    with pytest.raises(SolarError, match="key 1 twice"):
        record.plain({1: 0, "1": 0})


@pytest.mark.parametrize("text", ["{", "[1]", None])
def test_reading_what_is_not_a_record_is_a_user_error(tmp_path, text):
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SolarError, match=r"result\.json"):
        record.read(path)


def test_identity_depends_on_content_alone():
    one = {"a": {"x": 1, "y": [1, 2]}, "b": np.float64(0.5)}
    other = {"b": 0.5, "a": {"y": (1, 2), "x": np.int32(1)}}
    assert record.identity(one) == record.identity(other)
    assert record.identity(OmegaConf.create({"b": 0.5, "a": {"y": [1, 2], "x": 1}})) == (
        record.identity(one)
    )
    assert record.identity({**one, "b": 0.25}) != record.identity(one)
    # Frozen: adapters that were trained under a configuration are found again by it.
    assert record.identity({"seed": 0, "model": {"name": "tiny"}}) == (
        "7777b38b35fe3ce1caf5d4f47d917fb88e6bf73a3b499e877ee28bc89a53427e"
    )


def test_versions_name_what_computed():
    found = record.versions()
    assert found["jax"] and found["numpy"] == np.__version__ and found["solar"]
    assert found["device"] and found["cpu_count"] >= 1
    json.dumps(found, allow_nan=False)


def test_commit_and_dirty_flag_come_from_the_checkout_itself(tmp_path):
    def git(*words):
        names = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(
            ["git", "-C", str(tmp_path), *names, *words], check=True, capture_output=True
        )

    assert record._checkout(tmp_path) == {"commit": None, "dirty": None}
    git("init")
    assert record._checkout(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    clean = record._checkout(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert record._checkout(tmp_path) == {**clean, "dirty": True}
    (tmp_path / "inner").mkdir()
    assert record._checkout(tmp_path / "inner") == {"commit": None, "dirty": None}
