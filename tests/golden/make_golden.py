"""Writes the golden values of this folder with torch, transformers and PEFT.

    cd tests && python -m golden.make_golden        (needs requirements-parity.txt)

logits.npz: the logits of every case; adapters.npz: the logits with the adapters in peft-*/ that
PEFT saved; torch.bin: a state dictionary as torch.save writes it; vit-keys.json: the names under
which transformers saves a ViT and those it has in memory.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors import safe_open

from golden import cases

HERE = Path(__file__).parent
KINDS = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "vit": (transformers.ViTConfig, transformers.ViTForImageClassification),
}
ADAPTERS = {
    "gpt2": (
        "gpt2",
        {"use_rslora": True, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    ),
    "llama": (
        "llama-own-head",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 3},
            "alpha_pattern": {"v_proj": 5},
        },
    ),
    "vit": ("vit", {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}),
}


def model_of(name: str):
    """The torch model of a case, in evaluation mode with the weights of the recipe."""
    raw = cases.CASES[name]
    config_of, kind = KINDS[raw["model_type"]]
    config = config_of(**{k: v for k, v in raw.items() if k != "model_type"})
    config._attn_implementation = "eager"
    model = kind(config)
    shapes = {k: tuple(v.shape) for k, v in model.named_parameters()}  # tied tensors once
    state = {k: torch.from_numpy(v) for k, v in cases.weights(shapes).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model.eval()


@torch.no_grad()
def logits_of(model) -> np.ndarray:
    if isinstance(getattr(model, "config", None), transformers.ViTConfig):
        return model(pixel_values=torch.from_numpy(cases.pixels(32))).logits.numpy()
    ids, mask = (torch.from_numpy(a.astype(np.int64)) for a in cases.tokens())
    return model(input_ids=ids, attention_mask=mask).logits.numpy()


@torch.no_grad()
def main() -> None:
    found = {name: logits_of(model_of(name)) for name in cases.CASES}
    vit = model_of("vit")
    other = torch.from_numpy(cases.pixels(cases.OTHER_SIZE))
    found["vit-resized"] = vit(pixel_values=other, interpolate_pos_encoding=True).logits.numpy()
    hidden = vit.vit(pixel_values=torch.from_numpy(cases.pixels(32))).last_hidden_state
    found["vit-mean"] = hidden[:, 1:].mean(1).numpy()
    np.savez_compressed(HERE / "logits.npz", **found)

    adapted = {}
    for family, (name, settings) in ADAPTERS.items():
        model = peft.get_peft_model(model_of(name), peft.LoraConfig(r=2, lora_alpha=6, **settings))
        trained = {k: v for k, v in model.named_parameters() if v.requires_grad}
        for key, value in cases.factors({k: tuple(v.shape) for k, v in trained.items()}).items():
            trained[key].copy_(torch.from_numpy(value))
        folder = HERE / f"peft-{family}"
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        adapted[family] = logits_of(model.eval())
    np.savez_compressed(HERE / "adapters.npz", **adapted)

    saved = HERE / "saved"
    vit.save_pretrained(saved)
    with safe_open(saved / "model.safetensors", "np") as file:
        stored = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    memory = {key: list(value.shape) for key, value in vit.state_dict().items()}
    (HERE / "vit-keys.json").write_text(
        json.dumps({"stored": stored, "memory": memory}, indent=1) + "\n"
    )
    shutil.rmtree(saved)

    grid = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    state = {
        "single": grid / 7,
        "half": (grid / 7).half(),
        "brain": (grid / 7).bfloat16(),
        "whole": torch.arange(4),
        "flags": torch.tensor([True, False, True]),
        "second.row": grid[1],  # shares the storage of no other tensor's start
    }
    torch.save(state, HERE / "torch.bin")
    torch.save({"transposed": grid.t()}, HERE / "torch-strided.bin")


if __name__ == "__main__":
    main()
