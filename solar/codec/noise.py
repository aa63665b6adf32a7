"""Noise: seeded Gaussian perturbations of atoms, in JAX as there may be millions."""

import jax
import jax.numpy as jnp
import numpy as np

from solar.codec import threefry


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
    # Apart, for fused into one loop they take a quarter longer.
    drawn = jax.lax.optimization_barrier(threefry.words(keys, width * dim)).reshape(base.shape)
    raw = jax.lax.optimization_barrier(base + scale * gaussian(drawn))
    norms = jnp.sqrt(jnp.sum(raw * raw, axis=-1))
    return raw / norms[..., None], norms
