"""Finds an answer that stands in prose, on a last line that says it is the answer."""

import re

_LONGEST = 300
_MARK = re.compile(
    r"(?:####|A\s*:|(?:so,?\s+|thus,?\s+|therefore,?\s+|hence,?\s+)?(?:the\s+)?(?:final\s+)?answer"
    r"(?:\s+is(?:\s*:|(?=\s))|\s*[:=]))\s*(?P<answer>\S.*)",
    re.IGNORECASE,
)


def marked_answer(text: str) -> str | None:
    r"""What follows `The answer is`, `Answer:`, `A:` or `####` at the beginning of the last line.

    Args:
        text: what the model wrote after its thought.

    Returns:
        The rest of that line; None if the last line that is not blank begins otherwise or has over 300 characters.

    Example:
        >>> marked_answer("16 - 3 - 4 = 9\nThe answer is $18."), marked_answer("The answer is 5, I think.\nOr 6.")
        ('$18.', None)
    """
    end = text.rstrip()
    line = end[end.rfind("\n") + 1 :].lstrip()
    if len(line) > _LONGEST:
        return None
    match = _MARK.fullmatch(line)
    return match["answer"] if match else None
