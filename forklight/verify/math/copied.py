r"""Answers that were copied from the problem: for "Compute \binom{10}{3}." the box \boxed{\binom{10}{3}} says nothing.

Such a box equals the gold, and a policy that learns to write it earns every reward without solving anything.
"""

import re

from forklight.verify.math.latex import clean
from forklight.verify.math.numbers import read_number, split_unit
from forklight.verify.math.structure import is_name, split_items, split_relation

MAX_CHARACTERS = 5000
"""Characters at the end of a problem that are searched."""

_DELIMITERS = re.compile(r"\$+|(?<!\\)\\[()\[\]]")
_TEXT = re.compile(r"\\text\{[^{}]*\}")
_TIGHT = "+-*/^_!"  # binds a term to what stands beside it, blanks or not


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
    bare = _bare(clean(answer))
    written = _compact(bare)
    if not written or _worked_out(bare) or written in (_compact(clean(gold)), _compact(_bare(clean(gold)))):
        return False
    spaced = clean(_DELIMITERS.sub(" ", problem[-MAX_CHARACTERS:]))
    return any(_stands_alone(spaced, place) for place in re.finditer(r"\s*".join(map(re.escape, written)), spaced))


def _bare(answer: str) -> str:
    """An answer without what changes no value: brackets around it, a name before it, a sign, a unit."""
    parts, signs = split_relation(answer)
    if signs == ("=",) and is_name(parts[0]):
        answer = parts[1]
    answer = split_unit(answer)[0].removeprefix("+").strip()
    listed = split_items(answer)
    if len(listed.items) > 1 or listed.items[0] == answer or listed.brackets not in (None, ("(", ")")):
        return answer
    return _bare(listed.items[0])


def _compact(text: str) -> str:
    return "".join(text.split())


def _stands_alone(text: str, place: re.Match[str]) -> bool:
    """Whether what was found is a whole term of the text."""
    before, after = text[: place.start()], text[place.end() :]
    left, right = before.rstrip()[-1:], after.lstrip()[:1]
    if (left and left in _TIGHT + "\\") or (right and right in _TIGHT):
        return False
    touches_left = before[-1:].isalnum() or before[-1:] in ("}", ")")
    touches_right = after[:1].isalnum() or after[:1] in ("{", "(", "\\") or re.match(r"\.[0-9]", after) is not None
    return not (touches_left or touches_right)


def _worked_out(answer: str) -> bool:
    """Whether this is a number that cannot be written more simply, or words."""
    number = read_number(answer)
    if number is None:
        return _compact(answer).isalpha() or bool(_TEXT.fullmatch(answer))
    fraction = re.search(r"([0-9]+)\}\{([0-9]+)|([0-9]+)/([0-9]+)", answer.replace(",", ""))
    if fraction is None:
        return r"\times" not in answer
    below = int(fraction[2] or fraction[4])
    return below > 1 and number.value.denominator == below
