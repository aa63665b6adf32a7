"""An adapter directory, read without a model and, on request, without a base.

Read are what PEFT writes for LoRA (rsLoRA too), AdaLoRA, VeRA and LoHa, ``adapter_config.json`` and
``adapter_model.safetensors``, and directories without a config whose safetensors files hold the
updates themselves, ``NAME`` or ``NAME.weight`` -> (outputs, inputs).

A PEFT key is ``base_model.model.`` + the module's path + the factor's name; trained modules are
stored whole under their path. Both generations of ViT names are read. What is not understood is
refused: a key that stays unused would be an adapter that silently does less.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from solar.adapters import targets
from solar.adapters.adapter import Adapter, scaling
from solar.adapters.peft_config import METHODS, check_whole, read_config
from solar.adapters.products import BARE, PARTS, Shape, factors, finite
from solar.errors import SolarError
from solar.weights.checkpoint import opened, safetensors_table
from solar.weights.names import rename, rename_module
from solar.weights.stored import Stored

PREFIX = "base_model.model."
REFUSED_KEYS = {
    "lora_magnitude_vector": "DoRA's magnitude vectors",
    "lora_embedding_": "an adapted embedding",
    "hada_t1": "an adapted convolution",
    "hada_t2": "an adapted convolution",
}
FLOATS = ("F64", "F32", "F16", "BF16")
SHARED = ("vera_A", "vera_B")
RANKNUM_OFFSET = 1e-5  # PEFT divides AdaLoRA's update by its rank plus this


class Layer(NamedTuple):
    """One layer's factors in their file, by PEFT's names; ``path`` is what its config calls it."""

    path: str
    parts: Mapping[str, Stored]


class Opened(NamedTuple):
    """A directory whose config and headers were read and accepted. ``file`` is for messages,
    ``method`` a key of products.PARTS, ``shared`` what all layers use.
    """

    file: Path
    method: str
    config: dict
    layers: Mapping[str, Layer]
    shared: Mapping[str, Stored]
    heads: Mapping[str, Stored]


def read(folder: str | Path) -> Adapter:
    """An adapter under the names of its directory, factors float32, scale as PEFT applies it.

    Raises SolarError, in one line, for everything that is not read: see the head of this module.
    """
    found = open_directory(folder)
    pairs = {name: pair(found, name) for name in sorted(found.layers)}
    wide = frozenset(pairs) if found.method == "VERA" else frozenset()
    return Adapter(pairs, {k: finite(k, v) for k, v in found.heads.items()}, wide)


def read_for(
    folder: str | Path,
    family: str,
    shapes: Mapping[str, Shape],
    leaves: Mapping[str, tuple[int, ...]] | None = None,
    gains: Mapping[str, np.ndarray] | None = None,
) -> Adapter:
    """An adapter for a base of ``family`` whose projections have ``shapes`` (outputs, inputs),
    under the base's names.

    ``leaves``: shapes of all its weights, with which trained heads are compared. ``gains``: the
    LayerScale (out,) of projections whose weights have it folded in, and which scales an update as
    it scales the weight. Beyond what
    :func:`read` refuses, raises SolarError for keys that fit no module, shapes that do not fit,
    and a configured target without tensors.
    """
    found = renamed(open_directory(folder), family)
    unused = [f"{k}.{part}" for k in found.layers.keys() - shapes for part in found.layers[k].parts]
    unused += [] if leaves is None else found.heads.keys() - leaves
    if unused:
        raise SolarError(
            f"{found.file} has {len(unused)} keys that fit no module of this {family}, "
            f"such as {min(unused)}; check that the adapter belongs to this base"
        )
    check_whole(found.config, found.file, shapes, found.layers, found.heads)
    pairs = {name: pair(found, name, tuple(shapes[name])) for name in sorted(found.layers)}
    for name in pairs.keys() & (gains or {}).keys():
        b, a, scale = pairs[name]
        pairs[name] = (gains[name][:, None] * b, a, scale)
    for name, head in found.heads.items():
        if leaves is not None and head.shape != tuple(leaves[name]):
            raise SolarError(
                f"{name} is {head.shape} in {found.file}, {tuple(leaves[name])} in the base"
            )
    return Adapter(pairs, {k: finite(k, v) for k, v in found.heads.items()})


def unique(new: Mapping[str, str], held: Mapping) -> dict:
    """``held`` under new names; raises SolarError where two names become one."""
    found = {}
    for old in sorted(held):
        if new[old] in found:
            raise SolarError(f"the adapter names {new[old]} twice, once as {old}; save it again")
        found[new[old]] = held[old]
    return found


def renamed(found: Opened, family: str) -> Opened:
    """A directory under the names of a base of ``family``."""
    layers = unique({k: rename_module(family, k) for k in found.layers}, found.layers)
    heads = unique({k: rename(family, k) for k in found.heads}, found.heads)
    return found._replace(layers=layers, heads=heads)


def open_directory(folder: str | Path) -> Opened:
    """Config and headers of an adapter directory, values still in their files.

    Raises SolarError for a config that is not read, for tensors that are neither factors nor
    trained modules, and for quantised ones.
    """
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file():
        return open_peft(folder, read_config(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SolarError(
            f"{folder} has no adapter_config.json; give a directory that PEFT wrote, or one whose "
            "safetensors files hold the updates themselves"
        )
    layers = {}
    for file in files:
        for key, stored in tensors(file).items():
            if any(part in key for parts in PARTS.values() for part in parts if part != BARE):
                raise SolarError(
                    f"{folder} has no adapter_config.json, yet {key} is a factor of an adapter; "
                    "give the whole directory that PEFT wrote"
                )
            name = key.removesuffix(".weight")
            if name in layers:
                raise SolarError(f"{folder} holds two updates of {name}; leave one")
            if len(stored.shape) != 2:
                raise SolarError(
                    f"{file} holds {key} of shape {stored.shape}; only two-dimensional updates "
                    "are read"
                )
            layers[name] = Layer(name, {BARE: stored})
    if not layers:
        raise SolarError(f"{files[0]} holds no updates; give an adapter")
    return Opened(files[0] if len(files) == 1 else folder, BARE, {}, layers, {}, {})


def open_peft(folder: Path, config: dict) -> Opened:
    """:func:`open_directory` of what PEFT wrote."""
    file, method = folder / "adapter_model.safetensors", config["peft_type"]
    if not file.is_file():
        old = " (adapter_model.bin is not read: save it again with safetensors)"
        hint = old if (folder / "adapter_model.bin").is_file() else ""
        raise SolarError(
            f"{folder} has no adapter_model.safetensors{hint}; give a whole PEFT directory"
        )
    parts: dict[str, dict[str, Stored]] = {}
    heads, shared, unused = {}, {}, []
    form = re.compile(rf"(.+)\.({'|'.join(PARTS[method])})(\.weight)?")
    saved = config.get("modules_to_save") or ()
    for key, stored in tensors(file).items():
        if match := form.fullmatch(key):
            parts.setdefault(match[1], {})[match[2]] = stored
        elif method == "VERA" and key.removeprefix("base_model.") in SHARED:
            shared[key.removeprefix("base_model.")] = stored
        elif any(targets.within(key, module) for module in saved):
            heads[key] = stored
        else:
            unused.append(key)
    for key in unused:
        for mark, meaning in REFUSED_KEYS.items():
            if mark in key:
                raise SolarError(f"{file} holds {key} ({meaning}), which is not supported")
    if unused:
        raise SolarError(
            f"{file} has {len(unused)} keys that are neither factors of {METHODS[method]} nor in "
            f"modules_to_save, such as {unused[0]}; save the adapter again without them"
        )
    if not parts:
        raise SolarError(f"{file} holds no {METHODS[method]} factors; give a trained adapter")
    if method == "VERA" and shared.keys() != set(SHARED):
        raise SolarError(
            f"{file} lacks {' and '.join(k for k in SHARED if k not in shared)}, the projections "
            "that all layers share; save the adapter again with save_projection=True"
        )
    layers = {name: Layer(name, held) for name, held in parts.items()}
    return Opened(file, method, config, layers, shared, heads)


def pair(
    found: Opened, name: str, shape: Shape | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """(B, A, scale) of one layer. ``shape``: (outputs, inputs) of the base's projection, None where
    no base is known.

    Raises SolarError for a layer without all its factors, and what :func:`products.factors` does.
    """
    layer, wanted = found.layers[name], PARTS[found.method]
    if lacking := [part for part in wanted if part not in layer.parts]:
        raise SolarError(
            f"{found.file} has only {', '.join(sorted(layer.parts))} for {name} and lacks "
            f"{', '.join(lacking)}; the file is damaged"
        )
    parts = {**{part: layer.parts[part] for part in wanted}, **found.shared}
    if conv := [part for part, stored in parts.items() if len(stored.shape) > 2]:
        raise SolarError(
            f"{name}.{conv[0]} has shape {parts[conv[0]].shape} (an adapted convolution); only "
            "two-dimensional updates are read"
        )
    b, a = factors(found.method, name, parts, shape)
    return b, a, scale(found, layer)


def scale(found: Opened, layer: Layer) -> float:
    """The factor before the product, as PEFT applies it once the directory is loaded.

    Raises SolarError where AdaLoRA's config allocates another rank than the stored one.
    """
    config, path, parts = found.config, layer.path, layer.parts
    if found.method in ("VERA", BARE):
        return 1.0
    if found.method == "ADALORA":
        rank, start = parts["lora_A"].shape[0], config["init_r"]
        mask = (config.get("rank_pattern") or {}).get(f"{path}.lora_E")
        allocated = start if mask is None else sum(map(bool, mask))
        if rank != allocated:
            raise SolarError(
                f"{found.file} holds {rank} ranks of {path}, its config allocates {allocated}; "
                "save the adapter again"
            )
        # The divisor stays that of the first rank, whatever was pruned since.
        alpha = config["lora_alpha"] if config["lora_alpha"] > 0 else rank
        return alpha / (start + RANKNUM_OFFSET)
    loha = found.method == "LOHA"
    alpha = config["alpha" if loha else "lora_alpha"]
    alpha = targets.by_pattern(config.get("alpha_pattern") or {}, path, alpha)
    rank = parts["hada_w1_b" if loha else "lora_A"].shape[0]
    rslora = bool(config.get("use_rslora")) and not loha
    return scaling(alpha, rank, rslora) if rank else 0.0


def tensors(file: Path) -> dict[str, Stored]:
    """A file's tensors without PEFT's prefix; raises SolarError for one that holds no floats."""
    with opened(file) as held:
        kinds = {key: held.get_slice(key).get_dtype() for key in held.keys()}  # noqa: SIM118
    for key, kind in kinds.items():
        if kind not in FLOATS:
            raise SolarError(
                f"{file} holds {key} as {kind}; quantised adapters are not read, save it in "
                "float32, float16 or bfloat16"
            )
    return {key.removeprefix(PREFIX): stored for key, stored in safetensors_table(file).items()}
