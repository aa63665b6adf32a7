"""Adapter directories written by hand: refusals, the fit to a base, and writing."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from golden import cases
from golden.bases import base_of
from safetensors.numpy import save_file

from solar.adapters import directory, peft_io
from solar.adapters.adapter import Adapter
from solar.adapters.directory import PREFIX, read, read_for
from solar.errors import SolarError
from solar.models.structure import structure

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 6}  # the config of `lora`
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
SHAPES = {  # of the golden LLaMA with a head of its own
    name: (outputs, inputs)
    for name, (outputs, inputs, _) in structure(base_of("llama-own-head").config).linears.items()
}


def write(folder: Path, tensors: dict, prefix: str = PREFIX, **config) -> Path:
    """A directory as PEFT writes it; ``config`` without a peft_type leaves the config out."""
    folder.mkdir(exist_ok=True)
    if "peft_type" in config:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({prefix + k: v for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def draw(*shape: int, name: str = "", seed: int = 1) -> np.ndarray:
    return cases.factors({f"{name}{shape}": shape}, seed)[f"{name}{shape}"]


def lora(layer: str, rank: int, inputs: int = 32, outputs: int = 48, key: str = "weight") -> dict:
    return {
        f"{layer}.lora_A.{key}": draw(rank, inputs, name=layer),
        f"{layer}.lora_B.{key}": draw(outputs, rank, name=layer),
    }


def update(adapter: Adapter, layer: str) -> np.ndarray:
    b, a, scale = adapter.pairs[layer]
    assert b.dtype == a.dtype == np.float32
    return scale * b.astype(np.float64) @ a.astype(np.float64)


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    expected = expected.astype(np.float64)
    assert np.abs(expected).max() > 0
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(SolarError, match=message) as info:
        read(folder)
    assert "\n" not in str(info.value)


class TestRefusals:
    CONFIG = LORA

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            (
                {f"{Q}.lora_magnitude_vector": draw(48)},
                "lora_magnitude_vector .DoRA's magnitude vectors., which is not supported",
            ),
            ({"model.embed_tokens.lora_embedding_A": draw(4, 61)}, "an adapted embedding"),
            (
                {"conv.lora_A.weight": draw(2, 3, 3, 3), "conv.lora_B.weight": draw(8, 2, 1, 1)},
                r"conv.lora_A has shape \(2, 3, 3, 3\) .an adapted convolution.; only two-dimens",
            ),
            ({f"{Q}.lora_B.bias": draw(48)}, "1 keys that are neither factors of LoRA"),
            ({f"{V}.lora_A.weight": draw(4, 32)}, "only lora_A for .*v_proj and lacks lora_B"),
            (
                {f"{V}.lora_A.weight": draw(4, 32), f"{V}.lora_B.weight": draw(24, 3)},
                r"v_proj: lora_A \(4, 32\) and lora_B \(24, 3\) do not fit each other",
            ),
            (
                {f"{V}.lora_A.weight": draw(4), f"{V}.lora_B.weight": np.ones((), np.float32)},
                r"v_proj: lora_A \(4,\) and lora_B \(\) do not fit each other",
            ),
        ],
    )
    def test_by_name(self, tensors, message, tmp_path):
        if "conv.lora_A.weight" in tensors:
            tensors = {
                "conv.lora_A.weight": draw(2, 3, 3, 3),
                "conv.lora_B.weight": draw(8, 2, 1, 1),
            }
        write(tmp_path, {**lora(Q, 4), **tensors}, **self.CONFIG)
        refused(tmp_path, message)

    @pytest.mark.parametrize("bad", (np.nan, np.inf, 1e300))
    def test_values_that_are_not_finite(self, bad, tmp_path):
        tensors = {k: v.astype(np.float64) for k, v in lora(Q, 4).items()}
        tensors[f"{Q}.lora_A.weight"][1, 2] = bad
        write(tmp_path, tensors, **self.CONFIG)
        refused(tmp_path, "q_proj.lora_A holds non-finite values; train the adapter again")

    @pytest.mark.parametrize(
        ("kind", "called"),
        (("int8", "I8"), ("uint8", "U8"), ("int32", "I32"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")),
    )
    def test_quantised_tensors(self, kind, called, tmp_path):
        tensors = lora(Q, 4)
        tensors[f"{Q}.lora_B.weight"] = (8 * tensors[f"{Q}.lora_B.weight"]).astype(kind)
        write(tmp_path, tensors, **self.CONFIG)
        refused(tmp_path, f"lora_B.weight as {called}; quantised adapters are not read, save it in")

    @pytest.mark.parametrize("method", ("LOKR", "IA3", "OFT", "SHIRA", None, ["LORA"]))
    def test_other_methods(self, method, tmp_path):
        write(tmp_path, lora(Q, 4), **{**self.CONFIG, "peft_type": method})
        refused(tmp_path, "only LORA, ADALORA, VERA, LOHA are read")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"use_dora": True}, "uses use_dora"),
            ({"alpha_pattern": {"(?i)q": 2}}, "is no regular expression"),
            ({"alpha_pattern": {"(": 2}}, r"'\(' in alpha_pattern is no regular expression"),
            ({"alpha_pattern": {"q": "2"}}, "alpha_pattern is not what PEFT writes"),
            ({"alpha_pattern": [1]}, "alpha_pattern is not what PEFT writes"),
            ({"alpha_pattern": {"q": float("nan")}}, "alpha_pattern is not what PEFT writes"),
            ({"rank_pattern": {"q": [True]}}, "rank_pattern is not what PEFT writes"),
            (
                {"peft_type": "ADALORA", "init_r": 4, "rank_pattern": {"q": 3}},
                "rank_pattern is not what PEFT writes",
            ),
            ({"modules_to_save": "lm_head"}, "modules_to_save is not what PEFT writes"),
            ({"target_modules": ["q_proj", 3]}, "target_modules is not what PEFT writes"),
            ({"lora_alpha": None}, "does not give lora_alpha"),
            ({"lora_alpha": float("inf")}, "does not give lora_alpha"),
            ({"lora_alpha": 10**400}, "does not give lora_alpha"),
        ],
    )
    def test_configs(self, changes, message, tmp_path):
        write(tmp_path, lora(Q, 4), **{**self.CONFIG, **changes})
        refused(tmp_path, message)

    def test_a_file_of_the_old_kind(self, tmp_path):
        write(tmp_path, lora(Q, 4), **self.CONFIG)
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
        refused(tmp_path, "adapter_model.bin is not read: save it again with safetensors")


class TestFit:
    @pytest.mark.parametrize(
        ("family", "old", "new"),
        (
            ("vit", "vit.encoder.layer.1.attention.attention.key", "vit.layers.1.attention.k_proj"),
            ("vit", "dinov2.encoder.layer.1.mlp.fc2", "vit.layers.1.mlp.fc2"),
            ("gpt2", "h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
        ),
    )  # fmt: skip
    def test_old_names_become_those_of_the_base(self, family, old, new, tmp_path):
        write(tmp_path, lora(old, 2), peft_type="LORA", r=2, lora_alpha=2)
        assert list(read_for(tmp_path, family, {new: (48, 32)}).pairs) == [new]

    def test_one_layer_under_both_of_its_names(self, tmp_path):
        names = ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn")
        tensors = {k: v for n in names for k, v in lora(n, 2, outputs=96).items()}
        write(tmp_path, tensors, peft_type="LORA", r=2, lora_alpha=2)
        shapes = {"transformer.h.0.attn.c_attn": (96, 32)}
        with pytest.raises(SolarError, match="names transformer.h.0.attn.c_attn twice"):
            read_for(tmp_path, "gpt2", shapes)

    def test_what_the_config_promises_is_compared_with_the_base(self, tmp_path):
        config = {**LORA, "target_modules": ["q_proj"]}
        write(tmp_path, lora(Q, 4), **config)
        with pytest.raises(
            SolarError, match="lacks the factors of model.layers.1.self_attn.q_proj"
        ):
            read_for(tmp_path, "llama", SHAPES)


class TestWriting:
    def test_layers_of_rank_zero_are_left_out(self, tmp_path):
        empty = (np.zeros((24, 0), np.float32), np.zeros((0, 32), np.float32), 1.0)
        given = Adapter({Q: (draw(48, 2), draw(2, 32), 0.5), V: empty}, {})
        peft_io.write(tmp_path, given, "llama", "somewhere")
        found = read(tmp_path)
        assert list(found.pairs) == [Q]
        assert_near(update(found, Q), 0.5 * draw(48, 2) @ draw(2, 32))
        document = json.loads((tmp_path / "adapter_config.json").read_text())
        assert document["target_modules"] == [Q]
        assert document["base_model_name_or_path"] == "somewhere"

    def test_an_update_that_is_empty_everywhere_is_zeros_of_rank_one(self, tmp_path):
        empty = (np.zeros((48, 0), np.float32), np.zeros((0, 32), np.float32), 1.0)
        peft_io.write(tmp_path, Adapter({Q: empty}, {}), "llama", "somewhere")
        b, a, _ = read(tmp_path).pairs[Q]
        assert (b.shape, a.shape) == ((48, 1), (1, 32)) and not b.any() and not a.any()

    def test_an_update_without_a_layer_cannot_be_written(self, tmp_path):
        with pytest.raises(SolarError, match="names no layer, and PEFT loads no adapter without"):
            peft_io.write(tmp_path / "out", Adapter({}, {}), "llama", "somewhere")
        assert not (tmp_path / "out").exists()


def test_values_stay_in_their_file_until_a_layer_is_read(tmp_path):
    folder = write(tmp_path, lora(Q, 4), **LORA)
    found = directory.open_directory(folder)
    assert found.layers[Q].parts["lora_A"].shape == (4, 32)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(SolarError, match="adapter_model.safetensors cannot be read"):
        directory.pair(found, Q)
