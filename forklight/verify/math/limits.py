r"""Caps on an answer, checked before anything parses it. What is over them is no answer to a problem with a short gold.

They spare the worker most of the time limits, they do not replace it: powers and factorials below the caps can still
take for ever.
"""

import re

from forklight.verify.math.latex import clean

MAX_CHARACTERS = 1500
MAX_DEPTH = 15
MAX_DIGITS = 400
MAX_EXPONENT = 9999

_OPEN_OR_CLOSE = re.compile(r"[({\[]|[)}\]]")
_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1},}}")
_LONG_EXPONENT = re.compile(r"\^\s*[{(]?\s*[-+]?[0-9]{5,}|[0-9.][eE][-+]?[0-9]{5,}")
_CHAIN = re.compile(r"\^\s*\w+\s*\^")
_FACTORIALS = re.compile(r"!(?:\s|[)}\]]|\\right|\\!)*!")
_POWER = re.compile(r"([0-9]+)\s*\^\s*[{(]?\s*([0-9]+)")
_COMMAND = re.compile(r"\\[A-Za-z]+")


def too_large(text: str) -> str | None:
    r"""Says why the text is too large to be an answer; None if it is not.

    Args:
        text: The extracted answer, in any spelling. Unicode may hide powers, digits and brackets: within the cap on
            characters, what they are spelled out to is looked at too.

    Example:
        >>> too_large(r"3^{1000000000}")
        'an exponent of more than 4 digits'
        >>> too_large(r"e^{x^2}") is None
        True
    """
    return _over_caps(text) or _over_caps(clean(text))


def _over_caps(text: str) -> str | None:
    if len(text) > MAX_CHARACTERS:
        return f"{len(text)} characters, at most {MAX_CHARACTERS}"
    if _depth(text) > MAX_DEPTH:
        return f"nested more than {MAX_DEPTH} deep"
    if _DIGITS.search(text):
        return f"a run of more than {MAX_DIGITS} digits"
    text = text.replace("**", "^").replace("{,}", "").replace(r"\left", "").replace(r"\right", "")
    if _LONG_EXPONENT.search(text):
        return "an exponent of more than 4 digits"
    if _FACTORIALS.search(text):
        return "a factorial of a factorial"
    if _CHAIN.search(text) or _tower(text) > 2:
        return "a tower of powers"
    return None


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _OPEN_OR_CLOSE.finditer(text):
        depth = depth + 1 if match.group() in "({[" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _tower(text: str) -> int:
    """Levels of powers in exponents: 1 for `x^2`, 2 for `e^{x^2}`. A numeric exponent over the cap counts as 3."""
    levels = 0
    place = text.find("^")
    while place >= 0:
        exponent = _argument(text, place + 1)
        above = _tower(exponent)
        if above and not re.search("[A-Za-z]", _COMMAND.sub("", exponent)) and _over_cap(exponent):
            above = 2
        levels = max(levels, 1 + above)
        place = text.find("^", place + 1 + len(exponent))
    return levels


def _argument(text: str, start: int) -> str:
    """The exponent that begins at `start`: a bracketed group or one character."""
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text) or text[start] not in "({":
        return text[start : start + 1]
    depth = 0
    for place in range(start, len(text)):
        depth += text[place] in "({"
        depth -= text[place] in ")}"
        if depth == 0:
            return text[start : place + 1]
    return text[start:]


def _over_cap(exponent: str) -> bool:
    """Whether an exponent without variables holds a power that is not a small whole number."""
    powers = [(int(base), int(power)) for base, power in _POWER.findall(exponent)]
    return len(powers) != exponent.count("^") or any(
        base > 1 and power > 0 and (max(base, power) > MAX_EXPONENT or base**power > MAX_EXPONENT)
        for base, power in powers
    )
