"""The two-dimensional weights of a base, read one at a time and without building a model.

Nothing heavy is imported: a program that only codes an adapter starts in a fraction of a second and
holds one layer at a time. The values are those that :func:`solar.weights.base.load` gives, bit by
bit, because both read the same tables.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from solar.errors import SolarError
from solar.weights.locate import contents, locate
from solar.weights.names import FAMILIES, UNUSED, rename, scaled_module
from solar.weights.stored import Stored

# Every projection of a layer, below the layer's own path.
LAYERS = {
    "gpt2": "transformer.h.{}",
    "llama": "model.layers.{}",
    "vit": "vit.layers.{}",
}
PROJECTIONS = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "llama": (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    ),
    "vit": (*(f"attention.{part}_proj" for part in "qkvo"), "mlp.fc1", "mlp.fc2"),
}
HEADS = {"gpt2": "lm_head", "llama": "lm_head", "vit": "classifier"}
COUNTS = {"gpt2": "n_layer", "llama": "num_hidden_layers", "vit": "num_hidden_layers"}
TIED = {"gpt2": True, "llama": False}  # where the config is silent


class Matrix(NamedTuple):
    """One weight in its file. ``gain``: the LayerScale of its rows. ``turned``: it lies there as
    (inputs, outputs).
    """

    weight: Stored
    gain: Stored | None
    turned: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs), from the file's header."""
        return self.weight.shape[::-1] if self.turned else self.weight.shape

    def read(self) -> np.ndarray:
        """The weight as (outputs, inputs) float32. The scale is folded in the file's own
        precision, as it is for the model.
        """
        weight = self.weight.read()
        if self.gain is not None:
            weight = self.gain.read()[:, None] * weight
        weight = np.asarray(weight, np.float32)
        return weight.T if self.turned else weight


class Matrices(Mapping):
    """Module path -> weight (outputs, inputs) float32, read from disk at each access and not kept.

    ``source`` is the spec, ``family`` one of gpt2, llama and vit, ``shapes`` the (outputs, inputs)
    of every weight, which costs no reading. Embeddings, norms and position tables are left out.
    """

    def __init__(self, source: str, family: str, found: Mapping[str, Matrix]):
        self.source, self.family, self._found = source, family, dict(found)
        self.shapes: Mapping[str, tuple[int, int]] = {k: m.shape for k, m in self._found.items()}

    @property
    def gains(self) -> dict[str, np.ndarray]:
        """The LayerScale (out,) float32 that is folded into a weight, of those that have one."""
        found = {k: m.gain for k, m in self._found.items() if m.gain is not None}
        return {k: np.asarray(gain.read(), np.float32) for k, gain in found.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._found[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self._found  # Mapping's own would read the weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def open_matrices(spec: str) -> Matrices:
    """The weights that adapters of a base can change; ``spec`` as :mod:`solar.weights.base` has it.

    Raises SolarError, in one line, where the spec names nothing readable or a weight is missing,
    too many or not two-dimensional; a damaged file may show only when a weight is read.
    """
    if spec.startswith("tiny:"):
        raw, table = tiny_contents(spec)
    else:
        raw, table = contents(locate(spec), spec)
    family = FAMILIES[raw["model_type"]]
    return Matrices(spec, family, projections(spec, family, raw, table))


def projections(
    spec: str, family: str, raw: Mapping, table: Mapping[str, Stored]
) -> dict[str, Matrix]:
    """The projections in a checkpoint's ``table``, sorted by name; raises SolarError where they
    are not those of the config ``raw``.
    """
    held = {rename(family, k): v for k, v in table.items() if not UNUSED[family].search(k)}
    gains = {module: held[k] for k in held if (module := scaled_module(k))}
    layer = re.escape(LAYERS[family].removesuffix("{}"))
    parts = "|".join(map(re.escape, PROJECTIONS[family]))
    form = re.compile(rf"{layer}(\d+)\.({parts})\.weight")
    found, layers = {}, 0
    for name, stored in held.items():
        if match := form.fullmatch(name):
            found[name.removesuffix(".weight")] = stored
            layers = max(layers, int(match[1]) + 1)
    layers = raw.get(COUNTS[family]) or layers
    wanted = {
        f"{LAYERS[family].format(i)}.{part}" for i in range(layers) for part in PROJECTIONS[family]
    }
    problems = [f"missing {k}.weight" for k in sorted(wanted - found.keys())]
    problems += [f"unexpected {k}.weight" for k in sorted(found.keys() - wanted)]
    if not found:
        problems.append("no projection at all")
    head = HEADS[family]
    said = raw.get("tie_word_embeddings")
    tied = family != "vit" and (TIED[family] if said is None else said)
    if f"{head}.weight" in held and not tied:
        found[head] = held[f"{head}.weight"]
    problems += [f"{k}.weight is {v.shape}" for k, v in found.items() if len(v.shape) != 2]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise SolarError(
            f"{spec} does not fit a {family} of its config: {'; '.join(problems[:6])}{more}. "
            "Check that config.json belongs to these weights"
        )
    turned = family == "gpt2"  # Conv1D, which the output head is not
    return {
        name: Matrix(found[name], gains.get(name), turned and name != head)
        for name in sorted(found)
    }


def tiny_contents(spec: str) -> tuple[dict, dict[str, Stored]]:
    """``tiny:FAMILY`` is drawn and not stored, so it stays in memory, and JAX draws it."""
    from solar.weights import tiny

    config, leaves = tiny.draw(spec.removeprefix("tiny:"))
    raw = {
        "model_type": config.family,
        COUNTS[config.family]: getattr(config, COUNTS[config.family]),
        "tie_word_embeddings": getattr(config, "tie_word_embeddings", False),
    }
    table = {
        name: Stored(leaf.shape, lambda leaf=leaf: np.array(leaf)) for name, leaf in leaves.items()
    }
    return raw, table
