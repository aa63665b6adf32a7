"""LoRA (Hu et al., arXiv 2106.09685) and rank-stabilised LoRA (Kalajdzievski, arXiv 2312.03732).

``dW = s B A`` with ``s = alpha / r`` (rsLoRA: ``alpha / sqrt(r)``), A uniform in +-1/sqrt(in) from
a recorded seed (Kaiming with a = sqrt 5, as PEFT), B zero. Heads in ``modules_to_save`` are trained
whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from solar.adapters import targets
from solar.adapters.adapter import Adapter, scaling
from solar.adapters.method import Method
from solar.errors import SolarError
from solar.models.structure import structure
from solar.weights.base import Base

HEAD_STD = 0.02  # of a fresh classifier, as transformers' initializer_range


@dataclass(frozen=True)
class LoraConfig:
    """PEFT's fields of the same names; ``target_modules`` None takes the family's usual ones."""

    r: int = 4
    lora_alpha: float = 8.0
    use_rslora: bool = False
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: Sequence[str] = ()


def plan(base: Base, config: LoraConfig) -> dict[str, tuple[int, float]]:
    """Rank and scale of each adapted projection; raises SolarError for a target without a match."""
    wanted = config.target_modules or targets.DEFAULTS[base.family]
    names = targets.select(structure(base.config).linears, wanted, config.modules_to_save)
    if not 0 <= config.lora_dropout < 1:
        raise SolarError(f"lora_dropout is {config.lora_dropout}; give a share below 1")
    found = {}
    for name in names:
        rank = int(targets.by_pattern(config.rank_pattern, name, config.r))
        alpha = targets.by_pattern(config.alpha_pattern, name, config.lora_alpha)
        if rank < 1:
            raise SolarError(f"rank {rank} for {name}; a LoRA rank is at least 1")
        found[name] = (rank, scaling(alpha, rank, config.use_rslora))
    return found


def head_names(base: Base, config: LoraConfig) -> list[str]:
    """Leaf names of the modules that are trained whole; raises SolarError for one that does not
    exist.
    """
    leaves = structure(base.config).leaves
    for module in config.modules_to_save:
        if not any(targets.within(name, module) for name in leaves):
            raise SolarError(
                f"modules_to_save names {module!r}, which this {base.family} does not have; "
                "an image classifier needs num_labels"
            )
    return [n for n in leaves if any(targets.within(n, m) for m in config.modules_to_save)]


def hooks(base: Base, config: LoraConfig) -> tuple[dict[str, int], float]:
    return {name: rank for name, (rank, _) in plan(base, config).items()}, config.lora_dropout


def init(key: jax.Array, base: Base, config: LoraConfig) -> tuple[dict, dict]:
    """Trainable factors and heads, and frozen scales, all float32. The update starts at zero."""
    shape = structure(base.config)
    trainable, frozen = {}, {}
    for index, (name, (rank, scale)) in enumerate(plan(base, config).items()):
        outputs, inputs, _ = shape.linears[name]
        bound = inputs**-0.5
        draw = jax.random.fold_in(key, index)
        trainable[f"{name}.lora_A"] = jax.random.uniform(
            draw, (rank, inputs), jnp.float32, -bound, bound
        )
        trainable[f"{name}.lora_B"] = jnp.zeros((outputs, rank), jnp.float32)
        frozen[f"{name}.scale"] = jnp.float32(scale)
    for index, name in enumerate(head_names(base, config)):
        if name in base.params:
            trainable[name] = jnp.asarray(base.params[name], jnp.float32)
        else:
            leaf = shape.leaves[name]
            draw = jax.random.fold_in(key, 1_000_000 + index)
            std = HEAD_STD if len(leaf.shape) > 1 else 0.0
            trainable[name] = std * jax.random.normal(draw, leaf.shape, jnp.float32)
    return trainable, frozen


def update(trainable: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array]) -> dict:
    """The leaves of the low-rank hooks, the scale folded into B, and the trained heads."""
    return {
        name: leaf * frozen[name.replace(".lora_B", ".scale")] if name.endswith(".lora_B") else leaf
        for name, leaf in trainable.items()
    }


def adapter(trainable: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array]) -> Adapter:
    """The trained arrays as an :class:`Adapter` on the host."""
    pairs, heads = {}, {}
    for name, leaf in trainable.items():
        layer, _, kind = name.rpartition(".")
        if kind == "lora_B":
            scale = float(frozen[layer + ".scale"])
            pairs[layer] = (np.asarray(leaf), np.asarray(trainable[layer + ".lora_A"]), scale)
        elif kind != "lora_A":
            heads[name] = np.asarray(leaf)
    return Adapter(pairs, heads)


METHOD = Method("lora", hooks, init, update)
