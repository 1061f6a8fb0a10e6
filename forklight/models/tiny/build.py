"""Makes this folder's tokenizer and config; `forklight fit --config configs/countdown/base.yaml` makes the weights.

`python -m forklight.models.tiny.build FOLDER` writes both. The tokenizer knows the whole numbers 0 .. 999 and the
words of the Countdown prompt as single tokens and falls back to single bytes for everything else, so any text passes
through encode and decode unchanged.
"""

import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen3Config

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
WORDS = ("reach ", " from ", ", ")
CONTEXT = 4096


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the tokenizer: 256 bytes, the numbers 10 .. 999, `WORDS`, EOS and padding.

    Text is cut into words, runs of up to three digits, and the rest. A piece that is in the vocabulary is one token,
    any other is spelled in bytes; there are no merges. Numbers have no leading zero, so `007` is spelled.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def spelled(text: str) -> str:
        return byte_level.pre_tokenize_str(text)[0][0]

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [str(number) for number in range(10, 1000)]
    pieces += [spelled(word) for word in WORDS]
    tokenizer = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, [], ignore_merges=True))
    cut = pre_tokenizers.Split(Regex("|".join([*WORDS, r"[0-9]{1,3}"])), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Builds the architecture: Qwen3 with tied embeddings and less than 0.75 million parameters."""
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.06,  # near 1/sqrt(hidden); the library's 0.02 starts this narrow a model slowly
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def write(folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and config.json."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    build_config(tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
