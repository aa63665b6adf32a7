"""`python -m solar`."""

import os
import sys

from solar.cli import main
from solar.packages import cache_dir


def keep_compilations() -> None:
    """XLA's programs stay in the cache folder: compiling them takes longer than most adapters take
    to code. Said in the environment, as most verbs do without JAX and its import."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


if __name__ == "__main__":
    keep_compilations()
    sys.exit(main(sys.argv[1:]))
