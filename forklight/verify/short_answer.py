"""Verifiers of short final answers, which need no mathematics: a whole number, a letter."""

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from forklight.types import Problem, Verdict
from forklight.verify.base import Verifier
from forklight.verify.math.arithmetic import exact_value
from forklight.verify.math.copied import copied, copied_terms
from forklight.verify.math.extract import WINDOW, Extraction, after_thought, extract_box
from forklight.verify.math.latex import clean
from forklight.verify.math.limits import too_large
from forklight.verify.math.numbers import join_thousands, read_number
from forklight.verify.math.prose import marked_answer
from forklight.verify.math.quick import read_choice
from forklight.verify.math.structure import is_name, is_sum_of_names, split_items, split_relation
from forklight.verify.math.units import split_unit

Source = Literal["box", "any"]


class ShortAnswerVerifier(Verifier):
    """Base class: reads a value out of answer and gold, and compares the two.

    By a gold without a value every answer is unjudged: "gold not understood (no whole number in 0 .. 999)".

    Args:
        extraction: `box`, or `any` for a marked last line where there is no box.

    Raises:
        ValueError: If `extraction` is something else.
    """

    rule: str
    """What is compared, in the words of `Verdict.reason`."""
    wanted: str
    """What is said of a gold that is none."""

    def __init__(self, extraction: Source) -> None:
        if extraction not in ("box", "any"):
            raise ValueError(f"extraction must be 'box' or 'any', got {extraction!r}")
        self.extraction = extraction

    @abstractmethod
    def read(self, text: str) -> tuple[int | str | None, str]:
        """The value of a text in the common spelling; None, and why, if it has none."""

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges (answer text, gold) pairs, in order."""
        return [self._verify(text, gold) for text, gold in pairs]

    def gold_faults(self, golds: Sequence[str]) -> list[str]:
        """Which golds have no value, and so can never be right."""
        return ["" if self._read_gold(gold) is not None else self.wanted for gold in golds]

    def _read_gold(self, gold: str) -> int | str | None:
        return None if too_large(gold) else self.read(clean(gold))[0]

    def _verify(self, text: str, gold: str) -> Verdict:
        start = time.perf_counter()
        wanted = self._read_gold(gold)
        if wanted is None:
            return Verdict("unjudged", f"gold not understood ({self.wanted})", seconds=time.perf_counter() - start)
        answer, reason = final_answer(text, self.extraction)
        if answer is None:
            return Verdict("wrong", reason, seconds=time.perf_counter() - start)
        found, fault = self.read(clean(answer))
        if found == wanted:
            return Verdict("right", f"equal {self.rule}", answer, time.perf_counter() - start)
        return Verdict("wrong", fault or "not equal", answer, time.perf_counter() - start)


class IntegerVerifier(ShortAnswerVerifier):
    r"""Judges whole numbers in a range, as the AIME asks for: 0 to 999.

    Leading zeros, thousands separators, a unit, `27.0`, brackets around it, arithmetic such as `2^5+1`, and the value
    of `n = 33` or `m+n = 12+21 = 33` are read; of a chain every value has to be the same. A term copied from the
    problem is wrong. Reasons: "equal number", "not equal", "not a whole number", "not in 0 .. 999", "copied from the
    problem", and those of a missing box.

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

    rule = "number"

    def __init__(self, low: int = 0, high: int = 999, extraction: Source = "box") -> None:
        if low > high:
            raise ValueError(f"low = {low} must not be above high = {high}")
        super().__init__(extraction)
        self.low = low
        self.high = high
        self.wanted = f"no whole number in {low} .. {high}"

    def read(self, text: str) -> tuple[int | None, str]:
        """The number; None if it is none, or not in the range."""
        number = _whole_number(text)
        if number is None:
            return None, "not a whole number"
        return (number, "") if self.low <= number <= self.high else (None, f"not in {self.low} .. {self.high}")

    def verify_answers(self, answers: list[tuple[str, Problem]]) -> list[Verdict]:
        """Judges (answer text, problem) pairs, in order; a term copied from the problem is wrong."""
        verdicts = self.verify_many([(text, problem.answer) for text, problem in answers])
        return [
            replace(verdict, outcome="wrong", reason="copied from the problem")
            if verdict.right and verdict.extracted and self._copied(verdict.extracted, problem)
            else verdict
            for verdict, (_, problem) in zip(verdicts, answers, strict=True)
        ]

    def _copied(self, answer: str, problem: Problem) -> bool:
        gold = self.read(clean(problem.answer))[0]
        terms = copied_terms(answer, problem.prompt)
        return copied(answer, problem.answer, problem.prompt) or any(self.read(term)[0] == gold for term in terms)


def _whole_number(text: str) -> int | None:
    """The whole number that a text in the common spelling comes to."""
    parts, signs = split_relation(text)
    if set(signs) - {"="}:
        return None
    named = bool(signs) and (is_name(parts[0]) or is_sum_of_names(parts[0]))
    values = {_value(part) for part in parts[named:]}
    value = values.pop() if len(values) == 1 else None
    return int(value) if value is not None and value.denominator == 1 else None


def _value(text: str) -> Fraction | None:
    text = split_unit(text)[0]
    listed = split_items(text)
    if len(listed.items) == 1 and listed.brackets == ("(", ")"):
        text = listed.items[0]
    number = read_number(text)
    if number is None:
        return exact_value(join_thousands(text))
    return None if number.percent or number.radix else number.value


class ChoiceVerifier(ShortAnswerVerifier):
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

    rule = "choice"

    def __init__(self, choices: str = "ABCDE", extraction: Source = "box") -> None:
        if len(set(choices)) < 2 or not (choices.isascii() and choices.isupper() and choices.isalpha()):
            raise ValueError(f"choices must be at least two different capital letters, got {choices!r}")
        super().__init__(extraction)
        self.choices = choices
        self.wanted = f"none of the choices {choices}"

    def read(self, text: str) -> tuple[str | None, str]:
        """The letter; None if it is none of the choices."""
        letter = read_choice(text)
        return (letter, "") if letter and letter in self.choices else (None, "not a choice")


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
