"""Live: adapters written by PEFT and read here, and the other way round, give the same logits."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from golden import cases  # noqa: E402
from golden.bases import base_of, logits  # noqa: E402

from benchmarks.torch_models import peft_model, torch_model  # noqa: E402
from solar.adapters import peft_io, targets  # noqa: E402
from solar.adapters.adapter import Adapter  # noqa: E402
from solar.adapters.lora import LoraConfig, head_names, plan  # noqa: E402
from solar.models.structure import structure  # noqa: E402
from solar.weights.base import Base  # noqa: E402

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


def torch_logits(base: Base, model) -> np.ndarray:
    with torch.no_grad():
        if base.family == "vit":
            return model(pixel_values=torch.from_numpy(cases.pixels(32))).logits.numpy()
        tokens, mask = cases.tokens()
        ids, real = (
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(mask.astype(np.int64)),
        )
        return model(input_ids=ids, attention_mask=real).logits.numpy() * mask[..., None]


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
