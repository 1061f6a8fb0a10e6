"""Tries a verifier of the user's on made-up answers, before a run relies on it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from forklight.types import Problem, Verdict
from forklight.verify.base import Verifier, describe, judge
from forklight.verify.function import FunctionVerifier
from forklight.verify.weighted import WeightedVerifier

TRIED = 3
"""Problems that a trial takes, the first ones."""

RIGHT = ("{}", r"\boxed{{{}}}", "<answer>{}</answer>", "#### {}")
"""Forms in which the gold is given as an answer."""

WRONG = "I don't know."
"""The answer that is right nowhere."""


class Trial(NamedTuple):
    """What a trial has shown."""

    faults: list[str]
    """What keeps the verifier from judging, each on one line."""
    warnings: list[str]
    """What may be meant as it is."""


def try_out(verifier: Verifier, problems: Sequence[Problem]) -> Trial:
    """Has the first problems' golds and a wrong answer judged by what is not part of forklight.

    Args:
        verifier: the verifier of a run; the parts of a `WeightedVerifier` are tried one by one.
        problems: those that it will judge.
    """
    trial = Trial([], [])
    for part in _of_the_user(verifier):
        _try_part(part, problems[:TRIED], trial)
    return trial


def _of_the_user(verifier: Verifier) -> Iterator[Verifier]:
    """The verifier, or those of its parts, that run code which forklight does not know."""
    if isinstance(verifier, WeightedVerifier):
        for part in verifier.parts.values():
            yield from _of_the_user(part.verifier)
    elif isinstance(verifier, FunctionVerifier) or not type(verifier).__module__.startswith("forklight."):
        yield verifier


def _try_part(verifier: Verifier, problems: Sequence[Problem], trial: Trial) -> None:
    right = [(form.format(problem.answer), problem) for problem in problems for form in RIGHT]
    wrong = [(WRONG, problem) for problem in problems]
    if not problems:
        return
    try:
        verdicts = judge(verifier, right + wrong)
    except (ValueError, OSError) as error:
        trial.faults.append(str(error))
        return
    unjudged = [
        (answer, verdict) for answer, verdict in zip(right + wrong, verdicts, strict=True)
        if verdict.outcome == "unjudged"
    ]  # fmt: skip
    if unjudged and (isinstance(verifier, FunctionVerifier) or len(unjudged) == len(verdicts)):
        (text, problem), verdict = unjudged[0]
        trial.faults.append(
            f"{_called(verifier, text, problem)}: {verdict.reason}; "
            f"{len(unjudged)} of {len(verdicts)} trial answers could not be judged"
        )
        return
    trial.warnings.extend(_doubts(verifier, verdicts[: len(right)], verdicts[len(right) :]))


def _called(verifier: Verifier, text: str, problem: Problem) -> str:
    """The call that was made."""
    if isinstance(verifier, FunctionVerifier):
        return verifier.calling.shown(verifier.request(text, problem))
    return f"{type(verifier).__name__} on the answer {text[:60]!r} to the gold {problem.answer[:60]!r}"


def _doubts(verifier: Verifier, right: Sequence[Verdict], wrong: Sequence[Verdict]) -> Iterator[str]:
    """What looks like a mistake, or like a rule about more than the last answer."""
    if not any(verdict.right for verdict in right):
        rewards = [verdict.reward for verdict in right]
        yield (
            f"{describe(verifier)} finds none of its own golds right, as {', '.join(map(repr, RIGHT))} (rewards "
            f"{min(rewards):g} to {max(rewards):g}): as it should be only if it wants more of an answer"
        )
    if all(verdict.right for verdict in wrong):
        yield f"{describe(verifier)} finds the answer {WRONG!r} right"
