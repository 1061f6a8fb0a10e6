"""Where an answer completes its first box, in tokens."""

from functools import cache
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from forklight.verify.math.extract import first_box_end


def box_ends(answers: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    r"""The number of the token that completes the first `\boxed{}` of each answer; -1 for an answer without one.

    A text is decoded once: the box ends with the token that brings the text's closing braces up to that of the box.

    Args:
        answers: token ids.
        tokenizer: the policy's.
    """
    # of no answers at all, `batch_decode` makes one empty text
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True) if answers else []

    @cache
    def braces(token: int) -> int:
        return str(tokenizer.decode([token], skip_special_tokens=True)).count("}")

    found = []
    for ids, text in zip(answers, texts, strict=True):
        end = first_box_end(text)
        needed = text.count("}", 0, end)
        numbers = (number for number, count in enumerate(accumulate(map(braces, ids))) if count >= needed)
        found.append(-1 if end < 0 else next(numbers, -1))
    return found
