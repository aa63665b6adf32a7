"""``tiny:FAMILY``: a random model of a few thousand weights, for tests, notebooks and ``tiny=true``
runs.

Nothing is fetched: weights come from a fixed seed, and the tokenizer is a small byte-level BPE
learnt from the movie snippets that the package carries. Numbers measured on it mean nothing and are
marked ``tiny`` in records.
"""

import functools

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from solar.errors import SolarError
from solar.models.gpt2 import GPT2Config
from solar.models.llama import LlamaConfig
from solar.models.structure import Config, random_leaves
from solar.models.vit import ViTConfig
from solar.tasks.sources import open_source

VOCABULARY = 512
CONFIGS: dict[str, Config] = {
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_positions=512, n_embd=32, n_layer=2, n_head=4),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    ),
    "vit": ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=28,
        patch_size=14,
    ),
}


def byte_level_bpe(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``size`` tokens learnt from ``texts``; the first one ends and pads a
    text.
    """
    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    rows = open_source("movie_snippets").splits["all"]
    texts = [rows[i]["text"] for i in range(1000)]
    # The label words must each be one token; repeating them makes them the first merges.
    return byte_level_bpe(texts + [" positive negative"] * 1000, VOCABULARY)


def draw(family: str) -> tuple[Config, dict[str, np.ndarray]]:
    """Config and leaves of ``tiny:family``; raises SolarError for an unknown family."""
    if family not in CONFIGS:
        raise SolarError(
            f"tiny:{family} does not exist; there are {', '.join('tiny:' + f for f in CONFIGS)}"
        )
    config = CONFIGS[family]
    return config, random_leaves(jax.random.key(0, impl="threefry2x32"), config)


def read(family: str) -> tuple[Config, dict[str, np.ndarray], PreTrainedTokenizerFast | None]:
    """:func:`draw` and the tokenizer, None for images."""
    config, leaves = draw(family)
    return config, leaves, None if family == "vit" else tokenizer()
