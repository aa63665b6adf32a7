"""XLA's compiled programs on disk, so that the second process of a run does not compile again."""

import jax

from solar.packages import cache_dir


def cache_compilations() -> None:
    """Points JAX's persistent compilation cache at ``CACHE/xla``; to be called before the first
    jit.
    """
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
