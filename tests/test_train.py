"""The training loop: exact resume, accumulation, seeds, dropout, and how it refuses to go on."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from golden import cases
from golden.bases import base_of

from solar.adapters import full, lora
from solar.adapters.lora import LoraConfig
from solar.errors import SolarError
from solar.models.structure import assemble, structure
from solar.score import make_scorer
from solar.tasks.task import Task
from solar.train import TrainConfig, learning_rate, parse, rows, train

ROOT = Path(__file__).parent.parent
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=("c_attn", "c_fc"))
DROPPING = replace(LORA, lora_dropout=0.3)
RUN = TrainConfig(steps=10, batch_size=8, learning_rate=1e-2, checkpoint_every=5, seed=3)


def small():
    """The golden GPT-2 with one layer: these tests are about the loop."""
    return base_of("gpt2", n_layer=1)


def toy_task(count: int = 40) -> Task:
    """Continue a text by the class of its first token; learnable, and of unequal lengths."""
    draw = cases.stream("toy task")
    mask = np.arange(10) < draw.integers(4, 11, count)[:, None]
    tokens = np.where(mask, draw.integers(2, cases.VOCABULARY, (count, 10)), 0).astype(np.int32)
    label = (tokens[:, 0] % 2).astype(np.int32)
    arrays = {"tokens": tokens, "mask": mask, "label": label}
    names = ("even", "odd")
    return Task(
        "toy", "label_token", arrays, arrays, arrays, names, np.array([0, 1]), f"toy{count}"
    )


def next_token_task() -> Task:
    """Token counts differ from row to row, so that means of micro-batches would be wrong."""
    arrays = dict(toy_task().train)
    del arrays["label"]
    arrays["target_mask"] = arrays["mask"] & (np.arange(10) >= 1)
    return Task("next", "next_token", arrays, arrays, arrays, identity="next")


def host(done) -> dict[str, np.ndarray]:
    return jax.device_get(done.trainable)


def assert_same_bits(one, other) -> None:
    assert one.losses == other.losses
    ours, theirs = host(one), host(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def whole():
    """Ten steps without a stop, with dropout, so that its keys have to be resumed as well."""
    return train(small(), lora.METHOD, DROPPING, toy_task(), RUN)


class TestResume:
    def test_a_folder_changes_nothing_and_a_finished_run_is_not_repeated(self, whole, tmp_path):
        seen = []
        for _ in range(2):
            again = train(
                small(), lora.METHOD, DROPPING, toy_task(), RUN, tmp_path,
                log=lambda step, _: seen.append(step),
            )  # fmt: skip
            assert_same_bits(again, whole)
        assert seen == list(range(1, 11))

    def test_ten_steps_equal_five_an_interrupt_and_a_resume(self, whole, tmp_path):
        def interrupt(step, _):
            if step == 4:  # known while the fifth step is under way, which is finished and kept
                os.kill(os.getpid(), signal.SIGINT)

        config = replace(RUN, checkpoint_every=100)  # only the interrupt saves
        with pytest.raises(KeyboardInterrupt):
            train(small(), lora.METHOD, DROPPING, toy_task(), config, tmp_path, interrupt)
        seen = []
        resumed = train(
            small(), lora.METHOD, DROPPING, toy_task(), config, tmp_path,
            log=lambda step, _: seen.append(step),
        )  # fmt: skip
        assert seen == [6, 7, 8, 9, 10]
        assert_same_bits(resumed, whole)

    def test_an_error_from_outside_a_step_loses_at_most_one_checkpoint(self, whole, tmp_path):
        def fail(step, _):
            if step == 8:
                raise OSError("the disk of the log is full")

        with pytest.raises(OSError, match="the log is full"):
            train(small(), lora.METHOD, DROPPING, toy_task(), RUN, tmp_path, fail)
        resumed = train(small(), lora.METHOD, DROPPING, toy_task(), RUN, tmp_path)
        assert_same_bits(resumed, whole)

    def test_ten_steps_equal_five_a_sigkill_and_a_resume(self, whole, tmp_path):
        program = (
            "import os, signal, sys\n"
            f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
            "import test_train as t\n"
            "def die(step, _):\n"
            "    if step == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
            "t.train(t.small(), t.lora.METHOD, t.DROPPING, t.toy_task(), t.RUN, "
            f"{str(tmp_path)!r}, die)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["5"]
        seen = []
        resumed = train(
            small(), lora.METHOD, DROPPING, toy_task(), RUN, tmp_path,
            log=lambda step, _: seen.append(step),
        )  # fmt: skip
        assert seen == [6, 7, 8, 9, 10]
        assert_same_bits(resumed, whole)

    def test_a_folder_of_another_run_is_refused(self, tmp_path):
        base = small()
        train(base, lora.METHOD, LORA, toy_task(), RUN, tmp_path)
        for base_, adapter, task, config in (
            (base, LORA, toy_task(), replace(RUN, learning_rate=2e-2)),
            (base, replace(LORA, lora_alpha=5), toy_task(), RUN),
            (base, LORA, toy_task(41), RUN),
            (replace(base, source="golden:another"), LORA, toy_task(), RUN),
        ):
            with pytest.raises(SolarError, match="a run of another config; remove it or choose"):
                train(base_, lora.METHOD, adapter, task, config, tmp_path)


class TestSteps:
    def test_loss_falls_on_a_task_that_can_be_learnt(self):
        config = replace(RUN, steps=60, batch_size=20, learning_rate=3e-2)
        done = train(small(), lora.METHOD, replace(LORA, r=4), toy_task(), config)
        assert np.mean(done.losses[:3]) > 3
        assert np.mean(done.losses[-5:]) < 0.6  # guessing between the two labels costs ln 2

    def test_the_same_seed_gives_the_same_losses_and_weights(self, whole):
        again = train(small(), lora.METHOD, DROPPING, toy_task(), RUN)
        assert_same_bits(again, whole)

    def test_dropout_acts_in_training(self, whole):
        plain = train(small(), lora.METHOD, LORA, toy_task(), RUN)
        assert plain.losses[0] == whole.losses[0]  # B is zero: nothing to drop yet
        assert plain.losses[1:] != whole.losses[1:]
        assert np.isfinite(whole.losses).all()

    def test_accumulated_micro_batches_equal_the_big_batch(self):
        task, big = next_token_task(), replace(RUN, steps=3)
        one = train(small(), lora.METHOD, LORA, task, big)
        four = train(small(), lora.METHOD, LORA, task, replace(big, accumulate=4))
        np.testing.assert_allclose(four.losses, one.losses, rtol=1e-6)
        start = jax.device_get(
            lora.METHOD.init(jax.random.key(3, impl="threefry2x32"), small(), LORA)[0]
        )
        ours, theirs = host(four), host(one)
        moved = np.sqrt(sum(np.square(theirs[k] - start[k]).sum() for k in ours))
        apart = np.sqrt(sum(np.square(theirs[k] - ours[k]).sum() for k in ours))
        assert moved > 0.01
        assert apart <= 1e-4 * moved  # Adam divides tiny gradients by their own size

    def test_only_the_adapter_is_trained_and_its_scale_is_fixed(self, whole):
        assert {name.rpartition(".")[2] for name in whole.trainable} == {"lora_A", "lora_B"}
        assert {float(v) for v in whole.frozen.values()} == {2.0}

    def test_full_training_moves_every_kind_of_weight(self):
        base = small()
        config = replace(RUN, steps=12, learning_rate=3e-3)
        done = train(base, full.METHOD, None, toy_task(), config)
        assert done.losses[-1] < 0.6 * done.losses[0]
        after = host(done)
        assert after.keys() == base.params.keys()
        still = [k for k in after if np.array_equal(after[k], base.params[k])]
        assert still == []

    def test_an_image_classifier_trains_its_fresh_head(self):
        base = base_of("vit", num_hidden_layers=1)
        params = {k: v for k, v in base.params.items() if not k.startswith("classifier")}
        base = replace(base, params=params)
        draw = cases.stream("images")
        arrays = {
            "pixels": draw.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8),
            "label": draw.integers(0, 5, 16).astype(np.int32),
        }
        task = Task("pictures", "image_class", arrays, arrays, arrays, identity="pictures")
        config = LoraConfig(r=2, modules_to_save=("classifier",))
        done = train(base, lora.METHOD, config, task, replace(RUN, batch_size=16))
        assert done.losses[-1] < 0.7 * done.losses[0]
        found = lora.adapter(done.trainable, done.frozen)
        assert set(found.heads) == {"classifier.weight", "classifier.bias"}
        assert len(found.pairs) == 2  # q and v


class TestRefusals:
    def test_a_loss_that_is_not_finite_stops_by_name(self, tmp_path):
        base = small()
        base.params["transformer.ln_f.bias"][0] = np.nan
        with pytest.raises(SolarError, match="the loss of step 1 is nan; training stopped") as info:
            train(base, lora.METHOD, LORA, toy_task(), RUN, tmp_path)
        assert "\n" not in str(info.value)
        assert list((tmp_path / "checkpoints").glob("[0-9]*")) == []  # no broken state is kept

    def test_a_run_that_diverges_names_the_step(self):
        config = replace(RUN, learning_rate=1e30, warmup=0.0, clip=0.0)
        with pytest.raises(SolarError, match=r"the loss of step [2-9] is (nan|inf)"):
            train(small(), lora.METHOD, LORA, toy_task(), config)

    def test_an_empty_training_set_is_refused(self):
        empty = {k: v[:0] for k, v in toy_task().train.items()}
        for split in (empty, {}):
            task = replace(toy_task(), train=split)
            with pytest.raises(SolarError, match="task toy has no training examples"):
                train(small(), lora.METHOD, LORA, task, RUN)

    def test_settings_that_cannot_be_are_refused(self):
        with pytest.raises(SolarError, match="batch_size 8 is no multiple of accumulate 3"):
            train(small(), lora.METHOD, LORA, toy_task(), replace(RUN, accumulate=3))
        with pytest.raises(SolarError, match="schedule 'step' is unknown; use linear"):
            learning_rate(replace(RUN, schedule="step"))
        with pytest.raises(SolarError, match="no setting 'epochs'; known are steps"):
            parse({"epochs": 3}, 0)

    @pytest.mark.parametrize("name", ("steps", "batch_size", "accumulate", "checkpoint_every"))
    @pytest.mark.parametrize("value", (0, -2, 1.5, "many"))
    def test_numbers_that_count_nothing_are_refused(self, name, value):
        with pytest.raises(SolarError, match=f"{name} is {value!r}; give a whole number of at"):
            parse({name: value}, 0)

    def test_a_task_of_the_other_kind_is_refused(self):
        with pytest.raises(SolarError, match="label_token\\) does not fit a vit base"):
            train(base_of("vit"), lora.METHOD, LoraConfig(), toy_task(), RUN)


@pytest.mark.parametrize("size", (3, 8, 25))
def test_rows_go_through_the_data_once_an_epoch(size):
    drawn = np.concatenate([rows(step, size, 10, seed=1) for step in range(20)])
    for epoch in range(len(drawn) // 10):
        assert sorted(drawn[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert not np.array_equal(drawn[:10], drawn[10:20])
    assert not np.array_equal(rows(0, 10, 10, seed=1), rows(0, 10, 10, seed=2))


@pytest.mark.parametrize("schedule", ("linear", "cosine", "constant"))
def test_learning_rate_warms_up_and_decays(schedule):
    rate = learning_rate(TrainConfig(steps=100, learning_rate=0.5, warmup=0.1, schedule=schedule))
    values = np.array([float(rate(step)) for step in range(101)])
    np.testing.assert_allclose(values[:10], 0.05 * np.arange(1, 11), rtol=1e-5)
    assert values[10] == pytest.approx(0.5)
    assert values[100] == pytest.approx(0.5 if schedule == "constant" else 0.0, abs=1e-6)
    assert (np.diff(values[10:]) <= 1e-9).all()


def test_a_choice_of_labels_counts_the_labels_alone():
    base, one = small(), toy_task()
    choice = replace(one, objective="label_choice", identity="choice")
    hidden, _ = assemble(structure(base.config), dict(base.params))(
        one.test["tokens"], one.test["mask"]
    )
    last = hidden[np.arange(len(hidden)), one.test["mask"].sum(1) - 1]
    head = base.params["transformer.wte.weight"]
    scores, label = np.asarray(last @ head.T, np.float64), one.test["label"]
    rows = np.arange(len(label))
    for task, over in ((one, scores), (choice, scores[:, one.label_tokens])):
        expected = np.log(np.exp(over).sum(1)) - scores[rows, one.label_tokens[label]]
        found = make_scorer(base, task, {})({}, {})
        assert found["loss"] == pytest.approx(expected.mean(), rel=1e-5)
        assert found["score"] == np.mean(scores[:, one.label_tokens].argmax(1) == label)
    trained = train(base, lora.METHOD, LORA, choice, RUN)
    assert trained.losses[0] == pytest.approx(np.log(2), abs=0.3), "of two, not of a vocabulary"
