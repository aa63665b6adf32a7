"""Checkpoints in every form that is read, made here, and the line that each broken one gives."""

import json
import math
import os
import pickle
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from golden import cases
from golden.bases import base_of, image_logits, logits
from safetensors.numpy import load_file, save_file

from solar import api
from solar.adapters import peft_io
from solar.errors import SolarError
from solar.weights.base import Base, fingerprint, load, oriented
from solar.weights.checkpoint import torch_table
from solar.weights.names import rename

GOLDEN = Path(__file__).parent / "golden"


def write_folder(folder: Path, case: str, tensors: dict, **config) -> Path:
    """A Hugging Face directory of a golden case with ``tensors`` in one safetensors file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**cases.CASES[case], **config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def assert_same_params(found: Base, params: dict) -> None:
    assert found.params.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(found.params[name], value, err_msg=name)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    return {name: stored.read() for name, stored in torch_table(path).items()}


def refused(folder: Path | str, message: str, **overrides) -> str:
    with pytest.raises(SolarError, match=message) as info:
        load(str(folder), **overrides)
    assert "\n" not in str(info.value)
    return str(info.value)


class TestDirectories:
    @pytest.mark.parametrize("case", ("gpt2", "llama-3-biases", "vit"))
    def test_one_file(self, case, tmp_path):
        base = base_of(case)
        found = load(str(write_folder(tmp_path, case, dict(base.params))))
        assert found.config == base.config
        assert_same_params(found, base.params)
        assert found.tokenizer is None

    def shards(self, folder: Path, base: Base) -> dict[str, str]:
        write_folder(folder, "llama-tied", {})
        (folder / "model.safetensors").unlink()
        names = sorted(base.params)
        place = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
        for file in sorted(set(place.values())):
            save_file({n: base.params[n] for n in names if place[n] == file}, folder / file)
        index = {"metadata": {}, "weight_map": place}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return place

    def test_shards(self, tmp_path):
        base = base_of("llama-tied")
        self.shards(tmp_path, base)
        assert_same_params(load(str(tmp_path)), base.params)

    def test_a_shard_that_is_not_there(self, tmp_path):
        self.shards(tmp_path, base_of("llama-tied"))
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        refused(tmp_path, "lacks the shards .'model-00002-of-00002.safetensors'")

    def test_half_precision_files(self, tmp_path):
        base = base_of("llama-tied")
        half = {k: v.astype(np.float16) for k, v in base.params.items()}
        found = load(str(write_folder(tmp_path / "float16", "llama-tied", half)))
        assert_same_params(found, {k: v.astype(np.float32) for k, v in half.items()})
        brain = {k: v.astype(ml_dtypes.bfloat16) for k, v in base.params.items()}
        found = load(str(write_folder(tmp_path / "bfloat16", "llama-tied", brain)))
        assert {v.dtype.name for v in found.params.values()} == {"bfloat16"}
        assert_same_params(found, brain)
        name = "model.layers.0.self_attn.q_proj"
        assert oriented(found, name).dtype == np.float32
        full, rounded = logits(base), logits(found)  # float32 compute on rounded weights
        assert 0 < np.abs(full - rounded).max() < 0.05 * np.abs(full).max()

    def test_gpt2_as_the_hub_has_it(self, tmp_path):
        """Without ``transformer.``, with the causal masks that old files store as buffers."""
        base = base_of("gpt2")
        held = {k.removeprefix("transformer."): v for k, v in base.params.items()}
        for layer in range(2):
            held[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))
            held[f"h.{layer}.attn.masked_bias"] = np.float32(-1e4).reshape(1)
        held["lm_head.weight"] = held["wte.weight"]  # tied, stored all the same
        assert_same_params(load(str(write_folder(tmp_path, "gpt2", held))), base.params)

    def test_a_vit_as_transformers_saves_it(self, tmp_path):
        """Saved names are those of before version 5 (recorded by make_golden.py)."""
        keys = json.loads((GOLDEN / "vit-keys.json").read_text())
        base = base_of("vit")
        assert {k: list(v.shape) for k, v in base.params.items()} == keys["memory"]
        assert any("encoder.layer.1.attention.attention.query" in k for k in keys["stored"])
        held = {old: base.params[rename("vit", old)] for old in keys["stored"]}
        held["vit.pooler.dense.weight"] = np.zeros((32, 32), np.float32)
        assert_same_params(load(str(write_folder(tmp_path, "vit", held))), base.params)

    def test_a_backbone_without_a_classifier_leaves_the_head_to_the_adapter(self, tmp_path):
        base = base_of("vit")
        bare = {
            k.removeprefix("vit."): v for k, v in base.params.items() if k.startswith("vit.")
        }  # as ViTModel saves them
        found = load(str(write_folder(tmp_path, "vit", bare)), num_labels=7)
        assert found.config.num_labels == 7
        assert_same_params(found, {k: v for k, v in base.params.items() if k.startswith("vit.")})
        # A classifier of another number of classes is left out likewise.
        found = load(str(write_folder(tmp_path, "vit", dict(base.params))), num_labels=7)
        assert "classifier.weight" not in found.params

    def test_image_statistics_are_read_or_usual(self, tmp_path):
        folder = write_folder(tmp_path, "vit", dict(base_of("vit").params))
        assert load(str(folder)).image_mean == (0.5, 0.5, 0.5)
        facts = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
        (folder / "preprocessor_config.json").write_text(json.dumps(facts))
        assert load(str(folder)).image_mean == (0.1, 0.2, 0.3)
        assert load(str(folder)).image_std == (0.4, 0.5, 0.6)

    def test_gpt2_projections_are_turned_for_the_codec_and_others_are_not(self):
        gpt2, llama = base_of("gpt2"), base_of("llama-tied")
        name = "transformer.h.0.mlp.c_fc"
        assert oriented(gpt2, name).shape == (128, 32)
        np.testing.assert_array_equal(oriented(gpt2, name), gpt2.params[name + ".weight"].T)
        name = "model.layers.0.self_attn.k_proj"
        np.testing.assert_array_equal(oriented(llama, name), llama.params[name + ".weight"])

    def test_a_fingerprint_is_of_names_types_and_values(self):
        base = base_of("gpt2")
        first = fingerprint(base)
        assert first == fingerprint(base_of("gpt2"))
        assert first != fingerprint(base_of("gpt2", seed=1))
        base.params["transformer.wte.weight"] = base.params["transformer.wte.weight"].astype("f2")
        assert first != fingerprint(base)


class TestDinov2:
    """Names and LayerScale of a DINOv2 checkpoint, against a forward pass with the scale in it."""

    CONFIG = {
        **{
            k: v
            for k, v in cases.CASES["vit"].items()
            if k not in ("id2label", "intermediate_size")
        },
        "model_type": "dinov2",
        "mlp_ratio": 2,
    }

    def checkpoint(self) -> dict[str, np.ndarray]:
        tower = {
            "embeddings.cls_token": (1, 1, 32),
            "embeddings.position_embeddings": (1, 17, 32),
            "embeddings.patch_embeddings.projection.weight": (32, 3, 8, 8),
            "embeddings.patch_embeddings.projection.bias": (32,),
            "layernorm.weight": (32,),
            "layernorm.bias": (32,),
        }
        for layer in range(2):
            at = f"encoder.layer.{layer}."
            for part in ("query", "key", "value"):
                tower |= {f"{at}attention.attention.{part}.weight": (32, 32)}
                tower |= {f"{at}attention.attention.{part}.bias": (32,)}
            for part, shape in (
                ("attention.output.dense", (32, 32)), ("mlp.fc1", (64, 32)), ("mlp.fc2", (32, 64)),
            ):  # fmt: skip
                tower |= {f"{at}{part}.weight": shape, f"{at}{part}.bias": shape[:1]}
            for norm in ("norm1", "norm2"):
                tower |= {f"{at}{norm}.weight": (32,), f"{at}{norm}.bias": (32,)}
            tower |= {f"{at}layer_scale{i}.lambda1": (32,) for i in (1, 2)}
        return cases.weights(tower)

    def forward(self, held: dict, pixels: np.ndarray) -> np.ndarray:
        """The class token's features, in float64, with LayerScale as its own step."""
        held = {k: v.astype(np.float64) for k, v in held.items()}

        def linear(x, name):
            return x @ held[f"{name}.weight"].T + held[f"{name}.bias"]

        def norm(x, name):
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
            return x * held[f"{name}.weight"] + held[f"{name}.bias"]

        patches = pixels.reshape(-1, 3, 4, 8, 4, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 16, 192)
        kernel = held["embeddings.patch_embeddings.projection.weight"].reshape(32, 192)
        x = patches @ kernel.T + held["embeddings.patch_embeddings.projection.bias"]
        first = np.broadcast_to(held["embeddings.cls_token"], (len(x), 1, 32))
        x = np.concatenate([first, x], 1) + held["embeddings.position_embeddings"]
        erf = np.vectorize(math.erf)
        for layer in range(2):
            at = f"encoder.layer.{layer}."
            h = norm(x, at + "norm1")
            q, k, v = (
                linear(h, f"{at}attention.attention.{part}").reshape(-1, 17, 4, 8).swapaxes(1, 2)
                for part in ("query", "key", "value")
            )
            scores = np.exp(q @ k.swapaxes(2, 3) / 8**0.5)
            h = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(-1, 17, 32)
            h = linear(h, at + "attention.output.dense")
            x = x + held[at + "layer_scale1.lambda1"] * h
            h = linear(norm(x, at + "norm2"), at + "mlp.fc1")
            h = linear(h * 0.5 * (1 + erf(h / 2**0.5)), at + "mlp.fc2")
            x = x + held[at + "layer_scale2.lambda1"] * h
        return norm(x, "layernorm")[:, 0]

    def saved(self, folder: Path) -> dict[str, np.ndarray]:
        """The tensors of a checkpoint with scales that are far from one, which lies in `folder`."""
        held = self.checkpoint()
        for name in held:
            if "lambda1" in name:
                held[name] = 0.3 + np.abs(held[name])
        folder.mkdir(exist_ok=True)
        folder.joinpath("config.json").write_text(json.dumps(self.CONFIG))
        save_file({**held, "embeddings.mask_token": np.zeros((1, 32), "f4")},
                  folder / "model.safetensors")  # fmt: skip
        return held

    def adapter(self, folder: Path, prefix: str) -> dict[str, np.ndarray]:
        """A LoRA of every projection as PEFT writes it for Dinov2Model; the update of each, by the
        names of the checkpoint."""
        tensors, updates = {}, {}
        for layer in range(2):
            for part, old in (
                *((f"attention.{part[0]}_proj", f"attention.attention.{part}")
                  for part in ("query", "key", "value")),
                ("attention.o_proj", "attention.output.dense"),
                ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"),
            ):  # fmt: skip
                outputs, inputs = (64 if part == "mlp.fc1" else 32), (64 if "fc2" in part else 32)
                name = f"base_model.model.{prefix}encoder.layer.{layer}.{part}"
                own = {f"{name}.lora_A.weight": (2, inputs), f"{name}.lora_B.weight": (outputs, 2)}
                tensors |= (own := cases.factors(own))
                a, b = own.values()
                updates[f"encoder.layer.{layer}.{old}.weight"] = 2.0 * b @ a
        folder.mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": "all-linear"}
        folder.joinpath("adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors")
        return updates

    @pytest.mark.parametrize("prefix", ("", "dinov2."))
    def test_an_update_is_scaled_as_its_weight_is(self, prefix, tmp_path):
        held, source = self.saved(tmp_path / "base"), str(tmp_path / "base")
        updates = self.adapter(tmp_path / "adapter", prefix)
        base, pixels = load(source), cases.pixels(32)
        found = image_logits(base, pixels, peft_io.read(tmp_path / "adapter", base))
        changed = {k: v + updates.get(k, 0) for k, v in held.items()}
        expected = self.forward(changed, pixels)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert np.abs(self.forward(held, pixels) - expected).max() > 0.05
        # What is coded is what the base has; what is written is what Dinov2Model has.
        file, back = tmp_path / "own.solar", tmp_path / "back"
        api.compress(tmp_path / "adapter", source, file, preset="weights", budget_bytes=6000)
        api.expand(file, source, back)
        again = image_logits(base, pixels, peft_io.read(back, base))
        assert np.abs(again - expected).max() < 0.05
        sent = load_file(back / "adapter_model.safetensors")
        for layer in range(2):
            for part in ("attention.o_proj", "mlp.fc2", "mlp.fc1"):
                name = f"base_model.model.encoder.layer.{layer}.{part}"
                own = sent[f"{name}.lora_B.weight"] @ sent[f"{name}.lora_A.weight"]
                old = part.replace("attention.o_proj", "attention.output.dense")
                wanted = updates[f"encoder.layer.{layer}.{old}.weight"]
                assert np.linalg.norm(own - wanted) < 0.05 * np.linalg.norm(wanted)

    def test_layer_scale_is_folded_exactly(self, tmp_path):
        held = self.saved(tmp_path)
        base = load(str(tmp_path))
        assert base.config.intermediate_size == 64
        assert base.image_mean == (0.485, 0.456, 0.406)
        assert not any("scale" in name for name in base.params)
        pixels = cases.pixels(32)
        expected = self.forward(held, pixels)
        np.testing.assert_allclose(image_logits(base, pixels), expected, rtol=0, atol=1e-5)
        unscaled = {k: np.ones_like(v) if "lambda1" in k else v for k, v in held.items()}
        assert np.abs(self.forward(unscaled, pixels) - expected).max() > 0.05


class TestTorchFiles:
    def test_the_tensors_that_torch_saved(self):
        found = read_torch(GOLDEN / "torch.bin")
        grid = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(found["single"], grid / 7)
        np.testing.assert_array_equal(found["half"], (grid / 7).astype("f2").astype("f4"))
        np.testing.assert_array_equal(found["brain"], (grid / 7).astype(ml_dtypes.bfloat16))
        assert found["half"].dtype == np.float32 and found["brain"].dtype == ml_dtypes.bfloat16
        assert found["whole"].tolist() == [0, 1, 2, 3]
        assert found["flags"].tolist() == [True, False, True]
        assert found["second.row"].tolist() == [3.0, 4.0, 5.0]  # starts inside its storage

    def test_a_tensor_that_is_not_contiguous_is_refused(self):
        with pytest.raises(SolarError, match="holds a strided tensor; save it again as safetens"):
            read_torch(GOLDEN / "torch-strided.bin")

    def archive(self, path: Path, content: bytes) -> Path:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", content)
        return path

    def test_a_pickle_that_calls_anything_else_is_refused_and_not_run(self, tmp_path):
        trace = tmp_path / "ran"

        class Attack:
            def __reduce__(self):
                return os.system, (f"touch {trace}",)

        path = self.archive(tmp_path / "pytorch_model.bin", pickle.dumps({"x": Attack()}))
        with pytest.raises(SolarError, match="refers to (posix|os|nt).system; save it again"):
            read_torch(path)
        for name in ("builtins.eval", "torch.load", "torch._utils._rebuild_parameter"):
            module, _, last = name.rpartition(".")
            called = f"c{module}\n{last}\n(S'1'\ntR.".encode()
            with pytest.raises(SolarError, match=f"refers to {name}"):
                read_torch(self.archive(tmp_path / "other.bin", called))
        assert not trace.exists()

    def test_a_file_that_is_cut_or_no_archive(self, tmp_path):
        whole = (GOLDEN / "torch.bin").read_bytes()
        for size in (0, 10, len(whole) // 2, len(whole) - 1):
            (tmp_path / "cut.bin").write_bytes(whole[:size])
            with pytest.raises(SolarError, match="cut.bin is not a readable torch file"):
                read_torch(tmp_path / "cut.bin")

    def test_a_folder_with_a_torch_file_is_read(self, tmp_path):
        """Only to the point of the names: what torch.bin holds is no model."""
        (tmp_path / "config.json").write_text(json.dumps(cases.CASES["gpt2"]))
        (tmp_path / "pytorch_model.bin").write_bytes((GOLDEN / "torch.bin").read_bytes())
        message = refused(tmp_path, "does not fit a gpt2")
        assert "unexpected single" in message or "more" in message


class TestRefusals:
    def test_all_problems_are_reported_together(self, tmp_path):
        held = dict(base_of("gpt2").params)
        del held["transformer.ln_f.bias"], held["transformer.h.1.mlp.c_fc.bias"]
        held["transformer.h.9.ln_1.weight"] = np.zeros(3, np.float32)
        held["transformer.wpe.weight"] = held["transformer.wpe.weight"][:5]
        message = refused(write_folder(tmp_path, "gpt2", held), "4 tensors")
        for part in (
            "missing transformer.ln_f.bias",
            "missing transformer.h.1.mlp.c_fc.bias",
            "unexpected transformer.h.9.ln_1.weight",
            "transformer.wpe.weight is (5, 32), expected (64, 32)",
            "Check that config.json belongs to these weights",
        ):
            assert part in message
        many = refused(write_folder(tmp_path, "gpt2", {"nothing": np.zeros(1, "f4")}), "29 tensors")
        assert many.count("missing") == 12 and "and 17 more" in many

    def test_a_truncated_safetensors_file(self, tmp_path):
        folder = write_folder(tmp_path, "gpt2", dict(base_of("gpt2").params))
        whole = (folder / "model.safetensors").read_bytes()
        for size in (0, 4, 200, len(whole) - 1):
            (folder / "model.safetensors").write_bytes(whole[:size])
            refused(folder, "model.safetensors cannot be read .*; fetch it again")

    def test_configs_that_are_none(self, tmp_path):
        folder = write_folder(tmp_path, "gpt2", {})
        for content in (b"{", b"[1]", b"\xff\xfe\x00"):
            (folder / "config.json").write_bytes(content)
            refused(folder, "config.json (is not valid JSON|holds no JSON object)")
        (folder / "config.json").unlink()
        refused(folder, "has no config.json; give the folder of a Hugging Face model")

    @pytest.mark.parametrize(
        ("kind", "lacking", "more"),
        (
            ("llama", "num_attention_heads", {}),
            ("llama", None, {"rope_scaling": {"rope_type": "llama3", "factor": 2}}),
            ("vit", None, {"image_size": [28, 28]}),
        ),
    )
    def test_a_config_that_lacks_a_size(self, kind, lacking, more, tmp_path):
        folder = write_folder(tmp_path, {"llama": "llama-own-head"}.get(kind, kind), {}, **more)
        config = json.loads((folder / "config.json").read_text())
        config.pop(lacking, None)
        (folder / "config.json").write_text(json.dumps(config))
        refused(folder, f"the config of .* is no {kind}'s|image_size=.28, 28. is not supported")

    def test_attention_that_is_not_scaled(self, tmp_path):
        refused(write_folder(tmp_path, "gpt2", {}, scale_attn_weights=False), "is not supported")

    @pytest.mark.parametrize(
        ("spec", "given", "says"),
        (
            ("tiny:gpt2", {"dtype": "bf16"}, "dtype 'bf16' is unknown; use float32"),
            ("tiny:vit", {"image_size": 30}, "image_size 30 is no multiple of the patches' "),
        ),
    )
    def test_overrides_that_cannot_be(self, spec, given, says):
        with pytest.raises(SolarError, match=says):
            load(spec, **given)

    def test_an_image_model_of_another_size_has_positions_for_it(self):
        base = load("tiny:vit", image_size=2 * load("tiny:vit").config.image_size)
        table = base.params["vit.embeddings.position_embeddings"]
        assert table.shape[1] == 1 + base.config.grid**2

    def test_a_hub_that_cannot_be_asked(self, monkeypatch):
        import huggingface_hub

        class ProxyError(Exception):
            """httpx has one that is none of the hub's own errors."""

        asked = {}

        def fetch(name, **given):
            asked.update(given)
            raise ProxyError("403 Forbidden")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        refused(Path("org/name"), r"could not be fetched from the hub .403 Forbidden.")
        assert any(fnmatch("pytorch_model-00001-of-2.bin", p) for p in asked["allow_patterns"])

    def test_a_broken_index_of_shards(self, tmp_path):
        folder = write_folder(tmp_path, "gpt2", {})
        (folder / "model.safetensors.index.json").write_text("not json")
        refused(folder, "index.json is not valid JSON")

    def test_another_kind_of_model(self, tmp_path):
        folder = write_folder(tmp_path, "gpt2", {}, model_type="mamba")
        refused(folder, "is a 'mamba' model; supported are dinov2, gpt2, llama, vit")

    def test_a_folder_without_weights(self, tmp_path):
        folder = write_folder(tmp_path, "gpt2", {})
        (folder / "model.safetensors").unlink()
        refused(folder, "has no model.safetensors .nor shards, nor pytorch_model.bin.")

    def test_places_that_are_not_there(self, tmp_path):
        refused(tmp_path / "nowhere", "nowhere does not exist; give a model folder, a GGUF file")
        refused("smollm", "smollm does not exist")
        (tmp_path / "model.txt").write_text("hello")
        refused(tmp_path / "model.txt", "neither a model folder nor a GGUF or ONNX file")
        refused(
            "nobody/nothing", "nobody/nothing is not here and could not be fetched from the hub"
        )

    def test_an_unknown_override(self, tmp_path):
        folder = write_folder(tmp_path, "gpt2", dict(base_of("gpt2").params))
        refused(folder, "gpt2 has no option 'image_size'; remove it", image_size=32)
        assert load(str(folder), dtype="bfloat16", image_size=None).config.dtype == "bfloat16"

    def test_a_broken_onnx_file(self, tmp_path):
        (tmp_path / "model.onnx").write_bytes(b"\x08\x07\x12" * 50)
        refused(tmp_path / "model.onnx", "model.onnx (is not a whole ONNX file|holds no DINOv2)")
