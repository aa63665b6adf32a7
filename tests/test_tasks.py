"""Tasks without a network: templates, label tokens, cutting, splits, local data, images."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from solar.errors import SolarError
from solar.tasks import build, images, running_text
from solar.tasks.images import read_image
from solar.tasks.package_index import parse_index
from solar.tasks.sources import SOURCES, movie_snippets, open_source, plain_words
from solar.tasks.task import Source, identity_of
from solar.tasks.text import class_index, class_names, empty, fill, fit

CONFIGS = Path(__file__).parent.parent / "configs" / "task"
PAD = 0
ARRAYS = {
    "label_token": {"tokens": np.int32, "mask": np.bool_, "label": np.int32},
    "label_choice": {"tokens": np.int32, "mask": np.bool_, "label": np.int32},
    "next_token": {"tokens": np.int32, "mask": np.bool_, "target_mask": np.bool_},
    "image_class": {"pixels": np.uint8, "label": np.int32},
}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("SOLAR_OFFLINE", "1")
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))


def by_bytes(text: str) -> list[int]:
    """A tokenizer whose tokens are the bytes of the text."""
    return list(text.encode())


def by_words(text: str) -> list[int]:
    """A tokenizer with one token a word (the space before belongs to it), as byte-level BPE has."""
    import re
    import zlib

    return [zlib.crc32(word.encode()) % 50_000 + 1 for word in re.findall(r" ?\w+|\W", text)]


def config(name: str, **changes) -> dict:
    return {**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), **changes}


def small(**changes) -> dict:
    """A classification over rows given by tests in files."""
    return {
        "name": "small", "objective": "label_token", "template": "{text} =",
        "labels": {"no": "-", "yes": "+"}, "max_tokens": 40, "train": None, "validation": 2,
        "test": 3, **changes,
    }  # fmt: skip


def generated(count: int = 20) -> list[dict]:
    return [{"text": f"row {i}", "label": ("no", "yes")[i % 2]} for i in range(count)]


def write_csv(path: Path, rows: list[dict]) -> str:
    with path.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def texts(split: dict) -> list[str]:
    pairs = zip(split["tokens"], split["mask"], strict=True)
    return [bytes(row[mask].tolist()).decode() for row, mask in pairs]


def check_arrays(task):
    for split in (task.train, task.validation, task.test):
        assert {name: array.dtype for name, array in split.items()} == ARRAYS[task.objective]
        assert len({len(array) for array in split.values()}) == 1
        if "mask" in split:
            lengths = split["mask"].sum(1)
            assert (lengths > 0).all()
            assert (split["mask"] == (np.arange(split["mask"].shape[1]) < lengths[:, None])).all()
            assert (split["tokens"][~split["mask"]] == PAD).all()
        if "target_mask" in split:
            assert not split["target_mask"][:, 0].any()
            assert not (split["target_mask"] & ~split["mask"]).any()
            assert split["target_mask"].any(1).all()
        if "label" in split and len(split["label"]):
            assert 0 <= split["label"].min() and split["label"].max() < len(task.classes)


# ------------------------------------------------------------- the shipped configs


def test_vendored_snippets_are_the_measured_ones():
    rows = movie_snippets().splits["all"]
    assert len(rows) == 10_072
    assert sum(row["label"] == "positive" for row in rows) == 4_996
    assert all(abs(row["rating"]) >= 0.5 and row["text"].strip() for row in rows)


def test_movie_snippets_task():
    task = build(config("movie_snippets"), encode=by_words, pad_id=PAD)
    check_arrays(task)
    assert [len(s["label"]) for s in (task.train, task.validation, task.test)] == [4000, 300, 600]
    assert task.train["tokens"].shape == (4000, 48)
    assert task.classes == ("negative", "positive")
    assert task.label_tokens.tolist() == [by_words(" negative")[0], by_words(" positive")[0]]
    ends = by_words("\nSentiment:")
    for split in (task.train, task.test):  # the question survives the cut of long texts
        for row, mask in zip(split["tokens"], split["mask"], strict=True):
            assert row[mask][-len(ends) :].tolist() == ends
    shown = [{row.tobytes() for row in s["tokens"]} for s in (task.train, task.validation)]
    assert not shown[0] & shown[1]
    assert 0.4 < task.train["label"].mean() < 0.6


@pytest.mark.parametrize("name", ["digits", "synthetic_text"])
def test_tasks_for_tests_need_nothing(name):
    task = build(config(name), encode=by_bytes, pad_id=PAD)
    check_arrays(task)
    assert len(task.classes) == len(set(task.test["label"].tolist()))


def test_every_config_names_its_file_and_a_known_source():
    found = sorted(CONFIGS.glob("*.yaml"))
    assert len(found) >= 18
    for path in found:
        node = yaml.safe_load(path.read_text())
        source = node["source"]
        assert node["name"] == path.stem
        assert (source if isinstance(source, str) else source["kind"]) in SOURCES


def test_synthetic_text_has_signal():
    task = build(config("synthetic_text"), encode=by_bytes, pad_id=PAD)
    cues = [sum(text.count(w) for w in ("good", "fine", "warm")) for text in texts(task.test)]
    assert ((np.array(cues) > 0) == task.test["label"]).all()


# ------------------------------------------------------------- identity and splits


def test_same_seed_same_arrays_in_another_process():
    script = (
        "import yaml; from solar.tasks import build;"
        f"node = yaml.safe_load(open({str(CONFIGS / 'synthetic_text.yaml')!r}));"
        "print(build(node, encode=lambda t: list(t.encode()), pad_id=0, seed=3).identity)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True,
        timeout=120, cwd=CONFIGS.parent.parent, check=True,
    )  # fmt: skip
    state = np.random.get_state()[1].copy()
    here = build(config("synthetic_text"), encode=by_bytes, pad_id=PAD, seed=3)
    assert other.stdout.strip() == here.identity
    assert (np.random.get_state()[1] == state).all()  # no global generator was touched
    assert build(config("synthetic_text"), encode=by_bytes, pad_id=PAD).identity != here.identity


def test_identity_sees_every_part():
    arrays = {"train": {"a": np.arange(6, dtype=np.int32)}}
    seen = {
        identity_of(arrays),
        identity_of({"train": {"b": np.arange(6, dtype=np.int32)}}),
        identity_of({"test": {"a": np.arange(6, dtype=np.int32)}}),
        identity_of({"train": {"a": np.arange(6, dtype=np.uint32)}}),
        identity_of({"train": {"a": np.arange(6, dtype=np.int32).reshape(2, 3)}}),
        identity_of({"train": {"a": np.array([0, 1, 2, 3, 4, 6], np.int32)}}),
    }
    assert len(seen) == 6


def test_training_size_does_not_move_the_test_set():
    few = build(config("synthetic_text", train=50), encode=by_bytes, pad_id=PAD)
    many = build(config("synthetic_text", train=300), encode=by_bytes, pad_id=PAD)
    assert (few.test["tokens"] == many.test["tokens"]).all()
    assert (few.train["tokens"] == many.train["tokens"][:50]).all()


def test_repeats_are_dropped_within_and_across(tmp_path):
    rows = generated(12) + [{"text": f"  ROW\u00a0{i} ", "label": "no"} for i in range(12)]
    path = write_csv(tmp_path / "rows.csv", rows)
    for seed in range(5):
        task = build(
            small(source={"kind": "files", "format": "csv", "path": path}),
            encode=by_bytes, pad_id=PAD, seed=seed,
        )  # fmt: skip
        shown = [
            " ".join(text.casefold().split())
            for split in (task.train, task.validation, task.test)
            for text in texts(split)
        ]
        assert len(shown) == len(set(shown)) == 12
        assert sum(task.about["repeats_dropped"].values()) == 12


def test_given_splits_lose_what_stands_in_test(tmp_path):
    rows = generated(20)
    paths = {
        "train": write_csv(tmp_path / "train.csv", rows),
        "validation": write_csv(tmp_path / "validation.csv", rows[:6]),
        "test": write_csv(tmp_path / "test.csv", rows[:4]),
    }
    task = build(
        small(source={"kind": "files", "format": "csv", **paths}, validation=None, test=None),
        encode=by_bytes, pad_id=PAD,
    )  # fmt: skip
    assert [len(s["label"]) for s in (task.train, task.validation, task.test)] == [14, 2, 4]
    assert not set(texts(task.train)) & set(texts(task.test))
    assert not set(texts(task.train)) & set(texts(task.validation))


def test_texts_alike_after_the_cut_stay_on_one_side(tmp_path):
    rows = [{"text": f"{i // 4:02} " + "z" * 60 + f" {i}", "label": "no"} for i in range(40)]
    place = write_csv(tmp_path / "rows.csv", rows)
    node = small(source={"kind": "files", "format": "csv", "path": place}, validation=0)
    task = build(node, encode=by_bytes, pad_id=PAD)
    shown = texts(task.train) + texts(task.test)
    assert len(shown) == len(set(shown)) == 10


def test_group_stays_in_one_split(tmp_path):
    rows = [{**row, "origin": f"o{i // 3}"} for i, row in enumerate(generated(60))]
    place = tmp_path / "rows.jsonl"
    place.write_text("\n".join(json.dumps(row) for row in rows))
    node = small(
        source={"kind": "files", "format": "jsonl", "path": str(place)}, group="origin",
        template="{origin}: {text} =", test=10,
    )  # fmt: skip
    task = build(node, encode=by_bytes, pad_id=PAD)
    origins = [{text.split(":")[0] for text in texts(s)} for s in (task.train, task.test)]
    assert origins[0] and origins[1] and not origins[0] & origins[1]
    free = build({**node, "group": None}, encode=by_bytes, pad_id=PAD)
    assert {text.split(":")[0] for text in texts(free.train)} & {
        text.split(":")[0] for text in texts(free.test)
    }


def test_few_shot():
    task = build(config("synthetic_text", shots_per_class=4), encode=by_bytes, pad_id=PAD)
    assert np.bincount(task.train["label"]).tolist() == [4, 4]
    digits = build(config("digits", shots_per_class=3, image_size=8))
    assert np.bincount(digits.train["label"]).tolist() == [3] * 10
    assert len(digits.test["label"]) == 400
    with pytest.raises(SolarError, match="class .* has .* rows, shots_per_class asks for 5000"):
        build(config("synthetic_text", shots_per_class=5000), encode=by_bytes, pad_id=PAD)


# ------------------------------------------------------------- label tokens and cutting


def test_label_words_are_told_apart_by_their_first_token():
    node = config("synthetic_text", labels={"negative": "down", "positive": "up"})
    task = build(node, encode=by_bytes, pad_id=PAD)
    assert task.label_tokens.tolist() == [ord("d"), ord("u")]
    assert task.about["labels_by_first_token"] == ["down", "up"]
    node = config("synthetic_text", labels={"negative": " bad", "positive": " good"})
    with pytest.raises(SolarError, match="' bad' and ' good' begin with the same token"):
        build(node, encode=by_bytes, pad_id=PAD)


def test_label_word_that_merges_with_the_template():
    def merging(text):
        return [ord(c) for c in text.replace("=+", "#")]

    with pytest.raises(SolarError, match=r"'\+' has no token of its own"):
        build(config("synthetic_text"), encode=merging, pad_id=PAD)


def test_cut_takes_the_longest_column_and_fills_the_room():
    row = {"first": "one two three four five six seven", "second": "short"}
    for room in range(20, 60):
        tokens, shown = fit("A: {first} B: {second} =", row, room, by_bytes, "t")
        assert bytes(tokens).decode() == shown
        assert len(tokens) <= room and shown.endswith(" B: short =")
        assert room - len(tokens) < 6 or len(tokens) == 47  # never a whole word too much
    assert len(fit("{first}", {"first": "x" * 900}, 70, by_bytes, "t")[0]) == 70  # no spaces
    with pytest.raises(SolarError, match="template alone takes"):
        fit("a very long question: {first}", row, 10, by_bytes, "t")


# ------------------------------------------------------------- generation and running text


def test_generation_counts_loss_on_the_target_alone(tmp_path):
    rows = [{"slots": f"name[{i}]", "said": f"It is called {i}."} for i in range(30)]
    rows += [{"slots": "x" * 100, "said": "long"}, {"slots": "q", "said": "y" * 100}]
    place = tmp_path / "rows.json"
    place.write_text(json.dumps(rows))
    node = {
        "name": "slots", "objective": "next_token", "max_tokens": 40, "template": "{slots} ->",
        "target": " {said}", "train": None, "validation": 3, "test": 5,
        "source": {"kind": "files", "format": "json", "path": str(place)},
    }  # fmt: skip
    task = build(node, encode=by_bytes, pad_id=PAD, eos_id=3)
    check_arrays(task)
    assert task.about["targets_cut"] == 1
    found = {}
    for split in (task.train, task.validation, task.test):
        for row, mask, target in zip(*split.values(), strict=True):
            prompt, reply = row[mask & ~target], row[target]
            found[bytes(prompt.tolist()).decode()] = bytes(reply.tolist()).decode()
    assert len(found) == 32
    assert found["name[7] ->"] == " It is called 7.\x03"
    assert found["q ->"] == " " + "y" * 35  # cut, so nothing says it ends
    (long,) = (prompt for prompt in found if prompt.startswith("xxx"))
    assert long.endswith(" ->") and found[long] == " long\x03" and len(long) == 34


def test_generation_keeps_references_but_not_prompts_across_splits(tmp_path):
    rows = [{"slots": f"s{i // 2}", "said": f"said {i}"} for i in range(40)]
    place = tmp_path / "rows.json"
    place.write_text(json.dumps(rows + rows[:10]))
    node = {
        "name": "slots", "objective": "next_token", "max_tokens": 40, "template": "{slots} ->",
        "target": " {said}", "train": None, "validation": 0, "test": 6,
        "source": {"kind": "files", "format": "json", "path": str(place)},
    }  # fmt: skip
    task = build(node, encode=by_bytes, pad_id=PAD)
    prompts = [{text.split(" ->")[0] for text in texts(s)} for s in (task.train, task.test)]
    assert not prompts[0] & prompts[1]
    assert len(texts(task.train)) > len(prompts[0])  # two references of one prompt both train
    assert len(texts(task.train)) == len(set(texts(task.train)))
    assert len(task.validation["tokens"]) == 0


def test_template_without_an_input(tmp_path):
    rows = [{"instruction": f"do {i}", "input": "" if i % 2 else "this", "output": "done"}
            for i in range(20)]  # fmt: skip
    place = tmp_path / "rows.json"
    place.write_text(json.dumps(rows))
    node = config(
        "alpaca", train=10, validation=2, test=4, splits=None, max_tokens=400,
        source={"kind": "files", "format": "json", "path": str(place)},
    )  # fmt: skip
    task = build(node, encode=by_bytes, pad_id=PAD)
    check_arrays(task)
    for text in texts(task.train):
        odd = int(text.split("do ")[1].split("\n")[0]) % 2
        assert ("### Input:" in text) == (not odd) and text.endswith("### Response:\ndone")


def test_running_text_chunks_keep_documents_on_one_side(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.txt").write_text(chr(ord("a") + i) * (150 + i))
    (folder / "repeat.txt").write_text("A" * 150)  # the first one, but for case
    node = {
        "name": "run", "objective": "next_token", "max_tokens": 32, "train": None, "validation": 6,
        "test": 10, "separator": "|",
        "source": {"kind": "files", "format": "text", "path": str(folder)},
    }  # fmt: skip
    task = build(node, encode=by_bytes, pad_id=PAD)
    check_arrays(task)
    assert task.test["tokens"].shape == (10, 32) and task.validation["tokens"].shape == (6, 32)
    letters = [set(np.unique(s["tokens"])) - {ord("|")}
               for s in (task.train, task.validation, task.test)]  # fmt: skip
    assert not letters[0] & letters[1] and not letters[0] & letters[2]
    assert not letters[1] & letters[2]
    assert sum(task.about["documents"].values()) == 20
    ended = build(node, encode=by_bytes, pad_id=PAD, eos_id=1)
    assert (ended.train["tokens"] == 1).sum() == (task.train["tokens"] == ord("|")).sum() > 0


# ------------------------------------------------------------- local files


@pytest.mark.parametrize("format", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_local_tables_with_their_own_column_names(format, tmp_path):
    rows = [{"sentence": f'row, "{i}"\nα', "sign": str(i % 2)} for i in range(20)]
    place = tmp_path / f"rows.{format}"
    if format in ("csv", "tsv"):
        with place.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, rows[0], delimiter="," if format == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif format == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), place)
    else:
        lines = [json.dumps(row) for row in rows]
        place.write_text(f"[{','.join(lines)}]" if format == "json" else "\n".join(lines))
    node = small(
        source={"kind": "files", "format": format, "path": str(place)},
        columns={"text": "sentence", "label": "sign"}, labels={0: "-", 1: "+"},
    )  # fmt: skip
    task = build(node, encode=by_bytes, pad_id=PAD)
    check_arrays(task)
    assert task.classes == ("0", "1") and len(task.train["label"]) == 15
    for text, label in zip(texts(task.train), task.train["label"], strict=True):
        assert int(text.split('"')[1]) % 2 == label and text.endswith('"\nα =')


def test_labels_of_a_table_are_its_sorted_values(tmp_path):
    path = write_csv(tmp_path / "rows.csv", generated())
    node = small(labels=None, source={"kind": "files", "format": "csv", "path": path})
    task = build(node, encode=by_words, pad_id=PAD)
    assert task.classes == ("no", "yes")
    assert task.label_tokens.tolist() == [by_words(" no")[0], by_words(" yes")[0]]


FAULTS = {
    "no such file": {"source": {"kind": "files", "format": "csv", "path": "/none.csv"}},
    "is empty": {"source": {"kind": "files", "format": "csv", "path": "EMPTY"}},
    "not as many fields": {"source": {"kind": "files", "format": "csv", "path": "RAGGED"}},
    "is not a readable json file": {"source": {"kind": "files", "format": "json", "path": "GOOD"}},
    "not a readable parquet": {"source": {"kind": "files", "format": "parquet", "path": "GOOD"}},
    "unknown file format 'xls'": {"source": {"kind": "files", "format": "xls", "path": "GOOD"}},
    "needs 'format'": {"source": {"kind": "files", "path": "GOOD"}},
    "either path, or train": {"source": {"kind": "files", "format": "csv"}},
    "has no argument 'folder'": {"source": {"kind": "files", "format": "csv", "folder": "x"}},
    "unknown source 'nowhere'": {"source": "nowhere"},
    "no such folder": {"source": {"kind": "image_folder", "path": "/none"}},
    "forbids downloads": {"source": {"kind": "hub", "name": "owner/data"}},
    "SOLAR_OFFLINE=1 forbids": {"source": "bbc_news"},
    "no column 'body'": {"columns": {"text": "body"}},
    "no column 'nothing'": {"template": "{nothing} ="},
    "no column 'side'": {"group": "side"},
    "label 'yes', classes are no, maybe": {"labels": {"no": "-", "maybe": "?"}},
    "malformed": {"template": "{text"},
    "plain column names": {"template": "{text.__class__} ="},
    "unknown key 'template_if'": {"template_if": "x"},
    "objective is 'guess'": {"objective": "guess"},
    "max_tokens is 0": {"max_tokens": 0},
    "train is -1": {"train": -1},
    "test is 0": {"test": 0},
    "test asks for 50 rows": {"test": 50},
    "test takes all rows": {"test": None},
    "no split 'dev'": {"splits": {"test": "dev"}},
    "splits.dev is not one of": {"splits": {"dev": "train"}},
    "shots_per_class is 0": {"shots_per_class": 0},
    "set template": {"template": None},
    "needs exactly the keys": {"template_without": {"column": "text"}},
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_named_in_one_line(message, tmp_path):
    write_csv(tmp_path / "GOOD", generated())
    (tmp_path / "EMPTY").write_text("text,label\n")
    (tmp_path / "RAGGED").write_text("text,label\nonly text\n")
    good = {"kind": "files", "format": "csv", "path": "GOOD"}
    node = small(**{"source": good, **FAULTS[message]})
    if isinstance(node["source"], dict) and str(node["source"].get("path", "")).isupper():
        node["source"] = {**node["source"], "path": str(tmp_path / node["source"]["path"])}
    with pytest.raises(SolarError) as error:
        build(node, encode=by_bytes, pad_id=PAD)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_text_without_a_tokenizer():
    with pytest.raises(SolarError, match="tokenizer"):
        build(config("synthetic_text"))


# ------------------------------------------------------------- hub data sets, by local copies


@pytest.fixture
def hub_copy(tmp_path, monkeypatch):
    """A folder of Parquet splits with the hub's schema, which `datasets` reads like a hub id."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))

    def make(features: dict, **splits) -> str:
        for split, columns in splits.items():
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            table.to_parquet(tmp_path / "copy" / f"{split}-00000-of-00001.parquet")
        return str(tmp_path / "copy")

    return make


def test_sst2_schema(hub_copy):
    from datasets import ClassLabel, Value

    def split(first, count, label=None):
        return {
            "sentence": [f"film {i} " for i in range(first, first + count)],
            "label": [i % 2 if label is None else label for i in range(count)],
            "idx": list(range(count)),
        }

    features = {"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"]),
                "idx": Value("int32")}  # fmt: skip
    place = hub_copy(features, train=split(0, 40), validation=split(35, 20), test=split(90, 5, -1))
    node = config("sst2", train=20, validation=5)
    node["source"] = {"kind": "hub", "name": place}
    task = build(node, encode=by_words, pad_id=PAD)
    check_arrays(task)
    assert len(task.test["label"]) == 20 and task.classes == ("negative", "positive")
    train = {row.tobytes() for row in task.train["tokens"]}
    assert not train & {row.tobytes() for row in task.test["tokens"]}
    node["splits"] = {"train": "train", "validation": "train", "test": "test"}
    with pytest.raises(SolarError, match="label 'number -1'"):
        build(node, encode=by_words, pad_id=PAD)


def test_cifar_schema_keeps_images_packed_until_used(hub_copy):
    from datasets import ClassLabel
    from datasets import Image as ImageColumn

    def split(count, seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), np.uint8)
        return {"img": [Image.fromarray(p) for p in pixels],
                "fine_label": [i % 3 for i in range(count)],
                "coarse_label": [0] * count}  # fmt: skip

    features = {"img": ImageColumn(), "fine_label": ClassLabel(names=["a", "b", "c"]),
                "coarse_label": ClassLabel(names=["x", "y"])}  # fmt: skip
    place = hub_copy(features, train=split(12, 0), test=split(6, 1))
    node = config("cifar100", train=8, validation=2, test=6, source={"kind": "hub", "name": place})
    node["labels"] = ["0", "1", "2"]  # two class columns: the config says which names it means
    task = build(node, image_size=6)
    check_arrays(task)
    assert task.train["pixels"].shape == (8, 6, 6, 3)
    original = np.random.default_rng(1).integers(0, 256, (6, 6, 6, 3), np.uint8)
    assert {p.tobytes() for p in task.test["pixels"]} == {p.tobytes() for p in original}


def test_e2e_schema(hub_copy):
    from datasets import Value

    slots = [f"name[The {i // 3}], food[Thai]" for i in range(30)]
    said = [f"The {i // 3} has Thai food, {i}." for i in range(30)]
    rows = {"meaning_representation": slots, "human_reference": said}
    other = {"meaning_representation": ["name[X]"] * 2, "human_reference": ["X.", "It is X."]}
    features = dict.fromkeys(rows, Value("string"))
    place = hub_copy(features, train=rows, validation=other, test=other)
    node = config("e2e_nlg", train=None, validation=0, test=2)
    node["source"] = {"kind": "hub", "name": place}
    task = build(node, encode=by_bytes, pad_id=PAD)
    check_arrays(task)
    assert len(task.train["tokens"]) == 30 and len(task.test["tokens"]) == 2


def test_mmlu_schema_with_answers_in_a_list(hub_copy):
    from datasets import ClassLabel, List, Value

    def split(first):
        several = range(first, first + 8)
        return {
            "question": [f"Which is number {i}?" for i in several],
            "subject": ["numbers"] * 8,
            "choices": [[f"{k} of {i}" for k in ("one", "two", "three", "four")] for i in several],
            "answer": [i % 4 for i in several],
        }

    features = {"question": Value("string"), "subject": Value("string"),
                "choices": List(Value("string")),
                "answer": ClassLabel(names=["A", "B", "C", "D"])}  # fmt: skip
    # In a folder `datasets` takes the name dev for validation.
    place = hub_copy(features, train=split(0), validation=split(100), test=split(200))
    node = config("mmlu", source={"kind": "hub", "name": place})
    node |= {"splits": node["splits"] | {"train": "train"}, "labels": {c: c for c in "ABCD"}}
    task = build(node, encode=by_bytes, pad_id=PAD)
    check_arrays(task)
    assert len(task.test["label"]) == 8 and task.classes == ("A", "B", "C", "D")
    shown = bytes(task.test["tokens"][0][task.test["mask"][0]].tolist()).decode()
    assert shown.endswith("Answer:") and all(f"\n{c}. {k} of 20" in shown for c, k in
                                             zip("ABCD", ("one", "two", "three", "four"),
                                                 strict=True))  # fmt: skip
    node["columns"] = node["columns"] | {"fourth": "choices.4"}
    with pytest.raises(SolarError, match="'choices' has 4 entries, columns asks for choices.4"):
        build(node, encode=by_bytes, pad_id=PAD)
    node["columns"] = node["columns"] | {"fourth": "choice.3"}
    with pytest.raises(SolarError, match="no column 'choice.3' in the data"):
        build(node, encode=by_bytes, pad_id=PAD)


def test_hub_failure_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    with pytest.raises(SolarError, match="cannot load data set") as error:
        open_source({"kind": "hub", "name": str(tmp_path / "folder")})
    assert "\n" not in str(error.value)


# ------------------------------------------------------------- images


@pytest.mark.parametrize("kind", (np.uint16, np.int32))
def test_grey_of_16_bits_keeps_its_steps(kind, tmp_path):
    ramp = np.linspace(0, 0xFFFF, 64 * 64).astype(kind).reshape(64, 64)
    path = tmp_path / "ramp.tif"
    Image.fromarray(ramp).save(path)
    for given in (str(path), ramp, path.read_bytes()):
        found = np.asarray(read_image(given, "own"))
        assert found.shape == (64, 64, 3)
        np.testing.assert_array_equal(found[..., 0], ramp >> 8)
    small = ramp.astype(np.int32) >> 8
    np.testing.assert_array_equal(np.asarray(read_image(small, "own"))[..., 0], small)
    with pytest.raises(SolarError, match="is not a readable image .its grey values take more"):
        read_image(ramp.astype(np.int32) * 2, "own")


def test_nothing_in_a_column_is_no_text():
    row = {"title": None, "text": "own", "label": None}
    assert fill("{title}: {text}", row, "t") == ": own"
    assert empty("{title}", row, "t") and not empty("{title}{text}", row, "t")
    config = {"name": "t", "columns": {}}
    rows = [{"label": name} for name in ("a", "b", None)]
    source = Source({"train": rows}, None, "here")
    assert class_names(config, source) == ("a", "b")
    with pytest.raises(SolarError, match="a row has the label 'None', classes are a, b"):
        class_index(("a", "b"), source, "label", "t")(rows[2])


def test_grey_images_get_three_channels_and_the_model_size():
    task = build(config("digits", train=50, validation=0, test=20), image_size=14)
    assert task.train["pixels"].shape == (50, 14, 14, 3) and task.label_tokens is None
    assert (task.train["pixels"][..., 0] == task.train["pixels"][..., 2]).all()
    native = build(config("digits", train=50, validation=0, test=20), image_size=8)
    from sklearn.datasets import load_digits

    known = {
        image.tobytes(): label
        for image, label in zip(
            (load_digits().images * (255 / 16)).astype(np.uint8), load_digits().target, strict=True
        )
    }
    for pixels, label in zip(native.test["pixels"], native.test["label"], strict=True):
        assert known[pixels[..., 0].tobytes()] == label


@pytest.mark.parametrize("split_folders", [False, True])
def test_image_folder(split_folders, tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "validation", "test") if split_folders else (".",):
        for label in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(0, 256, (5, 7, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
            Image.fromarray(pixels).save(folder / "again.bmp")  # the same pixels, another file
    node = config("image_folder", validation=2, test=3, image_size=10)
    node["source"]["path"] = str(tmp_path / "pictures")
    task = build(node)
    check_arrays(task)
    assert task.classes == ("cat", "dog") and task.train["pixels"].shape[1:] == (10, 10, 3)
    assert len(task.train["pixels"]) == (12 if split_folders else 7)


def test_broken_image_is_named(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "p" / label).mkdir(parents=True)
        (tmp_path / "p" / label / "x.png").write_bytes(b"no image")
    node = config("image_folder", validation=0, test=1)
    node["source"]["path"] = str(tmp_path / "p")
    with pytest.raises(SolarError, match="x.png is not a readable image"):
        build(node)


def test_an_image_that_claims_to_be_huge_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    written = io.BytesIO()
    Image.new("RGB", (9, 9)).save(written, "PNG")
    with pytest.raises(SolarError, match="not a readable image"):
        images.read_image(written.getvalue(), "own")


# ------------------------------------------------------------- parts of the real sources


def test_brown_typography():
    tagged = "\t``/`` The/at jury/nn ''/'' (/( of/in ten/cd )/) was/bedz 1/2/cd ,/, no/at ?/. ?/."
    assert plain_words(tagged) == '"The jury" (of ten) was 1/2, no?'


def test_package_index_prefers_the_tagged_record():
    text = (
        "Package: b\nSection: net\nSource: bb (1.0)\nDescription: Tool B\n\n"
        "Package: b\nSection: net\nTag: role::program,\n use::viewing\n"
        "Description: Tool B\n more\n\n"
        "Package: a\nDescription: no section\n\n"
        "Package: b\nSection: net\nDescription: Newer\n"
    )
    (package,) = parse_index(text)
    assert package["tags"] == ["role::program", "use::viewing"] and package["synopsis"] == "Tool B"


def test_running_text_reports_what_it_could_not_have():
    found = running_text(("bbc_news", "movie_snippets"))
    assert set(found.used) == {"movie_snippets"} and "bbc_news" in found.missing
    assert len(found.documents) == len(set(found.documents)) > 10_000
    assert found.used["movie_snippets"] == sum(len(text.split()) for text in found.documents)
    with pytest.raises(SolarError, match="no running text can be had"):
        running_text(("bbc_news",))
    with pytest.raises(SolarError, match="no running text in source 'digits'"):
        running_text(("digits",))
