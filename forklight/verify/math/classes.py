"""Which answers to a problem are equal to each other, for majority votes."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

from forklight.verify.math.latex import clean
from forklight.verify.math.limits import too_large
from forklight.verify.math.quick import quick

MOST_FORMULAS = 16
"""Different formulas of one list that are compared by SymPy, the most frequent ones; the others go by their text."""

Compare = Callable[[list[tuple[str, str]]], list[bool]]
"""Tells for pairs of texts in the common spelling whether they are equal."""


def answer_classes(lists: Sequence[Sequence[str]], compare: Compare) -> list[list[int]]:
    r"""Numbers mathematically equal answers of each list alike, from 0 on in order of first appearance.

    An answer belongs to the first class all of whose members equal it, and the frequent ones come first: `50\%` may be
    50 or 0.5, and joins the one that more answers gave, but does not make them one.

    Args:
        lists: extracted answers, in any spelling.
        compare: asked once, for the pairs that the texts alone do not decide.

    Example:
        >>> answer_classes([["1/2", r"\frac{1}{2}", "2", "0.5"]], lambda pairs: [False] * len(pairs))
        [[0, 0, 1, 0]]
    """
    spelled = [[text if too_large(text) else clean(text) for text in texts] for texts in lists]
    known = [_by_quick(_ranked(texts)) for texts in spelled]
    undecided = [pair for equal in known for pair, decided in equal.items() if decided is None]
    # Both ways: what is read as a gold may be answered in more forms than the other way round.
    both_ways = list(dict.fromkeys(way for pair in undecided for way in (pair, pair[::-1])))
    asked = dict(zip(both_ways, compare(both_ways), strict=True))
    numbers = []
    for texts, equal in zip(spelled, known, strict=True):
        same = {pair: asked[pair] or asked[pair[::-1]] if e is None else e for pair, e in equal.items()}
        classes = _sorted(_ranked(texts), same)
        found: dict[int, int] = {}
        numbers.append([found.setdefault(classes[text], len(found)) for text in texts])
    return numbers


def _ranked(texts: list[str]) -> list[str]:
    """The different texts, the most frequent first; in an order that does not depend on that of the answers."""
    return [text for text, _ in sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))]


def _by_quick(texts: list[str]) -> dict[tuple[str, str], bool | None]:
    """What the texts alone say of each pair; None where SymPy is to be asked."""
    found: dict[tuple[str, str], bool | None] = {}
    for pair in combinations(texts, 2):
        if any(map(too_large, pair)):
            found[pair] = False
            continue
        decisions = quick(*pair), quick(*pair[::-1])
        found[pair] = None if decisions == (None, None) else any(d is not None and d.equal for d in decisions)
    formulas = list(dict.fromkeys(text for pair, decided in found.items() if decided is None for text in pair))
    rare = set(formulas[MOST_FORMULAS:])
    return {pair: False if decided is None and rare.intersection(pair) else decided for pair, decided in found.items()}


def _sorted(texts: list[str], equal: dict[tuple[str, str], bool]) -> dict[str, int]:
    """The class of every text."""
    classes: list[list[str]] = []
    for text in texts:
        home = next((members for members in classes if all(equal[member, text] for member in members)), None)
        if home is None:
            classes.append(home := [])
        home.append(text)
    return {text: number for number, members in enumerate(classes) for text in members}
