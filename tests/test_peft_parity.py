"""Live: adapters written by PEFT and read here, and the other way round, give the same logits."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from golden import cases  # noqa: E402
from golden.bases import base_of, logits  # noqa: E402
from test_models_parity import torch_logits  # noqa: E402

from benchmarks.torch_models import peft_model, torch_model  # noqa: E402
from solar.adapters import directory, peft_io, targets  # noqa: E402
from solar.adapters.adapter import Adapter  # noqa: E402
from solar.adapters.lora import LoraConfig, head_names, plan  # noqa: E402
from solar.errors import SolarError  # noqa: E402
from solar.models.structure import structure  # noqa: E402
from solar.weights.base import Base, load  # noqa: E402

CASE = {"gpt2": "gpt2", "llama": "llama-3-biases", "vit": "vit"}
KINDS = {
    "gpt2": ("c_attn", "mlp.c_proj"),  # c_proj has unequal sides, so a transposed factor would show
    "llama": ("q_proj", "v_proj"),
    "vit": ("q_proj", "v_proj"),
}
LAYER = {
    "gpt2": "h.1.attn.c_attn",
    "llama": "layers.1.self_attn.q_proj",
    "vit": "layers.1.attention.q_proj",
}
VARIANTS = ("alpha/r", "rslora", "rank_pattern", "alpha_pattern")


def config_of(family: str, variant: str) -> LoraConfig:
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=KINDS[family],
        modules_to_save=("classifier",) if family == "vit" else (),
    )
    changes = {
        "alpha/r": {},
        "rslora": {"use_rslora": True, "rank_pattern": {LAYER[family]: 2}},
        "rank_pattern": {"rank_pattern": {LAYER[family]: 2, KINDS[family][1]: 3}},
        "alpha_pattern": {
            "rank_pattern": {LAYER[family]: 2},
            "alpha_pattern": {rf"[hlayers]+\.\d\..*{KINDS[family][1]}": 11, LAYER[family]: 3},
        },
    }
    return replace(config, **changes[variant])


def random_adapter(base: Base, config: LoraConfig) -> Adapter:
    """Factors and heads as training would leave them, none of them zero."""
    shape = structure(base.config)
    pairs = {}
    for layer, (rank, scale) in plan(base, config).items():
        outputs, inputs, _ = shape.linears[layer]
        drawn = cases.factors({f"{layer}.A": (rank, inputs), f"{layer}.B": (outputs, rank)})
        pairs[layer] = (drawn[f"{layer}.B"], drawn[f"{layer}.A"], scale)
    return Adapter(
        pairs, cases.factors({n: shape.leaves[n].shape for n in head_names(base, config)})
    )


def load_in_peft(base: Base, folder):
    """PeftModel.from_pretrained, which must not have had to warn of anything in the directory."""
    with warnings.catch_warnings():
        for about in (".*fan_in_fan_out.*", ".*missing.*", ".*nexpected.*", ".*not found.*"):
            warnings.filterwarnings("error", message=about)
        return peft.PeftModel.from_pretrained(torch_model(base), folder).eval()


def assert_same(found: np.ndarray, expected: np.ndarray, base: Base, what: str) -> None:
    """Equal to 1e-5 of the largest logit, and far from what the bare base says."""
    bare = logits(base)
    size = np.abs(expected).max()
    assert np.abs(expected - bare).max() > 1e-2 * size
    gap = np.abs(found - expected).max()
    print(f"{what}: {gap / size:.1e}")
    assert gap <= 1e-5 * size


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", CASE)
def test_written_by_peft_read_here(family, variant, tmp_path):
    base, config = base_of(CASE[family], seed=3), config_of(family, variant)
    model = peft_model(torch_model(base), config)
    trained = {k: v for k, v in model.named_parameters() if v.requires_grad}
    with torch.no_grad():
        for key, value in cases.factors({k: tuple(v.shape) for k, v in trained.items()}).items():
            trained[key].copy_(torch.from_numpy(value))
    model.save_pretrained(tmp_path)
    adapter = peft_io.read(tmp_path, base)
    expected = torch_logits(base, model.eval())
    assert_same(logits(base, adapter), expected, base, f"{family} {variant}, from PEFT")


def test_an_update_of_dinov2_is_before_its_layer_scale(tmp_path):
    """Both ways, on projections whose outputs Dinov2Model scales."""
    model = dinov2()
    model.save_pretrained(tmp_path / "base")
    base = load(str(tmp_path / "base"))
    pixels = cases.pixels(base.config.image_size)

    def features(model) -> np.ndarray:
        with torch.no_grad():
            return model(pixel_values=torch.from_numpy(pixels)).last_hidden_state[:, 0].numpy()

    config = LoraConfig(r=4, lora_alpha=6, target_modules=("q_proj", "o_proj", "fc2"))
    own = peft_model(model, config)
    trained = {k: v for k, v in own.named_parameters() if v.requires_grad}
    with torch.no_grad():
        for key, value in cases.factors({k: tuple(v.shape) for k, v in trained.items()}).items():
            trained[key].copy_(torch.from_numpy(value))
    own.save_pretrained(tmp_path / "theirs")
    expected = features(own.eval())
    adapter = peft_io.read(tmp_path / "theirs", base)
    assert_same(logits(base, adapter), expected, base, "DINOv2, from PEFT")
    peft_io.write(tmp_path / "ours", adapter, base.family, base.source, gains=base.gains)
    with warnings.catch_warnings():
        for about in (".*missing.*", ".*nexpected.*", ".*not found.*"):
            warnings.filterwarnings("error", message=about)
        back = peft.PeftModel.from_pretrained(dinov2(), tmp_path / "ours").eval()
    assert_same(logits(base, adapter), features(back), base, "DINOv2, to PEFT")


def dinov2():
    """A small Dinov2Model whose LayerScale is far from one."""
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=32,
        patch_size=8,
    )).eval()  # fmt: skip
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(0.3 * torch.randn_like(value) + (1 if value.ndim == 1 else 0))
            if "lambda1" in name:
                value.copy_(0.1 + torch.rand_like(value))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", CASE)
def test_written_here_read_by_peft(family, variant, tmp_path):
    base, config = base_of(CASE[family], seed=3), config_of(family, variant)
    adapter = random_adapter(base, config)
    peft_io.write(tmp_path, adapter, base.family, base.source, config, seed=3)
    found = torch_logits(base, load_in_peft(base, tmp_path))
    assert_same(found, logits(base, adapter), base, f"{family} {variant}, to PEFT")


@pytest.mark.parametrize("family", CASE)
def test_a_decoded_update_of_mixed_ranks_is_read_by_peft(family, tmp_path):
    base = base_of(CASE[family], seed=3)
    config = replace(config_of(family, "alpha_pattern"), use_rslora=True)
    adapter = random_adapter(base, config)
    layers = sorted(adapter.pairs)
    for rank, layer in enumerate(layers, start=1):  # another rank in every layer
        b, a, scale = adapter.pairs[layer]
        outputs, inputs = b.shape[0], a.shape[1]
        drawn = cases.factors({layer + ".A": (rank, inputs), layer + ".B": (outputs, rank)}, seed=2)
        adapter.pairs[layer] = (drawn[layer + ".B"], drawn[layer + ".A"], scale)
    peft_io.write(tmp_path, adapter, base.family, base.source)
    found = torch_logits(base, load_in_peft(base, tmp_path))
    assert_same(found, logits(base, adapter), base, f"{family} decoded, to PEFT")
    again = peft_io.read(tmp_path, base)
    assert_same(logits(base, again), logits(base, adapter), base, f"{family} decoded, read here")


@pytest.mark.parametrize("family", CASE)
@pytest.mark.parametrize(
    "target",
    [
        ("q_proj", "c_attn"),
        "all-linear",
        r".*\.(q_proj|c_attn|fc1)",
        r".*\.1\..*(q_proj|c_attn|c_proj|fc2)",
        ("classifier", "mlp.fc2", "mlp.down_proj", "mlp.c_fc"),
    ],
)
def test_targets_pick_what_peft_picks(family, target):
    base = base_of(CASE[family])
    linears = structure(base.config).linears
    if not isinstance(target, str):  # keep the entries that this family has
        target = tuple(t for t in target if any(n.endswith("." + t) for n in linears))
    heads = ["classifier"] if family == "vit" else None
    wanted = target if isinstance(target, str) else [t for t in target if t != "classifier"]
    model = peft.get_peft_model(
        torch_model(base),
        peft.LoraConfig(
            target_modules=wanted, modules_to_save=heads, fan_in_fan_out=family == "gpt2"
        ),
    )
    theirs = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
        for name, _ in model.named_parameters()
        if ".lora_A." in name
    }
    if isinstance(wanted, list):
        wanted = tuple(wanted)
    assert set(targets.select(linears, wanted, heads or ())) == theirs


OTHER = {  # methods beside LoRA: settings, on projections of unequal sides where a family has them
    "adalora": lambda family: peft.AdaLoraConfig(
        init_r=4, target_r=2, tinit=1, tfinal=2, deltaT=1, total_step=8, lora_alpha=6,
        target_modules=list(KINDS[family]), fan_in_fan_out=family == "gpt2",
    ),
    "vera": lambda family: peft.VeraConfig(
        r=5, target_modules=list(KINDS[family]), fan_in_fan_out=family == "gpt2"
    ),
    "loha": lambda family: peft.LoHaConfig(
        r=3, alpha=5, target_modules=list(KINDS[family]),
        rank_pattern={LAYER[family]: 2}, alpha_pattern={LAYER[family]: 7},
    ),
    "lora": lambda family: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=list(KINDS[family]), fan_in_fan_out=family == "gpt2",
        rank_pattern={LAYER[family]: 2}, alpha_pattern={KINDS[family][1]: 3}, use_rslora=True,
    ),
}  # fmt: skip


def trained(base: Base, method: str, folder):
    """A few steps of PEFT's own training, saved; AdaLoRA prunes on the way."""
    torch.manual_seed(0)
    model = peft.get_peft_model(torch_model(base), OTHER[method](base.family))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.3)
    tokens, mask = cases.tokens()
    inputs = (
        {"pixel_values": torch.from_numpy(cases.pixels(32))}
        if base.family == "vit"
        else {
            "input_ids": torch.from_numpy(tokens.astype(np.int64)),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
    )
    for step in range(8):
        optimiser.zero_grad()
        logits_now = model(**inputs).logits
        logits_now[..., :5].log_softmax(-1)[..., 1].mean().neg().backward()
        optimiser.step()
        if method == "adalora":
            model.base_model.update_and_allocate(step)
    if method == "adalora":  # and one layer that lost every rank
        pattern = model.peft_config["default"].rank_pattern
        name = sorted(pattern)[0]
        pattern[name] = [False] * 4
        with torch.no_grad():
            dict(model.base_model.model.named_parameters())[name].zero_()
        kept = {sum(mask) for mask in pattern.values()}
        assert len(kept) > 1 and 0 in kept, pattern
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    ("family", "method"),
    [(f, m) for f in CASE for m in OTHER if (f, m) != ("gpt2", "loha")],  # PEFT has no such LoHa
)
def test_other_methods_equal_peft_own_delta(family, method, tmp_path):
    base = base_of(CASE[family], seed=3)
    trained(base, method, tmp_path / "peft")
    model = load_in_peft(base, tmp_path / "peft")
    adapter = peft_io.read(tmp_path / "peft", base)
    shapes = {k: (o, i) for k, (o, i, _) in structure(base.config).linears.items()}
    without = directory.read(tmp_path / "peft")
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert layers.keys() == adapter.pairs.keys() == without.pairs.keys()
    worst, ranks = 0.0, set()
    for name, module in layers.items():
        theirs = module.get_delta_weight("default").detach().double().numpy()
        theirs = theirs.T if family == "gpt2" else theirs
        for b, a, scale in (adapter.pairs[name], without.pairs[name]):
            a = a[:, : shapes[name][1]]  # VeRA's is shared by layers of more inputs
            ours = scale * b.astype(np.float64) @ a.astype(np.float64)
            assert ours.shape == theirs.shape == shapes[name]
            if not theirs.any():
                assert not ours.any()
                continue
            worst = max(worst, np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        ranks.add(a.shape[0])
    print(f"{family} {method}: worst dW {worst:.1e}, ranks {sorted(ranks)}")
    assert worst <= 1e-5
    assert method not in ("adalora", "lora") or len(ranks) > 1
    expected = torch_logits(base, model)
    assert_same(logits(base, adapter), expected, base, f"{family} {method}, from PEFT")
    # and back: as a plain LoRA directory it is the same model
    peft_io.write(tmp_path / "ours", adapter, base.family, base.source)
    found = torch_logits(base, load_in_peft(base, tmp_path / "ours"))
    assert_same(found, expected, base, f"{family} {method}, to PEFT as LoRA")


def test_vera_without_its_projections_is_refused(tmp_path):
    base = base_of(CASE["llama"], seed=3)
    config = peft.VeraConfig(r=5, target_modules=["q_proj"], save_projection=False)
    peft.get_peft_model(torch_model(base), config).save_pretrained(tmp_path)
    with pytest.raises(SolarError, match="was saved with save_projection=False"):
        peft_io.read(tmp_path, base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: peft.LoKrConfig(target_modules=["q_proj"]), "holds a LOKR adapter"),
        (lambda: peft.LoraConfig(target_modules=["q_proj"], use_dora=True), "uses use_dora"),
        (lambda: peft.LoraConfig(target_modules=["embed_tokens"]), "an adapted embedding"),
    ],
)
def test_what_peft_writes_and_we_do_not_read(config, message, tmp_path):
    base = base_of(CASE["llama"], seed=3)
    peft.get_peft_model(torch_model(base), config()).save_pretrained(
        tmp_path, save_embedding_layers=False
    )
    with pytest.raises(SolarError, match=message):
        peft_io.read(tmp_path, base)


@pytest.mark.parametrize("family", CASE)
def test_an_update_that_is_empty_in_part_or_everywhere_loads_in_peft(family, tmp_path):
    base = base_of(CASE[family], seed=3)
    adapter = random_adapter(base, config_of(family, "alpha/r"))
    for place in ("part", "all"):
        cut = [n for n in adapter.pairs if place == "all" or ".0." in n]
        empty = {n: (b[:, :0], a[:0], s) for n, (b, a, s) in adapter.pairs.items() if n in cut}
        given = Adapter({**adapter.pairs, **empty}, adapter.heads)
        peft_io.write(tmp_path / place, given, base.family, base.source)
        found = torch_logits(base, load_in_peft(base, tmp_path / place))
        expected = logits(base, Adapter({n: p for n, p in given.pairs.items() if n not in cut},
                                        given.heads))  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_layers_left_out_of_a_deep_model_stay_out_in_peft(tmp_path):
    """PEFT shortens lists of more than 20 targets; what is left out must not come back in."""
    base = base_of("llama-own-head", num_hidden_layers=14)
    adapter = random_adapter(base, LoraConfig(r=2, target_modules=("q_proj", "v_proj")))
    cut = "model.layers.3.self_attn.q_proj"
    b, a, scale = adapter.pairs[cut]
    given = Adapter({**adapter.pairs, cut: (b[:, :0], a[:0], scale)}, {})
    peft_io.write(tmp_path, given, base.family, base.source)
    model = load_in_peft(base, tmp_path)
    names = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
        for name, _ in model.named_parameters()
        if ".lora_A." in name
    }
    assert names == adapter.pairs.keys() - {cut} and len(names) == 27
