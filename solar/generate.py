"""Sampling from a language model with a key/value cache: a compiled prefill, a compiled step."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from solar.errors import SolarError
from solar.models.structure import Config, assemble, structure
from solar.objective import project
from solar.weights.base import Base


@functools.cache  # batches of one shape share the compiled program
def compiled(config: Config, ranks: tuple[tuple[str, int], ...], sample: bool) -> Callable:
    """The jitted ``(params, tokens, mask, cache, key, temperature) -> (next tokens, cache)``."""
    shape = structure(config, dict(ranks))

    @jax.jit
    def advance(params, tokens, mask, cache, key, temperature):
        model = assemble(shape, params)
        hidden, cache = model(tokens, mask, cache)
        logits = project(hidden[:, -1], model.head())
        if sample:
            return jax.random.categorical(key, logits / temperature), cache
        return jnp.argmax(logits, -1), cache

    return advance


def generate(
    base: Base,
    prompts: Sequence[Sequence[int]],
    steps: int,
    *,
    leaves: Mapping[str, np.ndarray] | None = None,
    ranks: Mapping[str, int] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    stop: int | None = None,
) -> list[list[int]]:
    """Continues token lists of any lengths by up to ``steps`` tokens each; greedy where temperature
    is 0.

    ``leaves`` and ``ranks`` add an adapter's hooks. A sequence ends before the token ``stop``.
    Raises SolarError for an empty prompt and for more tokens than the model has positions.
    """
    if not prompts or not all(len(p) for p in prompts):
        raise SolarError("generation needs at least one prompt, and none of them empty")
    width = max(map(len, prompts))
    limit = getattr(base.config, "n_positions", None) or base.config.max_position_embeddings
    if width + steps > limit:
        raise SolarError(
            f"{width} + {steps} tokens exceed the model's {limit} positions; ask for fewer"
        )
    tokens = np.zeros((len(prompts), width), np.int32)
    mask = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):  # left padding: the last slot is real in every row
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    shape = structure(base.config, ranks)
    params = {k: jnp.asarray(v) for k, v in {**base.params, **(leaves or {})}.items()}

    advance = compiled(base.config, tuple(sorted((ranks or {}).items())), temperature > 0)
    cache = assemble(shape, params).empty_cache(len(prompts), width + steps)
    key = jax.random.key(seed, impl="threefry2x32")
    real = jnp.ones((len(prompts), 1), bool)
    step_tokens, step_mask, drawn = jnp.asarray(tokens), jnp.asarray(mask), []
    for step in range(steps):
        draw = jax.random.fold_in(key, step)
        token, cache = advance(params, step_tokens, step_mask, cache, draw, max(temperature, 1e-6))
        drawn.append(np.asarray(token))
        step_tokens, step_mask = token[:, None], real
        if stop is not None and all((np.stack(drawn, 1) == stop).any(1)):
            break
    out = []
    for row in np.stack(drawn, 1).tolist() if drawn else [[] for _ in prompts]:
        out.append(row[: row.index(stop)] if stop in row else row)
    return out
