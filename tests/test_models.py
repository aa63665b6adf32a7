"""Models against golden logits that torch made, and their own promises: padding, cache, dropout."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases
from golden.bases import base_of, image_logits, language_logits, logits

from solar import moments
from solar.errors import SolarError
from solar.generate import generate
from solar.models.gpt2 import GPT2Config
from solar.models.linear import Linear
from solar.models.llama import LlamaConfig
from solar.models.structure import assemble, random_leaves, structure
from solar.models.vit import ViTConfig, interpolate_positions
from solar.objective import project
from solar.weights.base import Base, load
from solar.weights.layouts import fit

GOLDEN = np.load(Path(__file__).parent / "golden" / "logits.npz")
FAMILY_OF_EACH = ("gpt2", "llama-own-head", "llama-3-biases")


def leaves_of(base: Base) -> dict:
    return {k: jnp.asarray(v) for k, v in base.params.items()}


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_equal_those_of_torch(name):
    base = base_of(name)
    expected = GOLDEN[name]
    if base.family != "vit":
        expected = expected * cases.tokens()[1][..., None]
    assert np.abs(expected).max() > 0.5  # an agreement of zeros would mean nothing
    np.testing.assert_allclose(logits(base), expected, rtol=0, atol=1e-5)


def test_a_vit_of_another_image_size_interpolates_its_positions_as_torch():
    small = base_of("vit")
    config = ViTConfig.from_hf({**cases.CASES["vit"], "image_size": cases.OTHER_SIZE})
    resized = Base("golden:vit", config, fit(config, small.params, "golden:vit"))
    found = image_logits(resized, cases.pixels(cases.OTHER_SIZE))
    np.testing.assert_allclose(found, GOLDEN["vit-resized"], rtol=0, atol=1e-5)


def test_mean_pooling_averages_the_patches_after_the_last_norm():
    base = base_of("vit", num_labels=0, pool="mean")
    np.testing.assert_allclose(logits(base), GOLDEN["vit-mean"], rtol=0, atol=1e-5)


def test_a_position_table_that_is_no_square_is_refused():
    with pytest.raises(SolarError, match="15 patches, which is not a square"):
        interpolate_positions(np.zeros((1, 16, 4), np.float32), 4)


@pytest.mark.parametrize("spec", ("tiny:gpt2", "tiny:llama", "tiny:vit"))
def test_nothing_of_a_model_in_float64_is_in_float32(spec, monkeypatch):
    """Which is why frames are alike on every processor: its sums end far below their rounding."""
    shown = []
    whole = jax.jit
    monkeypatch.setattr(jax, "jit", lambda f, **given: shown.append(f) or whole(f, **given))
    base = load(spec)
    batches = moments.own_batches(base, 0, 2)[0] if base.family == "vit" else [
        {"tokens": np.ones((2, 5), np.int32), "mask": np.tri(2, 5, 3, dtype=bool)}
    ]  # fmt: skip
    found, _ = moments.second_moments(base, batches)
    assert all(np.isfinite(moment).all() for moment in found)  # also where padding sees nothing
    with jax.enable_x64(True):
        precise = moments._precise(base)
        leaves = {k: jnp.asarray(precise.params[k]) for k in structure(precise.config).leaves}
        batch = {k: jnp.asarray(v) for k, v in moments._as_taken(base, batches[0], 0).items()}
        program = str(jax.make_jaxpr(shown[-1])(leaves, batch))
    assert "f64[" in program and "f32[" not in program


@pytest.mark.parametrize("name", ("gpt2", "llama-3-biases", "vit"))
def test_float64_gives_what_float32_does(name):
    expected = logits(base_of(name))
    with jax.enable_x64(True):
        found = logits(base_of(name, dtype="float64"))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY_OF_EACH)
def test_left_and_right_padding_give_the_same_logits(name):
    base = base_of(name)
    tokens, mask = cases.tokens()
    left = np.stack([np.roll(row, len(row) - m.sum()) for row, m in zip(tokens, mask, strict=True)])
    left_mask = mask[:, ::-1]
    right = language_logits(base, tokens, mask)[mask]
    shifted = language_logits(base, left, left_mask)[left_mask]
    assert np.abs(right - shifted).max() <= 1e-6 * np.abs(right).max()


@pytest.mark.parametrize("name", FAMILY_OF_EACH)
def test_what_stands_in_the_padding_does_not_matter(name):
    base = base_of(name)
    tokens, mask = cases.tokens()
    other = np.where(mask, tokens, 7).astype(np.int32)
    np.testing.assert_array_equal(
        language_logits(base, tokens, mask)[mask], language_logits(base, other, mask)[mask]
    )


@pytest.mark.parametrize("name", ("llama-tied", "vit"))
def test_bfloat16_stays_near_float32(name):
    full, half = logits(base_of(name)), logits(base_of(name, dtype="bfloat16"))
    assert half.dtype == np.float32
    gap = np.abs(full - half).max() / np.abs(full).max()
    assert 1e-5 < gap < 5e-2  # not the same computation, but the same model


@pytest.mark.parametrize("name", ("llama-tied", "vit"))
def test_remat_gives_the_same_gradients(name):
    def gradients(remat):
        base = base_of(name, remat=remat, num_hidden_layers=1)
        shape = structure(base.config)

        @jax.jit
        @jax.grad
        def of(params):
            model = assemble(shape, params)
            if base.family == "vit":
                return jnp.sum(model(jnp.asarray(cases.pixels(32))) ** 2)
            tokens, mask = map(jnp.asarray, cases.tokens())
            return jnp.mean(project(model(tokens, mask)[0], model.head()) ** 2)

        return of(leaves_of(base))

    plain, again = jax.device_get((gradients(False), gradients(True)))
    largest = max(np.abs(g).max() for g in plain.values())
    assert largest > 1e-2
    for leaf in plain:
        assert np.abs(plain[leaf] - again[leaf]).max() <= 1e-5 * largest, leaf


class TestDropout:
    LAYER = "transformer.h.0.attn.c_attn"

    def logits(self, dropout: float, key: int | None) -> np.ndarray:
        base = base_of("gpt2")
        shape = structure(base.config, {self.LAYER: 2}, dropout)
        hooks = {k: shape.leaves[k].shape for k in shape.leaves if ".lora_" in k}
        drawn = cases.factors({k: s for k, s in hooks.items() if not k.endswith("key")})
        if key is not None:
            drawn[f"{self.LAYER}.lora_key"] = jax.random.key_data(
                jax.random.key(key, impl="threefry2x32")
            )
        model = assemble(
            shape, {**leaves_of(base), **{k: jnp.asarray(v) for k, v in drawn.items()}}
        )
        tokens, mask = map(jnp.asarray, cases.tokens())
        return np.asarray(project(model(tokens, mask)[0], model.head()))

    def test_the_key_decides_what_is_dropped(self):
        first = self.logits(0.5, 1)
        np.testing.assert_array_equal(first, self.logits(0.5, 1))
        assert np.abs(first - self.logits(0.5, 2)).max() > 1e-3

    def test_a_model_that_is_not_trained_has_no_key_and_drops_nothing(self):
        assert not any(
            "key" in k for k in structure(base_of("gpt2").config, {self.LAYER: 2}).leaves
        )
        kept = self.logits(0.0, None)
        assert np.abs(kept - self.logits(0.5, 1)).max() > 1e-3
        # As good as never dropping is the same as not dropping.
        assert np.abs(kept - self.logits(1e-7, 1)).max() < 1e-5

    def test_only_the_low_rank_branch_is_thinned_and_its_mean_is_kept(self):
        layer = Linear(64, 3, bias=False)
        layer.attach(2, 0.25)
        draw = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
        layer.weight[...] = jnp.asarray(np.random.default_rng(1).normal(size=(3, 64)), jnp.float32)
        layer.lora_A[...] = jnp.asarray(draw)
        x = jnp.ones((1, 64))

        def run(key: int) -> np.ndarray:
            layer.lora_key[...] = jax.random.key_data(jax.random.key(key, impl="threefry2x32"))
            return np.asarray(layer(x))

        plain = np.asarray(layer.weight[...]).sum(1)
        np.testing.assert_allclose(run(0)[0], plain, rtol=1e-5, atol=1e-5)  # B is zero
        layer.lora_B[...] = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        many = np.stack([run(key)[0] for key in range(300)]) - plain
        expected = np.array([draw[0].sum(), draw[1].sum(), draw.sum()])
        spread = many.std(0) / 300**0.5
        assert (spread > 0).all()
        assert (np.abs(many.mean(0) - expected) < 4 * spread).all()


class TestGeneration:
    PROMPTS = ([5, 9, 11, 2, 40, 7, 7, 30], [3], [17, 20, 21, 50])

    def plainly(self, base: Base, prompt: list[int], steps: int) -> list[int]:
        """Greedy continuation that runs the whole sequence again for every token."""
        tokens = list(prompt)
        for _ in range(steps):
            ids, mask = np.zeros((1, 16), np.int32), np.arange(16)[None] < len(tokens)
            ids[0, : len(tokens)] = tokens
            last = language_logits(base, ids, mask)[0, len(tokens) - 1]
            tokens.append(int(last.argmax()))
        return tokens[len(prompt) :]

    @pytest.mark.parametrize("name", FAMILY_OF_EACH)
    def test_with_the_cache_equals_without_for_prompts_of_unequal_lengths(self, name):
        base = base_of(name)
        found = generate(base, self.PROMPTS, 6)
        assert found == [self.plainly(base, prompt, 6) for prompt in self.PROMPTS]
        assert len({tuple(row) for row in found}) > 1  # prompts matter

    def test_logits_of_every_cached_step_equal_the_whole_run(self):
        base = base_of("llama-3-biases")
        shape = structure(base.config)
        tokens, mask = cases.tokens()
        whole = language_logits(base, tokens, mask)

        @jax.jit
        def advance(params, tokens, mask, cache):
            model = assemble(shape, params)
            hidden, cache = model(tokens, mask, cache)
            return project(hidden, model.head()), cache

        params = leaves_of(base)
        cache, parts = assemble(shape, params).empty_cache(*tokens.shape), []
        for first in (0, 8, 16):  # some rows are padding from within a part on
            part = slice(first, first + 8)
            logits_, cache = advance(params, tokens[:, part], mask[:, part], cache)
            parts.append(np.asarray(logits_))
        gap = np.abs(np.concatenate(parts, 1) - whole)[mask].max()
        assert gap <= 2e-6 * np.abs(whole).max()

    def test_an_adapter_changes_what_is_written(self):
        base = base_of("gpt2")
        ranks = {f"transformer.h.{i}.attn.c_attn": 2 for i in range(2)}
        shape = structure(base.config, ranks)
        leaves = cases.factors({k: v.shape for k, v in shape.leaves.items() if ".lora_" in k})
        leaves = {k: 3 * v for k, v in leaves.items()}
        adapted = generate(base, self.PROMPTS, 6, leaves=leaves, ranks=ranks)
        assert adapted != generate(base, self.PROMPTS, 6)

    def test_sampling_is_seeded(self):
        base = base_of("gpt2")
        drawn = generate(base, self.PROMPTS, 6, temperature=1.0, seed=3)
        assert drawn == generate(base, self.PROMPTS, 6, temperature=1.0, seed=3)
        assert drawn != generate(base, self.PROMPTS, 6, temperature=1.0, seed=4)
        # Cold sampling is greedy.
        cold = generate(base, self.PROMPTS, 6, temperature=1e-4, seed=5)
        assert cold == generate(base, self.PROMPTS, 6)

    def test_a_sequence_ends_before_the_stop_token(self):
        base = base_of("gpt2")
        whole = generate(base, self.PROMPTS, 6)
        stop = whole[0][3]
        cut = generate(base, self.PROMPTS, 6, stop=stop)
        assert cut[0] == whole[0][: whole[0].index(stop)]
        assert [row for row in cut if stop in row] == []

    def test_nothing_to_continue_or_too_much_is_refused(self):
        base = base_of("gpt2")
        for prompts in ([], [[1], []]):
            with pytest.raises(SolarError, match="none of them empty"):
                generate(base, prompts, 2)
        with pytest.raises(SolarError, match="60 \\+ 5 tokens exceed the model's 64 positions"):
            generate(base, [[1] * 60], 5)
        assert generate(base, [[1, 2]], 0) == [[]]


def test_assembling_refuses_missing_and_extra_names():
    base = base_of("vit")
    shape, leaves = structure(base.config), leaves_of(base)
    with pytest.raises(KeyError, match="unexpected \\['vit.extra.weight'\\]"):
        assemble(shape, {**leaves, "vit.extra.weight": jnp.zeros(1)})
    del leaves["classifier.bias"]
    with pytest.raises(KeyError, match="missing \\['classifier.bias'\\]"):
        assemble(shape, leaves)


def test_random_leaves_fill_every_name_from_the_key(key):
    config = base_of("gpt2").config
    leaves = random_leaves(key, config)
    assert {k: v.shape for k, v in leaves.items()} == {
        k: v.shape for k, v in structure(config).leaves.items()
    }
    again = random_leaves(key, config)
    assert all(np.array_equal(leaves[k], again[k]) for k in leaves)
    assert 0.015 < leaves["transformer.wte.weight"].std() < 0.025
    assert leaves["transformer.h.0.mlp.c_proj.weight"].std() < 0.015  # residual writers are shrunk
    assert (leaves["transformer.ln_f.weight"] == 1).all()


@pytest.mark.parametrize(
    ("config", "raw", "message"),
    [
        (GPT2Config, {"activation_function": "relu"}, "activation_function='relu'"),
        (GPT2Config, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (LlamaConfig, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (LlamaConfig, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        (LlamaConfig, {"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        (ViTConfig, {"hidden_act": "relu"}, "hidden_act='relu'"),
    ],
)
def test_variants_that_are_not_built_are_refused_by_name(config, raw, message):
    kind = {GPT2Config: "gpt2", LlamaConfig: "llama-own-head", ViTConfig: "vit"}[config]
    with pytest.raises(SolarError, match=message):
        config.from_hf({**cases.CASES[kind], **raw})


def test_an_unknown_pooling_is_refused():
    with pytest.raises(SolarError, match="pool='max' is unknown"):
        structure(base_of("vit", pool="cls").config.__class__(pool="max"))
