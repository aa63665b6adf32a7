"""``adapter_config.json``: which adapters are read, and what a config promises of its tensors."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from solar.adapters import targets
from solar.errors import SolarError
from solar.weights.checkpoint import read_json

METHODS = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "VERA": "VeRA", "LOHA": "LoHa"}
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
NUMBERS = {
    "LORA": ("r", "lora_alpha"),
    "ADALORA": ("init_r", "lora_alpha"),
    "VERA": ("r",),
    "LOHA": ("r", "alpha"),
}


def read_config(folder: Path) -> dict:
    """``adapter_config.json``; raises SolarError for a method or a variant that is not read."""
    path = folder / "adapter_config.json"
    config = read_json(path)
    method = config.get("peft_type")
    if method not in tuple(METHODS):  # which, unlike a dict, can be asked about a list
        raise SolarError(f"{folder} holds a {method} adapter; only {', '.join(METHODS)} are read")
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
    if method == "VERA" and config.get("save_projection") is False:
        raise SolarError(
            f"{folder} was saved with save_projection=False, so the matrices that its layers share "
            "are not in it; load it with PEFT and save it with save_projection=True"
        )
    for name in NUMBERS[method]:
        if not number(config.get(name)):
            raise SolarError(
                f"{path} does not give {name}; the file is damaged or not a "
                f"{METHODS[method]} config"
            )
    check_patterns(path, config)
    return config


def number(value: object) -> bool:
    """Whether ``value`` is a number of ordinary size: JSON also knows NaN, true and 10**400."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and -1e30 < value < 1e30


def check_patterns(path: Path, config: Mapping) -> None:
    """Raises SolarError where the lists and patterns of a config are not what PEFT writes."""

    def texts(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)

    def masks(value: object) -> bool:  # AdaLoRA: which ranks are left
        return isinstance(value, list)

    kinds = {"alpha_pattern": number, "rank_pattern": number}
    if config["peft_type"] == "ADALORA":
        kinds["rank_pattern"] = masks
    good = {
        "modules_to_save": texts(config.get("modules_to_save") or []),
        "target_modules": isinstance(config.get("target_modules"), str)
        or texts(config.get("target_modules") or []),
    }
    for field, kind in kinds.items():
        held = config.get(field) or {}
        good[field] = isinstance(held, dict) and all(map(kind, held.values()))
    if bad := [field for field, fine in good.items() if not fine]:
        raise SolarError(f"{path}: {bad[0]} is not what PEFT writes; the file is damaged")
    for pattern in config.get("alpha_pattern") or {}:
        try:
            re.compile(targets.at_end(pattern))
        except re.error as error:
            raise SolarError(
                f"{path}: {pattern!r} in alpha_pattern is no regular expression ({error})"
            ) from error


def check_whole(
    config: Mapping, file: Path, linears: Iterable[str], found: Iterable[str], heads: Iterable[str]
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
