"""A base's matrices read one at a time are the loaded model's, bit by bit, in every format."""

import json
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import test_gguf
import test_weights
from golden import cases
from golden.bases import base_of
from safetensors.numpy import save_file
from test_weights import write_folder

from solar.adapters import targets
from solar.errors import SolarError
from solar.models.structure import structure
from solar.weights.base import load, oriented
from solar.weights.matrices import Matrices, open_matrices
from solar.weights.names import rename
from solar.weights.onnx import contents

GOLDEN = Path(__file__).parent / "golden"


def assert_equals_the_model(spec: str | Path) -> Matrices:
    """Every projection that the loaded base has, and nothing else."""
    base, found = load(str(spec)), open_matrices(str(spec))
    linears = structure(base.config).linears
    expected = sorted(name for name in linears if name + ".weight" in base.params)
    assert list(found) == expected and len(expected) > 6
    assert (found.source, found.family) == (str(spec), base.family)
    for name in expected:
        weight = oriented(base, name)
        assert found.shapes[name] == weight.shape == linears[name][:2]
        assert found[name].dtype == weight.dtype == np.float32
        assert found[name].tobytes() == weight.tobytes(), name
    return found


def refused(spec: str | Path, message: str) -> None:
    with pytest.raises(SolarError, match=message) as info:
        open_matrices(str(spec))
    assert "\n" not in str(info.value)


class TestDirectories:
    @pytest.mark.parametrize("case", cases.CASES)
    def test_one_file(self, case, tmp_path):
        base = base_of(case)
        found = assert_equals_the_model(write_folder(tmp_path, case, dict(base.params)))
        assert ("lm_head" in found) == (case in ("llama-own-head", "llama-3-biases"))
        assert ("classifier" in found) == (base.family == "vit")

    def test_gpt2_as_the_hub_has_it(self, tmp_path):
        held = {k.removeprefix("transformer."): v for k, v in base_of("gpt2").params.items()}
        for layer in range(2):
            held[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))
        held["lm_head.weight"] = held["wte.weight"]  # tied, stored all the same
        found = assert_equals_the_model(write_folder(tmp_path, "gpt2", held))
        assert found.shapes["transformer.h.1.mlp.c_fc"] == (128, 32)  # turned: it lies as (32, 128)

    def test_a_vit_as_transformers_saved_it(self, tmp_path):
        keys = json.loads((GOLDEN / "vit-keys.json").read_text())["stored"]
        held = {old: base_of("vit").params[rename("vit", old)] for old in keys}
        assert any("encoder.layer.1.attention.attention.query" in key for key in held)
        assert_equals_the_model(write_folder(tmp_path, "vit", held))

    @pytest.mark.parametrize("kind", (np.float16, ml_dtypes.bfloat16))
    @pytest.mark.parametrize("case", ("gpt2", "llama-tied", "vit"))
    def test_half_precision(self, case, kind, tmp_path):
        held = {k: v.astype(kind) for k, v in base_of(case).params.items()}
        found = assert_equals_the_model(write_folder(tmp_path, case, held))
        name = next(iter(found))
        assert not np.array_equal(found[name], oriented(base_of(case), name))  # it was rounded

    def test_shards(self, tmp_path):
        test_weights.TestDirectories().shards(tmp_path, base_of("llama-tied"))
        assert_equals_the_model(tmp_path)

    @pytest.mark.parametrize("kind", (np.float32, ml_dtypes.bfloat16))
    def test_layer_scale_is_folded_as_it_is_for_the_model(self, kind, tmp_path):
        dinov2 = test_weights.TestDinov2()
        held = {k: v.astype(kind) for k, v in dinov2.checkpoint().items()}
        (tmp_path / "config.json").write_text(json.dumps(dinov2.CONFIG))
        save_file(held, tmp_path / "model.safetensors")
        found = assert_equals_the_model(tmp_path)
        plain = held["encoder.layer.0.mlp.fc2.weight"].astype(np.float32)
        assert np.abs(found["vit.layers.0.mlp.fc2"] - plain).max() > 0.01
        scaled = held["encoder.layer.0.layer_scale2.lambda1"].astype(np.float32)[:, None] * plain
        np.testing.assert_allclose(found["vit.layers.0.mlp.fc2"], scaled, rtol=1e-2)

    def test_a_torch_file(self, tmp_path, monkeypatch):
        base = base_of("llama-own-head")
        write_folder(tmp_path, "llama-own-head", {})
        (tmp_path / "model.safetensors").unlink()
        write_torch(tmp_path / "pytorch_model.bin", base.params, monkeypatch)
        found = assert_equals_the_model(tmp_path)
        name = "model.layers.1.mlp.up_proj"
        np.testing.assert_array_equal(found[name], base.params[name + ".weight"])

    def test_a_weight_is_read_when_it_is_asked_for_and_not_kept(self, tmp_path):
        params = dict(base_of("llama-tied").params)
        found = open_matrices(str(write_folder(tmp_path, "llama-tied", params)))
        name = "model.layers.1.mlp.down_proj"
        first = found[name]
        params[name + ".weight"] = params[name + ".weight"] + 1
        write_folder(tmp_path, "llama-tied", params)
        np.testing.assert_allclose(found[name], first + 1, rtol=1e-6)
        (tmp_path / "model.safetensors").unlink()
        assert found.shapes[name] == (32, 48)
        with pytest.raises(SolarError, match="model.safetensors cannot be read"):
            found[name]
        with pytest.raises(KeyError):
            found["model.embed_tokens"]

    def test_the_usual_names_are_those_of_the_family(self, tmp_path):
        found = open_matrices(
            str(write_folder(tmp_path, "llama-tied", dict(base_of("llama-tied").params)))
        )
        assert targets.usual_names(found.family, found) == tuple(
            f"model.layers.{i}.self_attn.{kind}_proj" for i in (0, 1) for kind in "qv"
        )


class Storage:
    """The bytes of one tensor of a torch file."""

    def __init__(self, key: str, count: int):
        self.key, self.count = key, count


def write_torch(path: Path, params: dict, monkeypatch) -> None:
    """A ``.bin`` as torch.save lays it out, written without torch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_):
        raise AssertionError("only its name is written")

    class FloatStorage:
        pass

    _rebuild_tensor_v2.__module__, FloatStorage.__module__ = "torch._utils", "torch"
    _rebuild_tensor_v2.__qualname__, FloatStorage.__qualname__ = (
        "_rebuild_tensor_v2",
        "FloatStorage",
    )
    utils._rebuild_tensor_v2, torch.FloatStorage, torch._utils = (
        _rebuild_tensor_v2, FloatStorage, utils,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    kept = {}

    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return "storage", FloatStorage, value.key, "cpu", value.count
            return None

        def reducer_override(self, value):
            if not isinstance(value, np.ndarray):
                return NotImplemented
            key = str(len(kept))
            kept[key] = value.astype("<f4").tobytes()
            strides = tuple(step // 4 for step in np.empty(value.shape, np.float32).strides)
            storage = Storage(key, value.size)
            return _rebuild_tensor_v2, (storage, 0, value.shape, strides, False, OrderedDict())

    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            Writer(file, protocol=2).dump(OrderedDict(params))
        for key, data in kept.items():
            archive.writestr(f"archive/data/{key}", data)
    monkeypatch.undo()


class TestOtherPlaces:
    @pytest.mark.parametrize("family", ("gpt2", "llama", "vit"))
    def test_tiny(self, family):
        assert_equals_the_model(f"tiny:{family}")

    def test_an_unknown_tiny(self):
        refused("tiny:mamba", "tiny:mamba does not exist; there are tiny:gpt2")

    def test_a_gguf(self, tmp_path):
        held = test_gguf.write(tmp_path / "model.gguf")
        found = assert_equals_the_model(tmp_path / "model.gguf")
        name = "model.layers.0.self_attn.q_proj"
        np.testing.assert_array_equal(found[name], held[name + ".weight"])

    def test_of_a_gguf_only_what_is_asked_for_is_dequantised(self, tmp_path, monkeypatch):
        from gguf import quants

        test_gguf.write(tmp_path / "model.gguf")
        found = open_matrices(str(tmp_path / "model.gguf"))
        sizes, plain = [], quants.dequantize
        monkeypatch.setattr(
            quants,
            "dequantize",
            lambda data, kind: sizes.append(data.shape[0]) or plain(data, kind),
        )
        assert found["model.layers.0.self_attn.k_proj"].shape == (16, 32)
        assert sizes == [16]

    def test_what_was_made_here(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SOLAR_CACHE", str(tmp_path))
        refused("made:gpt2-mini", "gpt2-mini is not made yet")
        (tmp_path / "models").mkdir()
        write_folder(tmp_path / "models" / "gpt2-mini", "gpt2", dict(base_of("gpt2").params))
        assert_equals_the_model("made:gpt2-mini")

    def onnx_file(self, path: Path, as_floats: bool) -> dict[str, np.ndarray]:
        """A DINOv2 backbone of one layer as an exporter leaves it; returns what is in it."""
        width, at = 64, "encoder.layer.0."
        shapes = {
            "embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
            "embeddings.patch_embeddings.projection.bias": (width,),
            "embeddings.cls_token": (1, 1, width),
            "layernorm.weight": (width,), "layernorm.bias": (width,),
        }  # fmt: skip
        for part, inputs, outputs in (
            ("attention.attention.query", 64, 64), ("attention.attention.key", 64, 64),
            ("attention.attention.value", 64, 64), ("attention.output.dense", 64, 64),
            ("mlp.fc1", 64, 96), ("mlp.fc2", 96, 64),
        ):  # fmt: skip
            shapes |= {f"{at}{part}.weight": (outputs, inputs), f"{at}{part}.bias": (outputs,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{at}{norm}.weight": (width,), f"{at}{norm}.bias": (width,)}
        shapes |= {f"{at}layer_scale{i}.lambda1": (width,) for i in (1, 2)}
        held, constants, nodes = cases.weights(shapes), [], []

        def add(name: str, value: np.ndarray) -> None:
            made = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
            if as_floats and value.dtype == np.float32:
                made = onnx.helper.make_tensor(
                    name, onnx.TensorProto.FLOAT, value.shape, value.ravel()
                )
            constants.append(made)

        for index, (name, value) in enumerate(held.items()):
            if value.ndim == 2:  # a kernel: turned and without its name
                add(f"onnx::MatMul_{index}", value.T)
                module = name.removesuffix(".weight").replace(".", "/")
                nodes.append(
                    onnx.helper.make_node(
                        "MatMul",
                        ["x", f"onnx::MatMul_{index}"],
                        ["y"],
                        f"/backbone/{module}/MatMul",
                    )  # fmt: skip
                )
            elif name != "embeddings.cls_token":
                add(f"backbone.{name}", value)
        add("backbone.embeddings.cls_token", held["embeddings.cls_token"])
        table = cases.weights({"emb": (1, 5, width)})["emb"]
        add("onnx::Concat_1", table[:, 1:])
        add("onnx::Concat_0", table[:, :1])
        add("shape", np.arange(3))  # an integer constant, which is no weight
        graph = onnx.helper.make_graph(nodes, "graph", [], [], constants)
        path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
        return {**held, "embeddings.position_embeddings": table}

    @pytest.mark.parametrize("as_floats", (False, True), ids=("raw", "floats"))
    def test_an_onnx_file(self, as_floats, tmp_path):
        path = tmp_path / "model.onnx"
        held = self.onnx_file(path, as_floats)
        raw, table = contents(path)
        assert raw["image_size"] == 28 and raw["num_hidden_layers"] == 1
        assert table.keys() == held.keys()
        for name, value in held.items():
            assert table[name].shape == value.shape
            np.testing.assert_array_equal(table[name].read(), value, err_msg=name)
        base, found = load(str(path)), open_matrices(str(path))
        assert len(found) == 6
        for name, weight in found.items():
            assert weight.tobytes() == oriented(base, name).tobytes()

    def test_an_onnx_file_that_is_cut(self, tmp_path):
        path = tmp_path / "model.onnx"
        self.onnx_file(path, False)
        whole = path.read_bytes()
        for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            refused(path, "model.onnx (is not a whole ONNX file|holds no DINOv2 backbone)")


class TestRefusals:
    def test_weights_that_are_not_those_of_the_config(self, tmp_path):
        held = dict(base_of("gpt2").params)
        del held["transformer.h.1.mlp.c_fc.weight"]
        held["transformer.h.2.mlp.c_fc.weight"] = np.zeros((2, 2), np.float32)
        folder = write_folder(tmp_path, "gpt2", held)
        refused(
            folder,
            "does not fit a gpt2 of its config: missing transformer.h.1.mlp.c_fc.weight; "
            "unexpected transformer.h.2.mlp.c_fc.weight. Check that config.json belongs",
        )
        held = dict(base_of("gpt2").params)
        held["transformer.h.0.mlp.c_fc.weight"] = np.zeros(5, np.float32)
        refused(write_folder(tmp_path, "gpt2", held), r"h.0.mlp.c_fc.weight is \(5,\)")
        refused(write_folder(tmp_path, "gpt2", {}), "missing transformer.h.0.attn.c_attn")

    def test_what_is_no_model(self, tmp_path):
        refused(tmp_path / "nowhere", "nowhere does not exist; give a model folder")
        refused(tmp_path, "has no config.json")
        refused(write_folder(tmp_path, "gpt2", {}, model_type="mamba"), "is a 'mamba' model")
        (tmp_path / "model.txt").write_text("hello")
        refused(tmp_path / "model.txt", "neither a model folder nor a GGUF or ONNX file")


def test_nothing_heavy_is_imported_to_read_a_base_and_an_adapter(tmp_path):
    folder = write_folder(tmp_path, "llama-own-head", dict(base_of("llama-own-head").params))
    test_gguf.write(tmp_path / "model.gguf")
    program = f"""
import sys
from solar.adapters import directory, peft_io
from solar.weights.matrices import open_matrices
heavy = ("jax", "flax", "torch", "transformers", "tokenizers", "huggingface_hub", "gguf", "onnx")
print([name for name in heavy if name in sys.modules])
base = open_matrices({str(folder)!r})
adapter = directory.read_for({str(GOLDEN / "peft-llama")!r}, base.family, base.shapes)
assert all(base[name].shape == base.shapes[name] for name in adapter.pairs)
peft_io.write({str(tmp_path / "out")!r}, adapter, base.family, base.source)
print([name for name in heavy if name in sys.modules])
assert sum(weight.size for weight in open_matrices({str(tmp_path / "model.gguf")!r}).values())
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]", "['gguf']"]
