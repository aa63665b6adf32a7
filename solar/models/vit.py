"""Vision transformer with the names that ``transformers`` gives a ViTForImageClassification in
memory.

Pre-norm blocks, exact GELU, class token, learned positions (Dosovitskiy et al., arXiv 2010.11929).
Checkpoints with LayerScale (DINOv2) are folded into this form when they are read, see
``solar.weights.layouts``.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from solar.errors import SolarError
from solar.models.attention import attend
from solar.models.linear import LayerNorm, Linear, at_least_float32


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of one ViT. ``image_size`` and ``patch_size`` in pixels; ``pool`` is 'cls' or 'mean'
    (patches).
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    num_labels: int = 0
    pool: str = "cls"
    initializer_range: float = 0.02
    dtype: str = "float32"
    remat: bool = False

    @property
    def family(self) -> str:
        return "vit"

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @classmethod
    def from_hf(cls, config: dict) -> "ViTConfig":
        """From the dictionary of a ``config.json``; raises SolarError for variants that are not
        built.
        """
        if config.get("hidden_act", "gelu") != "gelu":
            raise SolarError(
                f"ViT with hidden_act={config['hidden_act']!r} is not supported; use 'gelu'"
            )
        if type(config.get("image_size", 0)) is not int:
            raise SolarError(
                f"ViT with image_size={config['image_size']!r} is not supported; use a square"
            )
        fields = {
            k: config[k]
            for k in cls.__dataclass_fields__
            if k in config and k not in ("dtype", "remat", "num_labels", "pool")
        }
        if "mlp_ratio" in config and "intermediate_size" not in config:
            fields["intermediate_size"] = int(config["hidden_size"] * config["mlp_ratio"])
        return cls(num_labels=len(config.get("id2label") or ()), **fields)


def interpolate_positions(table: np.ndarray, grid: int) -> np.ndarray:
    """Resizes a position table (1, 1 + g*g, width) to (1, 1 + grid*grid, width), class token kept.

    Bicubic with a = -0.75, half-pixel centres, clamped at the border and not anti-aliased: the rule
    that torch's ``interpolate(mode="bicubic")`` follows, with which these checkpoints are resized.
    """
    count = table.shape[1] - 1
    old = round(count**0.5)
    if old * old != count:
        raise SolarError(
            f"the position table holds {count} patches, which is not a square; cannot resize it"
        )
    if old == grid:
        return table
    weights = np.zeros((grid, old))
    for i in range(grid):
        centre = (i + 0.5) * old / grid - 0.5
        first = int(np.floor(centre)) - 1
        for j in range(first, first + 4):
            d = abs(centre - j)
            a = -0.75
            near = ((a + 2) * d - (a + 3)) * d * d + 1
            far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            weights[i, min(max(j, 0), old - 1)] += near if d <= 1 else far
    square = table[0, 1:].reshape(old, old, -1).astype(np.float64)
    resized = np.einsum("ia,jb,abd->ijd", weights, weights, square).reshape(1, grid * grid, -1)
    return np.concatenate([table[:, :1], resized.astype(table.dtype)], axis=1)


class Projection(nnx.Module):
    """The patch embedding, a convolution whose stride is its size, done as one matrix product."""

    def __init__(self, config: ViTConfig):
        p = config.patch_size
        self.patch = p
        self.weight = nnx.Param(jnp.zeros((config.hidden_size, config.num_channels, p, p)))
        self.bias = nnx.Param(jnp.zeros((config.hidden_size,)))

    def __call__(self, pixels: Array) -> Array:
        batch, channels, height, width = pixels.shape
        p = self.patch
        x = pixels.reshape(batch, channels, height // p, p, width // p, p)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * p * p)
        weight = self.weight[...].reshape(-1, channels * p * p).astype(x.dtype)
        return x @ weight.T + self.bias[...].astype(x.dtype)


class PatchEmbeddings(nnx.Module):
    def __init__(self, config: ViTConfig):
        self.projection = Projection(config)


class Embeddings(nnx.Module):
    def __init__(self, config: ViTConfig):
        width = config.hidden_size
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.position_embeddings = nnx.Param(jnp.zeros((1, 1 + config.grid**2, width)))
        self.patch_embeddings = PatchEmbeddings(config)

    def __call__(self, pixels: Array) -> Array:
        x = self.patch_embeddings.projection(pixels)
        first = jnp.broadcast_to(self.cls_token[...], (len(x), 1, x.shape[-1])).astype(x.dtype)
        return jnp.concatenate([first, x], 1) + self.position_embeddings[...].astype(x.dtype)


class Attention(nnx.Module):
    def __init__(self, config: ViTConfig):
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = Linear(width, width, bias=config.qkv_bias)
        self.k_proj = Linear(width, width, bias=config.qkv_bias)
        self.v_proj = Linear(width, width, bias=config.qkv_bias)
        self.o_proj = Linear(width, width)

    def __call__(self, x: Array) -> Array:
        q, k, v = (
            proj(x).reshape(*x.shape[:2], self.heads, -1)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(attend(q, k, v).reshape(x.shape))


class MLP(nnx.Module):
    def __init__(self, config: ViTConfig):
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: Array) -> Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    def __init__(self, config: ViTConfig):
        self.layernorm_before = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = Attention(config)
        self.layernorm_after = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.mlp(self.layernorm_after(x))


class Tower(nnx.Module):
    def __init__(self, config: ViTConfig):
        self.embeddings = Embeddings(config)
        self.layers = nnx.List([Block(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)


class ViT(nnx.Module):
    """ViTForImageClassification; without labels it returns the pooled features."""

    def __init__(self, config: ViTConfig):
        if config.pool not in ("cls", "mean"):
            raise SolarError(f"pool={config.pool!r} is unknown; use 'cls' or 'mean'")
        self.config = config
        self.vit = Tower(config)
        if config.num_labels:
            self.classifier = Linear(config.hidden_size, config.num_labels)

    def __call__(self, pixels: Array) -> Array:
        """pixels (B, channels, H, W), normalised -> logits (B, num_labels), or features (B, width),
        float32 or, where that is the compute dtype, float64.
        """
        x = self.vit.embeddings(pixels.astype(jnp.dtype(self.config.dtype)))
        for block in self.vit.layers:
            x = (jax.checkpoint(lambda x, block=block: block(x)) if self.config.remat else block)(x)
        x = self.vit.layernorm(x)
        pooled = x[:, 0] if self.config.pool == "cls" else x[:, 1:].mean(1)
        found = self.classifier(pooled) if self.config.num_labels else pooled
        return found.astype(at_least_float32(found.dtype))
