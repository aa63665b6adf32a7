"""What every test may rely on: no network, no account, the CPU, and a cache of compiled programs.

Sessions that ask for the real bases (`-m real`) keep the network and the user's cache, because
downloading once is what they are for.
"""

import os
import socket
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

_OFFLINE = {
    "SOLAR_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}


def _real(config: pytest.Config) -> bool:
    chosen = config.getoption("markexpr") or ""
    return "real" in chosen and "not real" not in chosen


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before a test imports JAX; programs that tests start inherit it."""
    if hasattr(config, "cache"):  # absent under -p no:cacheprovider
        folder = Path(config.cache.mkdir("solar"))
        # Most of the suite's time would be XLA compiling the same small models again.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "xla")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
        os.environ["WANDB_CACHE_DIR"] = str(folder / "wandb")
        os.environ["WANDB_CONFIG_DIR"] = str(folder / "wandb")
        if not _real(config):
            os.environ["SOLAR_CACHE"] = str(folder / "cache")
    if not _real(config):
        os.environ.update(_OFFLINE)


@pytest.fixture(scope="session", autouse=True)
def no_network(pytestconfig: pytest.Config):
    """Looking up any host but this one fails, by name, whatever library tries."""
    if _real(pytestconfig):
        yield
        return
    look_up = socket.getaddrinfo

    def only_here(host, *rest, **named):
        if host in (None, "", "localhost", "127.0.0.1", "::1", b"localhost"):
            return look_up(host, *rest, **named)
        raise OSError(f"a test asked the network for {host}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", only_here)
        yield


@pytest.fixture
def key():
    """A fixed JAX key of the generator that the format pins."""
    import jax

    return jax.random.key(0, impl="threefry2x32")
