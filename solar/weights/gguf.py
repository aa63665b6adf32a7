"""Reads a LLaMA from a GGUF file: de-quantised weights, config and tokenizer, all from the file
itself.

llama.cpp stores the rows of q and k interleaved for its own rotary order; they are put back into
the rotate-half order of Hugging Face. Weights come out in float32 as (out, in).
"""

from pathlib import Path

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from solar.errors import SolarError

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
CONTROL, USER_DEFINED = 3, 4  # token types of the format that are never split


def open_gguf(path: Path) -> gguf.GGUFReader:
    """The reader of a GGUF file; raises SolarError where it is cut short, altered or no GGUF at
    all.
    """
    try:
        reader = gguf.GGUFReader(path)
        last = max(reader.tensors, key=lambda t: t.data_offset)
        whole = last.data_offset + last.n_bytes <= path.stat().st_size
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise SolarError(
            f"{path} is not a whole GGUF file ({error}); delete it and fetch it again"
        ) from error
    if not whole:
        raise SolarError(f"{path} is cut short; delete it and fetch it again")
    return reader


def field(reader: gguf.GGUFReader, name: str, default=None):
    return reader.fields[name].contents() if name in reader.fields else default


def read_config(reader: gguf.GGUFReader) -> dict:
    """The file's metadata as the dictionary of a Hugging Face ``config.json``."""
    kind = field(reader, "general.architecture")
    if kind != "llama":
        raise SolarError(f"this GGUF holds a {kind!r} model; only 'llama' is read from GGUF files")

    def get(name, default=None):
        return field(reader, f"llama.{name}", default)

    names = {t.name for t in reader.tensors}
    heads = get("attention.head_count")
    if "rope_freqs.weight" in names or get("rope.scaling.type", "none") != "none":
        raise SolarError(
            "this GGUF scales its rotary positions; use the Hugging Face directory instead"
        )
    return {
        "model_type": "llama",
        "vocab_size": len(field(reader, "tokenizer.ggml.tokens")),
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


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from llama.cpp's interleaved rotary order back to two halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def read_tensors(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    """All weights in float32 under Hugging Face's names; unknown names are passed through."""
    heads = field(reader, "llama.attention.head_count")
    pairs = field(reader, "llama.attention.head_count_kv", heads)
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = TOP.get(tensor.name, tensor.name)
        if name.startswith("blk."):
            _, layer, kind, last = name.split(".")
            if kind in ("attn_q", "attn_k"):
                weight = halves(weight, heads if kind == "attn_q" else pairs)
            name = f"model.layers.{layer}.{LAYER.get(kind, kind)}.{last}"
        tensors[name] = weight
    return tensors


def read_tokenizer(reader: gguf.GGUFReader) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer in the file; raises SolarError for other kinds."""
    kind, before = (
        field(reader, "tokenizer.ggml.model"),
        field(reader, "tokenizer.ggml.pre", "gpt-2"),
    )
    if kind != "gpt2" or before not in ("smollm", "gpt-2", "default"):
        raise SolarError(
            f"the GGUF's tokenizer ({kind}, {before}) is not read; "
            "use the model's Hugging Face directory"
        )
    tokens = field(reader, "tokenizer.ggml.tokens")
    types = field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ", 1)) for m in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if before == "smollm":
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )

    def token(name):
        index = field(reader, f"tokenizer.ggml.{name}_token_id")
        return None if index is None else tokens[index]

    end = token("eos")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=token("bos"),
        eos_token=end,
        unk_token=token("unknown"),
        pad_token=token("padding") or end,
    )
