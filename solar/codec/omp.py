"""OMP: orthogonal matching pursuit, which picks atoms one by one and re-fits after each.

At every step the coefficient is taken whose atom explains most of what is left of its target, by
|<rest, p>| * weight over all targets of a side, and the rest is made orthogonal to all atoms that
this target has (Pati, Rezaiifar and Krishnaprasad 1993). For orthonormal atoms this is the choice
of the largest coefficients.
"""

from functools import partial

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST

EXHAUSTED = 1e-6  # an atom whose part outside the span is below this share of it adds nothing


@partial(jax.jit, static_argnames=("most",))
def pursue(atoms, targets, weights, counts, *, most: int):
    """Support (b, a, t) bool of counts (b,) int32 coefficients a side, counts at most `most`.

    atoms (b, a, D) of unit length, targets (b, t, D), weights (b, t), float32. Fewer are picked
    only where every atom of every target is in use or explains nothing any more.
    """

    def one(atoms, targets, weights, count):
        a, t = atoms.shape[0], targets.shape[0]
        width = min(most, a)

        def step(i, state):
            rest, found, spans, used = state
            match = jnp.matmul(atoms, rest.T, precision=HIGHEST)
            score = jnp.where(found, -1.0, jnp.abs(match) * weights[None, :])
            atom, target = jnp.divmod(jnp.argmax(score), t)
            span = spans[target]
            vector = atoms[atom]
            for _ in range(2):  # twice, for the digits that the first pass loses
                inside = jnp.matmul(span, vector, precision=HIGHEST)
                vector = vector - jnp.matmul(inside, span, precision=HIGHEST)
            length = jnp.linalg.norm(vector)
            live = (i < count) & (score[atom, target] > 0)
            vector = jnp.where(length > EXHAUSTED, vector / jnp.maximum(length, EXHAUSTED), 0.0)
            along = jnp.dot(rest[target], vector, precision=HIGHEST)
            rest = rest.at[target].add(jnp.where(live, -along, 0.0) * vector)
            found = found.at[atom, target].set(found[atom, target] | live)
            place = jnp.minimum(used[target], width - 1)
            spans = spans.at[target, place].set(jnp.where(live, vector, span[place]))
            return rest, found, spans, used.at[target].add(live.astype(jnp.int32))

        start = (
            targets,
            jnp.zeros((a, t), bool),
            jnp.zeros((t, width, targets.shape[1]), atoms.dtype),
            jnp.zeros(t, jnp.int32),
        )
        return jax.lax.fori_loop(0, most, step, start)[1]

    return jax.lax.map(lambda x: one(*x), (atoms, targets, weights, counts))
