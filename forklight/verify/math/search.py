r"""Finds the final answer in prose, where there is no box. Runs in the worker process only: the patterns can be slow.

The places are Math-Verify's: behind "final answer is", behind "answer:", "answer", else the last formula or number. Its
own reading of them is not used, as it goes through a text that has lost braces; the formula is taken as it was written.
"""

import re

from math_verify import ExprExtractionConfig, LatexExtractionConfig  # type: ignore[import-untyped]
from math_verify.parser import get_extraction_regexes  # type: ignore[import-untyped]

from forklight.verify.math.expression import readable
from forklight.verify.math.latex import clean
from forklight.verify.math.limits import too_large
from forklight.verify.math.quick import is_plain

_PLACES = [LatexExtractionConfig(boxed_match_priority=-1), ExprExtractionConfig()]
_PATTERNS = sorted(
    ((priority, pattern) for patterns, _ in get_extraction_regexes(_PLACES) for pattern, priority in patterns),
    key=lambda pair: pair[0],
)
_GOES_ON = re.compile(
    r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻√π‰]|\s*[xyz](?![A-Za-z])|i(?![A-Za-z])|\s+mod\b|\s*(?:million|billion|trillion|thousand|hundred|dozen)\b"
    r"|\s*(?:,|or|and|[-+*/^:\u00d7\u00b7\u00f7\u2212])\s*\$?-?[0-9]"
)
_EQUATION = re.compile(r"[A-Za-z]\S*[-+*/^0-9]\S*\s*=$|[0-9][-+*/^]?[A-Za-z]\S*\s*=$")
_NUMBERS = ("integer1", "integer2", "integer3", "decimal3")
_PARTS = ("first", *(f"next{number}" for number in range(1, 6)))


def find_answer(text: str) -> str | None:
    """The last readable answer at the first kind of place that has one; None if there is none.

    Args:
        text: what the model wrote after its thought.
    """
    unread = None
    for priority in dict.fromkeys(priority for priority, _ in _PATTERNS):
        matches = [match for rank, pattern in _PATTERNS if rank == priority for match in pattern.finditer(text)]
        for match in sorted(matches, key=lambda match: (match.end(), -match.start()), reverse=True):
            answer = _written(match)
            whole = _whole(text, match)
            if whole is not None:
                return whole
            if answer and _is_answer(answer):
                return answer
            unread = unread or answer
    return unread


def _whole(text: str, match: re.Match[str]) -> str | None:
    """What stands there, if a number is only the beginning of it, or the right side of an equation; else None."""
    groups = match.groupdict()
    number = next((groups[name] for name in _NUMBERS if groups.get(name)), None)
    if number is None:
        return None
    start = text.rindex(number, match.start(), match.end())
    left = _EQUATION.search(text, max(0, start - 60), start)
    if left:
        return left.group() + text[start : match.end()]
    return text[start : match.end() + 40].strip() if _GOES_ON.match(text, match.end()) else None


def _is_answer(answer: str) -> bool:
    if too_large(answer):
        return True  # is judged as that, and not skipped for a smaller number before it
    spelled = clean(answer)
    return is_plain(spelled) or readable(spelled)


def _written(match: re.Match[str]) -> str:
    """What was matched, without the delimiters of formulas; formulas with "and" between them as a list."""
    groups = {name: value for name, value in match.groupdict().items() if value}
    formulas = []
    for part in _PARTS:
        formula = next((value for name, value in groups.items() if name.startswith(f"{part}_latex")), None)
        if formula:
            formulas.append(formula.strip() + (r"\%" if f"{part}_percent" in groups else ""))
    if formulas:
        return ", ".join(formulas)
    if "expr" in groups:
        return groups["expr"].strip()
    whole = next((value for name, value in groups.items() if name.startswith("integer")), "")
    fraction = next((value for name, value in groups.items() if name.startswith("decimal")), "")
    number = whole.replace(" ", "").replace(",", "") + fraction.replace(",", ".")
    return number + (r"\%" if "percent" in groups else "")
