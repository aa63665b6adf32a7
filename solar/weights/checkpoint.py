"""Reads a Hugging Face directory: config.json, safetensors in one file or in shards, or a torch
``.bin``.

Torch files are zip archives with a pickle inside. It is read by an unpickler that knows four names
and refuses every other, so no code of the file runs and no torch is needed.
"""

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from solar.errors import SolarError

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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SolarError(f"{path} is not valid JSON ({error}); fetch the model again") from error
    if not isinstance(found, dict):
        raise SolarError(f"{path} holds no JSON object; fetch the model again")
    return found


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a model folder, by name. float16 becomes float32; bfloat16 stays as it is."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(read_json(index).get("weight_map", {}).values()))
        if missing := [f for f in files if not (folder / f).is_file()]:
            raise SolarError(f"{folder} lacks the shards {missing}; fetch them again")
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif (folder / "pytorch_model.bin").is_file():
        return read_torch(folder / "pytorch_model.bin")
    else:
        raise SolarError(
            f"{folder} has no model.safetensors (nor shards, nor pytorch_model.bin); "
            "give a folder that holds the weights"
        )
    tensors = {}
    for file in files:
        tensors |= read_safetensors(folder / file)
    return tensors


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """One safetensors file, float16 widened to float32; raises SolarError where it is cut or
    altered.
    """
    try:
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SolarError(f"{path} cannot be read ({error}); fetch it again") from error
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in tensors.items()}


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The state dictionary in a torch zip file; no torch, and nothing in it is run."""

    def rebuild(storage, offset, size, stride, *_):
        count = int(np.prod(size))
        dense = [int(np.prod(size[i + 1 :])) for i in range(len(size))]
        if list(stride) != dense:
            raise SolarError(f"{path} holds a strided tensor; save it again as safetensors")
        return storage[offset : offset + count].reshape(size)

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
            return np.frombuffer(archive.read(f"{root}/data/{pid[2]}"), STORAGES[pid[1]])

    try:
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].split("/")[0]
            tensors = dict(Reader(archive.open(f"{root}/data.pkl")).load())
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError) as error:
        raise SolarError(
            f"{path} is not a readable torch file ({error}); fetch it again"
        ) from error
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in tensors.items()}
