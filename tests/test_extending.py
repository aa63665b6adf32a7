"""docs/extending.md, done to the letter in a copy of the repository: its blocks written to the
files that they name, its commands run.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from solar import record

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [text.strip() for kind, text in BLOCKS if kind == ""]
PACKAGES = ("solar", "experiments", "paper_figures", "configs")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with everything on the page done but the commands."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.png", "*.pdf")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for kind, text in BLOCKS:
        if kind == "":
            continue
        first, body = text.split("\n", 1)
        appended = re.fullmatch(r"# append to (\S+)", first)
        path = folder / (appended[1] if appended else first.removeprefix("# "))
        path.parent.mkdir(parents=True, exist_ok=True)
        if appended:
            assert path.is_file(), f"the page appends to {path.name}, which is not there"
            path.write_text(path.read_text(encoding="utf-8") + body, encoding="utf-8")
        else:
            path.write_text(body, encoding="utf-8")
    with (folder / "reviews.csv").open("a", encoding="utf-8") as table:
        for i in range(300):
            table.write(f"text number {i},{('good', 'bad')[i % 2]}\n")
    return folder


def run(copy: Path, which: str) -> dict:
    """The record of the page's command that has `which` in it."""
    (command,) = [command for command in COMMANDS if which in command]
    program, *arguments = shlex.split(command)
    assert program == "python"
    # Where and whether W&B is there is no matter of the page.
    arguments += ["tracking=disabled", f"name={which.replace('=', '-')}"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "outputs" / which.replace("=", "-")).glob("*/result.json")
    found = record.read(path)
    assert found["status"] == "complete" and found["tiny"] is True
    return found


def test_every_command_of_the_page_is_tested():
    tested = ("task=my_reviews", "task=parity", "model=gpt2-xl", "codec=small", "codec=axes")
    assert [sum(which in command for which in tested) for command in COMMANDS] == [1] * len(tested)


def test_a_task(copy):
    found = run(copy, "task=my_reviews")
    assert found["about"]["origin"] == "csv reviews.csv"
    assert found["config"]["task"]["columns"] == {"text": "review", "label": "stars"}


def test_a_kind_of_source(copy):
    assert run(copy, "task=parity")["about"]["origin"] == "parity of 6 digits, 400 rows"


def test_a_model_size(copy):
    found = run(copy, "model=gpt2-xl")
    assert found["config"]["model"]["name"] == "gpt2-xl"
    assert found["model"]["dtype"] == "bfloat16" and found["model"]["remat"] is True


def test_a_codec_setting(copy):
    rows = run(copy, "codec=small")["rows"]
    points = {(row["eps"], row["keep"]) for row in rows if row["codec"] == "solar"}
    assert points == {(0.0, None), (0.0, 2), (0.5, None), (0.5, 2)}  # tiny keeps 2 at most
    assert {row["dtype"] for row in rows if row["codec"] == "solar"} == {"int8"}
    assert {"4-bit", "2-bit, rank 1", "rank 1, float16"} < {row["label"] for row in rows}


def test_a_kind_of_basis(copy):
    found = run(copy, "codec=axes")
    (row,) = [row for row in found["rows"] if row["codec"] == "solar"]
    assert row["basis"] == "axes" and 0 < row["relative_error"] <= row["bound"]
    # The same packet is refused by name where the function is not.
    (packet,) = (copy / "outputs").rglob(f"{Path(row['packet']).name}")
    command = [sys.executable, "-m", "solar", "inspect", str(packet)]
    known, unknown = (
        subprocess.run(command, cwd=place, capture_output=True, text=True) for place in (copy, ROOT)
    )
    assert known.returncode == 0 and "axes" in known.stdout
    assert unknown.returncode == 2 and "kind of basis unknown here" in unknown.stderr
