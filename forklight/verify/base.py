"""The interfaces of verifiers, and how a run calls them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from forklight.types import Problem, Verdict


@runtime_checkable
class Verifier(Protocol):
    """Judges answers against golds. Any object with this one method can be the verifier of a run.

    What a verifier of your own must keep to:

    - It returns one `Verdict` per pair, in the order of the pairs.
    - It judges a pair by its two texts alone: the same pair gets the same outcome in every batch, process and run.
    - It never raises because of an answer, however malformed, and never passes it to `eval`. A gold that cannot be
      right (a fault of the data set) may raise `ValueError`.
    - It returns within a bounded time. What it cannot decide in that time is `unjudged`, never `wrong`.
    - It can be pickled (processes and pipes are started on first use and left out of its state).
    - It says in `Verdict.reason` what decided, in a short phrase that is the same for the same fault; what varies
      stands in round brackets at the end.

    Example:
        >>> class Exact:
        ...     def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        ...         same = [answer.strip() == gold for answer, gold in pairs]
        ...         return [Verdict("right", "equal") if s else Verdict("wrong", "not equal") for s in same]
        >>> isinstance(Exact(), Verifier)
        True
    """

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges answers.

        Args:
            pairs: (answer text, gold) pairs. The answer text is all that the model wrote, without special tokens.

        Returns:
            One verdict per pair, in the same order.
        """
        ...


@runtime_checkable
class ReadsProblems(Protocol):
    """A verifier that also wants to see the problem: its method is called instead of `verify_many`."""

    def verify_answers(self, answers: list[tuple[str, Problem]]) -> list[Verdict]:
        """Judges (answer text, problem) pairs, in order."""
        ...


@runtime_checkable
class SortsAnswers(Protocol):
    """A verifier that can tell which answers are equal to each other: majority votes are cast for such classes."""

    def classes(self, answers: Sequence[Sequence[str]]) -> list[list[int]]:
        """Numbers each list's extracted answers, from 0 on: equal ones have the same number."""
        ...


@runtime_checkable
class StartsEarly(Protocol):
    """A verifier with processes that can be started before the first answer is there."""

    def start(self) -> None:
        """Begins to start them, and does not wait."""
        ...


def start_early(verifier: Verifier) -> None:
    """Lets the verifier begin with what takes time, if there is anything."""
    if isinstance(verifier, StartsEarly):
        verifier.start()


def judge(verifier: Verifier, answers: list[tuple[str, Problem]]) -> list[Verdict]:
    """Has answers judged by whichever method the verifier has.

    Args:
        verifier: the verifier.
        answers: (answer text, problem) pairs.

    Returns:
        One verdict per pair, in the same order.

    Raises:
        ValueError: the verifier returned another number of verdicts.
    """
    if isinstance(verifier, ReadsProblems):
        verdicts = verifier.verify_answers(answers)
    else:
        verdicts = verifier.verify_many([(text, problem.answer) for text, problem in answers])
    if len(verdicts) != len(answers):
        raise ValueError(f"{type(verifier).__name__} gave {len(verdicts)} verdicts for {len(answers)} answers")
    return verdicts


def sort_answers(verifier: Verifier, answers: Sequence[Sequence[str]]) -> list[list[int]]:
    """Numbers equal answers alike within each list; by text without blanks, if the verifier does not know better."""
    if isinstance(verifier, SortsAnswers):
        return verifier.classes(answers)
    return [by_text(texts) for texts in answers]


def by_text(texts: Sequence[str]) -> list[int]:
    """Numbers of texts in order of first appearance; the same number for the same text but for blanks."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault("".join(text.split()), len(numbers)) for text in texts]
