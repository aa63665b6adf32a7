"""Noise: seeded Gaussian perturbations of atoms and their size, in JAX as there may be millions."""

import jax
import jax.numpy as jnp
import numpy as np

from solar.codec import threefry

HIGHEST = jax.lax.Precision.HIGHEST


def gaussian(word):
    """N(0, 1) float32 of uint32 JAX words: 23 bits give an odd multiple of 2^-23 in (-1, 1), which
    is exact, and sqrt(2) erf_inv of it is the value."""
    odd = (word >> 9).astype(jnp.float32) * 2.0 + (1.0 - 2.0**23)
    return jnp.float32(np.sqrt(2.0)) * jax.lax.erf_inv(odd * jnp.float32(2.0**-23))


@jax.jit
def perturbed(keys, base, scale):
    """unit(base + scale g) for keys (b, a, 2), base (b, a, width, d), and the norms (b, a, width)
    before `unit`."""
    width, dim = base.shape[2:]
    drawn = threefry.words(keys, width * dim).reshape(base.shape)
    raw = base + scale * gaussian(drawn)
    norms = jnp.sqrt(jnp.sum(raw * raw, axis=-1))
    return raw / norms[..., None], norms


def _largest(gram):
    """The largest eigenvalue of gram (a, a) from below: of its Krylov space of 24 steps (Lanczos).

    Power iteration with as many products stops up to a tenth lower where the spectrum is crowded at
    its edge, as that of Gaussian noise is.
    """
    start = jnp.ones(gram.shape[0], gram.dtype) + jnp.arange(gram.shape[0]) % 3

    def step(carry, _):
        before, v, beta = carry
        w = jnp.matmul(gram, v, precision=HIGHEST) - beta * before
        alpha = jnp.vdot(w, v, precision=HIGHEST)
        w = w - alpha * v
        beta = jnp.linalg.norm(w)
        return (v, w / jnp.maximum(beta, jnp.finfo(w.dtype).tiny), beta), (alpha, beta)

    first = (jnp.zeros_like(start), start / jnp.linalg.norm(start), jnp.zeros((), gram.dtype))
    _, (alpha, beta) = jax.lax.scan(step, first, None, length=24)
    reduced = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    return jnp.linalg.eigvalsh(reduced)[-1]


@jax.jit
def spectral_upper(matrices) -> jax.Array:
    """(b,) upper bounds of the spectral norms of (b, a, D), about 2% loose.

    tau bounds the largest eigenvalue of the Gram matrix if tau I - gram is positive definite, which
    Cholesky decides for a guess of it. Where the guess was too low the largest absolute row sum is
    taken, which always bounds.
    """

    def one(matrix):
        gram = jnp.matmul(matrix, matrix.T, precision=HIGHEST)
        guess = 1.04 * _largest(gram)
        lower = jnp.linalg.cholesky(guess * jnp.eye(gram.shape[0], dtype=gram.dtype) - gram)
        always = jnp.max(jnp.sum(jnp.abs(gram), axis=1))
        return jnp.sqrt(jnp.where(jnp.all(jnp.isfinite(lower)), guess, always))

    return jax.lax.map(one, matrices)
