"""The interfaces of verifiers, and how a run calls them."""

import traceback
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from forklight.types import Problem, Verdict


@runtime_checkable
class Verifier(Protocol):
    """Judges answers against golds. Any object with this one method can be the verifier of a run.

    What a verifier of your own must keep to:

    - It returns one `Verdict` per pair, in the order of the pairs.
    - It judges a pair by its two texts alone: the same pair gets the same outcome in every batch, process and run.
    - It never raises because of an answer, however malformed, and never passes it to `eval`. By a gold that it cannot
      read (a fault of the data set) it leaves every answer `unjudged`.
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


@runtime_checkable
class ReadsGolds(Protocol):
    """A verifier that can tell which golds it can judge by."""

    def gold_faults(self, golds: Sequence[str]) -> list[str]:
        """Why each gold cannot be read, in a few words; empty where it can."""
        ...


@runtime_checkable
class DescribesItself(Protocol):
    """A verifier that says in its own words what it does, for the table at the start of a run."""

    def describe(self) -> str:
        """On one line."""
        ...


def gold_faults(verifier: Verifier, golds: Sequence[str]) -> list[str]:
    """Why each gold cannot be read by the verifier; empty where it can, or where the verifier does not say."""
    return verifier.gold_faults(golds) if isinstance(verifier, ReadsGolds) else [""] * len(golds)


def describe(verifier: Verifier) -> str:
    """What judges, on one line."""
    return verifier.describe() if isinstance(verifier, DescribesItself) else type(verifier).__name__


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
        ValueError: the verifier failed, or returned something else than as many verdicts.
        OSError: its processes cannot be started.
    """
    name = type(verifier).__name__
    try:
        if isinstance(verifier, ReadsProblems):
            verdicts: Any = verifier.verify_answers(answers)
        else:
            verdicts = verifier.verify_many([(text, problem.answer) for text, problem in answers])
    except (ValueError, OSError):
        raise
    except Exception as error:  # of a class of the user's
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{name} failed with {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        ) from error
    if not isinstance(verdicts, Sequence) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
        found = type(verdicts).__name__
        if isinstance(verdicts, Sequence):
            found += f" with {next(type(each).__name__ for each in verdicts if not isinstance(each, Verdict))}"
        raise ValueError(f"{name} returned {found} in place of a list of {len(answers)} Verdict")
    if len(verdicts) != len(answers):
        raise ValueError(f"{name} gave {len(verdicts)} verdicts for {len(answers)} answers")
    return list(verdicts)


def sort_answers(verifier: Verifier, answers: Sequence[Sequence[str]]) -> list[list[int]]:
    """Numbers equal answers alike within each list; by text without blanks, if the verifier does not know better."""
    if isinstance(verifier, SortsAnswers):
        return verifier.classes(answers)
    return [by_text(texts) for texts in answers]


def by_text(texts: Sequence[str]) -> list[int]:
    """Numbers of texts in order of first appearance; the same number for the same text but for blanks."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault("".join(text.split()), len(numbers)) for text in texts]
