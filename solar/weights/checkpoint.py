"""Reads a Hugging Face directory: config.json, safetensors in one file or in shards, or a torch
``.bin``.

Torch files are zip archives with a pickle inside. It is read by an unpickler that knows four names
and refuses every other, so no code of the file runs and no torch is needed.
"""

import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from solar.errors import SolarError
from solar.weights.stored import Stored

STORAGES = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read_config(folder: Path) -> dict:
    """The dictionary of ``config.json``; raises SolarError where it is missing or no JSON."""
    path = folder / "config.json"
    if not path.is_file():
        raise SolarError(f"{folder} has no config.json; give the folder of a Hugging Face model")
    return read_json(path)


def read_json(path: Path) -> dict:
    """A JSON file's dictionary; raises SolarError where it is no JSON."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SolarError(f"{path} is not valid JSON ({error}); fetch the model again") from error
    if not isinstance(found, dict):
        raise SolarError(f"{path} holds no JSON object; fetch the model again")
    return found


def table(folder: Path) -> dict[str, Stored]:
    """The tensors of a model folder, by name. float16 is read as float32; bfloat16 stays as it
    is. Raises SolarError where files are missing, cut or altered.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(read_json(index).get("weight_map", {}).values()))
        if missing := [f for f in files if not (folder / f).is_file()]:
            raise SolarError(f"{folder} lacks the shards {missing}; fetch them again")
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif (folder / "pytorch_model.bin").is_file():
        return torch_table(folder / "pytorch_model.bin")
    else:
        raise SolarError(
            f"{folder} has no model.safetensors (nor shards, nor pytorch_model.bin); "
            "give a folder that holds the weights"
        )
    found = {}
    for file in files:
        found |= safetensors_table(folder / file)
    return found


def safetensors_table(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file; raises SolarError where it is cut or altered."""

    def read(name: str) -> np.ndarray:
        with opened(path) as file:
            return widened(file.get_tensor(name))

    with opened(path) as file:
        return {
            name: Stored(tuple(file.get_slice(name).get_shape()), partial(read, name))
            for name in file.keys()  # noqa: SIM118
        }


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file; whatever its reader complains of becomes one SolarError."""
    try:
        with safe_open(path, "np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise SolarError(f"{path} cannot be read ({error}); fetch it again") from error


def widened(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor


def torch_table(path: Path) -> dict[str, Stored]:
    """The tensors of a torch zip file; no torch is needed, and nothing in it is run.

    Raises SolarError for a file that is cut, refers to any other code, or holds strided tensors.
    """

    def rebuild(storage, offset, size, stride, *_):
        dense = [math.prod(size[i + 1 :]) for i in range(len(size))]
        if list(stride) != dense:
            raise SolarError(f"{path} holds a strided tensor; save it again as safetensors")
        return Stored(tuple(size), partial(read, storage, offset, tuple(size)))

    def read(storage, offset, size):
        kind, key = storage
        with zip_errors(path):
            values = np.frombuffer(archive.read(f"{root}/data/{key}"), kind)
        return widened(values[offset : offset + math.prod(size)].reshape(size))

    names = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        **{("torch", name): name for name in STORAGES},
    }

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) not in names:
                raise SolarError(f"{path} refers to {module}.{name}; save it again as safetensors")
            return names[module, name]

        def persistent_load(self, pid):
            return STORAGES[pid[1]], pid[2]

    with zip_errors(path):
        archive = zipfile.ZipFile(path)
        root = archive.namelist()[0].split("/")[0]
        return dict(Reader(archive.open(f"{root}/data.pkl")).load())


@contextmanager
def zip_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError) as error:
        raise SolarError(
            f"{path} is not a readable torch file ({error}); fetch it again"
        ) from error
