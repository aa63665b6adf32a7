"""Where a checkpoint's names differ from the model's, as data.

The exceptions are few: GPT-2 files of the hub leave out ``transformer.``, ViT files carry the
module names that ``transformers`` had before version 5, DINOv2 has LayerScale, and buffers are
stored that nobody needs.
"""

import re

# The ``model_type`` of a config.json, and the family that reads it.
FAMILIES = {"gpt2": "gpt2", "llama": "llama", "vit": "vit", "dinov2": "vit"}
VIT_RENAMES = (
    (r"^dinov2\.", "vit."),
    (r"^(embeddings|encoder|layernorm|layers)\b", r"vit.\1"),
    (r"^vit\.encoder\.layer\.(\d+)\.", r"vit.layers.\1."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(vit\.layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)
GPT2_RENAMES = ((r"^(wte|wpe|h|ln_f)\b", r"transformer.\1"),)
RENAMES = {"vit": VIT_RENAMES, "gpt2": GPT2_RENAMES, "llama": ()}
UNUSED = {
    "vit": re.compile(r"pooler\.|mask_token$"),
    "gpt2": re.compile(r"\.attn\.(bias|masked_bias)$"),
    "llama": re.compile(r"rotary_emb\.inv_freq$"),
}


def rename(family: str, name: str) -> str:
    """The model's name of a checkpoint's tensor, or of a module named as an older release did."""
    for pattern, new in RENAMES[family]:
        name = re.sub(pattern, new, name)
    return name


def rename_module(family: str, name: str) -> str:
    """:func:`rename` for the path of a module, which ends without the name of a tensor."""
    return rename(family, name + ".").removesuffix(".")


def dinov2_module(name: str) -> str:
    """What Dinov2Model of ``transformers`` 5 calls a projection of the model's name ``name``."""
    return re.sub(r"^vit\.layers\.", "encoder.layer.", name)


def scaled_module(name: str) -> str | None:
    """The projection whose output a LayerScale vector called ``name`` multiplies; None for others.

    Names end in ``layer_scale1.lambda1`` (attention) and ``layer_scale2.lambda1`` (MLP) under each
    layer.
    """
    if match := re.fullmatch(r"(.*)\.layer_scale([12])\.lambda1", name):
        return f"{match[1]}.{'attention.o_proj' if match[2] == '1' else 'mlp.fc2'}"
    return None
