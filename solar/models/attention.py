"""Causal attention with exact padding masks and a key/value cache, shared by the two language
families.

A sequence occupies *slots*; a slot is real or padding. The position of a real token is the number
of real tokens before it, so left and right padding give the same logits, and a query sees real
slots up to its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far.

    keys, values: (layers, batch, slots, kv_heads, head_dim) in the compute dtype;
    real: (batch, slots) bool; used: int32 scalar, the number of slots written.
    """

    keys: Array
    values: Array
    real: Array
    used: Array


def empty_cache(
    layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> Cache:
    """A cache with room for ``slots`` tokens a sequence."""
    shape = (layers, batch, slots, kv_heads, head_dim)
    return Cache(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((batch, slots), bool),
        jnp.zeros((), jnp.int32),
    )


class Span(NamedTuple):
    """Where new tokens stand: positions (B, T), and who sees whom, visible (B, 1, T, S) bool."""

    positions: Array
    visible: Array
    real: Array
    start: Array


def span(mask: Array, cache: Cache | None) -> Span:
    """Positions and visibility of T new tokens with real-token mask ``mask`` (B, T)."""
    if cache is None:
        real, before, start = mask, 0, jnp.zeros((), jnp.int32)
    else:
        start = cache.used
        before = cache.real.sum(-1, keepdims=True)
        real = jax.lax.dynamic_update_slice(cache.real, mask, (jnp.zeros((), jnp.int32), start))
    positions = jnp.maximum(before + jnp.cumsum(mask.astype(jnp.int32), -1) - 1, 0)
    query = start + jnp.arange(mask.shape[1])
    causal = jnp.arange(real.shape[1])[None, :] <= query[:, None]
    return Span(positions, (causal[None] & real[:, None, :])[:, None], real, start)


def remember(cache: Cache, layer: int, keys: Array, values: Array, start: Array) -> Cache:
    """Writes the keys and values (B, T, kv_heads, head_dim) of one layer at slot ``start``."""
    zero = jnp.zeros((), jnp.int32)
    place = (jnp.full((), layer, jnp.int32), zero, start, zero, zero)
    return cache._replace(
        keys=jax.lax.dynamic_update_slice(cache.keys, keys[None], place),
        values=jax.lax.dynamic_update_slice(cache.values, values[None], place),
    )


def attend(query: Array, keys: Array, values: Array, visible: Array | None = None) -> Array:
    """Softmax attention in float32 or, of float64, in that; query (B, T, heads, d), keys and values
    (B, S, kv_heads, d)."""
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, keys, values, mask=visible)
    # JAX's own has its softmax in float32 whatever it is given.
    keys, values = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (keys, values))
    logits = jnp.einsum("bthd,bshd->bhts", query, keys) / query.shape[-1] ** 0.5
    least = jnp.finfo(logits.dtype).min  # not infinite: padding sees nothing at all
    chance = jax.nn.softmax(logits if visible is None else jnp.where(visible, logits, least))
    return jnp.einsum("bhts,bshd->bthd", chance, values)
