"""Recipe and setting: what both ends need beside the base weights, and how an adapter is coded."""

from dataclasses import dataclass, field

import numpy as np

from solar.codec import kinds
from solar.errors import SolarError

SIDES = ("left", "right")
KINDS = tuple(kinds.KINDS)
SELECTIONS = ("leading", "sampled")
ATOMS = ("vector", "matrix")
ENTROPY = "entropy"
# The byte in the file is the index.
DTYPES = ("float16", "float32", "int8", "int4", "int2", "sign", ENTROPY)
AUTO = "auto"  # for Setting.dtype under a budget: the one that gains most
SEARCHES = ("top", "omp")
MAX_POWER = 400  # of two, either way: what squares of float32 numbers need and to spare
MAX_SIZE = 65535  # N is two bytes in the packet
MAX_KEEP = 65534  # K is two bytes too; the last value marks supports of free size
BUDGET = "budget"  # for Setting.keep: how many coefficients each component gets is the budget's


@dataclass(frozen=True)
class Recipe:
    """What both ends need to build the same atoms beside the base weights.

    `size` is N, `perturbation` is eps (rounded to float32; only `singular` uses it, the other kinds
    store 0), `seed` an integer of 64 bits. Raises SolarError on values out of range.
    """

    kind: str = "singular"
    size: int = 64
    perturbation: float = 0.0
    selection: str = "leading"
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise SolarError(f"basis kind {self.kind!r} is unknown; choose one of {KINDS}")
        if self.selection not in SELECTIONS:
            raise SolarError(f"selection {self.selection!r} is unknown; choose from {SELECTIONS}")
        if not 1 <= self.size <= MAX_SIZE:
            raise SolarError(f"basis size {self.size} is out of range; choose 1 to {MAX_SIZE}")
        if not (0 <= self.perturbation < 1e6):
            raise SolarError(f"perturbation {self.perturbation} is out of range; choose 0 or more")
        if not 0 <= self.seed < 2**64:
            raise SolarError(f"seed {self.seed} is out of range; choose 0 to 2^64 - 1")
        eps = float(np.float32(self.perturbation)) if self.kind == "singular" else 0.0
        object.__setattr__(self, "perturbation", eps)


@dataclass(frozen=True)
class Setting:
    """How to code an adapter.

    atoms: `vector` gives every component N coefficients of its own, `matrix` one coefficient per
    stack of r vectors. keep: K coefficients are sent per component (vector atoms; with search `top`
    shared among the components of a side by what they are worth) or per side (matrix atoms); None
    sends all N; "budget" leaves the number of every component to `encode`'s budget_bytes, from at
    most min(N, orthonormal vectors there are). dtype: of the coefficients; the integers have a step
    per component; "auto", under a budget, takes what gains most; `entropy`, under a budget
    too, is ecsq.py's: every side at the level it is worth. search: `top` keeps the largest
    coefficients, `omp` picks them one by one by orthogonal matching pursuit (Pati et al. 1993).
    ridge: relative to the mean eigenvalue, see select.py. embed: the vectors in use travel too, in
    float16. relative: with `entropy`, from 0 (errors count as they are in dW) to 1 (each layer's
    error counts relative to its own update). Raises SolarError on values out of range.
    """

    recipe: Recipe = field(default_factory=Recipe)
    atoms: str = "vector"
    keep: int | str | None = None
    dtype: str = "float16"
    ridge: float = 1e-5
    search: str = "top"
    embed: bool = False
    relative: float = 0.0

    def __post_init__(self):
        if self.atoms not in ATOMS:
            raise SolarError(f"atoms {self.atoms!r} are unknown; choose one of {ATOMS}")
        if self.dtype not in (*DTYPES, *([AUTO] if self.keep == BUDGET else [])):
            raise SolarError(f"coefficient dtype {self.dtype!r} is unknown; choose from {DTYPES}")
        if self.search not in SEARCHES:
            raise SolarError(f"search {self.search!r} is unknown; choose from {SEARCHES}")
        if not 0 < self.ridge < 1:
            raise SolarError(f"ridge {self.ridge} is out of range; choose between 0 and 1")
        if not 0 <= self.relative <= 1:
            raise SolarError(f"relative {self.relative} is out of range; choose 0 to 1")
        if isinstance(self.keep, str) and self.keep != BUDGET:
            raise SolarError(f"keep {self.keep!r} is unknown; choose a number, none or {BUDGET!r}")
        if self.dtype == ENTROPY and (self.keep != BUDGET or self.atoms != "vector"):
            raise SolarError("dtype entropy needs vector atoms and keep='budget'; set both")
        if isinstance(self.keep, int):
            if self.keep < 1:
                raise SolarError(f"keep {self.keep} is out of range; choose 1 or more, or none")
            if self.keep >= self.recipe.size:
                object.__setattr__(self, "keep", None)

    @property
    def sparse(self) -> bool:
        """Whether the file says which coefficients are sent."""
        return self.keep is not None and self.dtype != ENTROPY
