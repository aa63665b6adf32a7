"""Generated rows in place of a data set that has to be fetched: the same columns, splits and kinds
of values, and nothing to learn.

For tests and ``tiny=true`` runs, which must not need a network; what is measured on them means
nothing.
"""

import io
import string
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from solar.errors import SolarError
from solar.tasks.task import LABELLED, Source

LEAST_ROWS = 240  # a split; more where every class needs its few
ROWS_A_CLASS = 4
REFERENCES = 3  # rows that share one input, where a data set has several answers to it
WORDS = tuple("river stone lamp green walk seven paper light door cold bread near wind old".split())
ONE_LETTER = string.ascii_letters + string.digits

Cell = Callable[[int, np.random.Generator], Any]


class Schema(NamedTuple):
    """Splits and columns of a data set; ``classes`` as the loader of the real one gives them."""

    splits: tuple[str, ...]
    columns: Mapping[str, Cell]
    classes: tuple[str, ...] | None = None
    labels: int = 0


def _text(index: int, generator: np.random.Generator) -> str:
    return " ".join(generator.choice(WORDS, 6).tolist()) + f" {index}."


def _maybe(index: int, generator: np.random.Generator) -> str:
    """Text in every second row, as the optional input of an instruction."""
    return _text(index, generator) if index % 2 else ""


def _four(index: int, generator: np.random.Generator) -> list[str]:
    return [_text(4 * index + i, generator) for i in range(4)]


def _slots(index: int, generator: np.random.Generator) -> str:
    """One input for REFERENCES rows."""
    return f"name[Place {index // REFERENCES}], food[{WORDS[index // REFERENCES % len(WORDS)]}]"


def _image(index: int, generator: np.random.Generator) -> dict[str, Any]:
    """A packed file, as `datasets` gives an image that is not decoded."""
    packed = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(packed, "PNG")
    return {"bytes": packed.getvalue(), "path": None}


def _pixels(index: int, generator: np.random.Generator) -> np.ndarray:
    return generator.integers(0, 256, (28, 28), np.uint8)


def _number(count: int) -> Cell:
    return lambda index, generator: index % count


def _name(names: tuple[str, ...]) -> Cell:
    return lambda index, generator: names[index % len(names)]


def _classes(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _images(splits: tuple[str, ...], count: int, image: str = "image") -> Schema:
    columns = {image: _image, "label": _number(count)}
    return Schema(splits, columns, _classes(count), count)


def _grey(splits: tuple[str, ...]) -> Schema:
    return Schema(splits, {"image": _pixels, "label": _number(10)}, _classes(10), 10)


def _labelled(count: int, *columns: str) -> Schema:
    names = _classes(count)
    return Schema(
        ("all",), {**dict.fromkeys(columns, _text), "label": _name(names)}, None, len(names)
    )


_PACKAGE = ("name", "source", "section", "tags", "synopsis")
_GLUE = ("train", "validation", "test")

# Hub id, with its subset where it has several, or the name of a source that is fetched.
SCHEMAS: dict[str, Schema] = {
    "tatsu-lab/alpaca": Schema(
        ("train",), {"instruction": _text, "input": _maybe, "output": _text, "text": _text}
    ),
    "tuetschek/e2e_nlg": Schema(
        ("train", "validation", "test"),
        {"meaning_representation": _slots, "human_reference": _text},
    ),
    "cais/mmlu": Schema(
        ("auxiliary_train", "test", "validation", "dev"),
        {"question": _text, "subject": _text, "choices": _four, "answer": _number(4)},
        ("A", "B", "C", "D"),
        4,
    ),
    "nyu-mll/glue/sst2": Schema(
        _GLUE, {"sentence": _text, "label": _number(2)}, ("negative", "positive"), 2
    ),
    "nyu-mll/glue/mrpc": Schema(
        _GLUE,
        {"sentence1": _text, "sentence2": _text, "label": _number(2)},
        ("not_equivalent", "equivalent"),
        2,
    ),
    "uoft-cs/cifar10": _images(("train", "test"), 10, "img"),
    # Two columns of classes, so the loader gives no names.
    "uoft-cs/cifar100": Schema(
        ("train", "test"),
        {"img": _image, "fine_label": _number(100), "coarse_label": _number(20)},
        None,
        100,
    ),
    "ethz/food101": _images(("train", "validation"), 101),
    "nelorth/oxford-flowers": _images(("train", "test"), 102),
    "flwrlabs/caltech101": _images(("train",), 101),
    "fashion_mnist": _grey(("train", "test")),
    "mnist5k": _grey(("all",)),
    "wordnet_glosses": _labelled(26, "word", "text"),
    "bbc_news": _labelled(5, "text"),
    "brown": _labelled(15, "text"),
    "package_synopses": Schema(("all",), dict.fromkeys(_PACKAGE, _text)),
    "package_topics": _labelled(18, *_PACKAGE, "text"),
}


def stand_in(of: str) -> Source:
    """Rows with the schema of a known data set: its hub id, with ``/subset``, or its source's name.

    Raises SolarError for one that has no schema here.
    """
    if of not in SCHEMAS:
        raise SolarError(f"no stand-in for {of!r}: there are {', '.join(SCHEMAS)}")
    schema = SCHEMAS[of]
    count = max(LEAST_ROWS, ROWS_A_CLASS * schema.labels)
    splits = {}
    for number, split in enumerate(schema.splits):
        generator = np.random.default_rng((number, len(of)))
        first = number * count  # no row of one split repeats a row of another
        splits[split] = [
            {name: cell(index, generator) for name, cell in schema.columns.items()}
            for index in range(first, first + count)
        ]
    return Source(splits, schema.classes, f"generated rows with the columns of {of}")


def name_of(source: str | Mapping[str, Any]) -> str | None:
    """What stands in SCHEMAS for a task's source; None for one that needs no stand-in, or has
    none.
    """
    given = {"kind": source} if isinstance(source, str) else dict(source or {})
    name = given.get("kind")
    if name == "hub":
        name = given.get("name")
        if f"{name}/{given.get('subset')}" in SCHEMAS:
            name = f"{name}/{given['subset']}"
    return name if name in SCHEMAS else None


def with_stand_in(task: Mapping[str, Any]) -> dict[str, Any]:
    """The task on stand-in rows where its source would be fetched, with one-letter label words.

    A random model's small tokenizer tells apart single letters, not the words of 26 classes.
    """
    of = name_of(task.get("source"))
    if of is None:
        return dict(task)
    changed = {**task, "source": {"kind": "stand_in", "of": of}}
    if task.get("objective") in LABELLED:
        schema = SCHEMAS[of]
        names = schema.classes or _classes(schema.labels)
        names = list(task.get("labels") or names) if schema.classes else names
        changed["labels"] = dict(zip(names, ONE_LETTER, strict=False))
    return changed
