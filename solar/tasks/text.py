"""Text rows to token arrays: classification by label token, generation by loss, running text.

Classification shows the model a template with the text filled in and asks for one token, the first
of the label's word as it is tokenised right after the template. When the whole is longer than
max_tokens it is the longest column that loses its end, so what stands after it (the question)
survives. Generation counts loss on the target alone; running text counts it on every token but the
first of a chunk, which nothing predicts.
"""

import hashlib
import string
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from solar.errors import SolarError
from solar.tasks.task import SPLITS, Candidate, Request, Source, draw, draw_examples

Encode = Callable[[str], list[int]]
Arrays = dict[str, dict[str, np.ndarray]]


def digest_of(text: str, kind: str = "text") -> bytes:
    """Key of a text up to Unicode form, case and white space."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    whole = f"{kind} {plain}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(whole, digest_size=16).digest()


# ---------------------------------------------------------------- templates


def columns_of(template: str) -> list[str]:
    """Column names in a template, in order. Raises SolarError when it is malformed."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise SolarError(f"template {template!r} is malformed: {error}") from error
    if not all(name.isidentifier() for name in names):
        raise SolarError(f"template {template!r} needs plain column names between its braces")
    return names


def template_for(config: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], str]:
    """Which template a row gets: `template`, or `template_without` when its column is empty.

    template_without: {column: NAME, template: TEXT} serves instructions with an optional input.
    """
    main, other = config["template"], config.get("template_without")
    columns_of(main)
    if not other:
        return lambda row: main
    if set(other) != {"column", "template"}:
        raise SolarError("template_without needs exactly the keys column and template")
    columns_of(other["template"])
    return lambda row: main if str(row.get(other["column"]) or "").strip() else other["template"]


def fill(template: str, row: Mapping[str, Any], name: str) -> str:
    """The template with the row's values, nothing where one is None. Raises SolarError naming a
    column that is not there."""
    try:
        found = {column: row[column] for column in columns_of(template)}
        return template.format_map({k: "" if v is None else v for k, v in found.items()})
    except KeyError as missing:
        raise SolarError(
            f"task {name}: no column {missing} in the data, it has {', '.join(map(str, row))}: "
            "set columns or the template"
        ) from missing


def empty(template: str, row: Mapping[str, Any], name: str) -> bool:
    """True when no column of the template has anything in it."""
    return not any(fill("{" + column + "}", row, name).strip() for column in columns_of(template))


def fit(
    template: str, row: Mapping[str, Any], room: int, encode: Encode, name: str
) -> tuple[list[int], str]:
    """Tokens of the filled template, at most `room` of them, and its text as it was cut to fit.

    The longest column loses its end, whole words at a time.

    Raises SolarError when the template alone does not fit.
    """
    row, columns = dict(row), columns_of(template)
    while len(tokens := encode(filled := fill(template, row, name))) > room:
        longest = max(columns, key=lambda column: len(str(row[column])), default=None)
        text = str(row[longest]) if longest else ""
        if not text:
            raise SolarError(
                f"task {name}: the template alone takes {len(tokens)} tokens and max_tokens leaves "
                f"{room}: raise max_tokens"
            )
        # Each round cuts what the excess is worth at this row's characters per token.
        excess = int((len(tokens) - room) * len(filled) / len(tokens))
        end = max(0, len(text) - max(1, excess))
        kept = text[:end]
        inside = not text[end].isspace() and not kept[-1:].isspace()
        if inside and " " in kept.strip():  # a word is cut in two: take all of it
            kept = kept.rsplit(None, 1)[0]
        row[longest] = kept.rstrip()
    return tokens, filled


def continuation(prompt: str, tokens: list[int], tail: str, encode: Encode) -> list[int] | None:
    """Tokens of `tail` as they come right after `prompt`; None when the two merge at the seam."""
    whole = encode(prompt + tail)
    return whole[len(tokens) :] if whole[: len(tokens)] == tokens else None


# ---------------------------------------------------------------- arrays


def pad(rows: list[list[int]], width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, width) int32 tokens padded on the right, and the (N, width) bool mask of real ones."""
    tokens = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        mask[index, : len(row)] = True
    return tokens, mask


def group_key(config: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], tuple[bytes, ...]]:
    """Row -> () or, with config `group`, the key of that column: one value stays in one split."""
    column = config.get("group")
    if column is None:
        return lambda row: ()
    form = "{" + column + "}"
    return lambda row: (digest_of(fill(form, row, config["name"]), "group"),)


def label_tokens(
    words: Mapping[str, str], prompt: str, encode: Encode, name: str
) -> tuple[np.ndarray, list[str]]:
    """First token of each class's word after the prompt: (C,) int32, and the words that have more.

    Raises SolarError when a word merges with the prompt, is empty, or two start with one token.
    """
    tokens, chosen, longer = encode(prompt), {}, []
    for label, word in words.items():
        found = continuation(prompt, tokens, word, encode)
        if not found:
            raise SolarError(
                f"task {name}: label word {word!r} has no token of its own after the template: "
                "begin it with a space, or end the template without one"
            )
        if found[0] in chosen:
            raise SolarError(
                f"task {name}: label words {words[chosen[found[0]]]!r} and {word!r} begin with the "
                "same token: choose other words in labels"
            )
        chosen[found[0]] = label
        if len(found) > 1:
            longer.append(word)
    return np.fromiter(chosen, np.int32, len(chosen)), longer


def class_index(
    names: tuple[str, ...], source: Source, column: str, name: str
) -> Callable[[Mapping[str, Any]], int]:
    """Row -> class index. Integer labels index the source's classes when it has names for them."""
    index = {label: number for number, label in enumerate(names)}

    def label(row: Mapping[str, Any]) -> int:
        if column not in row:
            raise SolarError(
                f"task {name}: no column '{column}' in the data, it has {', '.join(map(str, row))}"
            )
        value = row[column]
        if source.classes is not None and isinstance(value, (int, np.integer)):
            value = source.classes[value] if 0 <= value < len(source.classes) else f"number {value}"
        if value is None or str(value) not in index:
            raise SolarError(
                f"task {name}: a row has the label '{value}', classes are "
                f"{', '.join(names)[:120]}: set labels, or choose a split that has labels"
            )
        return index[str(value)]

    return label


def class_names(config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
    """Class names in the order of config `labels`, of the source, or sorted from its rows."""
    if labels := config.get("labels"):
        return tuple(str(label) for label in labels)
    if source.classes is not None:
        return source.classes
    found: set[str] = set()
    for rows in source.splits.values():
        found |= {str(row["label"]) for row in rows if row.get("label") is not None}
    if len(found) < 2 or len(found) > 1000:
        raise SolarError(
            f"task {config['name']}: {len(found)} distinct labels in {source.origin}: set labels"
        )
    return tuple(sorted(found))


def classification(
    config: Mapping[str, Any], source: Source, request: Request, encode: Encode, pad_id: int
) -> tuple[Arrays, tuple[str, ...], np.ndarray, dict[str, Any]]:
    """Splits with tokens, mask and label; class names; (C,) label tokens; facts for the record."""
    name, width, choose = config["name"], config["max_tokens"], template_for(config)
    classes = class_names(config, source)
    labels = config.get("labels")
    words = (
        {str(label): word for label, word in labels.items()} if isinstance(labels, Mapping)
        else {label: " " + label.replace("_", " ") for label in classes}
    )  # fmt: skip
    blank = dict.fromkeys(columns_of(config["template"]), "x")
    tokens_of, longer = label_tokens(words, fill(config["template"], blank, name), encode, name)
    label, group = class_index(classes, source, "label", name), group_key(config)

    def prepare(row: Mapping[str, Any]) -> Candidate | None:
        template = choose(row)
        if empty(template, row, name):
            return None
        tokens, shown = fit(template, row, width, encode, name)
        # Two long texts may differ only in what the cut takes away.
        keys = (digest_of(fill(template, row, name)), digest_of(shown))
        return Candidate((tokens, label(row)), keys, (*keys, *group(row)))

    dealt, dropped = draw_examples(source, request, prepare, lambda item: item[1], classes)
    splits: Arrays = {}
    for split in SPLITS:
        tokens, mask = pad([tokens for tokens, _ in dealt[split]], width, pad_id)
        numbers = np.array([number for _, number in dealt[split]], np.int32)
        splits[split] = {"tokens": tokens, "mask": mask, "label": numbers}
    facts = {"repeats_dropped": dropped, "labels_by_first_token": longer}
    return splits, classes, tokens_of, facts


def generation(
    config: Mapping[str, Any], source: Source, request: Request, encode: Encode, pad_id: int,
    eos_id: int | None,
) -> tuple[Arrays, dict[str, Any]]:  # fmt: skip
    """Splits with tokens, mask and target_mask (True on the target); facts for the record.

    A prompt may take max_tokens less the target, and never less than half; a target too long for
    the rest loses its end. `eos_id`, when given, closes a target that is whole.
    """
    name, width, target = config["name"], config["max_tokens"], config["target"]
    choose, group = template_for(config), group_key(config)

    def prepare(row: Mapping[str, Any]) -> Candidate | None:
        template, answer = choose(row), fill(target, row, name)
        if not answer.strip() or empty(template, row, name):
            return None
        filled = shown = fill(template, row, name)
        prompt = encode(filled)
        reply = continuation(filled, prompt, answer, encode) or encode(answer)
        reply = reply + ([eos_id] if eos_id is not None else [])
        if len(prompt) + len(reply) > width:
            room = width - min(len(reply), width // 2)
            prompt, shown = fit(template, row, room, encode, name)
        whole = digest_of(filled)
        keys = (whole + digest_of(answer),)
        return Candidate((prompt, reply), keys, (whole, digest_of(shown), *group(row)))

    dealt, dropped = draw_examples(source, request, prepare)
    splits, cut = {}, 0
    for split in SPLITS:
        rows = [prompt + reply for prompt, reply in dealt[split]]
        cut += sum(len(row) > width for row in rows)
        tokens, mask = pad([row[:width] for row in rows], width, pad_id)
        starts = np.array([len(prompt) for prompt, _ in dealt[split]], np.int32).reshape(-1, 1)
        on_target = mask & (np.arange(width) >= np.maximum(starts, 1))
        splits[split] = {"tokens": tokens, "mask": mask, "target_mask": on_target}
    return splits, {"repeats_dropped": dropped, "targets_cut": cut}


def running(
    config: Mapping[str, Any], source: Source, request: Request, encode: Encode, pad_id: int,
    eos_id: int | None,
) -> tuple[Arrays, dict[str, Any]]:  # fmt: skip
    """Documents in chunks of max_tokens tokens; split sizes count chunks.

    Documents stay whole on one side: what is left of the last one of a split is not used. Between
    documents stands `eos_id`, or the tokens of config `separator` (a blank line) without it.
    """
    name, width = config["name"], config["max_tokens"]
    between = encode(config.get("separator") or "\n\n") if eos_id is None else [eos_id]
    if width < 2:
        raise SolarError(f"task {name}: max_tokens is {width}, running text needs at least 2")
    group = group_key(config)
    streams: dict[str, list[int]] = {split: [] for split in SPLITS}

    def offer_to(split: str) -> Callable[[Any], str]:
        wanted = request.sizes[split]

        def offer(text: str) -> str:
            streams[split].extend(encode(text) + between)
            return "last" if wanted and len(streams[split]) >= wanted * width else "keep"

        return offer

    def prepare(row: Mapping[str, Any]) -> Candidate | None:
        text = fill("{text}", row, name)
        key = digest_of(text)
        return Candidate(text, (key,), (key, *group(row))) if text.strip() else None

    dealt, dropped = draw(source, request, prepare, {split: offer_to(split) for split in SPLITS})
    splits = {}
    for split in SPLITS:
        wanted, whole = request.sizes[split], len(streams[split]) // width
        if whole < (1 if wanted is None else wanted):
            raise SolarError(
                f"task {name}: {split} asks for {wanted or 'some'} chunks of {width} tokens and "
                f"{source.origin} has {whole} left: lower {split}"
            )
        count = whole if wanted is None else wanted
        tokens = np.array(streams[split][: count * width], np.int32).reshape(count, width)
        mask = np.ones_like(tokens, bool)
        on_target = mask.copy()
        on_target[:, 0] = False
        splits[split] = {"tokens": tokens, "mask": mask, "target_mask": on_target}
    documents = {split: len(dealt[split]) for split in SPLITS}
    return splits, {"repeats_dropped": dropped, "documents": documents}
