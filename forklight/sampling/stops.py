"""Where an answer ends besides EOS: at stop strings in its text, and at stop tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from forklight.sampling.answer_text import AnswerText

_BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What decoding writes for bytes that are no whole character."""


class StopCheck:
    """Finds the first token that completes a stop string in the decoded answer, or is a stop token.

    Most tokens cannot complete a stop string: their own text neither holds one nor begins with the end of one. They are
    told apart once, by a mask of the vocabulary. For the others the last tokens are decoded, and the whole answer if
    these hold a stop string.

    Args:
        stop: stop strings and stop tokens, at least one.
        tokenizer: the policy's.
        answer_text: decodes answers as for the verifier.

    Raises:
        ValueError: a token is not in the vocabulary, or a string has a special token or broken characters, which
            decoded text never has.
    """

    def __init__(
        self, stop: Sequence[str | int], tokenizer: PreTrainedTokenizerBase, answer_text: AnswerText | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._answer_text = answer_text or AnswerText(tokenizer)
        self._strings = [item for item in stop if isinstance(item, str)]
        self._tokens = {item for item in stop if isinstance(item, int)}
        self._check()
        texts = _texts(tokenizer) if self._strings else [""] * len(tokenizer)
        self._silent = {token for token, text in enumerate(texts) if not text}
        self._fragments = {token for token, text in enumerate(texts) if _BROKEN in text}
        self._candidates = self._tokens | _completing(self._strings, texts)
        self._mask = torch.zeros(len(texts) + 1, dtype=torch.bool)  # the last one for a policy's tokens without text
        self._mask[list(self._candidates)] = True
        self._width = 1 + max((len(string.encode()) for string in self._strings), default=0)

    def may_end(self, token: Tensor) -> Tensor:
        """Whether each token can end an answer, bool: `ends` need not be asked about others."""
        self._mask = self._mask.to(token.device)
        return self._mask[token.clamp(max=len(self._mask) - 1)]

    def ends(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token ends the answer, given that none before it does."""
        last = token_ids[-1]
        if last in self._tokens:
            return True
        return last in self._candidates and self._found(self._tail(token_ids)) and self._found(token_ids)

    def length(self, token_ids: Sequence[int]) -> int | None:
        """Number of tokens up to the first that ends the answer, itself included; None if there is none."""
        places = (place for place, token in enumerate(token_ids, start=1) if token in self._candidates)
        return next((place for place in places if self.ends(token_ids[:place])), None)

    def text_before(self, token_ids: Sequence[int]) -> str:
        """The text of an answer that has ended before its first stop string, or before the stop token."""
        text = self._decode(token_ids[:-1] if token_ids[-1] in self._tokens else token_ids)
        return text[: min((place for place in map(text.find, self._strings) if place >= 0), default=len(text))]

    def _found(self, token_ids: Sequence[int]) -> bool:
        text = self._decode(token_ids)
        return any(string in text for string in self._strings)

    def _tail(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Enough tokens from the end for the longest stop string, even one byte per token, and one more.

        Decoding may strip the first one's blank. It is no fragment: some decoders lose whole characters beside one.
        """
        start, missing = len(token_ids), self._width
        while start and (missing > 0 or token_ids[start] in self._fragments):
            start -= 1
            missing -= token_ids[start] not in self._silent
        return token_ids[start:]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._answer_text.of(token_ids)

    def _check(self) -> None:
        size = len(self._tokenizer)
        if beyond := sorted(token for token in self._tokens if not 0 <= token < size):
            raise ValueError(f"rollout.stop: token {beyond[0]} is not in the vocabulary of {size} tokens")
        for string in self._strings:
            if special := [token for token in self._tokenizer.all_special_tokens if token and token in string]:
                number = self._tokenizer.convert_tokens_to_ids(special[0])
                raise ValueError(
                    f"rollout.stop: {string!r} has the special token {special[0]}, which is not part of an answer's "
                    f"text: give its id, {number}, in place of the string"
                )
            if _BROKEN in string:
                raise ValueError(f"rollout.stop: {string!r} has U+FFFD, which stands for bytes that are no character")


def _completing(strings: Sequence[str], texts: Sequence[str]) -> set[int]:
    """The tokens that hold a string, begin with the end of one, or have bytes that may be that end."""
    ends = tuple({string[start:] for string in strings for start in range(1, len(string))})
    last = {string[-1] for string in strings}
    in_bytes = any(not character.isascii() for character in last)
    return {
        token
        for token, text in enumerate(texts)
        if text.startswith(ends)
        or any(string in text for string in strings)
        or (_BROKEN in text and (in_bytes or not last.isdisjoint(text)))
    }


def _texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token adds to a text: at the start of one some decoders strip its blank."""
    vocabulary = range(len(tokenizer))
    alone = (str(tokenizer.decode([token], skip_special_tokens=True)) for token in vocabulary)
    before, text = next((token, text) for token, text in enumerate(alone) if text.isalnum())
    both = tokenizer.batch_decode([[before, token] for token in vocabulary], skip_special_tokens=True)
    return [pair.removeprefix(text) for pair in both]
