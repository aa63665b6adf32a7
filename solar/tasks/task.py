"""What a task is, and how rows of a source become its three splits.

A task is a few arrays and nothing else, so two processes can compare theirs by one SHA-256. Decided
here: the order of rows is a permutation seeded by (seed, source split); test is drawn first, then
validation, then train, so the size of the training set never moves the test set; a row that repeats
one of its own split is dropped, and so is a row whose input already stands in an earlier-drawn
split. Splits that name the same source split share one pass over it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from solar.errors import SolarError

LABELLED = ("label_token", "label_choice")  # objectives that ask for the token of a label
SPLITS = ("test", "validation", "train")  # the order in which they are drawn


@dataclass(frozen=True)
class Task:
    """Arrays to learn from. All arrays of a split have the same leading dimension N.

    objective 'label_token': tokens (N, T) int32, mask (N, T) bool, label (N,) int32 class index;
    the token label_tokens[label] is to be predicted after the last real token.
    objective 'label_choice': the same arrays; it is to be told from the other label tokens only.
    objective 'next_token': tokens, mask and target_mask (N, T) bool, True where the token at that
    place is a target whose loss counts (never at place 0).
    objective 'image_class': pixels (N, H, W, 3) uint8, label (N,) int32.
    Text is padded on the right. `about` says where the rows came from and what was dropped.
    """

    name: str
    objective: str
    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    classes: tuple[str, ...] = ()
    label_tokens: np.ndarray | None = None
    identity: str = ""
    about: dict[str, Any] = field(default_factory=dict)


class Source(NamedTuple):
    """Rows by source split. A split is a sequence (len, integer index) of mappings column -> value.

    `classes` are the names that integer labels index, or None when labels are names themselves.
    `origin` is one line for the record: package and version, file, or hub id and revision.
    """

    splits: Mapping[str, Sequence[Mapping[str, Any]]]
    classes: tuple[str, ...] | None
    origin: str


class Candidate(NamedTuple):
    """A row made ready for dealing: what a split keeps of it, and how its repeats are told.

    Any of `same` met before in a split makes it a repeat there. Any of `shown` (the model's input,
    whole and as cut to fit, and the row's group when the config names one) bars it from the splits
    that are drawn after.
    """

    item: Any
    same: tuple[bytes, ...]
    shown: tuple[bytes, ...]


class Request(NamedTuple):
    """Which rows a task wants: sizes by split (None = all that are left), few-shot training."""

    name: str
    sizes: Mapping[str, int | None]
    from_split: Mapping[str, str]
    shots_per_class: int | None
    seed: int


def identity_of(splits: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all arrays, ordered by name."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        for name in sorted(splits[split]):
            array = np.ascontiguousarray(splits[split][name])
            digest.update(f"{split}/{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def read_request(config: Mapping[str, Any], source: Source, seed: int) -> Request:
    """Check split sizes and names against the source. Raises SolarError naming the faulty key."""
    name = config.get("name", "task")
    sizes = {split: _size(config, split) for split in SPLITS}
    named = dict(config.get("splits") or {})
    if unknown := sorted(set(named) - set(SPLITS)):
        raise SolarError(f"task {name}: splits.{unknown[0]} is not one of train, validation, test")
    default = "all" if "all" in source.splits else None
    from_split = {}
    for split in SPLITS:
        wanted = named.get(split) or default or (split if split in source.splits else "train")
        if wanted not in source.splits:
            raise SolarError(
                f"task {name}: source has no split '{wanted}', only {', '.join(source.splits)}: "
                f"set splits.{split}"
            )
        from_split[split] = wanted
    shots = config.get("shots_per_class")
    if shots is not None and (not isinstance(shots, int) or shots < 1):
        raise SolarError(f"task {name}: shots_per_class is {shots!r}, expected a whole number >= 1")
    for early, late in (("test", "validation"), ("test", "train"), ("validation", "train")):
        if sizes[early] is None and from_split[early] == from_split[late] and sizes[late] != 0:
            raise SolarError(
                f"task {name}: {early} takes all rows of '{from_split[early]}' and leaves none for "
                f"{late}: give {early} a size"
            )
    return Request(name, sizes, from_split, shots, seed)


def _size(config: Mapping[str, Any], split: str) -> int | None:
    size = config.get(split)
    least = 0 if split == "validation" else 1
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < least):
        raise SolarError(
            f"task {config.get('name', 'task')}: {split} is {size!r}, expected a whole number >= "
            f"{least}, or null for all rows that are left"
        )
    return size


def draw(
    source: Source, request: Request, prepare: Callable[[Any], Candidate | None],
    offers: Mapping[str, Callable[[Any], str]],
) -> tuple[dict[str, list[Any]], dict[str, int]]:  # fmt: skip
    """Deal rows to test, validation and train, leaving out repeats.

    `prepare` makes a candidate of a row, or None to leave it out. `offers[split]` looks at an item
    and answers 'keep', 'skip' or 'last' (keep it and stop). Returns the kept items by split, and
    how many repeats were met within and across splits. Raises SolarError for an empty source split.
    """
    passes = {name: _seeded_order(source, name, request) for name in request.from_split.values()}
    dealt: dict[str, list[Any]] = {split: [] for split in SPLITS}
    dropped = {"within": 0, "across": 0}
    shown: set[bytes] = set()
    for split in SPLITS:
        if request.sizes[split] == 0:
            continue
        rows, seen, shown_here = source.splits[request.from_split[split]], set(), set()
        for index in passes[request.from_split[split]]:
            if (candidate := prepare(rows[index])) is None:
                continue
            if not shown.isdisjoint(candidate.shown):
                dropped["across"] += 1
                continue
            if not seen.isdisjoint(candidate.same):
                dropped["within"] += 1
                continue
            answer = offers[split](candidate.item)
            if answer != "skip":
                dealt[split].append(candidate.item)
                seen.update(candidate.same)
                shown_here.update(candidate.shown)
            if answer == "last":
                break
        shown |= shown_here
    return dealt, dropped


def _seeded_order(source: Source, name: str, request: Request) -> Iterator[int]:
    if not len(source.splits[name]):
        raise SolarError(f"task {request.name}: split '{name}' of {source.origin} is empty")
    # The split's name seeds too: two splits of one length must not share a permutation.
    salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    order = np.random.default_rng([request.seed, salt]).permutation(len(source.splits[name]))
    return iter(order.tolist())


def draw_examples(
    source: Source, request: Request, prepare: Callable[[Any], Candidate | None],
    label: Callable[[Any], int] | None = None, classes: tuple[str, ...] = (),
) -> tuple[dict[str, list[Any]], dict[str, int]]:  # fmt: skip
    """`draw` by number of rows; `shots_per_class` of each class for training when that is set.

    `label` gives an item's class index.

    Raises SolarError when the source has fewer rows, or a class has, than the request asks for.
    """
    shots = request.shots_per_class if label else None
    counts = [0] * len(classes)

    def up_to(wanted: int | None) -> Callable[[Any], str]:
        taken = 0

        def offer(_item: Any) -> str:
            nonlocal taken
            taken += 1
            return "last" if taken == wanted else "keep"

        return offer

    def few(item: Any) -> str:
        if counts[which := label(item)] == shots:
            return "skip"
        counts[which] += 1
        return "last" if sum(counts) == shots * len(counts) else "keep"

    offers = {split: up_to(request.sizes[split]) for split in SPLITS}
    if shots is not None:
        offers["train"] = few
    dealt, dropped = draw(source, request, prepare, offers)
    if shots is not None and min(counts) < shots:
        short = counts.index(min(counts))
        raise SolarError(
            f"task {request.name}: class {classes[short]} has {counts[short]} training rows, "
            f"shots_per_class asks for {shots}: lower it"
        )
    for split in SPLITS:
        wanted = request.sizes[split]
        least = 1 if wanted is None else wanted
        if (split != "train" or shots is None) and len(dealt[split]) < least:
            raise SolarError(
                f"task {request.name}: {split} asks for {wanted or 'all'} rows and {source.origin} "
                f"has {len(dealt[split])} left without repeats: lower {split}"
            )
    return dealt, dropped
