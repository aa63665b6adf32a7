"""Reads a LLaMA from a GGUF file: config and de-quantised weights, all from the file itself.

The header is walked once and tensors stay in the file until they are asked for; the ``gguf``
package de-quantises them (its own reader spends seconds on the vocabulary of a small model).
llama.cpp stores the rows of q and k interleaved for its own rotary order; they are put back into
the rotate-half order of Hugging Face. Weights come out in float32 as (out, in).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solar.errors import SolarError
from solar.weights.stored import Stored

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# The format's numbers for the types of a metadata value, as NumPy's; 8 is text and 9 an array.
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
TEXT, ARRAY = 8, 9


class Texts(Sequence):
    """Texts of the mapped file, decoded when asked for: only tokenizers ask for most of them.

    starts: where each begins and, last, where another one would; 8 bytes before are its length.
    """

    def __init__(self, data: mmap.mmap, starts: list[int]):
        self._data, self._starts = data, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> str:
        i = range(len(self))[i]
        return self._data[self._starts[i] : self._starts[i + 1] - 8].decode()


class Tensor(NamedTuple):
    """One row of the file's tensor table; ``shape`` as NumPy has it, ``kind`` a GGML type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data_offset: int
    n_bytes: int


class Header(NamedTuple):
    """A GGUF file without its weights; ``data`` is the mapped file."""

    data: mmap.mmap
    fields: dict[str, Any]
    tensors: list[Tensor]


def open_gguf(path: Path) -> Header:
    """The header of a GGUF file; raises SolarError where it is cut short, altered or no GGUF at
    all.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = walk(data)
    except (ValueError, KeyError, OSError, ArithmeticError, struct.error) as error:
        raise SolarError(
            f"{path} is not a whole GGUF file ({error}); delete it and fetch it again"
        ) from error
    if any(t.data_offset + t.n_bytes > len(data) for t in header.tensors):
        raise SolarError(f"{path} is cut short; delete it and fetch it again")
    return header


def walk(data: mmap.mmap) -> Header:
    """Metadata and tensor table; raises ValueError, KeyError or struct.error where they are
    damaged.
    """
    import gguf

    place = 0

    def take(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(form, data, place)
        place += struct.calcsize(form)
        return value

    def texts(count: int) -> Texts:
        nonlocal place
        at, end, length, starts = place, len(data), struct.Struct("<Q").unpack_from, [place + 8]
        if count > (end - place) // 8:
            raise ValueError(f"{count} texts run past the end")
        further = starts.append
        for _ in range(count):  # a tokenizer has a hundred thousand
            (own,) = length(data, at)
            at += own + 8
            further(at + 8)
        if at > end:
            raise ValueError("a text runs past the end")
        place = at
        return Texts(data, starts)

    def text() -> str:
        return texts(1)[0]

    def values(kind: int, count: int) -> Sequence:
        nonlocal place
        if kind == TEXT:
            return texts(count)
        found = np.frombuffer(data, SCALARS[kind], count, place)
        place += found.nbytes
        return found.tolist()

    if data[:4] != b"GGUF":
        raise ValueError("it does not start as one")
    place = 4
    if (version := take("<I")) not in (2, 3):
        raise ValueError(f"version {version}, big-endian or altered")
    tensors, fields = take("<Q"), {}
    for _ in range(take("<Q")):
        name, kind = text(), take("<I")
        if kind == ARRAY:
            kind = take("<I")
            fields[name] = values(kind, take("<Q"))
        else:
            (fields[name],) = values(kind, 1)
    rows = []
    for _ in range(tensors):
        name = text()
        shape = tuple(take("<Q") for _ in range(take("<I")))[::-1]
        kind = gguf.GGMLQuantizationType(take("<I"))
        rows.append((name, shape, kind, take("<Q")))
    if len({name for name, *_ in rows}) < len(rows):
        raise ValueError("a tensor is listed twice")
    align = fields.get("general.alignment", 32)
    start = -(-place // align) * align
    table = []
    for name, shape, kind, offset in rows:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ValueError(f"{name} of shape {shape} is no whole number of blocks")
        count = 1
        for side in shape:  # Python's integers, which do not wrap around
            count *= side
        table.append(Tensor(name, shape, kind, start + offset, count // block * size))
    return Header(data, fields, table)


def read_config(header: Header) -> dict:
    """The file's metadata as the dictionary of a Hugging Face ``config.json``; raises SolarError
    for what is no plain LLaMA, or lacks a size.
    """
    fields = header.fields
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise SolarError(f"this GGUF holds a {kind!r} model; only 'llama' is read from GGUF files")

    def get(name, default=None):
        return fields.get(f"llama.{name}", default)

    names = {t.name for t in header.tensors}
    heads = get("attention.head_count")
    if "rope_freqs.weight" in names or get("rope.scaling.type", "none") != "none":
        raise SolarError(
            "this GGUF scales its rotary positions; use the Hugging Face directory instead"
        )
    needed = ("embedding_length", "feed_forward_length", "block_count", "attention.head_count",
              "context_length", "attention.layer_norm_rms_epsilon")  # fmt: skip
    if lacking := [name for name in needed if get(name) is None]:
        raise SolarError(f"this GGUF lacks llama.{lacking[0]}; fetch the file again")
    return {
        "model_type": "llama",
        "vocab_size": len(fields.get("tokenizer.ggml.tokens", ())),
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("rope.dimension_count", get("embedding_length") // heads),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": float(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in names,
    }


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from llama.cpp's interleaved rotary order back to two halves."""
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def read_tensor(header: Header, tensor: Tensor, heads: int | None) -> np.ndarray:
    """One weight in float32; ``heads`` of a q or k projection undoes the order of its rows.

    Raises SolarError for a quantisation that the ``gguf`` package does not know.
    """
    from gguf.quants import dequantize

    packed = np.frombuffer(header.data, np.uint8, tensor.n_bytes, tensor.data_offset)
    packed = packed.reshape(*tensor.shape[:-1], -1)
    if heads is not None:
        packed = halves(packed, heads)  # no block reaches over the end of a row
    try:
        weight = dequantize(packed, tensor.kind)
    except NotImplementedError as error:
        raise SolarError(f"{tensor.name}: {error}; use a GGUF of another quantisation") from error
    return np.require(weight, np.float32, "W")  # float32 comes as a view of the file


def table(header: Header) -> dict[str, Stored]:
    """All weights under Hugging Face's names; unknown names are passed through."""
    heads = header.fields.get("llama.attention.head_count")
    pairs = header.fields.get("llama.attention.head_count_kv", heads)
    found = {}
    for tensor in header.tensors:
        name, turn = TOP.get(tensor.name, tensor.name), None
        if name.startswith("blk.") and name.count(".") == 3:
            _, layer, kind, last = name.split(".")
            turn = {"attn_q": heads, "attn_k": pairs}.get(kind)
            name = f"model.layers.{layer}.{LAYER.get(kind, kind)}.{last}"

        def read(tensor=tensor, turn=turn) -> np.ndarray:
            return read_tensor(header, tensor, turn)

        found[name] = Stored(tensor.shape, read)
    return found
