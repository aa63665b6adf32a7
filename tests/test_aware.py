"""Training through the channel: what the model saw is what the file decodes to, it serves the task
better than coding afterwards, and runs are resumed to the bit.
"""

import json
import os
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
from golden import cases
from test_compare import SMALL, home, run  # noqa: F401  the fixture is used by its name
from test_train import assert_same_bits, small, toy_task

from solar import channel, moments, record
from solar.adapters import aware, lora
from solar.adapters.aware import AwareConfig
from solar.adapters.lora import LoraConfig
from solar.codec import activation, container, packet
from solar.codec.factors import canonical
from solar.errors import SolarError
from solar.evaluate import Weights
from solar.matching import matching
from solar.score import make_scorer
from solar.train import TrainConfig, train

LORA = LoraConfig(r=3, lora_alpha=3, target_modules=("c_attn", "c_fc"))
TIGHT = AwareConfig(budget_bytes=400, directions=32)
RUN = TrainConfig(steps=60, batch_size=16, learning_rate=5e-2, seed=1)


class Given:
    """A trained adapter of a small base and what coding it takes."""

    def __init__(self):
        self.base, self.task = small(), toy_task()
        done = train(self.base, lora.METHOD, LORA, self.task, RUN)
        self.start = lora.adapter(done.trainable, done.frozen)
        tokens = cases.stream("text of frames").integers(2, cases.VOCABULARY, (4, 16, 12))
        batches = [{"tokens": x.astype(np.int32), "mask": np.ones(x.shape, bool)} for x in tokens]
        self.frames = moments.frames_of(self.base, batches, rows=24)
        self.weights = Weights(self.base)
        self.known = container.identify(self.weights, self.start.pairs)
        self.method = aware.method(self.start, self.known, self.frames, self.known.names)

    def train(self, task=None, config=RUN, settings=TIGHT, folder=None, log=None):
        return train(self.base, self.method, settings, task or self.task, config, folder, log)

    def file(self, pairs, decided=None, budget=TIGHT.budget_bytes) -> activation.Encoded:
        return activation.encode(
            canonical(pairs), self.weights, self.frames, budget_bytes=budget,
            known=self.known, decided=decided,
        )  # fmt: skip

    def score(self, factors) -> dict[str, float]:
        """Loss, and divergence from the adapter that was started from."""
        ranks = dict.fromkeys(self.known.names, LORA.r)
        start = {name: (b * s, a.T) for name, (b, a, s) in self.start.pairs.items()}
        score = make_scorer(self.base, self.task, ranks, "train", reference=(start, {}))
        return score({name: (f.left, f.right) for name, f in factors.items()}, {})


@pytest.fixture(scope="module")
def given():
    return Given()


@pytest.fixture(scope="module")
def done(given):
    return given.train()


def test_the_model_sees_what_the_file_decodes_to(given, done):
    own = aware.adapter(done.trainable, done.frozen, given.known, given.frames)
    coded = given.file(own.pairs, aware.decided(done.trainable, done.frozen, given.known))
    assert len(coded.data) <= TIGHT.budget_bytes
    decoded = packet.decode(coded.data, given.weights, frames=lambda _: given.frames).factors
    leaves = jax.device_get(given.method.update(done.trainable, done.frozen))
    for name in given.known.names:
        seen = leaves[f"{name}.lora_B"] @ leaves[f"{name}.lora_A"]
        arrived = decoded[name].left @ decoded[name].right.T
        assert np.linalg.norm(seen - arrived) <= 1e-6 * max(np.linalg.norm(seen), 1e-30)
    assert any(f.left.shape[1] for f in decoded.values())


@pytest.mark.parametrize("budget", [401, 402, 403])
def test_a_file_of_any_length_is_what_the_model_saw(given, budget):
    settings, config = replace(TIGHT, budget_bytes=budget), replace(RUN, steps=12)
    done = given.train(config=config, settings=settings)
    own = aware.adapter(done.trainable, done.frozen, given.known, given.frames)
    decided = aware.decided(done.trainable, done.frozen, given.known)
    coded = given.file(own.pairs, decided, budget)
    assert 0.97 * budget <= len(coded.data) <= budget
    leaves = jax.device_get(given.method.update(done.trainable, done.frozen))
    for name, (left, right) in coded.factors.items():
        seen = leaves[f"{name}.lora_B"] @ leaves[f"{name}.lora_A"]
        np.testing.assert_allclose(left @ right.T, seen, atol=1e-6 * np.abs(seen).max())


def test_a_file_that_nothing_fills_is_refused_before_training(given):
    steps = []
    with pytest.raises(SolarError, match="a budget of 60 bytes is too small"):
        given.train(settings=replace(TIGHT, budget_bytes=60), log=lambda *x: steps.append(x))
    assert not steps


def test_factors_that_are_not_finite_are_refused_by_name(given):
    huge = {name: (b, a, 1e30) for name, (b, a, _) in given.start.pairs.items()}
    method = aware.method(replace(given.start, pairs=huge), given.known, given.frames,
                          given.known.names)  # fmt: skip
    with pytest.raises(SolarError, match="the loss of step 1 is nan"):
        train(given.base, method, TIGHT, given.task, RUN)
    trainable, frozen = method.init(jax.random.key(0), given.base, TIGHT)
    trainable = {**trainable, "left": trainable["left"] * np.nan}
    with pytest.raises(SolarError, match="the adapter's factors are not finite"):
        method.refresh(trainable, frozen, 0, TIGHT)


def test_heads_are_trained_in_units_of_their_size(given):
    head = {"score.weight": np.full((2, 8), 0.05, np.float32)}
    start = replace(given.start, heads=head)
    method = aware.method(start, given.known, given.frames, given.known.names)
    trainable, frozen = method.init(jax.random.key(0), given.base, TIGHT)
    np.testing.assert_allclose(trainable["score.weight"], 1.0, rtol=1e-6)
    own = aware.adapter(trainable, frozen, given.known, given.frames)
    np.testing.assert_allclose(own.heads["score.weight"], head["score.weight"], rtol=1e-6)


def test_training_through_the_channel_beats_coding_afterwards(given, done):
    own = aware.adapter(done.trainable, done.frozen, given.known, given.frames)
    decided = aware.decided(done.trainable, done.frozen, given.known)
    before = given.score(given.file(given.start.pairs).factors)["loss"]
    assert given.score(given.file(own.pairs, decided).factors)["loss"] < 0.9 * before


def test_an_interrupted_run_goes_on_to_the_bit(given, done, tmp_path):
    def interrupt(step, _):
        if step == 15:  # between two steps at which all is decided anew
            os.kill(os.getpid(), signal.SIGINT)

    config = replace(RUN, checkpoint_every=100)
    whole = given.train(config=config)
    with pytest.raises(KeyboardInterrupt):
        given.train(config=config, folder=tmp_path, log=interrupt)
    assert_same_bits(given.train(config=config, folder=tmp_path), whole)
    np.testing.assert_array_equal(whole.frozen["choice"], done.frozen["choice"])


def test_an_adapter_can_be_matched_without_a_label(given):
    other = replace(given.task, train=given.task.train | {"label": 1 - given.task.train["label"]})
    first, second = (matching(given.base, task, given.start) for task in (given.task, other))
    assert first.identity == second.identity
    done = given.train(first)
    assert done.losses[-1] < 0.5 * done.losses[0]
    own = aware.adapter(done.trainable, done.frozen, given.known, given.frames)
    decided = aware.decided(done.trainable, done.frozen, given.known)
    after, before = given.file(own.pairs, decided).factors, given.file(given.start.pairs).factors
    assert given.score(after)["kl"] < 0.5 * given.score(before)["kl"]


def test_turns_leave_the_update_as_it_is(given, done):
    """The product of what `left_turn` and `right_turn` make of the factors is the factors' own."""
    for i in range(len(given.known.names)):
        left, right = (np.asarray(done.trainable[side][i], np.float64) for side in aware.SIDES)
        turned = [x @ np.asarray(done.frozen[f"{side}_turn"][i], np.float64)
                  for side, x in (("left", left), ("right", right))]  # fmt: skip
        np.testing.assert_allclose(turned[0] @ turned[1].T, left @ right.T, atol=2e-5)


def test_a_run_has_rows_of_what_went_through_the_channel(home, monkeypatch):  # noqa: F811
    nodes = {
        "labels": "learns: labels",
        "adapter": "learns: adapter",
        "refit": "learns: adapter, inputs: own",
    }
    given = [
        f"+codec.channel.{name}={{{learns}, budgets: [700], steps: 3}}"
        for name, learns in nodes.items()
    ]
    model = ["model=tiny-gpt2", "task=movie_snippets"]
    assert run(monkeypatch, *SMALL, *model, "name=channel", *given) == 0
    result = record.read(home / "outputs" / "channel" / "seed=0" / "result.json")
    rows = {row["codec"]: row for row in result["rows"]}
    for name in nodes:
        assert rows[name]["label"] == f"{name}, 700 bytes" and rows[name]["bytes"] <= 700
        assert np.isfinite(rows[name]["loss"])
    trained = list((home / "cache" / "adapters").glob("*/training.json"))
    assert sum("channel" in json.loads(path.read_text()) for path in trained) == 3

    def never(*_):
        raise AssertionError("a file that is in the cache is not trained again")

    monkeypatch.setattr(channel, "send_through", never)
    assert run(monkeypatch, *SMALL, *model, "name=again", *given) == 0
    again = record.read(home / "outputs" / "again" / "seed=0" / "result.json")["rows"]
    for key in ("label", "bytes", "relative_error", "loss"):
        assert [row[key] for row in again] == [row[key] for row in result["rows"]]


def test_a_node_that_learns_something_else_is_refused(home, monkeypatch, capsys):  # noqa: F811
    model = ["model=tiny-gpt2", "task=movie_snippets"]
    for number, (node, says) in enumerate(
        {
            "{learns: nothing, budgets: [700]}": "learns is 'nothing'",
            "{learns: adapter, inputs: odd, budgets: [700]}": "inputs is 'odd'",
            "{learns: labels, inputs: own, budgets: [700]}": "have no labels",
            "{learns: adapter, input: own, budgets: [700]}": "no setting 'input'",
            "{learns: labels}": "budgets is None",
            "{learns: labels, budgets: 700}": "budgets is 700",
            "{learns: labels, budgets: [700], steps: null}": "steps is None",
            "5": "give a table",
        }.items()
    ):
        given = f"+codec.channel.odd={node}"
        assert run(monkeypatch, *SMALL, *model, f"name=odd{number}", given) == 2
        assert says in capsys.readouterr().err
