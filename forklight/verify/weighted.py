"""Several rewards in one: a weighted sum of what verifiers say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forklight.types import Problem, Verdict
from forklight.verify.base import Verifier, describe, gold_faults, judge, sort_answers, start_early


@dataclass(frozen=True)
class Weighted:
    """A part of a `WeightedVerifier`."""

    verifier: Verifier
    """Judges the answers."""
    weight: float = 1.0
    """What its reward is multiplied by; may be negative."""


class WeightedVerifier(Verifier):
    r"""Adds up what its parts give. The first part decides whether an answer is right.

    The reward is the sum of weight * reward over the parts; a part that could not judge gives 0. Outcome, reason and
    extracted answer are those of the first part, so scores and dynamic sampling look at it alone.

    Args:
        parts: Verifiers with their weights, by name; the first is the answer's.

    Raises:
        ValueError: If there are no parts, or a weight is not finite.

    Example:
        >>> from forklight.verify import FormatVerifier, MathVerifier
        >>> parts = {"answer": Weighted(MathVerifier()), "form": Weighted(FormatVerifier(), weight=0.1)}
        >>> verdict = WeightedVerifier(parts).verify_many([(r"It is \boxed{6}.", "5")])[0]
        >>> verdict.outcome, verdict.reward
        ('wrong', 0.1)
    """

    def __init__(self, parts: dict[str, Weighted]) -> None:
        if not parts:
            raise ValueError("a weighted verifier needs at least one part")
        for name, part in parts.items():
            if not math.isfinite(part.weight):
                raise ValueError(f"the weight of {name} is {part.weight}, it must be finite")
        self.parts = parts

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Judges (answer text, gold) pairs, in order."""
        return self._sum([part.verifier.verify_many(pairs) for part in self.parts.values()])

    def verify_answers(self, answers: list[tuple[str, Problem]]) -> list[Verdict]:
        """Judges (answer text, problem) pairs, in order."""
        return self._sum([judge(part.verifier, answers) for part in self.parts.values()])

    def classes(self, answers: Sequence[Sequence[str]]) -> list[list[int]]:
        """Numbers equal answers alike, as the first part does."""
        return sort_answers(next(iter(self.parts.values())).verifier, answers)

    def gold_faults(self, golds: Sequence[str]) -> list[str]:
        """Which golds the first part, which decides what is right, cannot read."""
        return gold_faults(next(iter(self.parts.values())).verifier, golds)

    def describe(self) -> str:
        """The parts with their weights."""
        parts = (f"{part.weight:g} * {name} ({describe(part.verifier)})" for name, part in self.parts.items())
        return " + ".join(parts)

    def start(self) -> None:
        """Begins to start what the parts need."""
        for part in self.parts.values():
            start_early(part.verifier)

    def _sum(self, by_part: list[list[Verdict]]) -> list[Verdict]:
        return [self._combined(verdicts) for verdicts in zip(*by_part, strict=True)]

    def _combined(self, verdicts: tuple[Verdict, ...]) -> Verdict:
        given = {
            name: part.weight * verdict.reward
            for (name, part), verdict in zip(self.parts.items(), verdicts, strict=True)
        }
        first = verdicts[0]
        return Verdict(
            first.outcome,
            first.reason,
            first.extracted,
            sum(verdict.seconds for verdict in verdicts),
            score=math.fsum(given.values()),
            parts=tuple(given.items()),
        )
