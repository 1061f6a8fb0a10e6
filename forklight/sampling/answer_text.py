"""The text of an answer, as the verifier sees it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

MARKS = ("<think>", "</think>", "<|begin_of_box|>", "<|end_of_box|>")
"""They say which part of an answer is its thought, and which its result: always shown, special tokens or not."""


class AnswerText:
    """Decodes answers without special tokens, but for `MARKS` and others that the verifier is to see.

    Args:
        tokenizer: the policy's.
        keep: the others.

    Raises:
        ValueError: one is no token of the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keep: Sequence[str] = ()) -> None:
        added = tokenizer.added_tokens_decoder
        vocabulary = tokenizer.get_vocab()
        for name in keep:
            if name not in vocabulary:
                raise ValueError(f"rollout.keep_special_tokens: {name!r} is no token of this tokenizer")
        special = {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self._tokenizer = tokenizer
        self._kept = special & {vocabulary[name] for name in (*MARKS, *keep) if name in vocabulary}
        self._dropped = special - self._kept

    def of(self, token_ids: Sequence[int]) -> str:
        """The text of an answer."""
        if self._kept.isdisjoint(token_ids):
            return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
        shown = [token for token in token_ids if token not in self._dropped]
        return str(self._tokenizer.decode(shown, skip_special_tokens=False))

    def of_many(self, answers: list[list[int]]) -> list[str]:
        """The texts of answers."""
        texts = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text if self._kept.isdisjoint(ids) else self.of(ids) for ids, text in zip(answers, texts, strict=True)]
