"""Adapters as PEFT directories: reading one for a base that is loaded, and writing.

Writing is light: it imports neither JAX nor a model. Directories are written in the current
generation of ViT names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save as save_safetensors

from solar.adapters import directory
from solar.adapters.adapter import Adapter
from solar.adapters.directory import PREFIX
from solar.errors import SolarError
from solar.files import write_whole
from solar.weights.names import dinov2_module

if TYPE_CHECKING:  # both stand on JAX
    from solar.adapters.lora import LoraConfig
    from solar.weights.base import Base


def read(folder: str | Path, base: "Base") -> Adapter:
    """Reads an adapter directory for ``base``: see :func:`solar.adapters.directory.read_for`."""
    from solar.models.structure import structure  # flax, which whoever has a Base has imported

    shape = structure(base.config)
    shapes = {name: (outputs, inputs) for name, (outputs, inputs, _) in shape.linears.items()}
    leaves = {name: leaf.shape for name, leaf in shape.leaves.items()}
    return directory.read_for(folder, base.family, shapes, leaves, base.gains)


def write(
    folder: str | Path,
    adapter: Adapter,
    family: str,
    source: str,
    config: "LoraConfig | None" = None,
    seed: int | None = None,
    gains: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes a PEFT directory that ``PeftModel.from_pretrained`` loads; returns the weights' path.

    ``family`` and ``source`` are the base's. With ``config`` (a training run) factors are stored as
    trained and PEFT applies the scale; without it (a decoded update) the scale is folded in and
    ``lora_alpha == r``. ``seed`` of A is recorded beside. ``gains``: the LayerScale (out,) that a
    DINOv2 base has folded into its weights; the update is written as Dinov2Model has it, before
    that scale and by its names (outputs of scale 0 are of no effect, and written as 0).

    PEFT knows no rank 0 and no adapter without a layer. So layers of rank 0 are left out, and where
    all are of rank 0 they are written with one rank of zeros. Raises SolarError for an adapter that
    names no layer at all.
    """
    folder = Path(folder)
    pairs = {k: held for k, held in adapter.pairs.items() if held[1].shape[0]}
    if not pairs:
        pairs = {
            k: (np.zeros((len(b), 1)), np.zeros((1, a.shape[1])), 1.0)
            for k, (b, a, _) in adapter.pairs.items()
        }
    if gains:
        pairs = {dinov2_module(k): _before(gains.get(k), pair) for k, pair in pairs.items()}
    if not pairs:
        raise SolarError(
            f"the update for {folder} names no layer, and PEFT loads no adapter without one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors, ranks = {}, {}
    for layer, (b, a, scale) in pairs.items():
        ranks[layer] = a.shape[0]
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        folded = b if config else b * np.float32(scale)
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = np.ascontiguousarray(folded, np.float32)
    for name, head in adapter.heads.items():
        tensors[PREFIX + name] = np.ascontiguousarray(head, np.float32)
    if config is None:
        rank = max(ranks.values())
        pattern = {k: v for k, v in ranks.items() if v != rank}
        settings = {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
        }
    else:
        settings = {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "use_rslora": config.use_rslora,
            "lora_dropout": config.lora_dropout,
            "rank_pattern": dict(config.rank_pattern),
            "alpha_pattern": dict(config.alpha_pattern),
        }
    document = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": source,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted({n.rpartition(".")[0] for n in adapter.heads}) or None,
        "fan_in_fan_out": family == "gpt2",
        "bias": "none",
        "inference_mode": True,
        **settings,
    }
    write_whole(folder / "adapter_config.json", json.dumps(document, indent=2).encode())
    if seed is not None:
        write_whole(folder / "solar_seed.json", json.dumps({"lora_A": seed}).encode())
    path = folder / "adapter_model.safetensors"
    write_whole(path, save_safetensors(tensors, {"format": "pt"}))
    return path


def _before(gain: np.ndarray | None, pair: tuple) -> tuple:
    """Factors and scale before LayerScale multiplies what they add."""
    if gain is None:
        return pair
    b, a, scale = pair
    return np.divide(b, gain[:, None], out=np.zeros_like(b), where=gain[:, None] != 0), a, scale
