"""The tokenizer that a GGUF file carries."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from solar.errors import SolarError
from solar.weights.gguf import Header

CONTROL, USER_DEFINED = 3, 4  # token types of the format that are never split


def read_tokenizer(header: Header) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer in the file; raises SolarError for other kinds."""
    kind, before = (
        header.fields.get("tokenizer.ggml.model"),
        header.fields.get("tokenizer.ggml.pre", "gpt-2"),
    )
    if kind != "gpt2" or before not in ("smollm", "gpt-2", "default"):
        raise SolarError(
            f"the GGUF's tokenizer ({kind}, {before}) is not read; "
            "use the model's Hugging Face directory"
        )
    try:
        tokens = list(header.fields.get("tokenizer.ggml.tokens"))
        merges = [tuple(m.split(" ", 1)) for m in header.fields.get("tokenizer.ggml.merges")]
    except UnicodeDecodeError as error:
        raise SolarError(
            f"the GGUF's tokenizer holds a broken text ({error}); delete and fetch it again"
        ) from error
    types = header.fields.get("tokenizer.ggml.token_type")
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
        index = header.fields.get(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else tokens[index]

    end = token("eos")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=token("bos"),
        eos_token=end,
        unk_token=token("unknown"),
        pad_token=token("padding") or end,
    )
