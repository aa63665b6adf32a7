"""Where a checkpoint's names differ from the model's, as data, and the strict fit of one to the
other.

The exceptions are few: GPT-2 files of the hub leave out ``transformer.``, ViT files carry the
module names that ``transformers`` had before version 5, DINOv2 has LayerScale, and buffers are
stored that nobody needs.
"""

import re
from collections.abc import Mapping

import numpy as np

from solar.errors import SolarError
from solar.models.structure import Config, structure
from solar.models.vit import interpolate_positions

VIT_RENAMES = (
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


def fold_layer_scale(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Multiplies DINOv2's LayerScale into the projections before it, which leaves an ordinary ViT.

    ``x + g * (W h + b) = x + (diag(g) W) h + g * b``; keys end in ``layer_scale1.lambda1``
    (attention) and ``layer_scale2.lambda1`` (MLP) under each layer.
    """
    out = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(.*)\.layer_scale([12])\.lambda1", name):
            target = f"{match[1]}.{'attention.o_proj' if match[2] == '1' else 'mlp.fc2'}"
            gain = out.pop(name)
            out[f"{target}.weight"] = gain[:, None] * out[f"{target}.weight"]
            out[f"{target}.bias"] = gain * out[f"{target}.bias"]
    return out


def fit(config: Config, tensors: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Checkpoint tensors as the leaves of ``config``'s model, float32 or bfloat16 as stored.

    A classifier is left out where its shape is not the config's: it is then the adapter's to train.
    Everything else must match exactly; raises one SolarError that lists all missing, unexpected and
    mis-shaped tensors.
    """
    family = config.family
    found = {}
    for name, tensor in tensors.items():
        if not UNUSED[family].search(name):
            found[rename(family, name)] = tensor
    wanted = {k: v.shape for k, v in structure(config).leaves.items()}
    if family == "vit":
        found = fold_layer_scale(found)
        table = "vit.embeddings.position_embeddings"
        if table in found and found[table].shape != wanted[table]:
            found[table] = interpolate_positions(found[table], config.grid)
        head = {k for k in ("classifier.weight", "classifier.bias") if k in found or k in wanted}
        if any(k not in wanted or k not in found or found[k].shape != wanted[k] for k in head):
            found = {k: v for k, v in found.items() if k not in head}
            wanted = {k: v for k, v in wanted.items() if k not in head}
    elif config.tie_word_embeddings:
        found.pop("lm_head.weight", None)
    problems = [f"missing {k}" for k in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected {k}" for k in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{k} is {found[k].shape}, expected {wanted[k]}"
        for k in sorted(wanted.keys() & found.keys())
        if found[k].shape != wanted[k]
    ]
    if problems:
        shown = "; ".join(problems[:12]) + (
            f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        )
        raise SolarError(
            f"{source} does not fit a {family} of its config ({len(problems)} tensors): {shown}. "
            "Check that config.json belongs to these weights"
        )
    return found
