"""Tiny models that torch and we build from the same few lines, so that only logits are stored.

A case is the dictionary of a ``config.json``. Weights come from NumPy's PCG64 stream (uniform
draws, which do not change between NumPy versions) seeded by the tensor's name; inputs likewise.
This module knows no torch and no solar: `make_golden.py` (torch) and the tests (JAX) import it.
"""

import zlib
from collections.abc import Mapping

import numpy as np

VOCABULARY = 61

_LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
_VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
    "id2label": {str(i): f"class {i}" for i in range(5)},
}
# The frequency blend of Llama 3.1; the context is so short that all three branches are taken.
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

CASES = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
    },
    # Grouped queries, a head of its own, the old spelling of the rotary base, wider heads.
    "llama-own-head": {
        **_LLAMA,
        "rope_theta": 5000.0,
        "head_dim": 12,
        "tie_word_embeddings": False,
    },
    "llama-tied": {
        **_LLAMA,
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
        "tie_word_embeddings": True,
    },
    "llama-3-old-spelling": {
        **_LLAMA,
        "rope_theta": 500.0,
        "rope_scaling": _LLAMA3,
        "tie_word_embeddings": True,
    },
    "llama-3-biases": {
        **_LLAMA,
        "rope_parameters": {**_LLAMA3, "rope_theta": 500.0},
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "vit": _VIT,
    "vit-no-bias": {**_VIT, "qkv_bias": False},
}
LANGUAGE = [name for name in CASES if not name.startswith("vit")]
LENGTHS = (24, 9, 17)
OTHER_SIZE = 48  # pixels, for the interpolation of the 32-pixel table


def stream(name: str, seed: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights by state-dict name: small tables, kernels by fan-in, norms near one."""
    found = {}
    for name, shape in shapes.items():
        draw = 2 * stream(name, seed).random(shape) - 1
        if len(shape) == 1:
            value = 0.3 * draw + (1.0 if name.endswith("weight") else 0.0)
        elif "emb" in name or "wte" in name or "wpe" in name or "cls_token" in name:
            value = 0.3 * draw
        else:
            value = draw * 2 / np.prod(shape[1:]) ** 0.5
        found[name] = value.astype(np.float32)
    return found


def factors(shapes: Mapping[str, tuple[int, ...]], seed: int = 1) -> dict[str, np.ndarray]:
    """float32 adapter tensors by name, none zero, so that a lost one shows in the logits."""
    return {
        name: (0.4 * (2 * stream(name, seed).random(shape) - 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Right-padded token ids (3, 24) int32 and the mask of real ones, of unequal lengths."""
    ids = stream("tokens").integers(0, VOCABULARY, (len(LENGTHS), max(LENGTHS))).astype(np.int32)
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    return np.where(mask, ids, 0), mask


def pixels(size: int) -> np.ndarray:
    """Normalised images (2, 3, size, size) float32."""
    return (2 * stream("pixels").random((2, 3, size, size)) - 1).astype(np.float32)
