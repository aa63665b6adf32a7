"""LoRA's settings by PEFT's rules, and PEFT directories in and out; nothing here needs torch."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from golden import cases
from golden.bases import base_of, logits
from safetensors.numpy import load_file, save_file

from solar.adapters import peft_io, targets
from solar.adapters.adapter import Adapter, scaling
from solar.adapters.lora import METHOD, LoraConfig, adapter, head_names, plan
from solar.errors import SolarError
from solar.models.structure import structure
from solar.weights.base import Base

GOLDEN = Path(__file__).parent / "golden"
CASE = {"gpt2": "gpt2", "llama": "llama-own-head", "vit": "vit"}
LLAMA = tuple(structure(base_of("llama-own-head").config).linears)
VIT = tuple(structure(base_of("vit").config).linears)


def random_adapter(base: Base, config: LoraConfig) -> Adapter:
    """Factors and heads as training would leave them, none of them zero."""
    shape, pairs = structure(base.config), {}
    for layer, (rank, scale) in plan(base, config).items():
        outputs, inputs, _ = shape.linears[layer]
        drawn = cases.factors({f"{layer}.A": (rank, inputs), f"{layer}.B": (outputs, rank)})
        pairs[layer] = (drawn[f"{layer}.B"], drawn[f"{layer}.A"], scale)
    heads = {name: shape.leaves[name].shape for name in head_names(base, config)}
    return Adapter(pairs, cases.factors(heads))


def assert_same_update(found: Adapter, expected: Adapter) -> None:
    """Equal layers, heads and updates; how a scale is kept may differ."""
    assert found.pairs.keys() == expected.pairs.keys()
    for layer, (b, a, scale) in found.pairs.items():
        other_b, other_a, other = expected.pairs[layer]
        np.testing.assert_allclose(scale * b @ a, other * other_b @ other_a, rtol=1e-5, atol=1e-6)
    assert found.heads.keys() == expected.heads.keys()
    for name, head in found.heads.items():
        np.testing.assert_array_equal(head, expected.heads[name])


class TestTargets:
    def test_a_list_matches_a_suffix_after_a_dot_or_a_whole_name(self):
        chosen = targets.select(LLAMA, ["q_proj", "model.layers.1.mlp.up_proj"])
        assert chosen == (
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.mlp.up_proj",
            "model.layers.1.self_attn.q_proj",
        )
        assert targets.select(LLAMA, ["mlp.up_proj"])[0] == "model.layers.0.mlp.up_proj"
        with pytest.raises(SolarError, match="no module matches '_proj'"):
            targets.select(LLAMA, ["_proj"])

    def test_a_string_is_a_regular_expression_for_the_whole_name(self):
        chosen = targets.select(LLAMA, r".*layers\.1\..*(q|v)_proj")
        assert chosen == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
        with pytest.raises(SolarError, match="no module matches 'q_proj'"):
            targets.select(LLAMA, "q_proj")  # a suffix is no whole name

    def test_what_is_no_regular_expression_is_refused(self):
        for run in (
            lambda: targets.select(LLAMA, "*q_proj"),
            lambda: targets.by_pattern({"*attn": 2}, "a.attn", 1),
        ):
            with pytest.raises(SolarError, match="is no regular expression .nothing to repeat"):
                run()

    def test_all_linear_leaves_the_output_head_out(self):
        assert len(targets.select(LLAMA, "all-linear")) == len(LLAMA) - 1 == 14
        assert "lm_head" not in targets.select(LLAMA, "all-linear")
        assert set(VIT) - set(targets.select(VIT, "all-linear")) == {"classifier"}

    def test_modules_that_are_trained_whole_are_not_adapted(self):
        chosen = targets.select(LLAMA, ["q_proj", "up_proj"], ["layers.1.mlp", "0.self_attn"])
        assert chosen == ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")
        with pytest.raises(SolarError, match="no module matches 'classifier'"):
            targets.select(VIT, ["q_proj", "classifier"], ["classifier"])

    def test_a_target_that_matches_nothing_is_an_error_with_advice(self):
        with pytest.raises(SolarError) as info:
            targets.select(VIT, ["query", "v_proj"])
        assert str(info.value) == (
            "no module matches 'query'; 'query' is called q_proj here; "
            "this model has classifier, fc1, fc2, k_proj, o_proj, q_proj, v_proj"
        )
        with pytest.raises(SolarError, match="'c_attn' is called q_proj, v_proj here"):
            targets.select(LLAMA, ["c_attn"])
        with pytest.raises(SolarError, match="no module matches 'no_such'; this model has"):
            targets.select(LLAMA, ["no_such"])
        with pytest.raises(SolarError, match="target_modules is empty"):
            targets.select(LLAMA, [])

    def test_every_family_has_usual_targets(self):
        for name in CASE.values():
            base = base_of(name)
            assert plan(base, LoraConfig()).keys() == set(
                targets.select(structure(base.config).linears, targets.DEFAULTS[base.family])
            )


class TestSettings:
    def test_scaling_four_variants(self):
        base, two = base_of("gpt2"), ("c_attn", "c_fc")
        config = LoraConfig(r=4, lora_alpha=6, target_modules=two)

        def found(**changes) -> dict[str, tuple[int, float]]:
            planned = plan(base, replace(config, **changes))
            return {name.removeprefix("transformer."): v for name, v in planned.items()}

        assert set(found().values()) == {(4, 1.5)}
        assert set(found(use_rslora=True).values()) == {(4, 3.0)}
        ranks = found(rank_pattern={"h.1.attn.c_attn": 2, "c_fc": 3})
        assert ranks["h.0.attn.c_attn"] == (4, 1.5)
        assert ranks["h.1.attn.c_attn"] == (2, 3.0)
        assert ranks["h.0.mlp.c_fc"] == (3, 2.0)
        alphas = found(alpha_pattern={r"h\.\d\.attn.*": 8, "attn.c_attn": 1}, use_rslora=True)
        assert alphas["h.0.attn.c_attn"] == (4, 4.0)  # the first pattern that matches wins
        assert alphas["h.0.mlp.c_fc"] == (4, 3.0)

    def test_patterns_match_the_end_of_a_name_after_a_dot(self):
        name = "model.layers.11.self_attn.q_proj"
        assert targets.by_pattern({"q_proj": 2}, name, 1) == 2
        assert (
            targets.by_pattern({"proj": 2, "self_attn": 3, "1.self_attn.q_proj": 4}, name, 1) == 1
        )
        assert targets.by_pattern({"layers.1.self_attn.q_proj": 2}, name, 1) == 1
        assert targets.by_pattern({r"layers\.(10|11)\..*": 2}, name, 1) == 2
        assert scaling(8, 4, False) == 2.0 and scaling(8, 4, True) == 4.0

    def test_a_rank_below_one_is_refused(self):
        with pytest.raises(SolarError, match="rank 0 for .*c_attn; a LoRA rank is at least 1"):
            plan(base_of("gpt2"), LoraConfig(rank_pattern={"c_attn": 0}))

    def test_a_dropout_of_all_is_refused(self):
        with pytest.raises(SolarError, match="lora_dropout is 1.0; give a share below 1"):
            plan(base_of("gpt2"), LoraConfig(lora_dropout=1.0))

    def test_a_head_that_does_not_exist_is_refused(self):
        with pytest.raises(SolarError, match="'classifier', which this vit does not have; .*num_l"):
            head_names(base_of("vit", num_labels=0), LoraConfig(modules_to_save=("classifier",)))

    def test_the_start_is_seeded_bounded_and_changes_nothing(self):
        base = base_of("vit")
        config = LoraConfig(r=8, modules_to_save=("classifier",))
        trainable, frozen = METHOD.init(jax.random.key(1), base, config)
        again, _ = METHOD.init(jax.random.key(1), base, config)
        other, _ = METHOD.init(jax.random.key(2), base, config)
        name = "vit.layers.0.attention.q_proj.lora_A"
        np.testing.assert_array_equal(trainable[name], again[name])
        assert not np.array_equal(trainable[name], other[name])
        assert 0.9 * 32**-0.5 < np.abs(trainable[name]).max() <= 32**-0.5
        start = adapter(trainable, frozen)
        assert all((b == 0).all() and scale == 1.0 for b, _, scale in start.pairs.values())
        np.testing.assert_array_equal(  # a head that the base has goes on from there
            start.heads["classifier.weight"], base.params["classifier.weight"]
        )

    def test_the_scale_is_folded_into_b(self):
        base, config = base_of("gpt2"), LoraConfig(r=2, lora_alpha=6)
        trainable, frozen = METHOD.init(jax.random.key(1), base, config)
        name = "transformer.h.0.attn.c_attn.lora_B"
        trainable[name] = trainable[name] + 1
        seen = METHOD.update(trainable, frozen)
        assert seen.keys() == trainable.keys()
        assert (np.asarray(seen[name]) == 3).all()


class TestGoldenDirectories:
    """Directories that PEFT's save_pretrained wrote, and the logits that torch had with them."""

    @pytest.mark.parametrize("family", CASE)
    def test_logits_equal_those_of_peft(self, family):
        base = base_of(CASE[family])
        expected = np.load(GOLDEN / "adapters.npz")[family]
        if family != "vit":
            expected = expected * cases.tokens()[1][..., None]
        found = logits(base, peft_io.read(GOLDEN / f"peft-{family}", base))
        assert np.abs(expected - np.load(GOLDEN / "logits.npz")[CASE[family]]).max() > 0.1
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)

    def test_old_names_of_a_vit_are_read_too(self, tmp_path):
        base, new = base_of("vit"), GOLDEN / "peft-vit"
        config = json.loads((new / "adapter_config.json").read_text())
        config["target_modules"] = ["query", "value"]
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        old = {}
        for key, tensor in load_file(new / "adapter_model.safetensors").items():
            key = re.sub(
                r"vit\.layers\.(\d+)\.attention", r"vit.encoder.layer.\1.attention.attention", key
            )
            old[key.replace("q_proj", "query").replace("v_proj", "value")] = tensor
        assert "base_model.model.vit.encoder.layer.1.attention.attention.value.lora_B.weight" in old
        save_file(old, tmp_path / "adapter_model.safetensors")
        assert_same_update(peft_io.read(tmp_path, base), peft_io.read(new, base))


class TestDirectories:
    CONFIGS = {
        "gpt2": LoraConfig(
            r=3, lora_alpha=5, target_modules=("c_attn", "mlp.c_proj"), use_rslora=True
        ),
        "llama": LoraConfig(
            r=2,
            rank_pattern={"layers.0.self_attn.q_proj": 4},
            alpha_pattern={"v_proj": 3},
            target_modules="all-linear",
        ),
        "vit": LoraConfig(r=2, lora_alpha=3, modules_to_save=("classifier",)),
    }

    @pytest.mark.parametrize("family", CASE)
    def test_what_was_written_is_read(self, family, tmp_path):
        base, config = base_of(CASE[family]), self.CONFIGS[family]
        ours = random_adapter(base, config)
        path = peft_io.write(tmp_path, ours, base.family, base.source, config, seed=7)
        found = peft_io.read(tmp_path, base)
        assert_same_update(found, ours)
        for layer, (b, a, scale) in found.pairs.items():  # as trained: the scale is PEFT's to apply
            np.testing.assert_array_equal(a, ours.pairs[layer][1])
            np.testing.assert_array_equal(b, ours.pairs[layer][0])
            assert scale == pytest.approx(ours.pairs[layer][2])
        document = json.loads((tmp_path / "adapter_config.json").read_text())
        assert document["fan_in_fan_out"] is (family == "gpt2")
        assert document["base_model_name_or_path"] == base.source
        assert json.loads((tmp_path / "solar_seed.json").read_text()) == {"lora_A": 7}
        assert all(key.startswith("base_model.model.") for key in load_file(path))

    @pytest.mark.parametrize("family", CASE)
    def test_a_decoded_update_is_written_with_its_scale_folded_in(self, family, tmp_path):
        base = base_of(CASE[family])
        ours = random_adapter(base, self.CONFIGS[family])
        for rank, (layer, (b, a, scale)) in enumerate(sorted(ours.pairs.items()), start=1):
            drawn = cases.factors({layer + "A": (rank, a.shape[1]), layer + "B": (len(b), rank)})
            ours.pairs[layer] = (drawn[layer + "B"], drawn[layer + "A"], scale)
        peft_io.write(tmp_path, ours, base.family, base.source)
        found = peft_io.read(tmp_path, base)
        assert_same_update(found, ours)
        assert {scale for _, _, scale in found.pairs.values()} == {1.0}
        document = json.loads((tmp_path / "adapter_config.json").read_text())
        assert document["r"] == document["lora_alpha"] == len(ours.pairs)
        assert document["rank_pattern"] == document["alpha_pattern"]
        assert not (tmp_path / "solar_seed.json").exists()


class TestRefusals:
    """Each takes the directory that PEFT wrote for the LLaMA and breaks one thing."""

    @pytest.fixture
    def folder(self, tmp_path):
        return Path(shutil.copytree(GOLDEN / "peft-llama", tmp_path / "adapter"))

    def refused(self, folder: Path, message: str, base: Base | None = None) -> None:
        with pytest.raises(SolarError, match=message) as info:
            peft_io.read(folder, base or base_of("llama-own-head"))
        assert "\n" not in str(info.value)

    def configure(self, folder: Path, **changes) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def tensors(self, folder: Path, change) -> None:
        path = folder / "adapter_model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"use_dora": True}, "uses use_dora \\(DoRA's magnitude vectors\\)"),
            ({"lora_bias": True}, "uses lora_bias"),
            ({"use_qalora": True}, "uses use_qalora"),
            ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
            ({"trainable_token_indices": [3]}, "uses trainable_token_indices"),
            ({"kasa_config": {"beta": 0.1}}, "uses kasa_config"),
            ({"use_bdlora": {"nblocks": 2}}, "uses use_bdlora"),
            ({"init_lora_weights": "pissa_niter_4"}, "initialised by pissa_niter_4, which changes"),
            ({"init_lora_weights": "olora"}, "initialised by olora"),
            ({"bias": "all"}, "trains biases \\(bias='all'\\)"),
            ({"peft_type": "LOKR"}, "holds a LOKR adapter; only LORA, ADALORA, VERA, LOHA are"),
            ({"peft_type": "IA3"}, "holds a IA3 adapter; only LORA"),
            ({"r": None}, "does not give r; the file is damaged"),
            ({"lora_alpha": "16"}, "does not give lora_alpha"),
            ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "lacks the factors of .*o_proj"),
            ({"modules_to_save": ["lm_head"]}, "lacks lm_head, which its config lists"),
        ],
    )
    def test_what_is_not_plain_lora(self, folder, changes, message):
        self.configure(folder, **changes)
        self.refused(folder, message)

    @pytest.mark.parametrize("init", (True, "gaussian", "eva", "orthogonal"))
    def test_initialisations_that_leave_the_base_alone_are_read(self, folder, init):
        self.configure(folder, init_lora_weights=init)
        assert len(peft_io.read(folder, base_of("llama-own-head")).pairs) == 4

    def test_a_key_that_fits_no_module(self, folder):
        def extra(held):
            held["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = np.zeros(
                (2, 32)
            )

        self.tensors(folder, extra)
        self.refused(folder, "1 keys that fit no module of this llama, such as .*layers.7.*q_proj")

    def test_an_adapter_of_another_family(self, folder):
        self.refused(folder, "8 keys that fit no module of this gpt2", base_of("gpt2"))

    def test_half_a_pair(self, folder):
        self.tensors(folder, lambda held: held.pop(sorted(held)[0]))
        self.refused(folder, "has only lora_B for model.layers.0.self_attn.q_proj")

    def test_a_target_without_tensors(self, folder):
        def drop(held):
            for key in [k for k in held if "layers.1.self_attn.v_proj" in k]:
                del held[key]

        self.tensors(folder, drop)
        self.refused(folder, "lacks the factors of model.layers.1.self_attn.v_proj \\(1 such\\)")

    def test_a_wrong_shape(self, folder):
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        self.tensors(folder, lambda held: held.update({key: np.zeros((3, 31), np.float32)}))
        self.refused(folder, "q_proj: lora_A \\(3, 31\\) and lora_B .* projection of 32 to 48")

    def test_a_head_of_another_shape(self, tmp_path):
        folder = Path(shutil.copytree(GOLDEN / "peft-vit", tmp_path / "vit"))
        with pytest.raises(
            SolarError, match="classifier.bias is \\(5,\\) in .*, \\(7,\\) in the base"
        ):
            peft_io.read(folder, base_of("vit", num_labels=7))

    def test_no_factors_at_all(self, folder):
        self.tensors(folder, lambda held: held.clear())
        self.refused(folder, "holds no LoRA factors")

    def test_a_pickle_instead_of_safetensors(self, folder):
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        self.refused(folder, "adapter_model.bin is not read: save it again with safetensors")

    def test_missing_or_broken_files(self, folder, tmp_path):
        self.refused(tmp_path / "nowhere", "has no adapter_config.json; give a directory that PEFT")
        whole = (folder / "adapter_model.safetensors").read_bytes()
        (folder / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
        self.refused(folder, "adapter_model.safetensors cannot be read")
        (folder / "adapter_model.safetensors").unlink()
        self.refused(folder, "has no adapter_model.safetensors; give a whole PEFT directory")
        (folder / "adapter_config.json").write_text("{")
        self.refused(folder, "adapter_config.json is not valid JSON")
