"""A byte-level tokenizer that is made in milliseconds."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|start|>", "<|end|>"]


def build_tokenizer(chat_template=None, start="<s> ", end="", special=()):
    """A byte-level tokenizer of 260 entries and more; `start` and `end` are what it adds around every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *alphabet, *special])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([*SPECIAL, *special])
    if start or end:
        specials = [(token, vocabulary[token]) for token in SPECIAL[:2]]
        core.post_processor = processors.TemplateProcessing(single=f"{start}$A{end}", special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
