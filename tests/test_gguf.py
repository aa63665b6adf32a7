"""GGUF files written here as llama.cpp's converter lays them out, read back, cut and refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from golden import cases

from solar.errors import SolarError
from solar.models.structure import structure
from solar.weights.base import load
from solar.weights.gguf import open_gguf

HEADS, PAIRS, WIDTH, INNER = 4, 2, 32, 64
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def refused(path: Path, message: str) -> None:
    with pytest.raises(SolarError, match=message) as info:
        load(str(path))
    assert "\n" not in str(info.value)


def vocabulary() -> tuple[list[str], list[str]]:
    """Byte-level tokens, a few merges and three control tokens; GPT-2's letters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merges = ["t h", "th e", "Ġ the", "1 2"]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return [*specials, *letters, *(m.replace(" ", "") for m in merges)], merges


def tensors() -> dict[str, np.ndarray]:
    tokens, _ = vocabulary()
    shapes = {
        "model.embed_tokens.weight": (len(tokens), WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    at, pairs = "model.layers.0.", PAIRS * WIDTH // HEADS
    for name, shape in (
        ("self_attn.q_proj", (WIDTH, WIDTH)), ("self_attn.k_proj", (pairs, WIDTH)),
        ("self_attn.v_proj", (pairs, WIDTH)), ("self_attn.o_proj", (WIDTH, WIDTH)),
        ("input_layernorm", (WIDTH,)), ("post_attention_layernorm", (WIDTH,)),
        ("mlp.gate_proj", (INNER, WIDTH)), ("mlp.up_proj", (INNER, WIDTH)),
        ("mlp.down_proj", (WIDTH, INNER)),
    ):  # fmt: skip
        shapes[f"{at}{name}.weight"] = shape
    return cases.weights(shapes)


def write(
    path: Path, arch: str = "llama", pre: str = "smollm", blocks: bool = True, **more
) -> dict:
    """A GGUF as llama.cpp's converter lays it out; returns the Hugging Face tensors in it. blocks:
    whether it says how many there are."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    if blocks:
        writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(PAIRS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(700.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    for name, value in more.items():
        writer.add_string(name.replace("__", "."), value)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    held, kinds = {}, gguf.GGMLQuantizationType
    for name, weight in tensors().items():
        module = name.removesuffix(".weight")
        if module.startswith("model.layers.0."):
            stored = f"blk.0.{NAMES[module.removeprefix('model.layers.0.')]}.weight"
        else:
            stored = f"{NAMES[module]}.weight"
        heads = {"q": HEADS, "k": PAIRS}.get(module.rpartition(".")[2][0])
        turn = module.endswith(("q_proj", "k_proj"))
        if turn:  # the converter's permutation, which the reader has to undo
            half = len(weight) // heads // 2
            weight = weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)
        if weight.ndim == 1:
            writer.add_tensor(stored, weight)
        else:
            kind = kinds.Q8_0 if "embed" in name else kinds.Q4_1
            packed = gguf.quants.quantize(weight, kind)
            writer.add_tensor(stored, packed, raw_dtype=kind)
            weight = gguf.quants.dequantize(packed, kind)
        if turn:
            weight = weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)
        held[name] = weight.astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def test_weights_config_and_tokenizer_come_from_the_file(tmp_path):
    held = write(tmp_path / "model.gguf")
    base = load(str(tmp_path / "model.gguf"))
    assert base.params.keys() == held.keys()
    for name, weight in held.items():
        np.testing.assert_array_equal(base.params[name], weight, err_msg=name)
    config = base.config
    assert config.tie_word_embeddings and config.num_key_value_heads == PAIRS
    assert (config.rope_theta, config.rms_norm_eps) == (700.0, pytest.approx(1e-5))
    assert config.head_dim == 8 and config.vocab_size == len(vocabulary()[0])
    near = tensors()  # quantised, yet the tensors that went in
    for name, weight in held.items():
        assert np.abs(weight - near[name]).max() < 0.12 * np.abs(near[name]).max(), name
    assert structure(config).leaves.keys() == held.keys()


def test_the_tokenizer_splits_digits_and_keeps_control_tokens(tmp_path):
    write(tmp_path / "model.gguf")
    tokenizer = load(str(tmp_path / "model.gguf")).tokenizer
    tokens = vocabulary()[0]

    def pieces(text: str) -> list[str]:
        return [tokens[i] for i in tokenizer.encode(text, add_special_tokens=False)]

    assert pieces("the the 12<|im_end|>") == ["the", "Ġthe", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode("Thé 12 €")) == "Thé 12 €"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token_id == 2


def test_a_file_cut_anywhere_is_refused(tmp_path):
    write(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    start = open_gguf(tmp_path / "whole.gguf").tensors[0].data_offset
    cut = tmp_path / "cut.gguf"
    for size in (
        0,
        3,
        20,
        500,
        start // 2,
        start - 1,
        start + 7,
        len(whole) // 2,
        len(whole) - 1,
    ):
        cut.write_bytes(whole[:size])
        refused(cut, "cut.gguf is (not a whole GGUF file|cut short).* fetch it again")
    cut.write_bytes(b"nonsense" * 100)
    refused(cut, "not a whole GGUF file")
    refused(tmp_path / "no.gguf", "does not exist")


def test_what_is_not_built_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, llama__rope__scaling__type="yarn")
    refused(path, "scales its rotary positions; use the Hugging Face directory")
    write(path, pre="llama-bpe")
    refused(path, "tokenizer .gpt2, llama-bpe. is not read")
    write(path, blocks=False)
    refused(path, "lacks llama.block_count; fetch the file again")
    write(path, arch="qwen2")
    refused(path, "holds a 'qwen2' model; only 'llama' is read")


def test_a_tokenizer_with_a_broken_text_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write(path)
    whole = path.read_bytes()
    assert whole.count("Ġthe".encode()) == 1
    path.write_bytes(whole.replace("Ġthe".encode(), b"\xff\xfethe"))
    refused(path, "tokenizer holds a broken text .* delete and fetch it again")
