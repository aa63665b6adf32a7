"""Seeds: one intact packet of every kind the codec writes, and the tiny base they are made for.

The packets lie in `packets/`; `python -m tests.fuzz.seeds` writes them anew, which is needed only
where the format changes. The base is a LLaMA directory of a few thousand weights, all multiples of
1/64, so that its hash is the same on every machine.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from solar.adapters import targets
from solar.codec import container, frame_file, packet
from solar.codec.factors import Factors, canonical
from solar.codec.frame_file import Frame, FramesFile
from solar.codec.recipe import BUDGET, ENTROPY, MAX_SIZE, Recipe, Setting
from solar.weights.matrices import Matrices, open_matrices

HIDDEN, KEYS, WIDE, LAYERS, WORDS = 24, 12, 40, 2, 8
RANK = 3
DIRECTIONS = 8  # in a frame
INPUTS = (
    ("self_attn.q", "self_attn.k", "self_attn.v"),
    ("self_attn.o",),
    ("mlp.gate", "mlp.up"),
    ("mlp.down",),
)


PACKETS = Path(__file__).parent / "packets"


class Seed(NamedTuple):
    """An intact packet and what it decodes to."""

    data: bytes
    factors: dict[str, Factors]
    heads: dict[str, np.ndarray]


def write_base(folder: Path) -> Path:
    """The tiny LLaMA directory."""
    rng = np.random.default_rng(0)

    def exact(*shape: int) -> np.ndarray:
        return (rng.integers(-64, 65, shape) / 64).astype(np.float32)

    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (WIDE, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
    }
    tensors = {
        f"model.layers.{i}.{name}.weight": exact(*shape)
        for i in range(LAYERS)
        for name, shape in shapes.items()
    }
    for i in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
    tensors["model.embed_tokens.weight"] = exact(WORDS, HIDDEN)
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    config = {
        "model_type": "llama",
        "vocab_size": WORDS,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": KEYS,
        "max_position_embeddings": 16,
        "tie_word_embeddings": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def usual(weights: Matrices) -> tuple[str, ...]:
    return targets.usual_names(weights.family, weights)


def frames(weights: Mapping) -> FramesFile:
    """Frames of every projection of the base, of integers alone: the same on every machine."""
    rng = np.random.default_rng(3)
    made, layers = [], {}
    for layer in range(LAYERS):
        for together in INPUTS:
            names = [f"model.layers.{layer}.{part}_proj" for part in together]
            width = weights[names[0]].shape[1]
            rows = rng.integers(-127, 128, (DIRECTIONS, width)).astype(np.int8)
            falling = -np.cumsum(rng.integers(0, 6, DIRECTIONS + 1)).astype(np.int16)
            shared = len(made)
            made.append(Frame(rows, falling))
            for name in names:
                rows = rng.integers(-127, 128, (DIRECTIONS, weights[name].shape[0])).astype(np.int8)
                layers[name] = shared, len(made)
                made.append(Frame(rows, falling))
    known = container.identify(weights, layers)
    digests = dict(zip(known.names, known.digests, strict=True))
    return FramesFile(tuple(made), layers, digests, {"text": "none"})


def write_frames(path: Path, weights: Mapping) -> Path:
    return frame_file.write(path, frames(weights))


def finder(own: FramesFile):
    """What packet.decode takes: a function from a hash to these frames, or None."""
    return lambda wanted: own if wanted == own.hash else None


def update(weights: Mapping, names: tuple[str, ...], ranks: tuple[int, ...]) -> dict[str, Factors]:
    """Canonical factors of seeded random updates of these ranks."""
    rng = np.random.default_rng(1)
    pairs = {}
    for name, rank in zip(names, ranks, strict=True):
        m, n = weights[name].shape
        scales = np.geomspace(1, 0.2, RANK)[:rank]
        pairs[name] = (rng.normal(size=(m, rank)) * scales, rng.normal(size=(rank, n)), 0.7)
    return canonical(pairs)


def heads() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {"score.bias": rng.normal(size=3), "score.weight": rng.normal(size=(3, HIDDEN))}


def settings() -> dict[str, tuple[Setting, int | None]]:
    """Setting and budget of every SOLAR seed."""
    most = Recipe("orthogonal", MAX_SIZE)
    return {
        "singular": (Setting(Recipe("singular", 16)), None),
        "perturbed": (Setting(Recipe("singular", 30, 0.2, "sampled", 2**63), keep=7), None),
        "float32": (Setting(Recipe("singular", 8), dtype="float32"), None),
        "matrix": (Setting(Recipe("singular", 12), "matrix"), None),
        "matrix-int8": (
            Setting(Recipe("singular", 20, 0.1, "sampled"), "matrix", keep=9, dtype="int8"),
            None,
        ),
        "random-int4": (Setting(Recipe("random", 20), keep=5, dtype="int4"), None),
        "random-matrix": (Setting(Recipe("random", 40, seed=3), "matrix", keep=20), None),
        "int8": (Setting(Recipe("orthogonal", 12), dtype="int8"), None),
        "int2": (Setting(Recipe("orthogonal", 24), keep=9, dtype="int2"), None),
        "sign": (Setting(Recipe("orthogonal", 40), keep=15, dtype="sign"), None),
        "budget-float16": (Setting(most, keep=BUDGET), 500),
        "budget-int4": (Setting(most, keep=BUDGET, dtype="int4"), 400),
        "budget-sign": (Setting(Recipe("singular", 20), keep=BUDGET, dtype="sign"), 300),
        "budget-random": (Setting(Recipe("random", 30), keep=BUDGET, dtype="int8"), 400),
        "entropy": (Setting(most, keep=BUDGET, dtype=ENTROPY), 400),
        "entropy-relative": (
            Setting(Recipe("orthogonal", 20), keep=BUDGET, dtype=ENTROPY, relative=1.0),
            300,
        ),
        "entropy-part": (Setting(Recipe("singular", 9), keep=BUDGET, dtype=ENTROPY), 300),
        "embedded": (Setting(Recipe("singular", 16), keep=9, dtype="sign", embed=True), None),
        "embedded-matrix": (Setting(Recipe("orthogonal", 6), "matrix", embed=True), None),
    }


def encoded(weights: Matrices) -> dict[str, bytes]:
    """The packets of all seeds by name."""
    from solar.codec import activation, baselines
    from solar.codec.encode import encode

    names = usual(weights)
    found: dict[str, bytes] = {}
    whole = update(weights, names, (RANK,) * len(names))

    def solar(name: str, setting: Setting, budget: int | None, factors=whole, **given) -> None:
        given = {"usual_names": names} | given
        found[name] = encode(factors, weights, setting, budget_bytes=budget, **given).data

    def baseline(name: str, kind: str, **given) -> None:
        found[name] = baselines.encode(whole, weights, kind, usual_names=names, **given).data

    for name, (setting, budget) in settings().items():
        solar(name, setting, budget)
    few = tuple(n for n in weights if "mlp" in n)[:3]
    orthogonal = Setting(Recipe("orthogonal", 20), keep=8)
    solar("listed", orthogonal, None, update(weights, few, (2, 2, 2)), usual_names=None)
    solar("ranks", orthogonal, None, update(weights, names, (3, 1, 0, 2)))
    nothing = update(weights, names, (0,) * len(names))
    solar("nothing", orthogonal, None, nothing)
    for dtype in ("float16", "float32", "int8"):
        given = {"heads": heads(), "head_dtype": dtype}
        solar(f"heads-{dtype}", orthogonal, None, **given)
    for kind in ("float32", "float16"):
        baseline(kind + "-factors", kind)
    baseline("truncate", "truncate", rank=1, heads=heads())
    for bits in baselines.WIDTHS:
        baseline(f"{bits}-bits", "bits", bits=bits)
    seen = frames(weights)

    def profiled(name: str, factors, budget: int, **given) -> None:
        given = {"usual_names": names, "budget_bytes": budget} | given
        found[name] = activation.encode(factors, weights, seen, **given).data

    profiled("activation", whole, 300)
    profiled("activation-heads", whole, 450, relative=0.4, heads=heads())
    # More than it can use: every entry as fine as it gets.
    profiled("activation-fine", update(weights, names, (1, 0, 0, 2)), 900, relative=0.0)
    profiled("activation-listed", update(weights, few, (2, 0, 1)), 400, usual_names=None)
    profiled("activation-nothing", nothing, 200)
    return found


def load(weights: Mapping, usual_names: tuple[str, ...], cache: Path) -> dict[str, Seed]:
    """The seeds as they lie in `packets/`, decoded."""
    found, known = {}, finder(frames(weights))
    for path in sorted(PACKETS.glob("*.solar")):
        decoded = packet.decode(
            path.read_bytes(), weights, usual_names=usual_names, cache=cache, frames=known
        )
        found[path.stem] = Seed(path.read_bytes(), decoded.factors, decoded.heads)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = encoded(open_matrices(str(write_base(Path(folder)))))
    PACKETS.mkdir(exist_ok=True)
    for path in PACKETS.glob("*.solar"):
        path.unlink()
    for name, data in found.items():
        (PACKETS / f"{name}.solar").write_bytes(data)
    print(f"{len(found)} packets, {sum(map(len, found.values())):,} bytes, in {PACKETS}")


if __name__ == "__main__":
    main()
