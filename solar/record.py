"""What a run remembers: JSON written atomically, identities of configurations, versions of
everything that computed.

A record is read by programs that come later (collect, figures, a resumed run), so it is either
whole or absent (`solar.files`). Every number in it is finite; a NaN is refused by its path in the
record rather than written as something that no JSON reader agrees on.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from solar.errors import SolarError
from solar.files import write_whole

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "transformers", "numpy", "scipy", "safetensors"),
    *("constriction", "threadpoolctl"),
)


def plain(value: Any, where: str = "record") -> Any:
    """The same value made of dict, list, str, int, float, bool and None only.

    Takes mappings (an OmegaConf one too), sequences, frozen dataclasses, paths, and NumPy or JAX
    scalars and arrays. Raises SolarError naming the path of the entry for NaN, infinity, or a type
    that JSON cannot hold.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise SolarError(
                f"{where} is {value}, which a record does not hold: find where it became non-finite"
            )
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        entries: dict[str, Any] = {}
        for key, entry in value.items():
            if str(key) in entries:
                raise SolarError(f"{where} has the key {key!s} twice: rename one of them")
            entries[str(key)] = plain(entry, f"{where}.{key}")
        return entries
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return plain(fields, where)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        if array.dtype.kind not in "biufU":  # ml_dtypes' small floats are kind V
            array = array.astype(np.float32)
        return plain(array.tolist(), where)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    raise SolarError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: turn it into numbers or text"
    )


def write(path: str | os.PathLike, record: Mapping[str, Any]) -> Path:
    """Write `record` as JSON under `path`, whole or not at all, and return the path.

    Parent folders are made. Raises SolarError for what JSON cannot hold (see `plain`); the file
    that was there before stays untouched then.
    """
    return write_whole(path, f"{_laid_out(plain(record))}\n".encode())


def _laid_out(value: Any, margin: str = "") -> str:
    """JSON with a line for every key, and one for a whole list of numbers: such lists run over
    layers, and with a line for every number nobody would find the keys."""
    inner = margin + "  "
    if isinstance(value, dict) and value:
        keys = (json.dumps(key, ensure_ascii=False) for key in value)
        lines = [f"{k}: {_laid_out(v, inner)}" for k, v in zip(keys, value.values(), strict=True)]
        opening, closing = "{}"
    elif isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        lines = [_laid_out(entry, inner) for entry in value]
        opening, closing = "[]"
    else:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    body = ",\n".join(inner + line for line in lines)
    return f"{opening}\n{body}\n{margin}{closing}"


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The record under `path`. Raises SolarError when it is missing, not JSON, or not an object."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SolarError(
            f"cannot read the record {path} ({error.strerror}): give the folder of a finished run"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SolarError(
            f"{path} is not a JSON record ({error}): delete it and run again"
        ) from None
    if not isinstance(record, dict):
        raise SolarError(
            f"{path} holds a JSON {type(record).__name__}, not a record: delete it and run again"
        )
    return record


def identity(config: Mapping[str, Any]) -> str:
    """SHA-256 (64 hex digits) of a nested configuration, the same for any order of its keys.

    Tuples count as lists and NumPy scalars as Python's; 1 and 1.0 differ. Raises SolarError as
    `plain` does.
    """
    text = json.dumps(plain(config, "config"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, Any]:
    """What computed: Python, libraries, this package, the commit of its checkout, and the device.

    `commit` and `dirty` are None where the package does not run from a git checkout of its own.
    Starts JAX's backend.
    """
    import jax  # the record itself needs no accelerator library until somebody asks what computed

    import solar

    found: dict[str, Any] = {"python": platform.python_version(), "solar": solar.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found.update(_checkout(Path(solar.__file__).resolve().parent.parent))
    devices = jax.devices()
    found["device"] = devices[0].device_kind
    found["device_count"] = len(devices)
    found["platform"] = platform.platform()
    found["cpu_count"] = os.cpu_count()
    return found


def _checkout(root: Path) -> dict[str, Any]:
    """Commit and dirty flag of `root`, only if it is a checkout itself, not inside another's."""
    nothing = {"commit": None, "dirty": None}
    if not (root / ".git").exists():
        return nothing
    answers = []
    for question in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *question],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return nothing
        answers.append(done.stdout.strip())
    return {"commit": answers[0], "dirty": bool(answers[1])}
