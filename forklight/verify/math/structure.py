r"""The outer structure of an answer in the common spelling: lists, brackets, relations, names."""

import re
from itertools import pairwise
from typing import NamedTuple

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[<>:=]=|.", re.DOTALL)
_OPEN = {"(", "[", "{", r"\{", r"\begin", r"\lfloor", r"\lceil"}
_CLOSE = {")", "]", "}", r"\}", r"\end", r"\rfloor", r"\rceil"}
_RELATIONS = {"=", "==", ":=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx", r"\equiv", r"\to", r"\in", r"\sim"}
_BRACKETS = {("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), (r"\{", r"\}"), ("{", "}")}
_ARGUMENTS = re.compile(r"\([^()]*\)")
_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|\\?[A-Za-z]+|[0-9])")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_NAME = re.compile(r"[A-Za-z|:',\s{}]*")
_NO_NAMES = r"\sqrt \cdot \times \div \sum \int \prod \pm \mp \infty \pi \log \ln \sin \cos \tan \binom \max \min \lim"
_LETTER = r"[A-Za-z](?:_(?:[0-9A-Za-z]|\{[0-9A-Za-z]+\}))?"
_SUM = re.compile(rf"{_LETTER}(?:\s*\+\s*{_LETTER})+")
_OPERATIONS = frozenset(_NO_NAMES.split())


class Items(NamedTuple):
    """An answer as a list; a plain value is a list of one without brackets."""

    items: tuple[str, ...]
    brackets: tuple[str, str] | None
    """The pair of brackets around the whole, if there is one; curly braces of LaTeX grouping are dropped."""


class Relation(NamedTuple):
    """An answer split at the relations of its outermost level."""

    parts: tuple[str, ...]
    signs: tuple[str, ...]


def _outer(text: str) -> list[tuple[str, int, int]]:
    """The tokens with their places and depths; a bracket has the depth outside of it."""
    tokens, depth = [], 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in _CLOSE:
            depth -= 1
        tokens.append((token, match.start(), depth))
        if token in _OPEN:
            depth += 1
    return tokens


def split_items(text: str) -> Items:
    r"""Splits a list at its outermost commas and semicolons, and takes off one pair of brackets around the whole.

    Example:
        >>> split_items(r"(1, \frac{2}{3}]")
        Items(items=('1', '\\frac{2}{3}'), brackets=('(', ']'))
        >>> split_items("(1,2),(3,4)").items
        ('(1,2)', '(3,4)')
    """
    tokens = _outer(text)
    brackets = None
    while len(tokens) > 1 and (tokens[0][0], tokens[-1][0]) in _BRACKETS and tokens[-1][2] == 0:
        if any(depth <= 0 for _, _, depth in tokens[1:-1]):
            break
        found = tokens[0][0], tokens[-1][0]
        text = text[len(found[0]) : -len(found[1])].strip()
        tokens = _outer(text)
        if found != ("{", "}"):
            brackets = found
            break
    cuts = [place for token, place, depth in tokens if token in ",;" and depth == 0]
    bounds = [-1, *cuts, len(text)]
    items = tuple(text[a + 1 : b].strip() for a, b in pairwise(bounds))
    return Items(items, brackets)


def split_relation(text: str) -> Relation:
    """Splits at the outermost relation signs.

    Example:
        >>> split_relation("x = f(y=1) = 3")
        Relation(parts=('x', 'f(y=1)', '3'), signs=('=', '='))
    """
    parts, signs, begin = [], [], 0
    for token, place, depth in _outer(text):
        if depth == 0 and token in _RELATIONS:
            parts.append(text[begin:place].strip())
            signs.append("=" if token in ("==", ":=") else token)
            begin = place + len(token)
    return Relation((*parts, text[begin:].strip()), tuple(signs))


def is_name(text: str) -> bool:
    r"""Whether the text names a quantity (`x`, `a_{37}`, `f(2)`, `AB`, `(p,q)`, `\angle ABC`), as against a term.

    Example:
        >>> [is_name(text) for text in ("x", "f(2)", "x^2-1", "2x", "6")]
        [True, True, False, False, False]
    """
    if not _OPERATIONS.isdisjoint(_COMMAND.findall(text)):
        return False
    bare = _COMMAND.sub("x", _SUBSCRIPT.sub("", text))
    without_arguments = _ARGUMENTS.sub("", bare).strip()
    if bare and not without_arguments:
        return is_name(bare[1:-1])
    return _NAME.fullmatch(without_arguments) is not None and any(map(str.isalpha, without_arguments))


def is_sum_of_names(text: str) -> bool:
    """Whether the text is a sum such as `m+n`, which problems ask for by the names they gave."""
    return _SUM.fullmatch(text) is not None
