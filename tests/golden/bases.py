"""The golden cases as our Bases, and the logits of a Base with or without an adapter."""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from golden import cases
from solar.adapters.adapter import Adapter
from solar.models.structure import Config, assemble, structure
from solar.objective import project
from solar.weights.base import FAMILIES, Base


def base_of(name: str, seed: int = 0, **overrides) -> Base:
    """The Base of a case; ``overrides`` replace fields of its config."""
    raw = cases.CASES[name]
    config = replace(FAMILIES[raw["model_type"]].from_hf(raw), **overrides)
    shapes = {k: v.shape for k, v in structure(config).leaves.items()}
    return Base(f"golden:{name}", config, cases.weights(shapes, seed))


def hook_leaves(adapter: Adapter | None) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The leaves and ranks with which a model carries ``adapter``."""
    leaves, ranks = {}, {}
    if adapter is not None:
        for layer, (b, a, scale) in adapter.pairs.items():
            ranks[layer] = a.shape[0]
            leaves |= {f"{layer}.lora_A": a, f"{layer}.lora_B": b * np.float32(scale)}
        leaves |= adapter.heads
    return leaves, ranks


@functools.cache  # a model is compiled once, however often the tests ask it
def compiled(config: Config, ranks: tuple[tuple[str, int], ...]) -> Callable:
    shape = structure(config, dict(ranks))
    if config.family == "vit":
        return jax.jit(lambda params, pixels: assemble(shape, params)(pixels))

    def run(params, tokens, mask):
        model = assemble(shape, params)
        return project(model(tokens, mask)[0], model.head())

    return jax.jit(run)


def language_logits(
    base: Base, tokens: np.ndarray, mask: np.ndarray, adapter: Adapter | None = None
) -> np.ndarray:
    """Logits (B, T, vocab) float32 of a language model; meaningful where ``mask`` is true."""
    leaves, ranks = hook_leaves(adapter)
    run = compiled(base.config, tuple(sorted(ranks.items())))
    params = {k: jnp.asarray(v) for k, v in {**base.params, **leaves}.items()}
    return np.asarray(run(params, jnp.asarray(tokens), jnp.asarray(mask)))


def image_logits(base: Base, pixels: np.ndarray, adapter: Adapter | None = None) -> np.ndarray:
    """Logits (B, labels) float32 of a ViT, or its pooled features where it has no labels."""
    leaves, ranks = hook_leaves(adapter)
    run = compiled(base.config, tuple(sorted(ranks.items())))
    params = {k: jnp.asarray(v) for k, v in {**base.params, **leaves}.items()}
    return np.asarray(run(params, jnp.asarray(pixels)))


def logits(base: Base, adapter: Adapter | None = None) -> np.ndarray:
    """Logits on the golden inputs of the base's kind; padding of a text is zeroed."""
    if base.family == "vit":
        return image_logits(base, cases.pixels(base.config.image_size), adapter)
    tokens, mask = cases.tokens()
    return language_logits(base, tokens, mask, adapter) * mask[..., None]
