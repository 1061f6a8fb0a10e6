r"""Answers that were copied from the problem: for "Compute \binom{10}{3}." the box \boxed{\binom{10}{3}} says nothing.

Such a box equals the gold, and a policy that learns to write it earns every reward without solving anything.
"""

import re

from forklight.verify.latex import clean
from forklight.verify.numbers import read_number

_WINDOW = 20_000
_GOES_ON = r"[0-9A-Za-z^_+\-*/=\\!(]"


def copied(answer: str, gold: str, problem: str) -> bool:
    r"""Whether an answer that equals the gold is a part of the problem's text that still has to be worked out.

    Nothing is copied that is spelled like the gold, nor a number or a fraction in lowest terms: a problem may well name
    its answer among others.

    Args:
        answer: the extracted answer.
        gold: the gold.
        problem: the problem's text.

    Example:
        >>> copied(r"\dbinom{10}{3}", "120", r"Compute $\binom{10}{3}$."), copied("120", "120", "Is it 120 or 45?")
        (True, False)
        >>> copied(r"\frac{7}{14}", r"\frac{1}{2}", r"Simplify $\frac{7}{14}$.")
        True
    """
    written = _compact(answer)
    if not written or written == _compact(gold) or _worked_out(clean(answer)):
        return False
    found = re.search(rf"(?<!{_GOES_ON}){re.escape(written)}(?!{_GOES_ON}|\.[0-9])", _compact(problem[-_WINDOW:]))
    return found is not None


def _compact(text: str) -> str:
    return "".join(clean(text).split())


def _worked_out(answer: str) -> bool:
    """Whether this is a number that cannot be written more simply, or words."""
    number = read_number(answer)
    if number is None:
        return answer.isalpha()
    fraction = re.search(r"([0-9]+)\}\{([0-9]+)|([0-9]+)/([0-9]+)", answer.replace(",", ""))
    if fraction is None:
        return r"\times" not in answer
    below = int(fraction[2] or fraction[4])
    return below > 1 and number.value.denominator == below
