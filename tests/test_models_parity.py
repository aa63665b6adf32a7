"""Live: models against `transformers`, and LoRA training here against PEFT with torch's AdamW."""

from dataclasses import replace

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from golden import cases  # noqa: E402
from golden.bases import base_of, language_logits, logits  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from benchmarks.torch_models import peft_model, torch_model  # noqa: E402
from solar.adapters.lora import METHOD, LoraConfig, adapter  # noqa: E402
from solar.generate import beam_search, generate  # noqa: E402
from solar.models.structure import structure  # noqa: E402
from solar.tasks.task import Task  # noqa: E402
from solar.train import TrainConfig, learning_rate, make_step, rows  # noqa: E402
from solar.weights.base import Base  # noqa: E402


def random_base(name: str, seed: int) -> Base:
    """A case with other random weights and, for text, another number of layers and heads."""
    base = base_of(name)
    if base.family == "gpt2":
        base = base_of(name, seed, n_layer=3, n_head=2, n_inner=40)
    elif base.family == "llama":
        base = base_of(name, seed, num_hidden_layers=3, num_key_value_heads=1)
    else:
        base = base_of(name, seed, num_hidden_layers=3, num_attention_heads=2)
    return base


def torch_logits(base: Base, model) -> np.ndarray:
    """Logits on the golden inputs, padding zeroed, as ``golden.bases.logits``."""
    with torch.no_grad():
        if base.family == "vit":
            return model(pixel_values=torch.from_numpy(cases.pixels(32))).logits.numpy()
        tokens, mask = cases.tokens()
        ids, real = (
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(mask.astype(np.int64)),
        )
        return model(input_ids=ids, attention_mask=real).logits.numpy() * mask[..., None]


@pytest.mark.parametrize("attention", ("eager", "sdpa"))
@pytest.mark.parametrize("name", cases.CASES)
def test_logits_of_random_models_equal_those_of_torch(name, attention):
    base = random_base(name, seed=5)
    expected = torch_logits(base, torch_model(base, attention=attention))
    found = logits(base)
    print(f"{name} {attention}: {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ("gpt2", "llama-3-biases"))
def test_left_padding_equals_torch_told_the_positions(name):
    base = random_base(name, seed=6)
    tokens, mask = cases.tokens()
    left = np.stack([np.roll(row, len(row) - m.sum()) for row, m in zip(tokens, mask, strict=True)])
    left_mask = mask[:, ::-1].copy()
    with torch.no_grad():
        expected = torch_model(base)(
            input_ids=torch.from_numpy(left.astype(np.int64)),
            attention_mask=torch.from_numpy(left_mask.astype(np.int64)),
            position_ids=torch.from_numpy(np.maximum(left_mask.cumsum(1) - 1, 0)),
        ).logits.numpy()
    found = language_logits(base, left, left_mask)
    np.testing.assert_allclose(found[left_mask], expected[left_mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ("gpt2", "llama-own-head"))
def test_generation_equals_that_of_transformers(name):
    base = random_base(name, seed=7)
    model = torch_model(base)
    for prompt in ([5, 9, 11, 2, 40, 7], [3]):
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert generate(base, [prompt], 8)[0] == out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("penalty", (0.8, 2.0))
def test_beam_search_equals_that_of_transformers(penalty):
    base = random_base("gpt2", seed=7)
    model = torch_model(base)
    prompts = [[5, 9, 11, 2, 40, 7], [3], [8, 8]]
    stop = generate(base, prompts, 2)[0][1]  # one that is written
    found = beam_search(base, prompts, 8, beams=4, length_penalty=penalty, stop=stop)
    for prompt, ours in zip(prompts, found, strict=True):
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=8,
            do_sample=False,
            num_beams=4,
            length_penalty=penalty,
            eos_token_id=stop,
            pad_token_id=0,
        )
        theirs = out[0, len(prompt) :].tolist()
        assert ours == (theirs[: theirs.index(stop)] if stop in theirs else theirs)


def toy_task(base: Base) -> Task:
    """24 random examples for ``base``; all that matters is that both sides see the same."""
    draw = cases.stream("toy task")
    if base.family == "vit":
        arrays = {
            "pixels": draw.integers(0, 256, (24, 32, 32, 3)).astype(np.uint8),
            "label": draw.integers(0, 5, 24).astype(np.int32),
        }
        return Task("toy", "image_class", arrays, arrays, arrays)
    mask = np.arange(12) < draw.integers(4, 13, 24)[:, None]
    tokens = np.where(mask, draw.integers(0, cases.VOCABULARY, (24, 12)), 0).astype(np.int32)
    target = mask & (np.arange(12) >= 2)
    arrays = {"tokens": tokens, "mask": mask, "target_mask": target}
    return Task("toy", "next_token", arrays, arrays, arrays)


def torch_loss(base: Base, model, batch: dict):
    if base.family == "vit":
        pixels = (batch["pixels"].astype(np.float32) / 255 - base.image_mean) / base.image_std
        nchw = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2).copy())
        return cross_entropy(
            model(pixel_values=nchw).logits, torch.from_numpy(batch["label"]).long()
        )
    tokens = torch.from_numpy(batch["tokens"].astype(np.int64))
    real = torch.from_numpy(batch["mask"].astype(np.int64))
    out = model(input_ids=tokens, attention_mask=real).logits[:, :-1]
    target = torch.from_numpy(batch["target_mask"])[:, 1:]
    return cross_entropy(out[target], tokens[:, 1:][target])


@pytest.mark.parametrize("accumulate", (1, 2))
@pytest.mark.parametrize("name", ("gpt2", "llama-own-head", "vit"))
def test_two_steps_of_training_equal_peft_with_adamw(name, accumulate):
    base = random_base(name, seed=8)
    kinds = {"gpt2": ("c_attn", "c_fc"), "llama": ("q_proj", "v_proj"), "vit": ("q_proj", "v_proj")}
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=kinds[base.family],
        alpha_pattern={kinds[base.family][0]: 9},
        modules_to_save=("classifier",) if base.family == "vit" else (),
    )
    training = TrainConfig(
        steps=10, batch_size=8, accumulate=accumulate, learning_rate=1e-2, warmup=0.3, clip=0.5,
        weight_decay=0.05, beta2=0.99, seed=4,
    )  # fmt: skip
    task = toy_task(base)
    update, opt = make_step(base, METHOD, config, task, training)
    trainable, frozen = METHOD.init(jax.random.key(1), base, config)
    # B starts at zero, where A has no gradient: give it values, so that every tensor moves.
    trainable = {
        k: v if not k.endswith("lora_B") else jnp.asarray(cases.factors({k: v.shape})[k])
        for k, v in trainable.items()
    }
    start = jax.device_get(trainable)

    model = peft_model(torch_model(base), config)
    named = dict(model.named_parameters())
    theirs = {}
    for leaf, value in start.items():
        if leaf.endswith(("lora_A", "lora_B")):
            key = f"base_model.model.{leaf}.default.weight"
        else:
            module, _, last = leaf.rpartition(".")
            key = f"base_model.model.{module}.modules_to_save.default.{last}"
        theirs[leaf] = named[key]
        with torch.no_grad():
            named[key].copy_(torch.from_numpy(np.array(value)))
    weights = [p for p in model.parameters() if p.requires_grad]
    assert len(weights) == len(theirs)
    adamw = torch.optim.AdamW(weights, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.05)

    params = {k: jnp.asarray(v) for k, v in base.params.items() if k not in trainable}
    state = (trainable, frozen, opt.init(trainable))
    model.train()
    for step in range(2):
        index = rows(step, 8, 24, training.seed)
        batch = {k: v[index] for k, v in task.train.items()}
        expected = torch_loss(base, model, batch)
        adamw.zero_grad()
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, training.clip)
        adamw.param_groups[0]["lr"] = float(learning_rate(training)(step))
        adamw.step()
        batch["weight"] = np.ones(8, np.float32)
        state, loss, ours = update(params, state, batch, step)
        assert abs(float(loss) - expected.item()) <= 1e-5 * expected.item()
        assert abs(float(ours) - norm.item()) <= 1e-4 * norm.item()
        assert norm.item() > training.clip  # otherwise clipping is not compared
    worst = 0.0
    for leaf, value in jax.device_get(state[0]).items():
        there = theirs[leaf].detach().numpy()
        moved = np.linalg.norm(there - start[leaf])
        assert moved > 0, leaf
        worst = max(worst, np.linalg.norm(value - there) / moved)
    print(f"{name}: two steps differ by {worst:.1e} of their length")
    assert worst <= 1e-4


def test_a_trained_adapter_holds_every_projection_that_peft_adapts():
    base = random_base("vit", seed=9)
    config = replace(LoraConfig(), target_modules="all-linear", modules_to_save=("classifier",))
    trainable, frozen = METHOD.init(jax.random.key(0), base, config)
    ours = adapter(trainable, frozen).pairs
    model = peft_model(torch_model(base), config)
    adapted = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
        for name, _ in model.named_parameters()
        if ".lora_A." in name
    }
    assert set(ours) == adapted
    assert len(ours) == len(structure(base.config).linears) - 1
