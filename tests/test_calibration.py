"""`compress --calibration`: inputs without labels, from a text file or a folder of images."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from solar import channel, cli, matching, moments
from solar.adapters import peft_io
from solar.adapters.adapter import Adapter
from solar.codec.factors import canonical
from solar.errors import SolarError
from solar.models.structure import structure
from solar.weights.base import load

TARGETS = {"llama": ("q_proj", "v_proj"), "vit": ("q_proj", "v_proj")}


def adapter(folder, family: str, heads: bool = False):
    """A PEFT directory with an update that changes what the tiny base answers."""
    base = load(f"tiny:{family}", num_labels=3 if heads else None)
    drawn, pairs = np.random.default_rng(5), {}
    for name, (outputs, inputs, _) in structure(base.config).linears.items():
        if name.endswith(TARGETS[family]):
            b, a = drawn.standard_normal((outputs, 2)), drawn.standard_normal((2, inputs))
            pairs[name] = b.astype(np.float32), a.astype(np.float32) * inputs**-0.5, 60.0
    trained = {
        "classifier.weight": drawn.standard_normal((3, base.config.hidden_size)),
        "classifier.bias": np.zeros(3),
    }
    trained = {k: np.float32(v) for k, v in trained.items()} if heads else {}
    peft_io.write(folder, Adapter(pairs, trained), family, base.source)
    return base, pairs


@pytest.fixture
def lines(tmp_path):
    words, drawn = (
        "a few plain words that stand for what is asked".split(),
        np.random.default_rng(2),
    )
    path = tmp_path / "inputs.txt"
    path.write_text("\n".join(" ".join(drawn.choice(words, 6)) for _ in range(48)) + "\n\n")
    return path


def test_a_text_file_brings_the_answers_nearer(tmp_path, monkeypatch, capsys, lines):
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    base, pairs = adapter(tmp_path / "adapter", "llama")
    given = ["compress", str(tmp_path / "adapter"), "--base", "tiny:llama", "--budget-bytes", "330"]
    given += ["--json", "--out", str(tmp_path / "own.solar")]
    assert cli.main([*given, "--calibration", str(lines)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"]["total"] <= 330
    own = found["calibration"]
    assert (own["inputs"], own["measured"]) == (36, 12)
    assert own["divergence"][1] < 0.9 * own["divergence"][0]
    # It is another update, nearer in what it answers and not in its weights.
    out = tmp_path / "again"
    assert cli.main(["expand", found["file"], "--base", "tiny:llama", "--out", str(out)]) == 0
    arrived = canonical(peft_io.read(out, base).pairs)
    errors = [canonical(pairs)[k] for k in pairs]
    total = sum(np.sum((f.left @ f.right.T) ** 2) for f in errors)
    missed = sum(
        np.sum((f.left @ f.right.T - (arrived[k].left @ arrived[k].right.T)) ** 2)
        if k in arrived else np.sum((f.left @ f.right.T) ** 2)
        for k, f in canonical(pairs).items()
    )  # fmt: skip
    assert own["relative_error"] == pytest.approx(np.sqrt(missed / total), rel=1e-3)


def test_what_the_base_writes_itself_will_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    base, _ = adapter(tmp_path / "adapter", "llama")
    given = ["compress", str(tmp_path / "adapter"), "--base", "tiny:llama", "--budget-bytes", "330"]
    given += ["--json", "--out", str(tmp_path / "own.solar"), "--calibration", "own"]
    assert cli.main(given) == 0
    found = json.loads(capsys.readouterr().out)
    own = found["calibration"]
    assert found["bytes"]["total"] <= 330
    assert own["inputs"] == channel.STEPS * channel.TOGETHER
    assert own["measured"] == channel.MEASURED  # others than those that were trained on
    assert own["divergence"][1] < 0.95 * own["divergence"][0]


def test_an_image_base_is_run_on_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    adapter(tmp_path / "adapter", "vit", heads=True)
    given = ["compress", str(tmp_path / "adapter"), "--base", "tiny:vit", "--budget-bytes", "900"]
    given += ["--json", "--out", str(tmp_path / "own.solar"), "--calibration", "own"]
    assert cli.main(given) == 0
    own = json.loads(capsys.readouterr().out)["calibration"]
    assert (own["inputs"], own["measured"]) == (80 * 16, channel.MEASURED)
    assert own["divergence"][1] <= own["divergence"][0]


def test_own_inputs_are_a_function_of_the_seed():
    base = load("tiny:llama")
    first, again, other = (channel.own_inputs(base, 20, seed) for seed in (0, 0, 1))
    assert first.identity == again.identity != other.identity
    assert first.train["tokens"].shape == (20, moments.TOKENS)
    assert not first.train["target_mask"][:, 0].any() and first.train["target_mask"][:, 1:].all()
    images = channel.own_inputs(load("tiny:vit", num_labels=3), 2000)
    assert len(images.train["pixels"]) == 2000 and images.objective == "image_class"


def test_the_answer_to_a_whole_line_counts(lines):
    base = load("tiny:llama")
    task = channel.unlabelled(base, lines)
    first = base.tokenizer(lines.read_text().splitlines()[0], add_special_tokens=False)["input_ids"]
    row = task.train
    assert row["tokens"][0, : len(first)].tolist() == first
    assert row["target_mask"][0].sum() == len(first) and not row["target_mask"][0, 0]
    assert task.objective == "next_token" and "label" not in row


def test_a_folder_of_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    adapter(tmp_path / "adapter", "vit", heads=True)
    (tmp_path / "images").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    given = ["compress", str(tmp_path / "adapter"), "--base", "tiny:vit", "--budget-bytes", "900"]
    given += ["--out", str(tmp_path / "own.solar"), "--calibration", str(tmp_path / "images")]
    assert cli.main(given) == 0
    assert "6 inputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "more", "says"),
    [
        ("missing.txt", [], "cannot read calibration text"),
        ("empty.txt", [], "holds no text"),
        ("own", ["--seed", str(2**63)], "too large for calibration"),
        ("empty.txt", ["--preset", "weights"], "calibration is for compact"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, monkeypatch, capsys, data, more, says):
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    adapter(tmp_path / "adapter", "llama")
    (tmp_path / "empty.txt").write_text("\n")
    given = ["compress", str(tmp_path / "adapter"), "--base", "tiny:llama", "--budget-bytes", "330"]
    given += ["--out", str(tmp_path / "own.solar"), "--calibration", str(tmp_path / data), *more]
    assert cli.main(given) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "own.solar").exists()


@pytest.mark.parametrize(
    ("labels", "heads", "says"),
    [
        (0, {}, "neither the base nor the adapter has a classifier"),
        (3, {}, "neither the base nor the file holds classifier.bias, classifier.weight"),
        (3, {"classifier.weight": (3, 0)}, "holds classifier.bias; train it"),
        (3, {"classifier.weight": (3, 1), "classifier.bias": (3,)}, "adapter's classifier.weight"),
        (3, {"classifier.weight": (3, 0), "classifier.bias": (2,)}, "adapter's classifier.bias is"),
        (0, {"score.weight": (3, 0)}, "of which this base has none"),
    ],
)  # fmt: skip
def test_answers_that_are_none_are_refused(labels, heads, says):
    base = load("tiny:vit", num_labels=labels)
    base = replace(base, params={k: v for k, v in base.params.items() if "classifier" not in k})
    width = base.config.hidden_size
    own = Adapter({}, {
        k: np.zeros((shape[0], *(width + more for more in shape[1:])), np.float32)
        for k, shape in heads.items()
    })  # fmt: skip
    with pytest.raises(SolarError, match=says):
        matching.matching(base, channel.own_inputs(base, 4), own)


def test_frames_of_given_inputs_serve_them_better(tmp_path, monkeypatch, capsys, lines):
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    base, pairs = adapter(tmp_path / "adapter", "llama")
    given, plain = tmp_path / "given.frames", tmp_path / "plain.frames"
    assert cli.main(["frames", "tiny:llama", "--out", str(plain), "--json"]) == 0
    assert cli.main(["frames", "tiny:llama", "--out", str(given), "--json", "--inputs",
                     str(lines)]) == 0  # fmt: skip
    first, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert found["about"]["inputs"] == "given" and found["about"]["n"] == 48
    assert found["hash"] != first["hash"]
    # Nothing finds them but who is given them: the cache has the base's own alone.
    (kept,) = (tmp_path / "cache" / "frames").iterdir()
    assert first["hash"] in kept.name
    file, out = tmp_path / "own.solar", tmp_path / "again"
    compress = ["compress", str(tmp_path / "adapter"), "--base", "tiny:llama", "--budget-bytes"]
    own = channel.unlabelled(base, lines)
    told = {}
    for frames in (plain, given):
        assert cli.main([*compress, "330", "--out", str(file), "--frames", str(frames)]) == 0
        expand = ["expand", str(file), "--base", "tiny:llama", "--out", str(out), "--force"]
        if frames == given:
            capsys.readouterr()
            assert cli.main(expand) == 2 and "needs the frames" in capsys.readouterr().err
        assert cli.main([*expand, "--frames", str(frames)]) == 0
        again = canonical(peft_io.read(out, base).pairs)
        start = Adapter(pairs, {})
        (told[frames],) = channel.divergence(base, start, own, [(again, {})])
    assert told[given] < told[plain]


def test_inputs_in_batches_are_cut_to_the_longest(tmp_path):
    tokens = np.arange(20 * 30, dtype=np.int32).reshape(20, 30)
    mask = np.arange(30)[None, :] < np.r_[np.full(4, 30), np.full(16, 5)][:, None]
    short, long = moments.in_batches({"tokens": tokens, "mask": mask, "label": np.zeros(20)})
    assert short["tokens"].shape == (16, 8) and long["tokens"].shape == (4, 30)
    assert short.keys() == {"tokens", "mask"}
    assert (short["tokens"][0] == tokens[4, :8]).all() and (long["tokens"] == tokens[:4]).all()
    (pixels,) = moments.in_batches({"pixels": np.zeros((3, 8, 8, 3)), "label": np.zeros(3)})
    assert pixels["pixels"].shape == (3, 8, 8, 3)
