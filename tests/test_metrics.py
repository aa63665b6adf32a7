"""Scores of written text against values worked out by hand, and the writing of it."""

import jax
import numpy as np
import pytest

from solar import metrics, written
from solar.errors import SolarError
from solar.generate import beam_search, generate
from solar.metrics import measure_text
from solar.models.structure import assemble, structure
from solar.objective import project
from solar.score import make_scorer
from solar.tasks import build
from solar.tasks.stand_in import SCHEMAS, name_of, stand_in
from solar.weights.base import load

ALL = tuple(metrics.METRICS)
SAID = ["The Eagle is a coffee shop near Burger King.", "Blue Spice serves Thai food."]
OTHER = ["You find The Eagle, a cafe, near Burger King.", "Thai food is what Blue Spice has."]


def test_the_same_words_are_as_good_as_can_be():
    references = [[other, said] for said, other in zip(SAID, OTHER, strict=True)]
    found = measure_text(ALL, SAID, references, synonyms=False)
    assert found["bleu"] == pytest.approx(100) and found["rouge_l"] == pytest.approx(100)
    assert found["meteor"] > 99
    # White space and case are no difference, and neither is the order of the references.
    shouted = [f"  {said.upper()} " for said in SAID]
    swapped = [several[::-1] for several in references]
    assert measure_text(ALL, shouted, swapped, synonyms=False) == pytest.approx(found)
    # Every metric loses where the matching reference is gone.
    less = measure_text(ALL, SAID, [[other] for other in OTHER], synonyms=False)
    assert all(less[name] < found[name] for name in ALL)


def test_values_by_hand():
    # One word of three matches: P = R = 1/3, F = 1/3, one chunk of one match halves it.
    assert metrics.meteor(["a fast car"], [["a quick automobile"]]) == pytest.approx(100 / 6)
    # Longest common subsequence of 2: P = 2/3, R = 1/2, beta = 1.2.
    p, r, b = 2 / 3, 1 / 2, 1.2**2
    assert metrics.rouge_l(["a b c"], [["a x b y"]]) == pytest.approx(
        100 * (1 + b) * p * r / (r + b * p)
    )
    # Four tokens of five in order: precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty.
    assert metrics.bleu(["a b c d e"], [["a b c d f"]]) == pytest.approx(
        100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )
    # Each word once in the references: log2 of their 4 words each, and no longer n-gram has news.
    assert metrics.nist(["a b c d"], [["a b c d"]]) == pytest.approx(2.0)
    # Alike in all four lengths of n-gram, up to the factor that CIDEr-D carries.
    assert metrics.cider(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]]) == pytest.approx(10)


def test_nothing_in_common_and_nothing_written_are_zero():
    for answers in (["zz"], [""]):
        assert set(measure_text(ALL, answers, [["a b"]], synonyms=False).values()) == {0.0}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(SolarError, match="no metric 'beu': choose from bleu"):
        measure_text(["beu"], ["a"], [["a"]])
    with pytest.raises(SolarError, match="no written text"):
        measure_text(["bleu"], [], [])
    with pytest.raises(SolarError, match="no setting 'beam'"):
        written.parse({"beam": 2})


# ------------------------------------------------------------------------------- writing


def log_probabilities(base, tokens: np.ndarray) -> np.ndarray:
    """Of every next token, (B, T, V), without a cache."""
    model = assemble(structure(base.config), dict(base.params))
    hidden, _ = model(tokens, np.ones(tokens.shape, bool))
    return np.asarray(jax.nn.log_softmax(project(hidden, model.head())))


def test_a_search_with_a_beam_for_every_token_finds_the_likeliest_pair():
    base, prompt = load("tiny:gpt2"), [5, 9, 11]
    size = base.config.vocab_size
    first = log_probabilities(base, np.array([prompt]))[0, -1]
    rows = np.array([[*prompt, token] for token in range(size)])
    total = first[:, None] + log_probabilities(base, rows)[:, -1]
    best = np.unravel_index(total.argmax(), total.shape)
    assert beam_search(base, [prompt], 2, beams=size) == [[int(t) for t in best]]
    # With a stop, the pair competes with the lone first tokens that it may follow.
    stop = int(best[1])
    found = beam_search(base, [prompt], 2, beams=size, stop=stop, length_penalty=0.0)
    total[stop] = -np.inf  # nothing follows the stop
    open_pairs = np.delete(total, stop, 1).max()
    expected = [] if first[stop] > max(total[:, stop].max(), open_pairs) else [int(best[0])]
    assert found == [expected]


def test_one_beam_is_greedy_and_batches_do_not_matter():
    base = load("tiny:gpt2")
    prompts = [[5, 9, 11, 2, 40], [3], [17, 20, 21]]
    assert beam_search(base, prompts, 6, beams=1) == generate(base, prompts, 6)
    together = beam_search(base, prompts, 6, beams=4, width=16)
    alone = [beam_search(base, [prompt], 6, beams=4)[0] for prompt in prompts]
    assert together == alone


def test_rows_with_one_prompt_share_their_answers():
    base = load("tiny:gpt2")
    task = {"objective": "next_token", "template": "{meaning_representation} ->",
            "target": " {human_reference}", "max_tokens": 64, "train": 20, "validation": 10,
            "test": 60, "source": {"kind": "stand_in", "of": "tuetschek/e2e_nlg"}}  # fmt: skip
    encode, end = base.tokenizer.encode, base.tokenizer.eos_token_id
    made = build(task, encode=encode, pad_id=0, eos_id=end)
    prompts, answers = written.cases(
        made.test, lambda ids: base.tokenizer.decode(ids, skip_special_tokens=True)
    )
    assert len(prompts) < 60 == sum(map(len, answers))
    rows = stand_in("tuetschek/e2e_nlg").splits["test"]
    by_prompt = {}
    for row in rows:
        prompt = tuple(encode(row["meaning_representation"] + " ->"))
        by_prompt.setdefault(prompt, set()).add(row["human_reference"])
    for prompt, several in zip(prompts, answers, strict=True):
        assert set(several) <= by_prompt[tuple(prompt)]


# ------------------------------------------------------------------------------- divergence


def test_the_divergence_is_that_of_the_whole_vocabulary_on_the_targets():
    base = load("tiny:gpt2")
    name = "transformer.h.0.attn.c_attn"
    generator = np.random.default_rng(0)
    left, right = generator.normal(size=(96, 2)), generator.normal(size=(32, 2))
    updates = [{name: (np.float32(0.3 * s * left), np.float32(right))} for s in (0.0, 1.0, 1.1)]
    task = build(
        {"objective": "next_token", "template": "{name}:", "target": " {synopsis}",
         "max_tokens": 48, "train": 1, "validation": 0, "test": 5,
         "source": {"kind": "stand_in", "of": "package_synopses"}},
        encode=base.tokenizer.encode, pad_id=0,
    )  # fmt: skip
    score = make_scorer(base, task, {name: 2}, batch_size=3, reference=(updates[1], {}))
    nothing, same, near = (score(update, {})["kl"] for update in updates)
    assert abs(same) < 1e-6 < near < nothing

    def full(update) -> np.ndarray:
        weight = base.params[f"{name}.weight"] + (update[name][0] @ update[name][1].T).T
        changed = {**base.params, f"{name}.weight": weight}
        model = assemble(structure(base.config), changed)
        hidden, _ = model(task.test["tokens"], task.test["mask"])
        return np.asarray(jax.nn.log_softmax(project(hidden, model.head())), np.float64)

    before, after = full(updates[1]), full(updates[0])
    each = (np.exp(before) * (before - after)).sum(-1)[:, :-1]
    assert nothing == pytest.approx(each[task.test["target_mask"][:, 1:]].mean(), rel=1e-4)
    # A trained output head has no place in it.
    with pytest.raises(SolarError, match="base's own head"):
        make_scorer(base, task, {name: 2}, reference=(updates[1], {"lm_head.weight": left}))


# ------------------------------------------------------------------------------- stand-ins


def test_stand_ins_have_rows_enough_and_none_twice():
    for of, schema in SCHEMAS.items():
        source = stand_in(of)
        assert tuple(source.splits) == schema.splits
        texts = [c for c in schema.columns if schema.columns[c].__name__ == "_text"]
        for column in texts:
            values = [row[column] for rows in source.splits.values() for row in rows]
            assert len(set(values)) == len(values) >= 240
        assert stand_in(of).splits[schema.splits[0]][0].keys() == schema.columns.keys()
    with pytest.raises(SolarError, match="no stand-in for 'nobody/nothing'"):
        stand_in("nobody/nothing")


def test_only_what_would_be_fetched_is_replaced():
    assert name_of({"kind": "hub", "name": "nyu-mll/glue", "subset": "sst2"}) == "nyu-mll/glue/sst2"
    assert name_of({"kind": "hub", "name": "cais/mmlu", "subset": "all"}) == "cais/mmlu"
    for source in ("movie_snippets", "digits", {"kind": "hub", "name": "own/data"}):
        assert name_of(source) is None
