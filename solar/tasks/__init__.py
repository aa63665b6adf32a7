"""Named tasks to arrays: `build` reads a task config, opens its source and makes the three splits.

A config is a plain mapping, the node of one file in configs/task. Common keys: name, source,
objective, columns (what the template calls a column: what the data calls it, or COLUMN.2 for an
entry of a list), splits (which of the source's splits each of ours comes from), train, validation,
test (sizes; null for all that is left), shots_per_class and group (a column whose values each stay
in one split). Text has template, template_without, max_tokens, then labels (objectives label_token
and label_choice), or target or separator (next_token); images have image_size and labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from solar.errors import SolarError
from solar.tasks.images import image_classification
from solar.tasks.sources import RunningText, open_source, running_text
from solar.tasks.task import LABELLED, Source, Task, identity_of, read_request
from solar.tasks.text import Encode, classification, generation, running

__all__ = ["RunningText", "Task", "build", "running_text"]

_COMMON = {
    "name", "source", "objective", "columns", "splits", "train", "validation", "test",
    "shots_per_class", "group",
}  # fmt: skip
_KEYS = {
    "label_token": {"template", "template_without", "max_tokens", "labels"},
    "label_choice": {"template", "template_without", "max_tokens", "labels"},
    "next_token": {"template", "template_without", "max_tokens", "target", "separator"},
    "image_class": {"image_size", "labels"},
}


class _Renamed(Sequence):
    """Rows of a split under the config's column names; a data set on disk stays there."""

    def __init__(self, rows: Sequence, columns: Mapping[str, str], name: str):
        self._rows, self._columns, self._name = rows, columns, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        return {**row, **{ours: self._cell(row, theirs) for ours, theirs in self._columns.items()}}

    def _cell(self, row: Mapping[str, Any], column: str) -> Any:
        if column in row:
            return row[column]
        name, _, place = column.rpartition(".")
        if place.isdigit() and isinstance(row.get(name), Sequence):
            if int(place) < len(row[name]):
                return row[name][int(place)]
            raise SolarError(
                f"task {self._name}: a row's {name!r} has {len(row[name])} entries, columns asks "
                f"for {column}: correct columns"
            )
        raise SolarError(
            f"task {self._name}: no column '{column}' in the data, it has "
            f"{', '.join(map(str, row))}: correct columns"
        )


def build(
    config: Mapping[str, Any],
    *,
    encode: Encode | None = None,
    pad_id: int | None = None,
    eos_id: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Task:
    """The task of a config. The same config, tokenizer, data and seed give the same arrays.

    encode: text -> token ids without special tokens; pad_id: the id on the right of a short text;
    eos_id: closes generation targets and separates running documents when given; image_size: side
    of the square the model wants, over the config's. Raises SolarError for a faulty config, data
    that is missing, empty or too small, and label words that cannot be told apart.
    """
    config = dict(config)
    name, objective = config.setdefault("name", "task"), config.get("objective")
    if objective not in _KEYS:
        raise SolarError(f"task {name}: objective is {objective!r}, not one of {', '.join(_KEYS)}")
    if unknown := sorted(set(config) - _COMMON - _KEYS[objective]):
        raise SolarError(f"task {name}: unknown key {unknown[0]!r} for objective {objective}")
    source = open_source(config.get("source"))
    if columns := config.get("columns"):
        splits = {split: _Renamed(rows, columns, name) for split, rows in source.splits.items()}
        source = Source(splits, source.classes, source.origin)
    request = read_request(config, source, seed)
    classes, tokens_of = (), None
    if objective == "image_class":
        size = _positive(image_size or config.get("image_size"), name, "image_size")
        splits, classes, facts = image_classification(config, source, request, size)
    else:
        if encode is None or pad_id is None:
            raise SolarError(f"task {name}: text needs a model with a tokenizer, this one has none")
        _positive(config.get("max_tokens"), name, "max_tokens")
        if objective in LABELLED or "target" in config:
            if not isinstance(config.get("template"), str):
                raise SolarError(
                    f"task {name}: set template, such as 'Review: {{text}}\\nSentiment:'"
                )
        if objective in LABELLED:
            splits, classes, tokens_of, facts = classification(
                config, source, request, encode, pad_id
            )
        elif "target" in config:
            splits, facts = generation(config, source, request, encode, pad_id, eos_id)
        else:
            splits, facts = running(config, source, request, encode, pad_id, eos_id)
    hashed = splits if tokens_of is None else {**splits, "classes": {"label_tokens": tokens_of}}
    if objective == "label_choice":  # the same arrays as label_token's, another loss
        hashed |= {"objective": {objective: tokens_of}}
    return Task(
        name, objective, splits["train"], splits["validation"], splits["test"], classes, tokens_of,
        identity_of(hashed), {"origin": source.origin, "seed": seed, **facts},
    )  # fmt: skip


def _positive(value: Any, name: str, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SolarError(f"task {name}: {key} is {value!r}, expected a whole number >= 1")
    return value
