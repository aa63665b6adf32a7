"""Rows that a user points at: a data set by hub id, local tables, a folder of images.

The `datasets` library reads hub ids (and folders that look like one); plain CSV, JSON, JSON lines,
Parquet and text files are read directly, so a local file needs neither it nor a network.
"""

import csv
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solar.errors import SolarError
from solar.tasks.task import Source

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def hub(name: str, subset: str | None = None, revision: str | None = None) -> Source:
    """A data set by hub id, optional subset (configuration) and revision, with all its splits.

    A folder is read the same way. Classes come from the data set's own `ClassLabel` column when it
    has exactly one. Raises SolarError with the reason `datasets` gives, in one line.
    """
    if os.environ.get("SOLAR_OFFLINE") == "1" and not Path(name).is_dir():
        raise SolarError(
            f"data set {name} is on the hub and SOLAR_OFFLINE=1 forbids downloads: unset it (and "
            "set HF_HUB_OFFLINE=1 to use what `datasets` has cached), or use source files"
        )
    import datasets

    bars = datasets.is_progress_bar_enabled()
    chatter = logging.getLogger("huggingface_hub")  # it tells of each retry; the error says enough
    level = chatter.level
    try:
        chatter.setLevel(logging.ERROR)
        if not os.isatty(2):
            datasets.disable_progress_bars()
        loaded = datasets.load_dataset(name, subset, revision=revision)
    except Exception as error:  # the library raises its own, the hub's, HTTP's and Arrow's errors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        which = f"{name} ({subset})" if subset else name
        raise SolarError(
            f"cannot load data set {which}: {reason[0][:200]}; check the name and the network, or "
            "use source files with local copies"
        ) from error
    finally:
        chatter.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
    splits, classes = {}, None
    for split, table in loaded.items():
        features = table.features
        for column, feature in features.items():
            if isinstance(feature, datasets.Image):  # keep files packed until a row is used
                table = table.cast_column(column, datasets.Image(decode=False))
        labels = [f for f in features.values() if isinstance(f, datasets.ClassLabel)]
        if len(labels) == 1:
            classes = tuple(labels[0].names)
        splits[str(split)] = table
    at = f"@{revision}" if revision else ""
    return Source(splits, classes, f"data set {name}{f'/{subset}' if subset else ''}{at}")


def files(
    format: str,  # noqa: A002 - the word of the config
    path: str | None = None,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
) -> Source:
    """Local tables: one `path` to be split here, or a file for each of train, validation, test.

    format: csv, tsv, json (a list of objects), jsonl, parquet, or text (one document a file, or a
    folder of *.txt). Raises SolarError for a missing, empty or malformed file.
    """
    if format not in READERS:
        raise SolarError(f"unknown file format {format!r}: choose one of {', '.join(READERS)}")
    given = {"all": path, "train": train, "validation": validation, "test": test}
    given = {split: Path(os.path.expanduser(place)) for split, place in given.items() if place}
    if not given or ("all" in given and len(given) > 1):
        raise SolarError("source files needs either path, or train with validation and test")
    splits = {}
    for split, place in given.items():
        if not place.exists():
            raise SolarError(f"no such file: {place}")
        try:
            splits[split] = READERS[format](place)
        except SolarError:
            raise
        except Exception as error:  # csv, json, Arrow and Unicode errors alike: the file is not it
            raise SolarError(f"{place} is not a readable {format} file: {error}") from error
        if not splits[split]:
            raise SolarError(f"{place} is empty")
    return Source(splits, None, f"{format} " + ", ".join(place.name for place in given.values()))


def _read_delimited(delimiter: str):
    def read(place: Path) -> list[Mapping[str, Any]]:
        with place.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened, delimiter=delimiter, strict=True))
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                raise SolarError(f"{place}: row {number} has not as many fields as the header")
        return rows

    return read


def _read_json(place: Path) -> list[Mapping[str, Any]]:
    return _objects(json.loads(place.read_text("utf-8-sig")), place)


def _read_json_lines(place: Path) -> list[Mapping[str, Any]]:
    lines = place.read_text("utf-8-sig").split("\n")
    return _objects([json.loads(line) for line in lines if line.strip()], place)


def _objects(rows: Any, place: Path) -> list[Mapping[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SolarError(f"{place} has to be a list of objects, one for each row")
    return rows


def _read_parquet(place: Path) -> list[Mapping[str, Any]]:
    from pyarrow import parquet

    return parquet.read_table(place).to_pylist()


def _read_text(place: Path) -> list[Mapping[str, Any]]:
    found = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
    texts = [path.read_text("utf-8") for path in found]
    return [{"text": text} for text in texts if text.strip()]


READERS = {
    "csv": _read_delimited(","),
    "tsv": _read_delimited("\t"),
    "json": _read_json,
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
    "text": _read_text,
}


def image_folder(path: str) -> Source:
    """Images in PATH/CLASS/*.png, or with splits in PATH/{train,validation,test}/CLASS/*.png.

    Class names are the folders', sorted. Raises SolarError when the folder or its images are not
    there.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise SolarError(f"no such folder: {root}")
    named = {split: root / split for split in ("train", "validation", "test")}
    present = {split: place for split, place in named.items() if place.is_dir()}
    found = {split: _labelled(place) for split, place in (present or {"all": root}).items()}
    classes = tuple(sorted({label for rows in found.values() for _, label in rows}))
    if not classes:
        raise SolarError(f"{root} has no images in class folders (CLASS/*.png, *.jpg, ...)")
    splits = {
        split: [{"image": image, "label": classes.index(label)} for image, label in rows]
        for split, rows in found.items()
    }
    return Source(splits, classes, f"images of {root.name}")


def _labelled(root: Path) -> list[tuple[Path, str]]:
    return [
        (image, folder.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir()
        for image in sorted(folder.rglob("*"))
        if image.suffix.lower() in IMAGE_SUFFIXES
    ]
