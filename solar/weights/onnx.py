"""Reads a DINOv2 ViT from the graph of an ONNX file, under the names that its checkpoint had.

An exporter folds the constant parts: kernels lose their names (the MatMul node that uses one keeps
it) and are stored as (in, out); class token and patch positions are separate constants.
"""

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from solar.errors import SolarError

HEAD_WIDTH = 64  # of every published DINOv2; the graph itself does not tell


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Config (as of a ``config.json``) and tensors of the backbone, LayerScale still apart.

    Names are those of a DINOv2 checkpoint. Raises SolarError where the file is cut or holds another
    model.
    """
    try:
        graph = onnx.load(path).graph
    except (DecodeError, OSError) as error:
        raise SolarError(
            f"{path} is not a whole ONNX file ({error}); delete it and fetch it again"
        ) from error
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    tensors = {
        k.removeprefix("backbone."): v for k, v in constants.items() if k.startswith("backbone.")
    }
    for node in graph.node:
        if (
            node.op_type == "MatMul"
            and node.name.startswith("/backbone/")
            and node.input[1] in constants
        ):
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[module + ".weight"] = constants[node.input[1]].T
    patches = "embeddings.patch_embeddings.projection.weight"
    if patches not in tensors:
        raise SolarError(
            f"{path} holds no DINOv2 backbone; use a ViT in a Hugging Face directory instead"
        )
    width, channels, patch, _ = tensors[patches].shape
    positions = [
        v
        for k, v in constants.items()
        if k.startswith("onnx::") and v.ndim == 3 and v.shape[0] == 1 and v.shape[2] == width
    ]
    table = np.concatenate(sorted(positions, key=lambda v: v.shape[1]), axis=1)
    tensors["embeddings.position_embeddings"] = table
    layers = sum(k.endswith("attention.output.dense.weight") for k in tensors)
    config = {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": tensors["encoder.layer.0.mlp.fc1.weight"].shape[0],
        "image_size": patch * round((table.shape[1] - 1) ** 0.5),
        "patch_size": patch,
        "num_channels": channels,
        "layer_norm_eps": 1e-6,
        "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in tensors,
    }
    return config, tensors
