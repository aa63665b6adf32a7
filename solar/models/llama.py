"""LLaMA with Hugging Face's names: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Sources: Touvron et al. (arXiv 2302.13971, 2307.09288); rotary embedding Su et al. (arXiv
2104.09864), in the rotate-half order of ``transformers``; the ``llama3`` frequency scaling of Llama
3.1.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from solar.errors import SolarError
from solar.models.attention import Cache, Span, attend, empty_cache, remember, span
from solar.models.linear import Embedding, Linear, RMSNorm, at_least_float32


@dataclass(frozen=True)
class Llama3Scaling:
    """Frequency scaling of Llama 3.1: long wavelengths are slowed by ``factor``, middle ones
    blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of one LLaMA. ``dtype`` is the compute dtype, ``remat`` recomputes blocks in the
    backward pass.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Llama3Scaling | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    dtype: str = "float32"
    remat: bool = False

    @property
    def family(self) -> str:
        return "llama"

    @classmethod
    def from_hf(cls, config: dict) -> "LlamaConfig":
        """From a ``config.json``, in the old spelling (``rope_theta``, ``rope_scaling``) or the new
        one (``rope_parameters``); raises SolarError for rotary variants that are not built.
        """
        plain = [k for k in cls.__dataclass_fields__ if k not in ("dtype", "remat", "rope_scaling")]
        fields = {k: config[k] for k in plain if config.get(k) is not None}
        heads = config["num_attention_heads"]
        fields.setdefault("num_key_value_heads", heads)
        fields.setdefault("head_dim", config["hidden_size"] // heads)
        rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        if "rope_theta" in rope:
            fields["rope_theta"] = rope["rope_theta"]
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "llama3":
            fields["rope_scaling"] = Llama3Scaling(
                **{k: rope[k] for k in Llama3Scaling.__dataclass_fields__}
            )
        elif kind != "default":
            raise SolarError(
                f"LLaMA with rope_type={kind!r} is not supported; use 'default' or 'llama3'"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise SolarError(
                f"LLaMA with hidden_act={config['hidden_act']!r} is not supported; use 'silu'"
            )
        return cls(**fields)


def inverse_frequencies(config: LlamaConfig, dtype: type = np.float32) -> np.ndarray:
    """Rotary frequencies (head_dim / 2,) in radians a position, computed in `dtype`."""
    steps = np.arange(0, config.head_dim, 2, dtype=dtype) / dtype(config.head_dim)
    freq = (1.0 / dtype(config.rope_theta) ** steps).astype(dtype)
    scaling = config.rope_scaling
    if scaling is None:
        return freq
    length = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 0 where a wavelength is too long for the original context (slowed), 1 where short (kept).
    blend = np.clip((length * freq / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return (blend * freq + (1 - blend) * freq / scaling.factor).astype(dtype)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding of x (B, T, heads, d) in rotate-half order; cos and sin are (B, T, 1, d /
    2).
    """
    a, b = jnp.split(x.astype(at_least_float32(x.dtype)), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class Attention(nnx.Module):
    def __init__(self, config: LlamaConfig):
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        pairs = config.num_key_value_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = Linear(config.hidden_size, queries, bias=bias)
        self.k_proj = Linear(config.hidden_size, pairs, bias=bias)
        self.v_proj = Linear(config.hidden_size, pairs, bias=bias)
        self.o_proj = Linear(queries, config.hidden_size, bias=bias)

    def __call__(self, x: Array, turn, place: Span, cache: Cache | None, layer: int):
        q, k, v = (
            proj(x).reshape(*x.shape[:2], -1, self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *turn), rotate(k, *turn)
        if cache is not None:
            cache = remember(cache, layer, k, v, place.start)
            k, v = cache.keys[layer], cache.values[layer]
        return self.o_proj(attend(q, k, v, place.visible).reshape(*x.shape[:2], -1)), cache


class MLP(nnx.Module):
    def __init__(self, config: LlamaConfig):
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)

    def __call__(self, x: Array) -> Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    def __init__(self, config: LlamaConfig):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: Array, turn, place: Span, cache: Cache | None, layer: int):
        h, cache = self.self_attn(self.input_layernorm(x), turn, place, cache, layer)
        x = x + h
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Tower(nnx.Module):
    def __init__(self, config: LlamaConfig):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nnx.List([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nnx.Module):
    """LlamaForCausalLM. Call it for hidden states; :meth:`head` is the output matrix."""

    def __init__(self, config: LlamaConfig):
        self.config = config
        self.model = Tower(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(
        self, tokens: Array, mask: Array, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """tokens (B, T) int32, mask (B, T) bool -> hidden states (B, T, hidden_size) after the last
        norm.
        """
        config, tower = self.config, self.model
        place = span(mask, cache)
        wide = at_least_float32(config.dtype)
        angle = place.positions[..., None, None] * inverse_frequencies(config, wide.type)
        turn = (jnp.cos(angle), jnp.sin(angle))
        x = tower.embed_tokens(tokens, jnp.dtype(config.dtype))
        for layer, block in enumerate(tower.layers):
            run = lambda x, cache, block=block, layer=layer: block(x, turn, place, cache, layer)  # noqa: E731
            x, cache = (jax.checkpoint(run) if config.remat else run)(x, cache)
        if cache is not None:
            cache = cache._replace(real=place.real, used=place.start + tokens.shape[1])
        return tower.norm(x), cache

    def head(self) -> Array:
        """The output matrix (vocab, hidden_size): logits are ``hidden @ head().T``."""
        tied = self.config.tie_word_embeddings
        return (self.model.embed_tokens if tied else self.lm_head).weight[...]

    def empty_cache(self, batch: int, slots: int) -> Cache:
        c = self.config
        heads = c.num_key_value_heads
        return empty_cache(c.num_hidden_layers, batch, slots, heads, c.head_dim, jnp.dtype(c.dtype))
