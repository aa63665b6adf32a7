"""GPT-2 with Hugging Face's names: Conv1D layout, learned positions, tanh GELU, tied head.

Source of the architecture: Radford et al. 2019; names and layouts as in ``transformers``'
GPT2LMHeadModel.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from solar.errors import SolarError
from solar.models.attention import Cache, Span, attend, empty_cache, remember, span
from solar.models.linear import Embedding, LayerNorm, Linear


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of one GPT-2. ``dtype`` is the compute dtype, ``remat`` recomputes blocks in the
    backward pass.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    dtype: str = "float32"
    remat: bool = False

    @property
    def family(self) -> str:
        return "gpt2"

    @classmethod
    def from_hf(cls, config: dict) -> "GPT2Config":
        """From the dictionary of a ``config.json``; raises SolarError for variants that are not
        built.
        """
        if config.get("activation_function", "gelu_new") != "gelu_new":
            raise SolarError(
                f"GPT-2 with activation_function={config['activation_function']!r} is not "
                "supported; use a checkpoint with 'gelu_new'"
            )
        for flag, built in (
            ("scale_attn_by_inverse_layer_idx", False),
            ("reorder_and_upcast_attn", False),
            ("scale_attn_weights", True),
        ):
            if bool(config.get(flag, built)) != built:
                raise SolarError(
                    f"GPT-2 with {flag}={'false' if built else 'true'} is not supported; "
                    "use a checkpoint without it"
                )
        fields = {
            k: config[k]
            for k in cls.__dataclass_fields__
            if k in config and k not in ("dtype", "remat")
        }
        return cls(**fields)


class Attention(nnx.Module):
    def __init__(self, config: GPT2Config):
        self.heads = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, conv1d=True)
        self.c_proj = Linear(config.n_embd, config.n_embd, conv1d=True)

    def __call__(self, x: Array, place: Span, cache: Cache | None, layer: int):
        q, k, v = (
            h.reshape(*x.shape[:2], self.heads, -1) for h in jnp.split(self.c_attn(x), 3, axis=-1)
        )
        if cache is not None:
            cache = remember(cache, layer, k, v, place.start)
            k, v = cache.keys[layer], cache.values[layer]
        return self.c_proj(attend(q, k, v, place.visible).reshape(x.shape)), cache


class MLP(nnx.Module):
    def __init__(self, config: GPT2Config):
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Linear(config.n_embd, inner, conv1d=True)
        self.c_proj = Linear(inner, config.n_embd, conv1d=True)

    def __call__(self, x: Array) -> Array:
        return self.c_proj(jax.nn.gelu(self.c_fc(x), approximate=True))


class Block(nnx.Module):
    def __init__(self, config: GPT2Config):
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def __call__(self, x: Array, place: Span, cache: Cache | None, layer: int):
        h, cache = self.attn(self.ln_1(x), place, cache, layer)
        x = x + h
        return x + self.mlp(self.ln_2(x)), cache


class Transformer(nnx.Module):
    def __init__(self, config: GPT2Config):
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = nnx.List([Block(config) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)


class GPT2(nnx.Module):
    """GPT2LMHeadModel. Call it for hidden states; :meth:`head` is the output matrix."""

    def __init__(self, config: GPT2Config):
        self.config = config
        self.transformer = Transformer(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)

    def __call__(
        self, tokens: Array, mask: Array, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """tokens (B, T) int32, mask (B, T) bool -> hidden states (B, T, n_embd) after the last
        norm.
        """
        place = span(mask, cache)
        dtype = jnp.dtype(self.config.dtype)
        tower = self.transformer
        x = tower.wte(tokens, dtype) + tower.wpe(place.positions, dtype)
        for layer, block in enumerate(tower.h):
            run = lambda x, cache, block=block, layer=layer: block(x, place, cache, layer)  # noqa: E731
            x, cache = (jax.checkpoint(run) if self.config.remat else run)(x, cache)
        if cache is not None:
            cache = cache._replace(real=place.real, used=place.start + tokens.shape[1])
        return tower.ln_f(x), cache

    def head(self) -> Array:
        """The output matrix (vocab, n_embd): logits are ``hidden @ head().T``."""
        tied = self.config.tie_word_embeddings
        return (self.transformer.wte if tied else self.lm_head).weight[...]

    def empty_cache(self, batch: int, slots: int) -> Cache:
        c = self.config
        return empty_cache(
            c.n_layer, batch, slots, c.n_head, c.n_embd // c.n_head, jnp.dtype(c.dtype)
        )
