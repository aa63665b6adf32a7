"""`python -m solar`: the verbs, what they print, and what they refuse, on real files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from golden import cases
from golden.bases import base_of
from test_weights import write_folder

import solar
from solar.adapters import peft_io
from solar.adapters.adapter import Adapter
from solar.cli import main
from solar.codec.factors import canonical, relative_error
from solar.errors import SolarError

CASE = "llama-own-head"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return write_folder(folder, CASE, dict(base_of(CASE, seed=3).params))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base):
    """A PEFT directory: q and v of both layers, ranks that differ, and a trained head."""
    params, pairs = base_of(CASE, seed=3).params, {}
    for layer in (0, 1):
        for kind in "qv":
            name, rank = f"model.layers.{layer}.self_attn.{kind}_proj", 2 + layer
            m, n = params[name + ".weight"].shape
            drawn = cases.factors({name + ".A": (rank, n), name + ".B": (m, rank)})
            pairs[name] = (drawn[name + ".B"], drawn[name + ".A"], 1.5)
    head = {"lm_head.weight": np.asarray(params["lm_head.weight"]) + 0.5}
    folder = tmp_path_factory.mktemp("adapter")
    peft_io.write(folder, Adapter(pairs, head), "llama", str(base))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory, adapter, base):
    path = tmp_path_factory.mktemp("file") / "own.solar"
    solar.compress(adapter, str(base), path, budget_bytes=9000)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(a) for a in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(capsys, message, *arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def update(folder, base):
    read = peft_io.read(folder, base_of(CASE, seed=3))
    return canonical(read.pairs), read.heads


@pytest.mark.parametrize("preset", [None, "paper", "weights", "compact"])
def test_there_and_back(capsys, tmp_path, adapter, base, preset):
    given = ["--preset", preset] if preset else []
    file, out = tmp_path / "a.solar", tmp_path / "out"
    status, text, err = run(
        capsys, "compress", adapter, "--base", base, "--out", file, "--budget-bytes", 4900, *given
    )
    assert (status, err) == (0, "") and f"wrote {file}: " in text and "proved bound" in text
    assert 0.97 * 4900 <= file.stat().st_size <= 4900
    status, text, _ = run(capsys, "verify", file, "--base", base)
    assert status == 0 and text.startswith("decodes: 4 layers")
    assert run(capsys, "expand", file, "--base", base, "--out", out)[0] == 0
    assert sorted(os.listdir(out)) == ["adapter_config.json", "adapter_model.safetensors"]
    (before, head), (after, decoded_head) = update(adapter, base), update(out, base)
    assert relative_error(before, after) < (0.8 if preset == "paper" else 0.02)
    np.testing.assert_allclose(decoded_head["lm_head.weight"], head["lm_head.weight"], rtol=1e-3)


def test_json_is_one_object_everywhere(capsys, tmp_path, adapter, base):
    file = tmp_path / "a.solar"
    made = run(capsys, "compress", adapter, "--base", base, "--out", file, "--json")
    for status, text, err in (
        made,
        run(capsys, "inspect", file, "--json"),
        run(capsys, "verify", file, "--base", base, "--json"),
        run(capsys, "expand", file, "--base", base, "--out", tmp_path / "o", "--json"),
        run(capsys, "limit", adapter, "--json"),
    ):
        assert (status, err) == (0, "") and isinstance(json.loads(text), dict)
    report = json.loads(made[1])
    assert report["bytes"]["total"] == file.stat().st_size <= report["budget_bytes"]
    assert report["relative_error"] <= report["bound"] and len(report["layers"]) == 4
    points = json.loads(run(capsys, "limit", adapter, "--json")[1])["points"]
    assert points[0] == {"bytes": 0.0, "relative_error": 1.0}
    assert all(a["bytes"] < b["bytes"] for a, b in zip(points, points[1:], strict=False))


def test_a_pipe_is_not_replaced_by_a_file(capsys, tmp_path, adapter, base):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for given in (("compress", adapter, "--base", base), ("frames", base)):
        status, _, err = run(capsys, *given, "--out", pipe)
        assert status == 2 and "is no regular file; give the name of a file to write" in err
    assert pipe.is_fifo()


def test_the_limit_of_an_adapter_is_that_of_its_base(capsys, adapter, base):
    found = [json.loads(run(capsys, "limit", adapter, "--json", *more)[1])
             for more in ((), ("--base", base))]  # fmt: skip
    assert found[0]["points"] == found[1]["points"]


def test_inspect_says_what_the_file_holds(capsys, file):
    status, text, _ = run(capsys, "inspect", file)
    assert status == 0
    for part in ("activation frames ", "4 layers of rank 2 to 3", "the usual targets",
                 "head lm_head.weight", "of the file is its"):  # fmt: skip
        assert part in text
    found = solar.inspect(file)
    assert found["bytes"]["total"] == file.stat().st_size
    assert sum(found["bytes"][k] for k in ("payload", "header", "heads")) == file.stat().st_size


def test_heads_in_eight_bits_take_less(tmp_path, adapter, base):
    sizes = {}
    for dtype in ("float16", "int8"):
        report = solar.compress(adapter, str(base), tmp_path / dtype, head_dtype=dtype)
        sizes[dtype] = report["bytes"]["heads"]
    assert sizes["int8"] < 0.7 * sizes["float16"]


def test_an_embedded_basis_needs_no_singular_vectors(tmp_path, adapter, base, monkeypatch):
    from solar.codec import singular

    report = solar.compress(adapter, str(base), tmp_path / "e.solar", preset="paper",
                            budget_bytes=30_000, embed_basis=True)  # fmt: skip
    assert (
        20_000 < report["bytes"]["total"] <= 30_000
        and solar.inspect(tmp_path / "e.solar")["embedded"]
    )
    monkeypatch.setattr(singular, "singular_frames", None)
    solar.expand(tmp_path / "e.solar", str(base), tmp_path / "out")


def test_expand_keeps_what_is_there(capsys, tmp_path, file, base):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    refused(capsys, "exists; give another name, or --force", "expand", file, "--base", base,
            "--out", out)  # fmt: skip
    assert (out / "mine.txt").read_text() == "precious"
    broken = tmp_path / "broken.solar"
    broken.write_bytes(file.read_bytes()[:-3])
    refused(capsys, "truncated", "expand", broken, "--base", base, "--out", out, "--force")
    assert (out / "mine.txt").read_text() == "precious"
    assert run(capsys, "expand", file, "--base", base, "--out", out, "--force")[0] == 0
    assert sorted(os.listdir(out)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert os.listdir(tmp_path) == ["out", "broken.solar"] or len(os.listdir(tmp_path)) == 2


def test_mistakes_are_one_line(capsys, tmp_path, adapter, base, file):
    out = ("--out", tmp_path / "x.solar")
    given = ("compress", adapter, "--base", base, *out)
    for message, *arguments in (
        ("the following arguments are required: --base, --out", "compress", adapter),
        ("invalid choice: 'squash'", "squash"),
        ("invalid choice: 'best'", *given, "--preset", "best"),
        ("too small", *given, "--budget-bytes", 12),
        ("does not exist", "compress", adapter, "--base", tmp_path / "nobase", *out),
        ("nowhere", "compress", tmp_path / "nowhere", "--base", base, *out),
        ("is a directory", "compress", adapter, "--base", base, "--out", tmp_path),
        ("out of range", *given, "--seed", -1),
        ("frames are for compact", *given, "--preset", "paper", "--frames", base),
        ("has no basis to embed", *given, "--embed-basis"),
        ("does not exist", "compress", adapter, "--base", "~nobody-of-this-name/model", *out),
        ("head dtype 'int3'", *given, "--head-dtype", "int3"),
        ("cannot read packet", "inspect", tmp_path / "none.solar"),
        ("not a .solar packet", "inspect", adapter / "adapter_config.json"),
        ("another base", "verify", file, "--base", "tiny:llama"),
    ):
        refused(capsys, message, *arguments)
        assert not (tmp_path / "x.solar").exists()


def test_the_api_raises_what_the_command_line_prints(tmp_path, adapter, base):
    with pytest.raises(SolarError, match="preset 'best' is unknown"):
        solar.compress(adapter, str(base), tmp_path / "x", preset="best")
    with pytest.raises(AttributeError, match="no attribute 'squash'"):
        _ = solar.squash
    verbs = {"compress", "expand", "inspect", "verify", "frames", "limit"}
    assert set(solar.__all__) == verbs


def test_nothing_heavy_is_imported(tmp_path, adapter, base, file):
    """Models, JAX and torch stay out; `inspect` does without SciPy and the coder as well."""
    code = (
        "import sys; from solar.cli import main; status = main(sys.argv[2:]); "
        "print(*(m for m in sys.argv[1].split() if m in sys.modules)); sys.exit(status)"
    )
    heavy = "jax flax torch transformers"
    for modules, arguments in (
        (f"{heavy} scipy constriction rich", ["inspect", file]),
        (heavy, ["limit", adapter]),
        (heavy, ["verify", file, "--base", base]),
        (heavy, ["expand", file, "--base", base, "--out", tmp_path / "o"]),
        (heavy, ["compress", adapter, "--base", base, "--out", tmp_path / "o.solar"]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, modules, *map(str, arguments)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "", (arguments[0], done.stdout.splitlines()[-1])
