"""What a person sees of a program: one line and exit 2 for a mistake, a traceback for a bug."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import program
from solar.errors import SolarError

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import os, signal
from experiments.program import main
from solar.errors import SolarError

@main("tiny", CONFIGS)
def run(config):
    if config.kind == "mistake":
        raise SolarError("the adapter is missing:\\n train it")
    if config.kind == "bug":
        raise RuntimeError("boom")
    if config.kind == "wrong key":
        return config.nowhere
    if config.kind == "ctrl-c":
        # Whoever started the tests may have had SIGINT ignored, which is inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    print("ran", config.x, config.model.size, config.needed)
    return config.x

if __name__ == "__main__":
    run()
"""

CONFIG = """
defaults:
  - model: small
  - _self_
x: 1
kind: fine
needed: 3
hydra:
  run: {dir: out}
  sweep: {dir: sweep, subdir: "${hydra:job.override_dirname}"}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("program")
    (place / "configs" / "model").mkdir(parents=True)
    (place / "configs" / "tiny.yaml").write_text(CONFIG)
    (place / "configs" / "model" / "small.yaml").write_text("size: 1\n")
    (place / "configs" / "model" / "large.yaml").write_text("size: 2\n")
    (place / "tiny.py").write_text(PROGRAM.replace("CONFIGS", repr(str(place / "configs"))))
    return place


def run(folder, *arguments):
    """Status, stdout and stderr of the tiny program in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tiny", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_good_run_is_quiet(folder):
    assert run(folder, "x=2", "model=large") == (0, "ran 2 2 3\n", "")
    assert (folder / "out" / ".hydra" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kind=mistake"], ["the adapter is missing: train it"]),
        (["modle=large"], ["unknown key modle", "did you mean model"]),
        (["size=4"], ["unknown key size", "did you mean model.size"]),
        (["model=huge"], ["model/huge", "large, small"]),
        (["x=[1"], ["cannot read 'x=[1'"]),
        (["needed=???"], ["needed", "key=value"]),
        (["--tiny"], ["unknown flag --tiny", "key=value"]),
        (["-m", "x=1,2", "nokey=1,2"], ["unknown key nokey"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(folder, arguments, words):
    status, out, err = run(folder, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    for word in words:
        assert word in err


def test_a_bug_keeps_its_traceback(folder):
    for kind, word in (("bug", "RuntimeError: boom"), ("wrong key", "nowhere")):
        status, _, err = run(folder, f"kind={kind}")
        assert status == 1
        assert "Traceback" in err and word in err and 'tiny.py", line' in err
        assert word in (folder / "out" / "error.txt").read_text()


def test_ctrl_c_says_how_to_go_on(folder):
    status, out, err = run(folder, "kind=ctrl-c")
    assert status == 130
    assert out == "" and err == "interrupted: run the same command again and it resumes\n"


def test_a_sweep_goes_on_after_a_mistake_and_ends_with_2(folder):
    # Flags and overrides in any order.
    status, out, err = run(folder, "x=1,2", "-m", "kind=mistake,fine")
    assert status == 2
    assert out == "ran 1 1 3\nran 2 1 3\n"
    assert err == "".join(
        f"error: x={x} kind=mistake: the adapter is missing: train it\n" for x in (1, 2)
    )
    notes = sorted(path.parent.name for path in (folder / "sweep").glob("*/error.txt"))
    assert notes == ["kind=mistake,x=1", "kind=mistake,x=2"]
    assert run(folder, "-m", "x=1,2") == (0, "ran 1 1 3\nran 2 1 3\n", "")


def test_a_configuration_for_python_is_that_of_the_command_line():
    config = program.composed("compare", "model=tiny-gpt2", "train.steps=3", "codec=tiny")
    assert config["model"]["spec"] == "tiny:gpt2" and config["train"]["steps"] == 3
    assert config["name"] == "tiny-gpt2-movie_snippets" and "hydra" not in config
    for override, said in (("train.stepz=3", "train.steps"), ("model=none", "none")):
        with pytest.raises(SolarError, match=said):
            program.composed("compare", override)
