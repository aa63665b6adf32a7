"""Bases and updates for `benchmarks.portability`: real layers, and spectra made to be awkward.

Both are LLaMA directories as Hugging Face writes them, so they are read through the same door as
any checkpoint. `exact` holds float32 as it is; `rounded` and `bfloat16` hold the same values, first
rounded to bfloat16, in float32 and in bfloat16.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from solar.adapters import directory
from solar.codec.factors import Factors, canonical
from solar.weights.matrices import open_matrices

COPIES = ("exact", "rounded", "bfloat16")
GAPS = {"1e-12": 2.0**-40, "1e-9": 2.0**-30, "1e-7": 2.0**-23, "1e-5": 2.0**-17}
WIDTH = 64  # of the synthetic weights; all powers of two, so entries of +-1/8 are orthogonal
RANK = 4


def write_copies(folder: Path, weights: Mapping[str, np.ndarray], heads: int) -> None:
    """Directories COPIES below `folder` with the projections `weights`, by module path."""
    layers = 1 + max(int(name.split(".")[2]) for name in weights)
    config = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": True,
    }
    rounded = {k: v.astype(ml_dtypes.bfloat16) for k, v in weights.items()}
    stored = {
        "exact": weights,
        "rounded": {k: v.astype(np.float32) for k, v in rounded.items()},
        "bfloat16": rounded,
    }
    for copy in COPIES:
        own = folder / copy
        own.mkdir(parents=True)
        (own / "config.json").write_text(json.dumps(config))
        tensors = {f"{k}.weight": np.ascontiguousarray(v) for k, v in stored[copy].items()}
        save_file(tensors, own / "model.safetensors")


def real(folder: Path, base: str, adapter: Path, layers: int) -> dict[str, Factors]:
    """Copies of the first `layers` layers of a LLaMA base, and the adapter's update of them."""
    weights = open_matrices(base)
    read = directory.read_for(adapter, weights.family, weights.shapes)
    inside = {k for k in weights if k.startswith("model.") and int(k.split(".")[2]) < layers}
    write_copies(folder, {k: weights[k] for k in sorted(inside)}, 9)
    return canonical({k: v for k, v in read.pairs.items() if k in inside})


def _spectrum(rng: np.random.Generator, values: np.ndarray, m: int, n: int) -> np.ndarray:
    """A dense (m, n) matrix with singular `values`, in float64."""
    u, _ = np.linalg.qr(rng.normal(size=(m, len(values))))
    v, _ = np.linalg.qr(rng.normal(size=(n, len(values))))
    return u * values @ v.T


def _pairs(rng: np.random.Generator, gap: float) -> np.ndarray:
    """Singular values 2^-k (1 +- gap / 2), exact in bfloat16, with dense and known vectors: blocks
    [[1, gap / 2], [gap / 2, 1]], permuted and signed."""
    blocks = np.kron(np.diag(2.0 ** -(np.arange(WIDTH // 2) % 8)), [[1, gap / 2], [gap / 2, 1]])
    rows, columns = rng.permutation(WIDTH), rng.permutation(WIDTH)
    signs = rng.choice([-1.0, 1.0], (2, WIDTH))
    return signs[0][:, None] * blocks[rows][:, columns] * signs[1]


def awkward() -> dict[str, np.ndarray]:
    """Square weights (64, 64) float32 whose singular vectors a driver may choose, by what they
    are."""
    rng = np.random.default_rng(0)
    falling = np.geomspace(1, 0.01, WIDTH)
    hadamard = np.ones((1, 1))
    while len(hadamard) < WIDTH:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    found = {
        "identity": np.eye(WIDTH),
        "signed permutation": _pairs(rng, 0.0),
        "Hadamard, all values equal": hadamard / 8,
        "repeated block": np.kron(np.eye(4), rng.normal(size=(16, 16))),
        "random orthogonal": _spectrum(rng, np.ones(WIDTH), WIDTH, WIDTH),
        "rank 20, repeated": _spectrum(rng, np.repeat([4.0, 2, 1, 0.5, 0.25], 4), WIDTH, WIDTH),
    }
    for name, gap in GAPS.items():
        found[f"pairs {name} apart"] = _pairs(rng, gap)
        near = falling.copy()
        near[1::2] = near[::2] * (1 - gap)
        found[f"dense, {name} apart"] = _spectrum(rng, near, WIDTH, WIDTH)
    return {name: weight.astype(np.float32) for name, weight in found.items()}


def steep() -> dict[str, np.ndarray]:
    """The same for values that fall so far that half of the digits, which is what the Gram matrix
    leaves of small ones, no longer tell their vectors apart."""
    rng = np.random.default_rng(2)
    close = np.geomspace(1, 1e-3, WIDTH)
    close[1::2] = close[::2] - 3e-8
    spectra = {f"falling to {low:g}": np.geomspace(1, low, WIDTH) for low in (1e-4, 1e-5, 1e-6)}
    spectra["pairs 3e-8 of the largest apart"] = close
    return {
        name: _spectrum(rng, values, WIDTH, WIDTH).astype(np.float32)
        for name, values in spectra.items()
    }


MADE = {"repeated": awkward, "steep": steep}


def synthetic(folder: Path, which: str) -> dict[str, Factors]:
    """Copies of a base whose q projections are one of MADE, and a random update of q and v."""
    rng = np.random.default_rng(1)
    weights = {}
    for layer, weight in enumerate(MADE[which]().values()):
        stem = f"model.layers.{layer}"
        shapes = {
            "mlp.gate_proj": (8, WIDTH),
            "mlp.up_proj": (8, WIDTH),
            "mlp.down_proj": (WIDTH, 8),
            "self_attn.k_proj": (WIDTH // 2, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
        }
        for part, shape in shapes.items():
            weights[f"{stem}.{part}"] = np.ones(shape, np.float32)
        weights[f"{stem}.self_attn.q_proj"] = weight
        # Half of the rows: repeated values partly survive, and the sides differ in length.
        weights[f"{stem}.self_attn.v_proj"] = weight[: WIDTH // 2]
    write_copies(folder, weights, 4)
    scale = [1, 0.4, 0.2, 0.1]
    return canonical({
        name: (rng.normal(size=(weight.shape[0], RANK)) * scale,
               rng.normal(size=(RANK, weight.shape[1])), 0.1)
        for name, weight in weights.items() if name.endswith(("q_proj", "v_proj"))
    })  # fmt: skip
