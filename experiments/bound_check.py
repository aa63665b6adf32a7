"""Every proved bound of the error beside the error itself, over N and eps: on a trained adapter and
on matrices made to press on the bounds.

    python -m experiments.bound_check experiment=smollm2_sentiment [seed=0]

Trains the adapter of the experiment, or takes it from the cache, and writes ``bound_check.csv`` to
the run's folder; ``paper_figures.bound_vs_error`` draws it and says what the columns are. The
bounds are those that `encode` records. Projections are measured apart from it, in float64 from the
atoms; no bound but `expected` may be below what is measured, or the program fails with
BoundViolated.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from experiments import bound_cases
from experiments.activations import inputs_of
from experiments.compare import shrink
from experiments.finetune import finetune, prepare
from experiments.program import main
from paper_figures.bound_vs_error import COLUMNS
from solar import packages
from solar.adapters import peft_io
from solar.codec import bound, container, tail
from solar.codec.blas import one_thread
from solar.codec.coefficients import Coefficients, Frames, Side, atoms_in_use, coded_sides
from solar.codec.container import Encoded
from solar.codec.encode import encode
from solar.codec.factors import Factors, canonical, core_of_error
from solar.codec.recipe import SIDES, Recipe, Setting
from solar.compilation import cache_compilations
from solar.evaluate import Weights
from solar.files import write_whole

SIZES = (16, 48, 96, 192)
PERTURBATIONS = (0.0, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)
SEEDS = 16  # of random atoms, for the mean over seeds; of an adapter its many layers count too
ADAPTER_SEEDS = 4
# ||F||_2 that the points of the case `norm near 1` aim at, with N of them.
NEAR_ONE, NEAR_ONE_SIZE = (0.8, 0.9, 0.94, 0.96, 0.98, 1.0, 1.02), 96
TINY_SIZES = (4, 8)


class Found(NamedTuple):
    """One layer (or side of it), one bound: measured error, what bounds it (None where vacuous) and
    the norm of what is sent, which is the error of sending nothing."""

    layer: str
    side: str
    name: str
    measured: float
    bound: float | None
    norm: float


def projected(atoms: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Pi X (d, r) float64 of X (d, r) on the span of the rows of atoms (a, d)."""
    q, s, _ = np.linalg.svd(np.asarray(atoms, np.float64).T, full_matrices=False)
    q = q[:, s > 1e-7 * s[0]]
    return q @ (q.T @ np.asarray(matrix, np.float64))


@one_thread
def examine(
    factors: Mapping[str, Factors],
    base: Mapping[str, np.ndarray],
    recipe: Recipe,
    cache: Path | None,
    inputs: Mapping[str, np.ndarray] | None = None,
) -> list[Found]:
    """Every bound of every layer under the paper's form with this recipe.

    factors: canonical; inputs (s, n) by layer, for the bound on outputs. Raises BoundViolated.
    """
    setting = Setting(recipe)
    encoded = encode(factors, base, setting, cache=cache)
    if recipe.kind == "random":
        return list(_expected(factors, encoded))
    known = container.identify(base, factors)
    ordered = container.in_order(known, factors)
    sides = coded_sides(known.shapes, [f.left.shape[1] for f in ordered])
    frames = Frames(base, known, sides, recipe, cache)
    found: list[Found] = []
    for index, layer in enumerate(encoded.report["layers"]):
        name = layer["name"]
        parts = (layer["measured"], layer["certificate"], layer["norm"])
        found.append(Found(name, "", "certificate", *parts))
        own = [side for side in sides if side.layer == index]
        if own:
            found += _tails(setting, own, ordered[index], frames, layer)
        if inputs is not None:
            seen = bound.output_bound(factors[name], encoded.factors[name], inputs[name])
            size = _spectral_product(factors[name]) * np.linalg.norm(inputs[name])
            found.append(Found(name, "", "outputs", *map(_length, seen), float(size)))
    return found


def _length(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def _spectral_product(factors: Factors) -> float:
    """||dW||_2; balanced factors have orthogonal columns, and the first ones are the longest."""
    return float(np.prod([bound.spectral(side[None])[0] for side in factors]))


def _tails(
    setting: Setting, sides: list[Side], factors: Factors, frames: Frames, layer: Mapping[str, Any]
) -> Iterator[Found]:
    """The tails of one layer's sides and what they give on dW, each against its projection."""
    everything = {
        side: Coefficients(np.arange(side.rank * setting.recipe.size), np.zeros(0))
        for side in sides
    }
    atoms = atoms_in_use(setting, sides, everything, frames)
    exact = [np.asarray(x, np.float64) for x in factors]
    kept = [projected(atoms[side], x) for side, x in zip(sides, exact, strict=True)]
    for name, x, y in zip(SIDES, exact, kept, strict=True):
        known, size = layer["tail"][name]["bound"], _length(x)
        measured = _length(x - y)
        _hold(f"tail of {layer['name']}, {name}", measured, known, tail.SLACK * size)
        yield Found(layer["name"], name, "tail", measured, known, size)
    error = core_of_error(*(x[None] for x in (*exact, *kept)))
    measured, known = _length(error), layer["tail_bound"]
    rounding = 3 * tail.SLACK * _length(exact[0]) * _length(exact[1])
    _hold(f"tail of {layer['name']} on dW", measured, known, rounding)
    yield Found(layer["name"], "", "tail on dW", measured, known, layer["norm"])


def _hold(what: str, measured: float, known: float | None, rounding: float) -> None:
    if known is not None:
        bound.hold(what, measured, known + rounding)


def _expected(factors: Mapping[str, Factors], encoded: Encoded) -> Iterator[Found]:
    for layer in encoded.report["layers"]:
        for name, record in layer["tail"].items():
            size = _length(getattr(factors[layer["name"]], name))
            yield Found(
                layer["name"], name, "expected", record["measured"], record["expected"], size
            )


def together(found: Sequence[Found], layer: str, side: str) -> Found:
    """Root of the sum of squares of errors, bounds and norms; vacuous if one of them is."""
    known = [x.bound for x in found]
    total = None if None in known else _length(np.array(known))
    measured = _length(np.array([x.measured for x in found]))
    norm = _length(np.array([x.norm for x in found]))
    return Found(layer, side, found[0].name, measured, total, norm)


def _slack(found: Found) -> float | None:
    """Share of the bound that the error leaves unused; None where there is no bound."""
    if found.bound is None:
        return None
    return 1 - found.measured / found.bound if found.bound > 0 else 0.0


def row(case: str, found: Found, size: int | None, eps: float | None) -> dict[str, Any]:
    """A row of the CSV: errors and bounds relative to the norm of what is sent."""
    numbers = (found.measured, found.bound)
    measured, known = (None if x is None else f"{x / found.norm:.6g}" for x in numbers)
    slack = _slack(found)
    return {
        "case": case, "layer": found.layer, "side": found.side, "N": size, "eps": eps,
        "which": found.name, "measured": measured, "bound": known,
        "slack": None if slack is None else f"{slack:.4g}", "vacuous": found.bound is None,
    }  # fmt: skip


def by_name(found: Iterable[Found]) -> dict[str, list[Found]]:
    groups: dict[str, list[Found]] = {}
    for x in found:
        if x.norm > 0:
            groups.setdefault(x.name, []).append(x)
    return groups


def adapter_rows(
    case: str, factors: Mapping[str, Factors], base: Mapping[str, np.ndarray],
    points: Sequence[tuple[int, float]], cache: Path | None, seed: int,
    inputs: Mapping[str, np.ndarray] | None = None, seeds: int = ADAPTER_SEEDS,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Per point and bound the whole update, layer `all`, and the layer that comes nearest to its
    bound; then the mean over layers and seeds in random atoms."""
    for size, eps in points:
        recipe = Recipe("singular", size, eps, seed=seed)
        for group in by_name(examine(factors, base, recipe, cache, inputs)).values():
            side = "both" if group[0].side else ""
            yield row(case, together(group, "all", side), size, eps)
            standing = [x for x in group if x.bound is not None]
            if standing:
                yield row(case, min(standing, key=_slack), size, eps)
    for size in sorted({size for size, _ in points}):
        found = _over_seeds(factors, base, size, seeds)
        if found:
            yield row(case, together(found, "all", "both"), size, None)


def _over_seeds(factors, base, size: int, seeds: int) -> list[Found]:
    """Every side of every layer in `size` random atoms of every seed."""
    drawn = (examine(factors, base, Recipe("random", size, seed=s), None) for s in range(seeds))
    return [x for found in drawn for x in found if x.norm > 0]


def case_rows(
    factors: Mapping[str, Factors], base: Mapping[str, np.ndarray],
    points: Sequence[tuple[int, float]], cache: Path | None, seed: int, seeds: int = SEEDS,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Per case, point and bound one row, and one per side for the mean over seeds; a case is one
    layer of `factors`."""
    for size, eps in points:
        for x in examine(factors, base, Recipe("singular", size, eps, seed=seed), cache):
            yield row(x.layer, x._replace(layer="all"), size, eps)
    for size in sorted({size for size, _ in points}):
        groups: dict[tuple[str, str], list[Found]] = {}
        for x in _over_seeds(factors, base, size, seeds):
            groups.setdefault((x.layer, x.side), []).append(x)
        for (case, side), found in groups.items():
            yield row(case, together(found, "all", side), size, None)


def parallel_rows(sizes: Iterable[float]) -> Iterator[dict[str, Any]]:
    """The case in which the certificate is attained: eps is the error put into both sides."""
    for size in sizes:
        before, after = bound_cases.parallel(size)
        layer = bound.check({"x": before}, {"x": after})["x"]
        yield row("parallel", Found("all", "", "certificate", layer.measured, layer.certificate,
                                    layer.norm), None, size)  # fmt: skip


def near_one_rows(cache: Path | None, seed: int) -> Iterator[dict[str, Any]]:
    """`inside` with perturbations whose norm is close to 1, from where the tail says nothing."""
    factors, base = bound_cases.cases(seed)
    factors, base = {"inside": factors["inside"]}, {"inside": base["inside"]}
    widest = 1 + np.sqrt(NEAR_ONE_SIZE / bound_cases.SHAPE[0])
    points = [(NEAR_ONE_SIZE, float(f"{norm / widest:.4g}")) for norm in NEAR_ONE]
    for line in case_rows(factors, base, points, cache, seed, seeds=0):
        yield line | {"case": "norm near 1"}


def measure(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every row of the CSV, the adapter of the experiment first."""
    setup, seed = prepare(config), config["seed"]
    adapter = peft_io.read(finetune(config, setup), setup.base)
    cache = packages.cache_dir() / "bases"
    factors = canonical(adapter.pairs)
    inputs = inputs_of(setup.base, setup.task, factors, adapter.heads)
    sizes = TINY_SIZES if config["tiny"] else SIZES
    points = [(size, eps) for size in sizes for eps in PERTURBATIONS]
    weights = Weights(setup.base)
    name = f"{config['model']['name']}, {config['task']['name']}"
    yield from adapter_rows(name, factors, weights, points, cache, seed, inputs)
    yield from parallel_rows(PERTURBATIONS[1:])
    yield from near_one_rows(cache, seed)
    yield from case_rows(*bound_cases.cases(seed), points, cache, seed)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_whole(path, text.getvalue().encode())


@main("compare")
def program(config: DictConfig) -> None:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    rows = track(measure(shrink(plain) if plain["tiny"] else plain), "rows", total=None,
                 console=Console(stderr=True))  # fmt: skip
    path = Path(HydraConfig.get().runtime.output_dir) / "bound_check.csv"
    Console().print(f"wrote {write(path, rows)}", highlight=False)


if __name__ == "__main__":
    cache_compilations()
    program()
