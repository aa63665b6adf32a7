"""The projection layer of all three families, with the one hook through which adapters reach a
model.

Weights keep the layout that their checkpoint has: ``(out, in)`` for torch's Linear, ``(in, out)``
for GPT-2's Conv1D. Low-rank factors are torch-shaped either way, as PEFT stores them: ``lora_A (r,
in)`` and ``lora_B (out, r)``, and the layer adds ``(dropout(x) A^T) B^T`` (LoRA, arXiv 2106.09685,
eq. 3; the scale is folded into B by the adapter method).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """What is computed with care even where the compute dtype is narrow, and stays exact where it
    is float64: frames are measured in that, so that any processor finds the same."""
    return jnp.promote_types(dtype, jnp.float32)


class Linear(nnx.Module):
    """``y = x W^T + b``, plus a low-rank update where one was attached."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, conv1d: bool = False):
        self.conv1d = conv1d
        self.inputs, self.outputs = inputs, outputs
        self.weight = nnx.Param(jnp.zeros((inputs, outputs) if conv1d else (outputs, inputs)))
        if bias:
            self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.has_bias = bias
        self.rank = 0
        self.dropout = 0.0

    def attach(self, rank: int, dropout: float) -> None:
        """Gives the layer leaves ``lora_A``, ``lora_B`` and, for training with dropout,
        ``lora_key``.
        """
        self.rank, self.dropout = rank, dropout
        self.lora_A = nnx.LoRAParam(jnp.zeros((rank, self.inputs)))
        self.lora_B = nnx.LoRAParam(jnp.zeros((self.outputs, rank)))
        if dropout > 0:
            self.lora_key = nnx.Variable(jnp.zeros((2,), jnp.uint32))

    def __call__(self, x: Array) -> Array:
        """x: (..., in) in the compute dtype; returns (..., out) in the same dtype."""
        weight = self.weight[...].astype(x.dtype)
        y = x @ (weight if self.conv1d else weight.T)
        if self.has_bias:
            y = y + self.bias[...].astype(x.dtype)
        if self.rank:
            a, b = self.lora_A[...].astype(x.dtype), self.lora_B[...].astype(x.dtype)
            if self.dropout > 0:
                key = jax.random.wrap_key_data(self.lora_key[...], impl="threefry2x32")
                keep = jax.random.bernoulli(key, 1.0 - self.dropout, x.shape)
                x = jnp.where(keep, x / (1.0 - self.dropout), 0).astype(x.dtype)
            y = y + (x @ a.T) @ b.T
        return y


class Embedding(nnx.Module):
    """A table of vectors, looked up by index; ``weight`` is (rows, width)."""

    def __init__(self, rows: int, width: int):
        self.weight = nnx.Param(jnp.zeros((rows, width)))

    def __call__(self, index: Array, dtype: jnp.dtype) -> Array:
        return self.weight[...][index].astype(dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation, computed in float32 or, of float64, in that."""

    def __init__(self, width: int, eps: float):
        self.weight = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        h = x.astype(at_least_float32(x.dtype))
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + self.eps)
        return (h * self.weight[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation, computed in float32 or, of float64, in that."""

    def __init__(self, width: int, eps: float):
        self.weight = nnx.Param(jnp.ones((width,)))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        h = x.astype(at_least_float32(x.dtype))
        h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + self.eps)
        return (self.weight[...] * h).astype(x.dtype)
