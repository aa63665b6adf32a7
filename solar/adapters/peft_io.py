"""Adapters as PEFT directories, in and out: ``adapter_config.json`` and
``adapter_model.safetensors``.

A PEFT key is ``base_model.model.`` + the module's path + ``.lora_A.weight`` or ``.lora_B.weight``;
trained modules are stored whole under their path. Directories are read in both generations of ViT
names and written in the current one. What is not understood is refused: a key that stays unused
would be an adapter that silently does less.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_safetensors

from solar.adapters import targets
from solar.adapters.lora import Adapter, LoraConfig, scaling
from solar.errors import SolarError
from solar.files import write_whole
from solar.models.structure import structure
from solar.weights.base import Base
from solar.weights.checkpoint import read_json, safetensors_table
from solar.weights.names import rename

PREFIX = "base_model.model."
REFUSED = {
    "use_dora": "DoRA's magnitude vectors",
    "lora_bias": "biases inside LoRA",
    "use_qalora": "QA-LoRA's pooled inputs",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token rows",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "LoRA on bare parameters",
    "use_bdlora": "block-diagonal factors",
    "kasa_config": "KaSA's singular values and truncated base",
    "arrow_config": "Arrow's routing between adapters",
}
# Initialisations with which PEFT takes the adapter's start out of the base weights, so that the
# factors belong to another base than the published one.
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def read_config(folder: Path) -> dict:
    """``adapter_config.json`` of a LoRA directory; raises SolarError for what is not plain LoRA."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise SolarError(f"{folder} has no adapter_config.json; give a directory that PEFT wrote")
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise SolarError(f"{folder} holds a {config.get('peft_type')} adapter; only LORA is read")
    for name, meaning in REFUSED.items():
        if config.get(name):
            raise SolarError(
                f"{folder} uses {name} ({meaning}), which is not supported; train it without"
            )
    if str(config.get("init_lora_weights", True)).lower().startswith(CHANGES_BASE):
        raise SolarError(
            f"{folder} was initialised by {config['init_lora_weights']}, which changes the base "
            "weights; save it with path_initial_model_for_weight_conversion"
        )
    if config.get("bias", "none") != "none":
        raise SolarError(
            f"{folder} trains biases (bias={config['bias']!r}); only bias='none' is read"
        )
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), (int, float)):
            raise SolarError(
                f"{path} does not give {name}; the file is damaged or not a LoRA config"
            )
    return config


def read(folder: str | Path, base: Base) -> Adapter:
    """Reads a PEFT LoRA directory for ``base``: factors float32, scale as PEFT applies it.

    Raises SolarError for a missing file, DoRA and other variants, keys that fit no module, shapes
    that do not fit, half a pair, and a configured target without tensors.
    """
    folder = Path(folder)
    config = read_config(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        old = " (adapter_model.bin is not read: save it again with safetensors)"
        hint = old if (folder / "adapter_model.bin").is_file() else ""
        raise SolarError(
            f"{folder} has no adapter_model.safetensors{hint}; give a whole PEFT directory"
        )
    shape = structure(base.config)
    halves: dict[str, dict[str, np.ndarray]] = {}
    heads, unused = {}, []
    for key, tensor in {k: v.read() for k, v in safetensors_table(file).items()}.items():
        path = rename(base.family, key.removeprefix(PREFIX))
        layer, _, last = path.rpartition(".lora_")
        if last in ("A.weight", "B.weight") and layer in shape.linears:
            halves.setdefault(layer, {})[last[0]] = np.asarray(tensor, np.float32)
        elif path in shape.leaves:
            heads[path] = np.asarray(tensor, np.float32)
        else:
            unused.append(key)
    if unused:
        raise SolarError(
            f"{file} has {len(unused)} keys that fit no module of this {base.family}, "
            f"such as {unused[0]}; check that the adapter belongs to this base"
        )
    if not halves:
        raise SolarError(f"{file} holds no LoRA factors; give a LoRA adapter")
    check_whole(config, file, shape.linears, halves, heads)
    pairs = {}
    for layer, half in sorted(halves.items()):
        outputs, inputs, _ = shape.linears[layer]
        if half.keys() != {"A", "B"}:
            raise SolarError(
                f"{file} has only lora_{next(iter(half))} for {layer}; the file is damaged"
            )
        a, b = half["A"], half["B"]
        if a.ndim != 2 or a.shape[1] != inputs or b.shape != (outputs, a.shape[0]):
            raise SolarError(
                f"{layer}: lora_A {a.shape} and lora_B {b.shape} do not fit a projection of "
                f"{inputs} to {outputs}; check that the adapter belongs to this base"
            )
        alpha = targets.by_pattern(config.get("alpha_pattern") or {}, layer, config["lora_alpha"])
        pairs[layer] = (b, a, scaling(alpha, a.shape[0], bool(config.get("use_rslora"))))
    for name, head in heads.items():
        if head.shape != shape.leaves[name].shape:
            raise SolarError(
                f"{name} is {head.shape} in {file}, {shape.leaves[name].shape} in the base"
            )
    return Adapter(pairs, heads)


def check_whole(
    config: dict, file: Path, linears: Iterable[str], found: Iterable[str], heads: Iterable[str]
) -> None:
    """Raises SolarError where the config names targets or trained modules that ``file`` lacks.

    Lists of targets are checked, in both generations of ViT names, unless the config leaves out
    layers; a regular expression speaks of one generation only and is not.
    """
    wanted, narrowed = config.get("target_modules"), ("exclude_modules", "layers_to_transform")
    if isinstance(wanted, list) and not any(config.get(name) is not None for name in narrowed):
        ends = [targets.OLD_VIT.get(t, t) for t in wanted]
        saved = config.get("modules_to_save") or ()
        lacking = [
            name
            for name in sorted(linears)
            if any(name == end or name.endswith("." + end) for end in ends)
            and not any(targets.within(name, module) for module in saved)
            and name not in found
        ]
        if lacking:
            raise SolarError(
                f"{file} lacks the factors of {lacking[0]} ({len(lacking)} such), which its config "
                "adapts; the file is damaged or belongs to a smaller base"
            )
    if config.get("modules_to_save") and not heads:
        raise SolarError(
            f"{file} lacks {', '.join(config['modules_to_save'])}, which its config lists in "
            "modules_to_save; save the adapter again"
        )


def write(
    folder: str | Path,
    adapter: Adapter,
    base: Base,
    config: LoraConfig | None = None,
    seed: int | None = None,
) -> Path:
    """Writes a PEFT directory that ``PeftModel.from_pretrained`` loads; returns the weights' path.

    With ``config`` (a training run) factors are stored as trained and PEFT applies the scale;
    without it (a decoded update) the scale is folded in and ``lora_alpha == r``. ``seed`` of A is
    recorded beside.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, ranks = {}, {}
    for layer, (b, a, scale) in adapter.pairs.items():
        ranks[layer] = a.shape[0]
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        folded = b if config else b * np.float32(scale)
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = np.ascontiguousarray(folded, np.float32)
    for name, head in adapter.heads.items():
        tensors[PREFIX + name] = np.ascontiguousarray(head, np.float32)
    if config is None:
        rank = max(ranks.values(), default=1)
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
        "base_model_name_or_path": base.source,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted({n.rpartition(".")[0] for n in adapter.heads}) or None,
        "fan_in_fan_out": base.family == "gpt2",
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
