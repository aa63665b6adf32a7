"""Adapter directories written by hand, read without a base: products, refusals, and the fit."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from golden import cases
from golden.bases import base_of
from safetensors.numpy import save_file
from test_adapters import GOLDEN

from solar.adapters import directory, peft_io
from solar.adapters.adapter import Adapter
from solar.adapters.directory import PREFIX, fit, read, read_for
from solar.errors import SolarError
from solar.models.structure import structure

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


class TestLora:
    CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6}

    def test_patterns_and_ranks(self, tmp_path):
        tensors = {**lora(Q, 4), **lora(V, 2, outputs=24)}
        config = {**self.CONFIG, "alpha_pattern": {"attn.v_proj": 3, "v_proj": 5}}
        config["rank_pattern"] = {"v_proj": 2}
        found = read(write(tmp_path, tensors, **config))
        assert list(found.pairs) == [Q, V] and not found.heads and not found.wide
        expected = 6 / 4 * tensors[Q + ".lora_B.weight"] @ tensors[Q + ".lora_A.weight"]
        assert_near(update(found, Q), expected)
        expected = 5 / 2 * tensors[V + ".lora_B.weight"] @ tensors[V + ".lora_A.weight"]
        assert_near(update(found, V), expected)  # a pattern begins at a dot
        found = read(write(tmp_path, tensors, **config, use_rslora=True))
        assert (found.pairs[Q][2], found.pairs[V][2]) == (6 / 4**0.5, 5 / 2**0.5)

    @pytest.mark.parametrize("kind", (np.float16, np.float64, ml_dtypes.bfloat16))
    def test_floats_of_every_width(self, kind, tmp_path):
        tensors = {k: v.astype(kind) for k, v in lora(Q, 4).items()}
        b, a, _ = read(write(tmp_path, tensors, **self.CONFIG)).pairs[Q]
        np.testing.assert_array_equal(a, tensors[Q + ".lora_A.weight"].astype(np.float32))
        np.testing.assert_array_equal(b, tensors[Q + ".lora_B.weight"].astype(np.float32))
        assert a.dtype == b.dtype == np.float32

    def test_trained_modules_are_taken_where_the_config_lists_them(self, tmp_path):
        head = {"lm_head.weight": draw(61, 32)}
        config = {**self.CONFIG, "modules_to_save": ["lm_head"]}
        found = read(write(tmp_path, {**lora(Q, 4), **head}, **config))
        np.testing.assert_array_equal(found.heads["lm_head.weight"], head["lm_head.weight"])
        write(tmp_path, {**lora(Q, 4), **head}, **self.CONFIG)
        refused(tmp_path, "1 keys that are neither factors of LoRA nor in modules_to_save, such as")

    @pytest.mark.parametrize("family", ("gpt2", "llama", "vit"))
    def test_what_peft_wrote_is_the_same_with_and_without_a_base(self, family):
        base = base_of({"gpt2": "gpt2", "llama": "llama-own-head", "vit": "vit"}[family])
        folder = GOLDEN / f"peft-{family}"
        linears = structure(base.config).linears
        shapes = {name: (outputs, inputs) for name, (outputs, inputs, _) in linears.items()}
        expected = peft_io.read(folder, base)
        for found in (fit(read(folder), family, shapes), read_for(folder, family, shapes)):
            assert found.pairs.keys() == expected.pairs.keys() and len(found.pairs) > 1
            for layer, (b, a, scale) in expected.pairs.items():
                np.testing.assert_array_equal(found.pairs[layer][0], b)
                np.testing.assert_array_equal(found.pairs[layer][1], a)
                assert found.pairs[layer][2] == scale
            assert found.heads.keys() == expected.heads.keys()


class TestAdaLora:
    """PEFT's layout: parameters without ``.weight``, ranks pruned, the first rank as divisor."""

    CONFIG = {"peft_type": "ADALORA", "init_r": 4, "r": 8, "lora_alpha": 6}

    def tensors(self, layer: str, rank: int, outputs: int = 48) -> dict:
        return {
            f"{layer}.lora_A": draw(rank, 32, name=layer),
            f"{layer}.lora_B": draw(outputs, rank, name=layer),
            f"{layer}.lora_E": draw(rank, 1, name=layer),
        }

    def expected(self, tensors: dict, layer: str, factor: float) -> np.ndarray:
        a, b, e = (tensors[f"{layer}.lora_{part}"].astype(np.float64) for part in "ABE")
        return factor * b @ np.diag(e[:, 0]) @ a

    def test_ranks_that_differ_and_rank_zero(self, tmp_path):
        other = "model.layers.1.self_attn.q_proj"
        tensors = {**self.tensors(Q, 4), **self.tensors(V, 1, 24), **self.tensors(other, 0)}
        pattern = {
            f"{Q}.lora_E": [True] * 4,
            f"{V}.lora_E": [False, True, False, False],
            f"{other}.lora_E": [False] * 4,
        }
        folder = write(tmp_path, tensors, **self.CONFIG, rank_pattern=pattern)
        found = read(folder)
        for layer in (Q, V):
            assert_near(update(found, layer), self.expected(tensors, layer, 6 / (4 + 1e-5)))
        b, a, scale = found.pairs[other]
        assert (b.shape, a.shape) == ((48, 0), (0, 32)) and np.isfinite(scale)
        # without a positive alpha PEFT takes the rank that is left
        write(tmp_path, tensors, **{**self.CONFIG, "lora_alpha": 0}, rank_pattern=pattern)
        assert_near(update(read(folder), V), self.expected(tensors, V, 1 / (4 + 1e-5)))

    def test_before_any_pruning_there_is_no_pattern(self, tmp_path):
        tensors = self.tensors(Q, 4)
        found = read(write(tmp_path, tensors, **self.CONFIG, rank_pattern=None))
        assert_near(update(found, Q), self.expected(tensors, Q, 6 / (4 + 1e-5)))

    def test_a_rank_that_is_not_the_allocated_one(self, tmp_path):
        pattern = {f"{Q}.lora_E": [True, False, True, False]}
        write(tmp_path, self.tensors(Q, 3), **self.CONFIG, rank_pattern=pattern)
        refused(tmp_path, "holds 3 ranks of .*q_proj, its config allocates 2")
        write(tmp_path, self.tensors(Q, 3), **self.CONFIG)
        refused(tmp_path, "holds 3 ranks of .*q_proj, its config allocates 4")

    def test_values_of_another_shape(self, tmp_path):
        tensors = {**self.tensors(Q, 4), f"{Q}.lora_E": draw(4)}
        write(tmp_path, tensors, **self.CONFIG)
        refused(
            tmp_path, r"q_proj: lora_A \(4, 32\), lora_B \(48, 4\) and lora_E \(4,\) do not fit"
        )
        del tensors[f"{Q}.lora_E"]
        write(tmp_path, tensors, **self.CONFIG)
        refused(tmp_path, "has only lora_A, lora_B for .*q_proj and lacks lora_E")


class TestVera:
    CONFIG = {"peft_type": "VERA", "r": 5, "save_projection": True}
    DOWN = "model.layers.0.mlp.down_proj"  # 48 to 32

    def tensors(self) -> dict:
        return {
            "base_model.vera_A": draw(5, 48),
            "base_model.vera_B": draw(48, 5),
            f"{PREFIX}{Q}.vera_lambda_b": draw(48),
            f"{PREFIX}{Q}.vera_lambda_d": draw(5),
            f"{PREFIX}{self.DOWN}.vera_lambda_b": draw(32),
            f"{PREFIX}{self.DOWN}.vera_lambda_d": draw(5, seed=2),
        }

    def test_shared_matrices_are_cut_to_each_layer(self, tmp_path):
        tensors = self.tensors()
        folder = write(tmp_path, tensors, prefix="", **self.CONFIG)
        a, b = tensors["base_model.vera_A"], tensors["base_model.vera_B"]
        without = read(folder)
        assert without.wide == {Q, self.DOWN} and without.pairs[Q][1].shape == (5, 48)
        for found in (read_for(folder, "llama", SHAPES), fit(without, "llama", SHAPES)):
            assert not found.wide
            for layer in (Q, self.DOWN):
                outputs, inputs = SHAPES[layer]
                d = tensors[f"{PREFIX}{layer}.vera_lambda_d"]
                left = np.diag(tensors[f"{PREFIX}{layer}.vera_lambda_b"]) @ b[:outputs]
                assert_near(update(found, layer), left @ np.diag(d) @ a[:, :inputs])

    def test_without_its_projections(self, tmp_path):
        write(tmp_path, self.tensors(), prefix="", **{**self.CONFIG, "save_projection": False})
        refused(tmp_path, "saved with save_projection=False, .* save it with save_projection=True")
        tensors = self.tensors()
        del tensors["base_model.vera_A"]
        write(tmp_path, tensors, prefix="", **self.CONFIG)
        refused(tmp_path, "lacks vera_A, the projections that all layers share")

    def test_a_projection_that_is_too_small(self, tmp_path):
        tensors = {**self.tensors(), "base_model.vera_B": draw(40, 5)}
        write(tmp_path, tensors, prefix="", **self.CONFIG)
        refused(tmp_path, r"q_proj: .*vera_B \(40, 5\) do not fit each other")
        tensors = {**self.tensors(), "base_model.vera_A": draw(5, 40)}
        write(tmp_path, tensors, prefix="", **self.CONFIG)
        with pytest.raises(SolarError, match="down_proj: .* do not fit a projection of 48 to 32"):
            read_for(tmp_path, "llama", SHAPES)
        with pytest.raises(SolarError, match=r"down_proj: the adapter's update is \(32, 40\)"):
            fit(read(tmp_path), "llama", SHAPES)


class TestLoha:
    CONFIG = {"peft_type": "LOHA", "r": 2, "alpha": 3}

    def tensors(self, layer: str, rank: int, outputs: int = 48, inputs: int = 32) -> dict:
        return {
            f"{layer}.hada_w{i}_{side}": draw(*shape, name=f"{layer}{i}")
            for i in (1, 2)
            for side, shape in (("a", (outputs, rank)), ("b", (rank, inputs)))
        }

    @pytest.mark.parametrize("rank", (2, 7))  # 7 * 7 > 32: the product itself is decomposed
    def test_the_product_by_its_thin_svd(self, rank, tmp_path):
        tensors = self.tensors(Q, rank)
        found = read(write(tmp_path, tensors, **self.CONFIG, alpha_pattern={"q_proj": 5}))
        w = {k.rpartition(".")[2]: v.astype(np.float64) for k, v in tensors.items()}
        expected = (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"])
        assert_near(update(found, Q), 5 / rank * expected)
        b, a, _ = found.pairs[Q]
        assert a.shape[0] == min(rank**2, 32)
        norms = np.linalg.norm(b, axis=0)
        np.testing.assert_allclose(norms, np.linalg.norm(a, axis=1), rtol=1e-4)  # equally shared
        assert (np.diff(norms) <= 0).all()

    def test_an_update_that_is_still_zero(self, tmp_path):
        tensors = self.tensors(Q, 2)
        tensors[f"{Q}.hada_w2_b"] *= 0  # as LoHa starts
        b, a, _ = read(write(tmp_path, tensors, **self.CONFIG)).pairs[Q]
        assert (b.shape, a.shape) == ((48, 0), (0, 32))

    def test_a_convolution(self, tmp_path):
        tensors = {**self.tensors(Q, 2), f"{Q}.hada_t1": draw(2, 2, 3, 3)}
        write(tmp_path, tensors, **self.CONFIG)
        refused(tmp_path, "hada_t1 .an adapted convolution., which is not supported")

    def test_factors_that_do_not_multiply(self, tmp_path):
        tensors = {**self.tensors(Q, 2), f"{Q}.hada_w2_a": draw(47, 2)}
        write(tmp_path, tensors, **self.CONFIG)
        refused(tmp_path, r"q_proj: hada_w1_a \(48, 2\), .* do not fit each other; the file is dam")


class TestBareUpdates:
    """No config: the tensors are the updates."""

    def test_names_with_and_without_weight_in_several_files(self, tmp_path):
        low = draw(48, 3) @ draw(3, 32)
        full = draw(24, 32)
        save_file({Q + ".weight": low}, tmp_path / "one.safetensors")
        save_file({PREFIX + V: full.astype(np.float16)}, tmp_path / "two.safetensors")
        found = read(tmp_path)
        assert_near(update(found, Q), low)
        assert_near(update(found, V), full.astype(np.float16))
        # float32 leaves about 1e-7 of noise in a product of rank 3
        assert found.pairs[Q][1].shape[0] < 32 and found.pairs[V][1].shape[0] == 24
        fit(found, "llama", SHAPES)

    def test_nothing_above_the_cut_is_dropped(self, tmp_path):
        u = np.linalg.qr(draw(48, 4).astype(np.float64))[0]
        v = np.linalg.qr(draw(32, 4).astype(np.float64))[0]
        update = u * np.array([1.0, 1e-3, 2e-7, 1e-8]) @ v.T
        save_file({Q: update.astype(np.float64)}, tmp_path / "x.safetensors")
        # the file is read as float32, whose rounding has the size of the third
        b, a, _ = read(tmp_path).pairs[Q]
        sizes = np.linalg.norm(b, axis=0) * np.linalg.norm(a, axis=1)
        np.testing.assert_allclose(sizes[:2], [1, 1e-3], rtol=1e-5)
        assert (sizes > 0.9e-7).all()

    def test_a_zero_update_has_rank_zero(self, tmp_path):
        save_file({Q: np.zeros((48, 32), np.float32)}, tmp_path / "x.safetensors")
        assert read(tmp_path).pairs[Q][1].shape == (0, 32)

    def test_what_is_no_update(self, tmp_path):
        file = tmp_path / "x.safetensors"
        save_file({"conv.weight": np.zeros((2, 2, 3, 3), np.float32)}, file)
        refused(tmp_path, r"conv.weight of shape \(2, 2, 3, 3\); only two-dimensional updates")
        save_file({"norm.weight": np.zeros(3, np.float32)}, file)
        refused(tmp_path, r"norm.weight of shape \(3,\); only two-dimensional updates")
        save_file({Q: draw(48, 32), Q + ".weight": draw(48, 32)}, file)
        refused(tmp_path, "holds two updates of .*q_proj; leave one")
        save_file(lora(Q, 2), file)
        refused(tmp_path, "no adapter_config.json, yet .*lora_A.weight is a factor of an adapter")
        save_file({}, file)
        refused(tmp_path, "holds no updates; give an adapter")
        file.unlink()
        (tmp_path / "adapter_model.bin").write_bytes(b"x")
        refused(tmp_path, "has no adapter_config.json; give a directory that PEFT wrote, or one")


class TestRefusals:
    CONFIG = TestLora.CONFIG

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
    def adapter(self, name: str = Q, outputs: int = 48, inputs: int = 32) -> Adapter:
        return Adapter({name: (draw(outputs, 2), draw(2, inputs), 1.0)}, {})

    def test_old_names_become_those_of_the_base(self):
        old = "vit.encoder.layer.1.attention.attention.query"
        shapes = {"vit.layers.1.attention.q_proj": (32, 32)}
        heads = {"classifier.weight": draw(5, 32)}
        given = Adapter(self.adapter(old, 32, 32).pairs, heads)
        found = fit(given, "vit", shapes)
        assert list(found.pairs) == list(shapes) and found.heads.keys() == heads.keys()
        found = fit(self.adapter("h.0.attn.c_attn", 96), "gpt2",
                    {"transformer.h.0.attn.c_attn": (96, 32)})  # fmt: skip
        assert list(found.pairs) == ["transformer.h.0.attn.c_attn"]

    def test_an_adapter_of_another_base(self):
        for given, family, message in (
            (self.adapter("model.layers.9.x"), "llama", "1 layers that this llama does not have"),
            (self.adapter(), "gpt2", f"such as {Q}; check that it belongs to this base"),
            (
                self.adapter(outputs=40),
                "llama",
                r"update is \(40, 32\), the base's weight \(48, 32",
            ),
            (self.adapter(inputs=40), "llama", r"update is \(48, 40\), the base's weight \(48"),
        ):
            shapes = SHAPES if family == "llama" else {"transformer.h.0.attn.c_attn": (96, 32)}
            with pytest.raises(SolarError, match=message) as info:
                fit(given, family, shapes)
            assert "\n" not in str(info.value)

    def test_one_layer_under_both_of_its_names(self, tmp_path):
        names = ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn")
        tensors = {k: v for n in names for k, v in lora(n, 2, outputs=96).items()}
        write(tmp_path, tensors, peft_type="LORA", r=2, lora_alpha=2)
        shapes = {"transformer.h.0.attn.c_attn": (96, 32)}
        for run in (
            lambda: fit(read(tmp_path), "gpt2", shapes),
            lambda: read_for(tmp_path, "gpt2", shapes),
        ):
            with pytest.raises(SolarError, match="names transformer.h.0.attn.c_attn twice"):
                run()

    def test_what_the_config_promises_is_compared_with_the_base(self, tmp_path):
        config = {**TestLora.CONFIG, "target_modules": ["q_proj"]}
        write(tmp_path, lora(Q, 4), **config)
        with pytest.raises(
            SolarError, match="lacks the factors of model.layers.1.self_attn.q_proj"
        ):
            read_for(tmp_path, "llama", SHAPES)
        assert list(fit(read(tmp_path), "llama", SHAPES).pairs) == [Q]


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
    folder = write(tmp_path, lora(Q, 4), **TestLora.CONFIG)
    found = directory.open_directory(folder)
    assert found.layers[Q].parts["lora_A"].shape == (4, 32)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(SolarError, match="adapter_model.safetensors cannot be read"):
        directory.pair(found, Q)
