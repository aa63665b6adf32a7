"""Pretraining leaves a folder that loads like any other, and says so when it was never run."""

import numpy as np
import pytest

from experiments import pretrain
from solar.errors import SolarError
from solar.generate import generate
from solar.weights.base import load


def test_a_tiny_gpt2_is_trained_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SolarError, match="experiments.pretrain"):
        load("made:gpt2-mini-tiny")
    monkeypatch.setattr("sys.argv", ["pretrain", "tiny=true"])
    pretrain.program()
    base = load("made:gpt2-mini-tiny")
    assert base.family == "gpt2" and base.config.n_layer == 2
    assert all(np.isfinite(leaf).all() for leaf in base.params.values())
    tokens = base.tokenizer.encode("A film that", add_special_tokens=False)
    assert len(generate(base, [tokens], 3)[0]) == 3
    assert not (tmp_path / "cache/models/gpt2-mini-tiny.training").exists()


def test_a_model_is_trained_once_and_never_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pretrain", "tiny=true"])
    pretrain.program()
    file = tmp_path / "cache/models/gpt2-mini-tiny/model.safetensors"
    before, told = file.read_bytes(), capsys.readouterr().out
    monkeypatch.setattr(pretrain, "running_text", None)
    pretrain.program()
    assert capsys.readouterr().out == told
    monkeypatch.setattr("sys.argv", ["pretrain", "tiny=true", "seed=1"])
    with pytest.raises(SystemExit) as left:
        pretrain.program()
    assert left.value.code == 2 and "give this one its own name=" in capsys.readouterr().err
    assert file.read_bytes() == before
