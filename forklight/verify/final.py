"""Verifiers of short final answers, which need no mathematics: a whole number, a letter."""

import time
from typing import Literal

from forklight.types import Verdict
from forklight.verify.extract import WINDOW, Extraction, after_thought, extract_box
from forklight.verify.latex import clean
from forklight.verify.limits import too_large
from forklight.verify.numbers import read_number, split_unit
from forklight.verify.prose import marked_answer
from forklight.verify.quick import read_choice

Source = Literal["box", "any"]


class IntegerVerifier:
    r"""Judges whole numbers in a range, as the AIME asks for: 0 to 999.

    Leading zeros, thousands separators, a unit and `27.0` are read; equations and terms are not, so `x=25` is wrong.
    Reasons: "equal number", "not equal", "not a whole number", "not in 0 .. 999", and those of a missing box.

    Args:
        low: Smallest answer there can be.
        high: Largest answer there can be.
        extraction: `box`: the last `\boxed{}`. `any`: where there is no box, what follows "The answer is", "Answer:",
            "A:" or "####" on the last line.

    Raises:
        ValueError: If the range is empty or `extraction` is something else.

    Example:
        >>> IntegerVerifier().verify_many([(r"So it is \boxed{025}.", "25")])[0].outcome
        'right'
    """

    def __init__(self, low: int = 0, high: int = 999, extraction: Source = "box") -> None:
        if low > high:
            raise ValueError(f"low = {low} must not be above high = {high}")
        self.low = low
        self.high = high
        self.extraction = _checked(extraction)

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges (answer text, gold) pairs, in order.

        Raises:
            ValueError: If a gold is no whole number in the range.
        """
        return [self._verify(text, gold) for text, gold in pairs]

    def _verify(self, text: str, gold: str) -> Verdict:
        start = time.perf_counter()
        wanted = _integer(clean(gold)) if not too_large(gold) else None
        if wanted is None or not self.low <= wanted <= self.high:
            raise ValueError(f"the gold {gold[:80]!r} is no whole number in {self.low} .. {self.high}")
        answer, reason = final_answer(text, self.extraction)
        if answer is None:
            return Verdict("wrong", reason, seconds=time.perf_counter() - start)
        found = _integer(clean(answer))
        if found is None:
            reason = "not a whole number"
        elif not self.low <= found <= self.high:
            reason = f"not in {self.low} .. {self.high}"
        else:
            reason = "equal number" if found == wanted else "not equal"
        outcome: Literal["right", "wrong"] = "right" if found == wanted else "wrong"
        return Verdict(outcome, reason, answer, time.perf_counter() - start)


class ChoiceVerifier:
    r"""Judges multiple-choice answers: one capital letter, `C`, `(C)`, `C.` or `(C) 5`, also inside of `\text{}`.

    What stands behind the letter may be its value, but no prose and no other letter. Reasons: "equal choice", "not
    equal", "not a choice", and those of a missing box.

    Args:
        choices: The letters there are.
        extraction: As for `IntegerVerifier`.

    Raises:
        ValueError: If there are fewer than two letters or `extraction` is something else.

    Example:
        >>> ChoiceVerifier().verify_many([(r"\boxed{\text{(C)}}", "C"), (r"\boxed{C or D}", "C")])[1].reason
        'not a choice'
    """

    def __init__(self, choices: str = "ABCDE", extraction: Source = "box") -> None:
        if len(set(choices)) < 2 or not (choices.isascii() and choices.isupper() and choices.isalpha()):
            raise ValueError(f"choices must be at least two different capital letters, got {choices!r}")
        self.choices = choices
        self.extraction = _checked(extraction)

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges (answer text, gold) pairs, in order.

        Raises:
            ValueError: If a gold is none of the choices.
        """
        return [self._verify(text, gold) for text, gold in pairs]

    def _verify(self, text: str, gold: str) -> Verdict:
        start = time.perf_counter()
        wanted = self._letter(gold) if not too_large(gold) else None
        if wanted is None:
            raise ValueError(f"the gold {gold[:80]!r} is none of the choices {self.choices}")
        answer, reason = final_answer(text, self.extraction)
        if answer is None:
            return Verdict("wrong", reason, seconds=time.perf_counter() - start)
        found = self._letter(answer)
        reason = "not a choice" if found is None else "equal choice" if found == wanted else "not equal"
        outcome: Literal["right", "wrong"] = "right" if found == wanted else "wrong"
        return Verdict(outcome, reason, answer, time.perf_counter() - start)

    def _letter(self, answer: str) -> str | None:
        letter = read_choice(clean(answer))
        return letter if letter and letter in self.choices else None


def final_answer(text: str, extraction: Source) -> Extraction:
    """The answer in a text, within the caps on its size.

    Args:
        text: all that the model wrote.
        extraction: `box`, or `any` for a marked last line where there is no box.
    """
    found = extract_box(text)
    if extraction == "any" and found.reason == "no box":
        marked = marked_answer((after_thought(text) or "")[-WINDOW:])
        found = Extraction(marked, "" if marked else "no answer found")
    large = found.answer is not None and too_large(found.answer)
    return Extraction(None, f"too large to be an answer ({large})") if large else found


def _integer(text: str) -> int | None:
    number = read_number(split_unit(text)[0])
    if number is None or number.percent or number.radix or number.value.denominator != 1:
        return None
    return int(number.value)


def _checked(extraction: Source) -> Source:
    if extraction not in ("box", "any"):
        raise ValueError(f"extraction must be 'box' or 'any', got {extraction!r}")
    return extraction
