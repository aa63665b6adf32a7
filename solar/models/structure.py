"""Between flax modules and plain dictionaries: a model is a static structure plus leaves by name.

The name of a leaf is its path joined by dots, which is also its key in a Hugging Face checkpoint.
Programs hold ``dict[name, array]``, differentiate and jit over it with plain ``jax``, and assemble
the module inside.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from solar.models.gpt2 import GPT2, GPT2Config
from solar.models.linear import Linear
from solar.models.llama import Llama, LlamaConfig
from solar.models.vit import ViT, ViTConfig

MODELS = {"gpt2": GPT2, "llama": Llama, "vit": ViT}
Config = GPT2Config | LlamaConfig | ViTConfig


@dataclass(frozen=True)
class Structure:
    """What stays of a model when its arrays are taken out. ``leaves`` gives each name's shape and
    dtype.
    """

    graph: Any
    leaves: Mapping[str, jax.ShapeDtypeStruct]
    linears: Mapping[str, tuple[int, int, bool]]  # projection name -> (outputs, inputs, conv1d)


def structure(
    config: Config, ranks: Mapping[str, int] | None = None, dropout: float = 0.0
) -> Structure:
    """The structure of ``config``'s model, with low-rank hooks of the given ranks on named
    projections.
    """
    return _structure(config, tuple(sorted((ranks or {}).items())), dropout)


@functools.lru_cache(maxsize=32)  # tracing a deep model takes a fifth of a second
def _structure(config: Config, ranks: tuple[tuple[str, int], ...], dropout: float) -> Structure:
    def build():
        model = MODELS[config.family](config)
        for name, rank in ranks:
            find(model, name).attach(rank, dropout)
        return model

    model = nnx.eval_shape(build)
    graph, state = nnx.split(model)
    leaves = {
        ".".join(map(str, path)): jax.ShapeDtypeStruct(
            leaf.get_value().shape, leaf.get_value().dtype
        )
        for path, leaf in nnx.to_flat_state(state)
    }
    linears = {
        ".".join(map(str, path)): (node.outputs, node.inputs, node.conv1d)
        for path, node in nnx.iter_modules(model)
        if isinstance(node, Linear)
    }
    return Structure(graph, leaves, linears)


def find(model: nnx.Module, name: str) -> Any:
    """The submodule called ``name``, such as ``model.layers.0.self_attn.q_proj``."""
    node = model
    for part in name.split("."):
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    return node


def assemble(shape: Structure, leaves: Mapping[str, Any]) -> Any:
    """The module with its arrays, from leaves by name. Extra names are an error, as are missing
    ones.
    """
    if leaves.keys() != shape.leaves.keys():
        missing = sorted(shape.leaves.keys() - leaves.keys())[:3]
        extra = sorted(leaves.keys() - shape.leaves.keys())[:3]
        raise KeyError(f"model leaves do not fit: missing {missing}, unexpected {extra}")
    nested: dict = {}
    for name, leaf in leaves.items():
        *path, last = (int(p) if p.isdigit() else p for p in name.split("."))
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return nnx.merge(shape.graph, nested)


def random_leaves(key: jax.Array, config: Config) -> dict[str, np.ndarray]:
    """Fresh float32 weights: normal with the config's initializer_range, norms at one, biases at
    zero.

    Projections that write to GPT-2's residual stream are shrunk by sqrt(2 layers) (Radford et al.
    2019).
    """
    leaves = {}
    for index, (name, leaf) in enumerate(sorted(structure(config).leaves.items())):
        if len(leaf.shape) > 1:
            std = config.initializer_range
            if config.family == "gpt2" and name.endswith("c_proj.weight"):
                std /= (2 * config.n_layer) ** 0.5
            draw = jax.random.normal(jax.random.fold_in(key, index), leaf.shape, jnp.float32)
            leaves[name] = np.asarray(std * draw)
        else:
            leaves[name] = np.full(leaf.shape, float(name.endswith("weight")), np.float32)
    return leaves
