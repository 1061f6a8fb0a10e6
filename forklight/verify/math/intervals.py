r"""Inequalities of one letter as intervals: `x > 3`, `\{x \mid x > 3\}`, `x < 2, x > 3`."""

import itertools
import re
from fractions import Fraction

from forklight.verify.math.arithmetic import exact_value
from forklight.verify.math.structure import split_items, split_relation

_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\{R\})?\s*(?:\\mid|\\vert|\||:)\s*(.+)\\\}")
_REALS = re.compile(r"[A-Za-z]\s*\\in\s*\\mathbb\{R\}\s*,\s*")
_SPANS = {"<": "<", r"\le": "<", ">": ">", r"\ge": ">"}
_INTERVAL = re.compile(r"[(\[]\s*[^,]+,[^,]+[)\]]|\\cup|\\infty|\\mathbb\{R\}")


def as_interval(text: str, other: str) -> str:
    r"""Writes a text that says which numbers a letter may be as intervals, if the other text is made of such.

    Several inequalities are a union if they exclude each other, as `x < 2, x > 3` do; else they stay.

    Args:
        text: in the common spelling.
        other: what it is to be compared with.

    Example:
        >>> as_interval("x<2, x \\ge 3", r"(-\infty,2)\cup[3,\infty)"), as_interval("x>2, x<3", "(2,3)")
        ('(-\\infty,2)\\cup[3,\\infty)', 'x>2, x<3')
    """
    builder = _BUILDER.fullmatch(text)
    if builder:
        text = builder[2].strip()
    text = _REALS.sub("", text, count=1)
    items = split_items(text)
    if items.brackets is not None or not _INTERVAL.search(other):
        return text
    spans = [_span(item) for item in items.items]
    found = [span for span in spans if span]
    if len(found) != len(spans) or len({span[0] for span in found}) != 1:
        return text
    found.sort(key=lambda span: (span[1] is not None, span[1] or 0))
    if any(one[2] is None or after[1] is None or one[2] > after[1] for one, after in itertools.pairwise(found)):
        return text
    return r"\cup".join(span[3] for span in found)


def _span(item: str) -> tuple[str, Fraction | None, Fraction | None, str] | None:
    """The letter, the ends (None: infinite) and the interval of an inequality; None if it is none."""
    parts, signs = split_relation(item)
    if not signs or not all(sign in _SPANS for sign in signs) or len({_SPANS[sign] for sign in signs}) > 1:
        return None
    if _SPANS[signs[0]] == ">":
        parts, signs = parts[::-1], signs[::-1]
    closed = [sign in (r"\le", r"\ge") for sign in signs]
    letters = [place for place, part in enumerate(parts) if re.fullmatch("[A-Za-z]", part)]
    if len(letters) != 1 or len(parts) > 3 or (len(parts) == 3 and letters != [1]):
        return None
    place = letters[0]
    low, high = (parts[0] if place else None), (parts[-1] if place < len(parts) - 1 else None)
    ends = [None if end is None else exact_value(end) for end in (low, high)]
    if (low is not None and ends[0] is None) or (high is not None and ends[1] is None):
        return None
    left = rf"{'[' if closed[0] else '('}{low}" if low is not None else r"(-\infty"
    right = rf"{high}{']' if closed[-1] else ')'}" if high is not None else r"\infty)"
    return parts[place], ends[0], ends[1], f"{left},{right}"
