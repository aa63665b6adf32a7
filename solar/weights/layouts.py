"""The strict fit of a checkpoint's tensors to a model's leaves, LayerScale folded on the way."""

from collections.abc import Mapping

import numpy as np

from solar.errors import SolarError
from solar.models.structure import Config, structure
from solar.models.vit import interpolate_positions
from solar.weights.names import UNUSED, rename, scaled_module


def layer_scales(family: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """DINOv2's LayerScale vectors (out,) float32 of a checkpoint, by the projections before them;
    none of another model."""
    named = {scaled_module(rename(family, name)): tensor for name, tensor in tensors.items()}
    return {k: np.asarray(v, np.float32) for k, v in named.items() if k}


def fold_layer_scale(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Multiplies DINOv2's LayerScale into the projections before it, which leaves an ordinary ViT.

    ``x + g * (W h + b) = x + (diag(g) W) h + g * b``.
    """
    out = dict(tensors)
    for name in tensors:
        if target := scaled_module(name):
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
