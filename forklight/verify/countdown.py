r"""Verifier of the Countdown task: reach a target from given numbers with + - * /, each number used exactly once.

The gold is `"62 from 3, 9, 14"`. The answer is the worked steps and nothing else, one spelling for each solution:

    steps  = step (";" step)*
    step   = number ("+" | "-" | "*" | "/") number "=" number
    number = "0" or ASCII digits without a leading zero, at most 18

There are no blanks inside and no ";" at the end; blanks and newlines around the whole are ignored. Numbers are whole
and not negative, divisions are exact. A step uses two of the numbers that are available (given, or the result of an
earlier step) and makes its result available; at the end exactly the last result is left and is the target.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from forklight.types import Verdict
from forklight.verify.base import Verifier

MAX_CHARACTERS = 1000
"""An answer longer than this is wrong without a look at its steps."""

_NUMBER = r"(0|[1-9][0-9]{0,17})"
_STEP = re.compile(rf"{_NUMBER}([-+*/]){_NUMBER}={_NUMBER}")
_WANTED = "a Countdown gold reads like 62 from 3, 9, 14"
_GOLD = re.compile(rf"{_NUMBER} from ({_NUMBER}(?:, {_NUMBER})+)")


class CountdownVerifier(Verifier):
    """Judges worked Countdown solutions. A parser with bounded work; nothing is evaluated.

    Reasons: "solved"; or, for a wrong answer, the first fault: "no steps", "too long (1200 characters)",
    "not a step ('..')", "number not available (14)", "wrong result (step 2: 9*7 is 63, not 64)", "not a whole number
    (step 2: 9/2)", "numbers unused (9, 14)", "target missed (reached 49, not 62)". By a gold that does not read like
    `62 from 3, 9, 14` every answer is unjudged: "gold not understood (..)".

    Example:
        >>> CountdownVerifier().verify_many([("9*7=63;63-1=62", "62 from 1, 7, 9")])[0].outcome
        'right'
    """

    def __init__(self) -> None:
        """Has no settings."""

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges (answer text, gold) pairs, in order."""
        return [self._verify(answer, gold) for answer, gold in pairs]

    def gold_faults(self, golds: Sequence[str]) -> list[str]:
        """Which golds are of another form."""
        return ["" if _read_gold(gold) else _WANTED for gold in golds]

    def _verify(self, answer: str, gold: str) -> Verdict:
        start = time.perf_counter()
        wanted = _read_gold(gold)
        if wanted is None:
            return Verdict("unjudged", f"gold not understood ({_WANTED})")
        target, numbers = wanted
        steps = answer.strip(" \t\r\n")
        if len(steps) > MAX_CHARACTERS:
            fault: str | None = f"too long ({len(steps)} characters)"
            extracted = None
        else:
            fault = _fault(steps, target, Counter(numbers))
            extracted = steps or None
        seconds = time.perf_counter() - start
        return Verdict("wrong" if fault else "right", fault or "solved", extracted, seconds)


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> tuple[int, tuple[int, ...]] | None:
    match = _GOLD.fullmatch(gold)
    if match is None:
        return None
    return int(match.group(1)), tuple(int(number) for number in match.group(2).split(", "))


def _fault(steps: str, target: int, available: Counter[int]) -> str | None:
    """The first fault of the steps, None if they solve the problem."""
    if not steps:
        return "no steps"
    claimed = target
    for place, step in enumerate(steps.split(";"), start=1):
        match = _STEP.fullmatch(step)
        if match is None:
            return f"not a step ({step[:40]!r})"
        left, sign, right, claimed = int(match[1]), match[2], int(match[3]), int(match[4])
        for number in (left, right):
            if not available[number]:
                return f"number not available ({number})"
            available[number] -= 1
        fault = _arithmetic_fault(f"step {place}", left, sign, right, claimed)
        if fault:
            return fault
        available[claimed] += 1
    available[claimed] -= 1
    unused = sorted(available.elements())
    if unused:
        return f"numbers unused ({', '.join(map(str, unused))})"
    return None if claimed == target else f"target missed (reached {claimed}, not {target})"


def _arithmetic_fault(place: str, left: int, sign: str, right: int, claimed: int) -> str | None:
    term = f"{left}{sign}{right}"
    if sign == "/":
        if right == 0 or left % right:
            return f"not a whole number ({place}: {term})"
        value = left // right
    else:
        value = {"+": left + right, "-": left - right, "*": left * right}[sign]
    return None if value == claimed else f"wrong result ({place}: {term} is {value}, not {claimed})"
