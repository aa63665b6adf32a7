"""Writing with a language model and its key/value cache: a compiled prefill, a compiled step.

Greedy or sampled (:func:`generate`), or the likeliest of several beams (:func:`beam_search`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from solar.errors import SolarError
from solar.models.attention import Cache
from solar.models.structure import Config, assemble, structure
from solar.objective import project
from solar.weights.base import Base

Prompts = Sequence[Sequence[int]]


class Start(NamedTuple):
    """Prompts padded on the left to one width, (B, T) tokens and mask, and an empty cache."""

    params: dict[str, jax.Array]
    tokens: jax.Array
    mask: jax.Array
    cache: Cache


def start(
    base: Base,
    prompts: Prompts,
    steps: int,
    leaves: Mapping[str, Any] | None,
    ranks: Mapping[str, int] | None,
    width: int | None,
) -> Start:
    """What writing ``steps`` tokens begins with. Raises SolarError for an empty prompt and for more
    tokens than the model has positions.
    """
    if not prompts or not all(len(p) for p in prompts):
        raise SolarError("generation needs at least one prompt, and none of them empty")
    longest = max(map(len, prompts))
    limit = getattr(base.config, "n_positions", None) or base.config.max_position_embeddings
    if longest + steps > limit:
        raise SolarError(
            f"{longest} + {steps} tokens exceed the model's {limit} positions; ask for fewer"
        )
    width = max(longest, width or 0)
    tokens = np.zeros((len(prompts), width), np.int32)
    mask = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):  # left padding: the last slot is real in every row
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    params = {k: jnp.asarray(v) for k, v in {**base.params, **(leaves or {})}.items()}
    cache = assemble(structure(base.config, ranks), params).empty_cache(len(prompts), width + steps)
    return Start(params, jnp.asarray(tokens), jnp.asarray(mask), cache)


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
            logits = logits.astype(jnp.float32)  # what is drawn does not hang on the dtype
            return jax.random.categorical(key, logits / temperature), cache
        return jnp.argmax(logits, -1), cache

    return advance


def generate(
    base: Base,
    prompts: Prompts,
    steps: int,
    *,
    leaves: Mapping[str, Any] | None = None,
    ranks: Mapping[str, int] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    stop: int | None = None,
    width: int | None = None,
) -> list[list[int]]:
    """Continues token lists of any lengths by up to ``steps`` tokens each; greedy where temperature
    is 0.

    ``leaves`` and ``ranks`` add an adapter's hooks. A sequence ends before the token ``stop``.
    Prompts are padded to ``width`` where that is more than the longest, so that batches share a
    compiled program. Raises SolarError for an empty prompt and for more tokens than the model has
    positions.
    """
    params, tokens, mask, cache = start(base, prompts, steps, leaves, ranks, width)
    advance = compiled(base.config, tuple(sorted((ranks or {}).items())), temperature > 0)
    key = jax.random.key(seed, impl="threefry2x32")
    real, drawn = jnp.ones((len(prompts), 1), bool), []
    for step in range(steps):
        draw = jax.random.fold_in(key, step)
        token, cache = advance(params, tokens, mask, cache, draw, max(temperature, 1e-6))
        drawn.append(np.asarray(token))
        tokens, mask = token[:, None], real
        if stop is not None and all((np.stack(drawn, 1) == stop).any(1)):
            break
    out = []
    for row in np.stack(drawn, 1).tolist() if drawn else [[] for _ in prompts]:
        out.append(row[: row.index(stop)] if stop in row else row)
    return out


@functools.cache
def compiled_ranking(config: Config, ranks: tuple[tuple[str, int], ...], count: int) -> Callable:
    """The jitted ``(params, tokens, mask, cache) -> (log-probabilities, tokens, cache)`` of the
    ``count`` likeliest next tokens, (B, count) both.
    """
    shape = structure(config, dict(ranks))

    @jax.jit
    def advance(params, tokens, mask, cache):
        model = assemble(shape, params)
        hidden, cache = model(tokens, mask, cache)
        logits = project(hidden[:, -1], model.head())
        return *jax.lax.top_k(jax.nn.log_softmax(logits), count), cache

    return advance


class Beams:
    """The beams of one prompt: those that go on, as (log-probability, tokens), and the best that
    ended, as (log-probability over length ** penalty, tokens).
    """

    def __init__(self, count: int, penalty: float):
        self.count, self.penalty = count, penalty
        self.live: list[tuple[float, list[int]]] = [(0.0, [])]
        self.ended: list[tuple[float, list[int]]] = []
        self.done = False

    def worth(self, total: float, length: int) -> float:
        return total / length**self.penalty

    def advance(self, scores: np.ndarray, tokens: np.ndarray, stop: int | None) -> list[int]:
        """Takes the likeliest next tokens of each live beam, (live, count) both; returns which
        former beam each of the ``count`` beams goes on from.
        """
        if self.done:
            return [0] * self.count
        offers = [
            (total + float(score), parent, int(token))
            for parent, (total, _) in enumerate(self.live)
            for score, token in zip(scores[parent], tokens[parent], strict=True)
        ]
        offers.sort(key=lambda offer: -offer[0])
        live, parents = [], []
        for place, (total, parent, token) in enumerate(offers):
            written = self.live[parent][1]
            if token == stop:
                # An ending that is not among the likeliest is no ending of a beam.
                if place < self.count:
                    self.ended.append((self.worth(total, len(written) + 1), written))
            else:
                live.append((total, [*written, token]))
                parents.append(parent)
            if len(live) == self.count:
                break
        self.ended = sorted(self.ended, key=lambda end: -end[0])[: self.count]
        self.live = live
        best = self.worth(live[0][0], len(live[0][1]))
        self.done = len(self.ended) == self.count and self.ended[-1][0] >= best
        return parents

    def best(self) -> list[int]:
        """The tokens of the best beam, whether it ended or was cut."""
        cut = [(self.worth(total, max(len(t), 1)), t) for total, t in self.live]
        return max([*self.ended, *([] if self.done else cut)], key=lambda end: end[0])[1]


def beam_search(
    base: Base,
    prompts: Prompts,
    steps: int,
    *,
    beams: int,
    length_penalty: float = 1.0,
    leaves: Mapping[str, Any] | None = None,
    ranks: Mapping[str, int] | None = None,
    stop: int | None = None,
    width: int | None = None,
) -> list[list[int]]:
    """The best of ``beams`` continuations of each prompt, as :func:`generate` takes and gives them:
    the highest sum of log-probabilities over length ** ``length_penalty``, the ``stop`` counted.

    A prompt is finished when ``beams`` of its continuations ended and none that goes on is better
    now. Raises what :func:`generate` raises.
    """
    params, tokens, mask, cache = start(base, prompts, steps, leaves, ranks, width)
    # One of them may be the stop, so each beam offers one more than can go on.
    offered = min(beams + 1, base.config.vocab_size)
    advance = compiled_ranking(base.config, tuple(sorted((ranks or {}).items())), offered)
    found = [Beams(beams, length_penalty) for _ in prompts]
    rows = 1  # of a prompt: the prefill has one, every step after it `beams`
    for _ in range(steps):
        scores, likeliest, cache = advance(params, tokens, mask, cache)
        scores, likeliest = np.asarray(scores), np.asarray(likeliest)
        parents = []
        for index, own in enumerate(found):
            part = slice(index * rows, (index + 1) * rows)
            chosen = own.advance(scores[part], likeliest[part], stop)
            parents += [index * rows + parent for parent in chosen]
        if all(own.done for own in found):
            break
        order = jnp.asarray(parents)
        cache = cache._replace(
            keys=cache.keys[:, order], values=cache.values[:, order], real=cache.real[order]
        )
        rows = beams
        tokens = jnp.asarray([[written[-1]] for own in found for _, written in own.live], jnp.int32)
        mask = jnp.ones(tokens.shape, bool)
    return [own.best() for own in found]
