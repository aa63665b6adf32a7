"""What each method's adapter directory comes to: the updates of LoRA, AdaLoRA, VeRA, LoHa and bare
ones."""

import ml_dtypes
import numpy as np
import pytest
from golden.bases import base_of
from safetensors.numpy import save_file
from test_adapters import GOLDEN
from test_directory import LORA, SHAPES, Q, V, assert_near, draw, lora, refused, update, write

from solar.adapters import peft_io
from solar.adapters.directory import PREFIX, read, read_for
from solar.api import limit
from solar.errors import SolarError
from solar.models.structure import structure


class TestLora:
    CONFIG = LORA

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
        found = read_for(folder, family, shapes)
        assert found.pairs.keys() == expected.pairs.keys() and len(found.pairs) > 1
        bare = read(folder).pairs.values()
        for without, (layer, (b, a, scale)) in zip(bare, expected.pairs.items(), strict=True):
            for own in (without, found.pairs[layer]):
                np.testing.assert_array_equal(own[0], b)
                np.testing.assert_array_equal(own[1], a)
                assert own[2] == scale
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
        found = read_for(folder, "llama", SHAPES)
        assert not found.wide
        for layer in (Q, self.DOWN):
            outputs, inputs = SHAPES[layer]
            d = tensors[f"{PREFIX}{layer}.vera_lambda_d"]
            left = np.diag(tensors[f"{PREFIX}{layer}.vera_lambda_b"]) @ b[:outputs]
            assert_near(update(found, layer), left @ np.diag(d) @ a[:, :inputs])
        with pytest.raises(SolarError, match="share one factor, .* name the base"):
            limit(folder)

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
