"""Reads a DINOv2 ViT from the graph of an ONNX file, under the names that its checkpoint had.

An exporter folds the constant parts: kernels lose their names (the MatMul node that uses one keeps
it) and are stored as (in, out); class token and patch positions are separate constants.

Only the places of the constants are looked up here, so that one can be read without the others: the
``onnx`` package parses a file whole. What is walked is protobuf's wire format
(https://protobuf.dev/programming-guides/encoding), with the field numbers of onnx.proto.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from solar.errors import SolarError
from solar.weights.stored import Stored

HEAD_WIDTH = 64  # of every published DINOv2; the graph itself does not tell
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
GRAPH, NODE, INITIALIZER = 7, 1, 5
NODE_INPUT, NODE_NAME, NODE_KIND = 1, 3, 4
DIMS, KIND, FLOATS, TENSOR_NAME, RAW, LOCATION = 1, 2, 4, 8, 9, 14
# Numbers of TensorProto.DataType for weights; other constants (shapes, indices) are not needed.
FLOAT = 1
KINDS = {FLOAT: np.dtype("<f4"), 10: np.dtype("<f2"), 11: np.dtype("<f8"),
         16: np.dtype(ml_dtypes.bfloat16)}  # fmt: skip


class Constant(NamedTuple):
    """Where a tensor of the graph lies in the file."""

    kind: np.dtype
    shape: tuple[int, ...]
    offset: int


def varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A number of protobuf and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a number has no end")


def walk(data: mmap.mmap, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Fields of one message: number, and where its bytes start and stop; of a varint, its value
    and -1.

    Raises ValueError or IndexError where the message is cut or no protobuf.
    """
    while place < end:
        key, place = varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, place = varint(data, place)
            yield number, value, -1
            continue
        if wire == BYTES:
            size, place = varint(data, place)
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            size = 8 if wire == EIGHT_BYTES else 4
        else:
            raise ValueError(f"field of unknown kind {wire}")
        if size > end - place:
            raise ValueError(f"a field of {size} bytes runs past its end")
        yield number, place, place + size
        place += size


def constant(data: mmap.mmap, start: int, stop: int) -> tuple[str, Constant | None]:
    """Name and place of a tensor, None for one that is no weight or does not lie in one piece."""
    name, kind, dims, place = "", None, [], None
    for number, begin, end in walk(data, start, stop):
        if number == DIMS:
            if end < 0:  # one dimension a field, as exporters write them
                dims.append(begin)
            while begin < end:  # all in one
                value, begin = varint(data, begin)
                dims.append(value)
        elif number == KIND:
            kind = begin
        elif number == TENSOR_NAME:
            name = data[begin:end].decode()
        elif number == RAW or number == FLOATS and kind in (None, FLOAT):
            place = (begin, end)
        elif number == LOCATION and begin:
            raise ValueError(f"{name} lies in another file")
    if kind not in KINDS or place is None:
        return name, None
    shape, size = tuple(dims), KINDS[kind].itemsize
    for side in shape:
        size *= side
    if size != place[1] - place[0]:
        raise ValueError(f"{name} of shape {shape} has {place[1] - place[0]} bytes")
    return name, Constant(KINDS[kind], shape, place[0])


def graph(data: mmap.mmap) -> tuple[dict[str, Constant], dict[str, str]]:
    """Constants by name, and the name of the MatMul that multiplies by each of them."""
    constants, users = {}, {}
    for number, start, stop in walk(data, 0, len(data)):
        if number != GRAPH:
            continue
        for part, begin, end in walk(data, start, stop):
            if part == INITIALIZER:
                name, found = constant(data, begin, end)
                if found is not None:
                    constants[name] = found
            elif part == NODE:
                fields = [
                    (n, data[a:b].decode())
                    for n, a, b in walk(data, begin, end)
                    if n in (NODE_INPUT, NODE_NAME, NODE_KIND)
                ]
                inputs = [text for n, text in fields if n == NODE_INPUT]
                if (NODE_KIND, "MatMul") in fields and len(inputs) == 2:
                    users[inputs[1]] = dict(fields).get(NODE_NAME, "")
    return constants, users


def contents(path: Path) -> tuple[dict, dict[str, Stored]]:
    """Config (as of a ``config.json``) and tensors of the backbone, LayerScale still apart.

    Names are those of a DINOv2 checkpoint. Raises SolarError where the file is cut or holds another
    model.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        constants, users = graph(data)
    except (ValueError, IndexError, OSError) as error:
        raise SolarError(
            f"{path} is not a whole ONNX file ({error}); delete it and fetch it again"
        ) from error

    def stored(place: Constant, turned: bool = False) -> Stored:
        def read() -> np.ndarray:
            count = int(np.prod(place.shape))
            values = np.frombuffer(data, place.kind, count, place.offset).reshape(place.shape)
            return values.T if turned else values

        return Stored(place.shape[::-1] if turned else place.shape, read)

    table = {
        k.removeprefix("backbone."): stored(v)
        for k, v in constants.items()
        if k.startswith("backbone.")
    }
    for name, user in users.items():
        if user.startswith("/backbone/") and name in constants:
            module = user.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            table[module + ".weight"] = stored(constants[name], turned=True)
    patches = "embeddings.patch_embeddings.projection.weight"
    if patches not in table:
        raise SolarError(
            f"{path} holds no DINOv2 backbone; use a ViT in a Hugging Face directory instead"
        )
    width, channels, patch, _ = table[patches].shape
    pieces = [
        stored(v)
        for k, v in constants.items()
        if k.startswith("onnx::") and len(v.shape) == 3 and v.shape[0] == 1 and v.shape[2] == width
    ]
    pieces.sort(key=lambda piece: piece.shape[1])
    count = sum(piece.shape[1] for piece in pieces)
    table["embeddings.position_embeddings"] = Stored(
        (1, count, width), lambda: np.concatenate([piece.read() for piece in pieces], axis=1)
    )
    config = {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": sum(k.endswith("attention.output.dense.weight") for k in table),
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": table["encoder.layer.0.mlp.fc1.weight"].shape[0],
        "image_size": patch * round((count - 1) ** 0.5),
        "patch_size": patch,
        "num_channels": channels,
        "layer_norm_eps": 1e-6,
        "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in table,
    }
    return config, table
