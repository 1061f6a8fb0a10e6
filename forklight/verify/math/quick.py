r"""What can be decided about two texts without SymPy: equal texts, numbers, words, choices, ratios, usual formulas.

Most answers of a run end here; the rest goes to the worker process, which starts with the same decision for each part.
"""

import re
from typing import NamedTuple

from forklight.verify.math.evaluate import same_formula
from forklight.verify.math.numbers import join_thousands, read_number, same_number
from forklight.verify.math.units import split_unit
from forklight.verify.math.words import same_meaning

_WORDS = re.compile(r"\\text\{([^{}]*)\}|([A-Za-z][A-Za-z ]*)")
_CHOICE = re.compile(r"\(?([A-Z])\)?")
_CHOICE_AND_VALUE = re.compile(
    r"\\text\{\s*\(?([A-Z])\)?[.:]?\s*\}(.*)|\(([A-Z])\)(.*)|([A-Z])(?:[.:)](.*)|\s+([\\0-9(].*))?",
    re.DOTALL,
)
_MARKED_CHOICE = re.compile(
    r"\\text\{\s*(?:\(([A-Z])\)|([A-Z])[.:)])\s*\}(.*)|\(([A-Z])\)((?:\s|\\text).*)?|([A-Z])[.:)](?!\S*=)(.*)",
    re.DOTALL,
)
"""A choice whose value may stand behind it; `C 5` and `(C)5` may be products."""
_OPERATOR = re.compile(r"\s*(?:[-+*/^_!<>=|]|\\(?:cdot|times|div|pm|mp|ne|le|ge|to|approx|cup|cap|in|mid)(?![A-Za-z]))")
_OPTION = re.compile(r"(?:\\text\{\s*)?(?:option|choice|answer)[\s:]*(?:\}\s*)?(\(?[A-Z]\)?)\s*\}?", re.IGNORECASE)
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z\\])(?!A [a-z]{2})[A-Z](?![A-Za-z])")
_CHOOSE = re.compile(
    r"(?<![A-Za-z\\])(?:C_\{?([0-9A-Za-z+\-]+)\}?\^\{?([0-9A-Za-z+\-]+)\}?|C\(([0-9A-Za-z+\-]+),\s*([0-9A-Za-z+\-]+)\)"
    r"|(?:\{\})?_\{?([0-9A-Za-z])\}?C_\{?([0-9A-Za-z])\}?)"
)
_RATIO = re.compile(r"[0-9]+(?:\s*:\s*[0-9]+)+")
_LETTER_RUN = re.compile(r"[A-Za-z]{4}")
_PROSE = re.compile(
    r"(?<![A-Za-z\\])(?:is|not|or|and|wrong|nor|but|false|incorrect|if|unless|maybe|perhaps|instead|rather|cannot|isn't|except|neither|either|no)"
    r"(?![A-Za-z])|\([A-Z]\)"
)


class Decision(NamedTuple):
    """What texts alone decide."""

    equal: bool
    by: str
    """What was compared: `text`, `number`, `ratio`, `words`, `choice`, `digits` or `dots`."""


def quick(gold: str, answer: str) -> Decision | None:
    r"""Compares two texts in the common spelling.

    Returns:
        Whether they are equal, and by what; None if the texts alone do not tell.

    Example:
        >>> quick("5", r"5\text{ cm}"), quick("x", r"\sqrt{x^2}")
        (Decision(equal=True, by='number'), None)
    """
    if not answer.isascii() and any(c.isdigit() and not c.isascii() for c in answer):
        return Decision(False, "digits")  # of other scripts, which Python and SymPy would read
    gold, answer = join_thousands(gold), _combinations(join_thousands(answer), gold)
    if _without_blanks(gold) == _without_blanks(answer):
        return Decision(True, "text")
    if r"\ldots" in gold or r"\ldots" in answer:
        return Decision(False, "dots")  # what they stand for cannot be compared
    for decide, name in _RULES:
        verdict = decide(gold, answer)
        if verdict is not None:
            return Decision(verdict, name)
    return None


def is_plain(text: str) -> bool:
    """Whether the text, in the common spelling, is a number, a ratio or words."""
    value = split_unit(text)[0]
    return read_number(value) is not None or bool(_RATIO.fullmatch(value) or _WORDS.fullmatch(text))


def is_words(text: str) -> bool:
    r"""Whether the text is a word in `\text{}`, or letters enough to be one."""
    match = _WORDS.fullmatch(text)
    return match is not None and (match.group(1) is not None or bool(_LETTER_RUN.search(text)))


def _without_blanks(text: str) -> str:
    return re.sub(r"(?<=[^A-Za-z0-9])\s+|\s+(?=[^A-Za-z0-9])", "", text)


def _combinations(answer: str, gold: str) -> str:
    """Writes `C_n^k`, `C(n,k)` and `_nC_k` as binomial coefficients, where the gold has no such letter."""
    if "C" in gold:
        return answer
    return _CHOOSE.sub(lambda m: rf"\binom{{{m[1] or m[3] or m[5]}}}{{{m[2] or m[4] or m[6]}}}", answer)


def _choice(gold: str, answer: str) -> bool | None:
    r"""A gold that is one capital letter: `C` = `(C)` = `(C)\ 5`, but not `(C) or (D)` and not `c`."""
    wanted = _CHOICE.fullmatch(gold)
    if wanted is None:
        return None
    found = read_choice(answer, marked=True)
    if found is not None:
        return wanted.group(1) == found
    return False if len(answer) == 1 or re.match(r"\([A-Z]\)", answer) else None


def read_choice(answer: str, marked: bool = False) -> str | None:
    r"""The letter of a multiple-choice answer in the common spelling: `C`, `(C)`, `C.`, `(C) 5`, `\text{C} 5`.

    Args:
        answer: in the common spelling.
        marked: whether a value may follow only a letter with brackets, a dot or a colon: where choices are not known to
            be asked for, `C 5` may be a product.

    Returns:
        None if it is none, or what stands behind the letter is prose, an operation or has another letter.
    """
    option = _OPTION.fullmatch(answer)
    whole = re.fullmatch(r"\\text\{([^{}]*)\}", option[1] if option else answer)
    text = whole.group(1).strip() if whole else option[1] if option else answer
    plain = _CHOICE.fullmatch(text.rstrip(".:)") if not text.startswith("(") else text)
    if plain:
        return plain[1]
    found = (_MARKED_CHOICE if marked else _CHOICE_AND_VALUE).fullmatch(text)
    if found is None:
        return None
    if marked:
        letter, value = (found[1] or found[2] or found[4] or found[6]), (found[3] or found[5] or found[7] or "")
    else:
        letter, value = (found[1] or found[3] or found[5]), (found[2] or found[4] or found[6] or found[7] or "")
    unclear = _PROSE.search(value) or _OTHER_CHOICE.search(value) or (marked and _OPERATOR.match(value))
    return None if unclear else letter


def _words(gold: str, answer: str) -> bool | None:
    """Words are compared as words, so that `east` is not the product of its letters, which `seat` is too."""
    texts = _WORDS.fullmatch(gold), _WORDS.fullmatch(answer)
    wrapped = [match is not None and match.group(1) is not None for match in texts]
    if None in texts:
        # Prose against a number or a formula. (A list such as `\text{A, B}` was unwrapped by the common spelling.)
        return False if any(wrapped) and "=" not in gold + answer else None
    if not any(wrapped) and not _LETTER_RUN.search(gold):
        return None
    words = [" ".join((match.group(1) or match.group(2) or "").split()).strip(".") for match in texts if match]
    if max(map(len, words)) > 1:
        words = [word.casefold() for word in words]
    return words[0] == words[1]


def _ratio(gold: str, answer: str) -> bool | None:
    """Ratios such as `3 : 4`, term by term."""
    (wanted, unit), (found, other_unit) = split_unit(gold), split_unit(answer)
    if not (_RATIO.fullmatch(wanted) and _RATIO.fullmatch(found)):
        return None
    same = [int(part) for part in wanted.split(":")] == [int(part) for part in found.split(":")]
    return same and _units_agree(unit, other_unit)


def _number(gold: str, answer: str) -> bool | None:
    """Numbers, with or without a unit."""
    (wanted, unit), (found, other_unit) = split_unit(gold), split_unit(answer)
    number, other = read_number(wanted), read_number(found)
    if number is None or other is None:
        return None
    return same_number(number, other) and _units_agree(unit, other_unit)


def _formula(gold: str, answer: str) -> bool | None:
    """Usual formulas, with or without a unit."""
    (wanted, unit), (found, other_unit) = split_unit(gold), split_unit(answer)
    return same_formula(wanted, found) if _units_agree(unit, other_unit) else None


def _units_agree(unit: str, other: str) -> bool:
    r"""Two different units differ; a missing one is taken to be the other, but `\Omega` in a gold may be a factor."""
    if unit == "Omega":
        return other in ("Omega", "ohm")
    return not unit or not other or unit == other.replace("Omega", "ohm")


_RULES = (
    (_choice, "choice"),
    (same_meaning, "words"),
    (_words, "words"),
    (_ratio, "ratio"),
    (_number, "number"),
    (_formula, "expression"),
)
