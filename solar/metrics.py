"""Scores of written text against several references each, all from kept libraries.

BLEU is sacrebleu's; NIST and METEOR are nltk's; ROUGE-L and CIDEr are those of the COCO caption
evaluation (pycocoevalcap), which the E2E challenge uses. Texts are tokenised once for all of them,
as mteval-v13a does, and lower-cased.

Not comparable with published E2E tables to the last digit: those come from the challenge's own
script, with the Perl and Java programs for NIST and METEOR. METEOR differs most: Java's version 1.5
also matches paraphrases and has weights of its own, nltk's is the first published form.
"""

import functools
import io
import warnings
from collections.abc import Callable, Sequence

from solar.errors import SolarError
from solar.packages import fetch, find_one

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def measure_text(
    names: Sequence[str], answers: Texts, references: References, synonyms: bool = True
) -> dict[str, float]:
    """The named metrics of a corpus: each answer has one reference or more.

    bleu, rouge_l and meteor are in [0, 100], nist and cider have no upper end. ``synonyms`` lets
    METEOR match words of one WordNet synset, for which WordNet is fetched (Debian's wordnet-base);
    without, it matches equal words and equal stems. Raises SolarError for an unknown name and for
    no answers.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise SolarError(f"no metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
    if not answers:
        raise SolarError("no written text to score")
    answers = [tokens(text) for text in answers]
    references = [[tokens(text) for text in several] for several in references]
    found = {}
    for name in names:
        extra = {"wordnet": open_wordnet()} if name == "meteor" and synonyms else {}
        found[name] = float(METRICS[name](answers, references, **extra))
    return found


def tokens(text: str) -> str:
    """Tokens of a text between single spaces, lower-cased."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()(text.strip()).lower()


def bleu(answers: Texts, references: References) -> float:
    """Corpus BLEU-4."""
    from sacrebleu.metrics import BLEU

    longest = max(map(len, references))
    streams = [
        [several[i] if i < len(several) else None for several in references] for i in range(longest)
    ]
    return BLEU(tokenize="none", force=True).corpus_score(list(answers), streams).score


def nist(answers: Texts, references: References) -> float:
    """Corpus NIST with n-grams of up to five tokens; 0 where no answer shares one."""
    from nltk.translate.nist_score import corpus_nist

    split = [[text.split() for text in several] for several in references]
    hypotheses = [text.split() for text in answers]
    # nltk divides by the number of n-grams, which is none where all answers are shorter than n.
    longest = max(map(len, hypotheses))
    if not longest:
        return 0.0
    try:
        return corpus_nist(split, hypotheses, n=min(5, longest))
    except ZeroDivisionError:
        return 0.0


class _NoSynonyms:
    """Stands where nltk wants a WordNet reader."""

    @staticmethod
    def synsets(word: str) -> list:
        return []


NO_SYNONYMS = _NoSynonyms()


def meteor(answers: Texts, references: References, wordnet=NO_SYNONYMS) -> float:
    """Mean METEOR of the answers, the best reference of each."""
    from nltk.translate.meteor_score import meteor_score

    found = [
        meteor_score([text.split() for text in several], answer.split(), wordnet=wordnet)
        for answer, several in zip(answers, references, strict=True)
    ]
    return 100 * sum(found) / len(found)


def rouge_l(answers: Texts, references: References) -> float:
    """Mean ROUGE-L F (beta = 1.2): the best recall and the best precision over the references."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    found = [
        scorer.calc_score([answer], list(several))
        for answer, several in zip(answers, references, strict=True)
    ]
    return 100 * sum(found) / len(found)


def cider(answers: Texts, references: References) -> float:
    """Mean CIDEr-D; the references of the corpus give the document frequencies."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=4, sigma=6.0)
    for answer, several in zip(answers, references, strict=True):
        scorer += (answer, list(several))
    return scorer.compute_score()[0]


METRICS: dict[str, Callable[..., float]] = {
    "bleu": bleu, "nist": nist, "meteor": meteor, "rouge_l": rouge_l, "cider": cider,
}  # fmt: skip


@functools.cache  # reading it takes seconds
def open_wordnet():
    """nltk's reader of WordNet 3.0, on the files of Debian's package."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        def open(self, file: str):
            if file == "lexnames":  # the one file that Debian leaves out, and synsets do not need
                return io.StringIO("".join(f"{i:02d}\tfile{i}\t1\n" for i in range(45)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet"):
            return None  # of other versions and languages: nothing is asked in them

    folder = find_one(fetch("deb:wordnet-base"), "usr/share/wordnet/data.noun").parent
    nltk.data.path.append(str(folder))  # nltk reads no file from elsewhere
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other languages are not there
        return Reader(str(folder), None)
