"""Our bases as torch models of `transformers`, and PEFT's LoRA on them: the reference side of every
comparison.

Imported only where torch is (requirements-parity.txt). Leaf names equal the keys of a state dict,
so a model is built from its config and filled by name; whatever did not fit by name would raise.
"""

from dataclasses import asdict

import numpy as np
import peft
import torch
import transformers

from solar.adapters.lora import LoraConfig
from solar.models.structure import Config
from solar.weights.base import Base

ATTENTION = "sdpa"


def torch_config(config: Config, attention: str = ATTENTION):
    """The `transformers` config of one of ours; eager attention on request."""
    fields = asdict(config)
    for ours in ("dtype", "remat", "pool"):
        fields.pop(ours, None)
    if config.family == "gpt2":
        kind = transformers.GPT2Config
        fields |= {name: 0.0 for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    elif config.family == "llama":
        kind = transformers.LlamaConfig
        scaling = fields.pop("rope_scaling")
        rope = {"rope_type": "llama3", **scaling} if scaling else {"rope_type": "default"}
        fields["rope_parameters"] = {**rope, "rope_theta": fields.pop("rope_theta")}
    else:
        kind = transformers.ViTConfig
        fields |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return kind(**fields, attn_implementation=attention)


def torch_model(base: Base, *, fresh_head: bool = False, attention: str = ATTENTION):
    """The torch model with the base's weights, float32, in evaluation mode.

    ``fresh_head`` lets a ViT's classifier keep the draw of `transformers` where the base has none.
    """
    kinds = {
        "gpt2": transformers.GPT2LMHeadModel,
        "llama": transformers.LlamaForCausalLM,
        "vit": transformers.ViTForImageClassification,
    }
    model = kinds[base.family](torch_config(base.config, attention))
    state = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in base.params.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    allowed = {"lm_head.weight"} if getattr(base.config, "tie_word_embeddings", False) else set()
    if fresh_head:
        allowed |= {"classifier.weight", "classifier.bias"}
    if unexpected or set(missing) - allowed:
        raise ValueError(f"torch's model does not fit: missing {missing}, unexpected {unexpected}")
    return model.eval()


def peft_model(model, config: LoraConfig):
    """PEFT's LoRA of the same settings around a torch model; A is drawn from torch's generator."""
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            use_rslora=config.use_rslora,
            lora_dropout=config.lora_dropout,
            target_modules=config.target_modules
            if isinstance(config.target_modules, str)
            else list(config.target_modules),
            rank_pattern=dict(config.rank_pattern),
            alpha_pattern=dict(config.alpha_pattern),
            modules_to_save=list(config.modules_to_save) or None,
            fan_in_fan_out=isinstance(model, transformers.GPT2LMHeadModel),
        ),
    )
