r"""Answers that were copied from the problem: for "Compute \binom{10}{3}." the box \boxed{\binom{10}{3}} says nothing.

Nor does `0+\binom{10}{3}`: what leaves the value alone makes no answer of it. Such a box equals the gold, and a policy
that learns to write it earns every reward without solving anything.
"""

import re

from forklight.verify.math.latex import clean
from forklight.verify.math.numbers import read_number
from forklight.verify.math.structure import is_name, split_items, split_relation
from forklight.verify.math.units import split_unit

MAX_CHARACTERS = 5000
"""Characters at the end of a problem that are searched."""

MAX_LOOKS = 20_000
MAX_TERMS = 12
"""Terms of an answer that are compared with the gold, at most."""

_PIECE = re.compile(r"\s*(?:\\[A-Za-z]+|[0-9]+(?:\.[0-9]+)?|\\?.)", re.DOTALL)
_BRACKET = re.compile(r"[({\[]|[)}\]]")
_NEUTRAL = re.compile(r"(?:[-+*/^(){}]|(?<![0-9])[01](?![0-9])|\\(?:cdot|times|frac|div))+")
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
    if (
        not written
        or _worked_out(bare, clean(gold))
        or written in (_compact(clean(gold)), _compact(_bare(clean(gold))))
    ):
        return False
    spaced = clean(_DELIMITERS.sub(" ", problem[-MAX_CHARACTERS:]))
    return _in_problem(written, spaced)


def copied_terms(answer: str, problem: str) -> list[str]:
    r"""The terms within an answer that stand in the problem too, the longest first, in the common spelling.

    An answer is copied if one of them equals the gold: the rest leaves its value alone. A plain number counts only if
    nothing but zeros, ones and signs stands around it. Of a chain of equations the last value is looked at.

    Example:
        >>> copied_terms(r"0+\binom{10}{3}", r"Compute $\binom{10}{3}$.")
        ['\\binom{10}{3}']
    """
    text = _last_value(clean(answer))
    if read_number(_bare(text)) is not None:
        return []
    spaced = clean(_DELIMITERS.sub(" ", problem[-MAX_CHARACTERS:]))
    tight, pieces = _compact(spaced), _PIECE.findall(text)
    found: dict[str, str] = {}
    work = 0
    for start in range(len(pieces)):
        written = longest = ""
        for place in range(start, len(pieces)):
            written += _compact(pieces[place])
            work += 1
            if work > MAX_LOOKS or written not in tight:
                break
            term = "".join(pieces[start : place + 1]).strip()
            if _balanced(term) and _is_term(term, text) and _in_problem(written, spaced):
                longest = term
        if longest:
            found.setdefault(_compact(longest), longest)
    return sorted(found.values(), key=len, reverse=True)[:MAX_TERMS]


def _last_value(text: str) -> str:
    parts, signs = split_relation(text)
    if not signs or not {"=", r"\approx"}.issuperset(signs):
        return text
    if r"\approx" in signs:
        return parts[signs.index(r"\approx")]
    return parts[-2] if is_name(parts[-1]) else parts[-1]


def _balanced(term: str) -> bool:
    depth = 0
    for bracket in _BRACKET.findall(term):
        depth += 1 if bracket in "({[" else -1
        if depth < 0:
            return False
    return depth == 0


def _is_term(term: str, text: str) -> bool:
    """Whether this is a part of an answer that may be worth something."""
    if _compact(term) == _compact(text) or (len(_PIECE.findall(term)) < 2 and not term.isdecimal()):
        return False
    if term[0] in "+*/^_!}" or term[-1] in "+-*/^_=":
        return False
    return read_number(term) is None or bool(_NEUTRAL.fullmatch(_compact(text.replace(term, "", 1))))


def _in_problem(written: str, spaced: str) -> bool:
    pattern = r"\s*".join(map(re.escape, written))
    return any(_stands_alone(spaced, place) for place in re.finditer(pattern, spaced))


def _bare(answer: str) -> str:
    """An answer without what changes no value: brackets around it, a name before it, a sign, a unit."""
    parts, signs = split_relation(answer)
    if signs == ("=",) and any(map(is_name, parts)):
        answer = parts[1] if is_name(parts[0]) else parts[0]
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


def _worked_out(answer: str, gold: str) -> bool:
    """Whether this is a number that cannot be written more simply, or words; a fraction is none for a decimal."""
    number = read_number(answer)
    if number is None:
        return _compact(answer).isalpha() or bool(_TEXT.fullmatch(answer))
    fraction = re.search(r"([0-9]+)\}\{([0-9]+)|([0-9]+)/([0-9]+)", answer.replace(",", ""))
    if fraction is None:
        return r"\times" not in answer
    below = int(fraction[2] or fraction[4])
    return "." not in gold and below > 1 and number.value.denominator == below
