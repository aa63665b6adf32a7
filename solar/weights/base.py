"""One door to every base model: a spec in, a :class:`Base` out.

A spec is a local Hugging Face directory, a GGUF or ONNX file, ``pip:NAME==VERSION`` (also ``npm:``,
``deb:``; ``#path`` picks a file inside the package), ``made:NAME`` (what a program of this
repository trained into the cache), ``tiny:FAMILY`` (random, for tests), or a hub id. All end as a
config, float32 leaves by name and, for text, a tokenizer.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from solar.errors import SolarError
from solar.models.gpt2 import GPT2Config
from solar.models.llama import LlamaConfig
from solar.models.structure import Config, structure
from solar.models.vit import ViTConfig
from solar.weights import checkpoint, gguf, gguf_tokenizer, names, tiny
from solar.weights.layouts import fit, layer_scales
from solar.weights.locate import contents, locate

CONFIGS = {"gpt2": GPT2Config, "llama": LlamaConfig, "vit": ViTConfig}
FAMILIES = {kind: CONFIGS[family] for kind, family in names.FAMILIES.items()}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Base:
    """A foundation model at rest. ``params`` holds float32 (or bfloat16) arrays under checkpoint
    names, ``gains`` the LayerScale (out,) that was multiplied into each projection of a DINOv2.
    """

    source: str
    config: Config
    params: Mapping[str, np.ndarray]
    tokenizer: PreTrainedTokenizerBase | None = None
    image_mean: tuple[float, ...] = HALF[0]
    image_std: tuple[float, ...] = HALF[1]
    gains: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return self.config.family


def load(spec: str, **overrides) -> Base:
    """Loads a base model. ``overrides`` replace config fields: dtype, remat, image_size,
    num_labels, pool.

    Raises SolarError, in one line, where the spec names nothing readable or the weights do not fit.
    """
    if spec.startswith("tiny:"):
        own, leaves, tokenizer = tiny.read(spec.removeprefix("tiny:"))
        config = adjust(own, overrides)
        return Base(spec, config, fit(config, leaves, spec), tokenizer)
    path = locate(spec)
    raw, table = contents(path, spec)
    extra, kind = {}, raw["model_type"]
    if path.suffix == ".gguf":
        extra["tokenizer"] = gguf_tokenizer.read_tokenizer(gguf.open_gguf(path))
    elif any((path / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        extra["tokenizer"] = read_tokenizer(path)
    try:
        config = FAMILIES[kind].from_hf(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise SolarError(
            f"the config of {spec} is no {kind}'s ({type(error).__name__}: {error}); fetch it again"
        ) from error
    config = adjust(config, overrides)
    if config.family == "vit":
        extra["image_mean"], extra["image_std"] = image_statistics(path, kind)
    tensors = {name: stored.read() for name, stored in table.items()}
    extra["gains"] = layer_scales(config.family, tensors)
    return Base(spec, config, fit(config, tensors, spec), **extra)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; raises SolarError where its files are damaged."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise SolarError(
            f"the tokenizer in {folder} cannot be read ({reason}); fetch it again"
        ) from error


def adjust(config: Config, overrides: Mapping) -> Config:
    """``config`` with the overrides that are not None; raises SolarError for a field it does not
    have, a dtype that is none of a model, and an image size that patches do not fill.
    """
    known = {k: v for k, v in overrides.items() if v is not None}
    if unknown := sorted(known.keys() - config.__dataclass_fields__.keys()):
        raise SolarError(
            f"{config.family} has no option {unknown[0]!r}; remove it from the model config"
        )
    config = replace(config, **known)
    if config.dtype not in DTYPES:
        raise SolarError(f"dtype {config.dtype!r} is unknown; use {', '.join(DTYPES)}")
    if config.family == "vit" and (config.image_size < 1 or config.image_size % config.patch_size):
        raise SolarError(
            f"image_size {config.image_size} is no multiple of the patches' {config.patch_size}"
        )
    return config


def image_statistics(path: Path, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, in [0, 1] units, from the folder or as the family has
    them.
    """
    file = path / "preprocessor_config.json"
    if path.is_dir() and file.is_file():
        raw = checkpoint.read_json(file)
        if "image_mean" in raw and "image_std" in raw:
            return tuple(raw["image_mean"]), tuple(raw["image_std"])
    return IMAGENET if kind == "dinov2" else HALF


def fingerprint(base: Base) -> str:
    """SHA-256 over all weights, names and dtypes included: which model exactly this is."""
    digest = hashlib.sha256()
    for name in sorted(base.params):
        array = np.ascontiguousarray(base.params[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def oriented(base: Base, name: str) -> np.ndarray:
    """The weight of projection ``name`` as (outputs, inputs) float32, whatever the layout it is
    stored in.
    """
    weight = np.asarray(base.params[name + ".weight"], np.float32)
    return weight.T if structure(base.config).linears[name][2] else weight
