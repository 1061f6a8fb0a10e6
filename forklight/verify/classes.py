"""Which answers to a problem are equal to each other, for majority votes."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

from forklight.verify.latex import clean
from forklight.verify.limits import too_large
from forklight.verify.quick import quick

MOST_FORMULAS = 16
"""Different formulas of one list that are compared by SymPy, the most frequent ones; the others go by their text."""

Compare = Callable[[list[tuple[str, str]]], list[bool]]
"""Tells for pairs of texts in the common spelling whether they are equal."""


def answer_classes(lists: Sequence[Sequence[str]], compare: Compare) -> list[list[int]]:
    r"""Numbers mathematically equal answers of each list alike, from 0 on in order of first appearance.

    Args:
        lists: extracted answers, in any spelling.
        compare: asked once, for the pairs that the texts alone do not decide.

    Example:
        >>> answer_classes([["1/2", r"\frac{1}{2}", "2", "0.5"]], lambda pairs: [False] * len(pairs))
        [[0, 0, 1, 0]]
    """
    spelled = [[text if too_large(text) else clean(text) for text in texts] for texts in lists]
    open_pairs: dict[tuple[str, str], bool] = {}
    merged: list[dict[str, str]] = []
    undecided: list[list[tuple[str, str]]] = []
    for texts in spelled:
        heads, pairs = _by_quick([text for text, _ in Counter(texts).most_common()])
        merged.append(heads)
        undecided.append(pairs)
        open_pairs.update(dict.fromkeys(pairs, False))
    open_pairs = dict(zip(open_pairs, compare(list(open_pairs)), strict=True))
    numbers = []
    for texts, heads, pairs in zip(spelled, merged, undecided, strict=True):
        for one, other in pairs:
            if open_pairs[one, other]:
                _join(heads, one, other)
        found: dict[str, int] = {}
        numbers.append([found.setdefault(_head(heads, text), len(found)) for text in texts])
    return numbers


def _by_quick(texts: list[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Each text's representative as far as texts alone tell, and the pairs of representatives to look at closer."""
    heads = {text: text for text in texts}
    unsure: list[tuple[str, str]] = []
    for one, other in combinations((text for text in texts if not too_large(text)), 2):
        decided = quick(one, other)
        if decided is None:
            unsure.append((one, other))
        elif decided.equal:
            _join(heads, one, other)
    formulas = list(dict.fromkeys(text for pair in unsure for text in pair if _head(heads, text) == text))
    compared = set(formulas[:MOST_FORMULAS])
    return heads, [pair for pair in unsure if set(pair) <= compared]


def _head(heads: dict[str, str], text: str) -> str:
    while heads[text] != text:
        text = heads[text]
    return text


def _join(heads: dict[str, str], one: str, other: str) -> None:
    heads[_head(heads, other)] = _head(heads, one)
