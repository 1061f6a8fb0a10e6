"""Where problems come from, and how an evaluation set is answered."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from forklight.data.prompts import PromptTemplate
from forklight.types import Problem
from forklight.verify import Verifier


@runtime_checkable
class ProblemSource(Protocol):
    """Anything that yields problems: a file, a hub data set, a generator."""

    def read(self) -> list[Problem]:
        """All problems, in a fixed order."""


@dataclass(frozen=True)
class EvalSet:
    """An evaluation set and the protocol of its scores."""

    source: ProblemSource
    """The problems."""
    answers: int = 8
    """Answers per problem: n of avg@n."""
    temperature: float = 1.0
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: int | None = None
    """Longest answer; that of the training rollouts if not given."""
    template: PromptTemplate | None = None
    """How a problem becomes a prompt; `data.template` if not given."""
    verifier: Verifier | None = None
    """Judges the answers; `data.verifier` if not given."""

    def __post_init__(self) -> None:
        """Refuses protocols without a meaning."""
        if self.answers < 1:
            raise ValueError(f"answers = {self.answers} per problem of an evaluation set must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature} of an evaluation set must not be negative")
        if self.temperature == 0 and self.answers > 1:
            raise ValueError(f"temperature = 0 gives {self.answers} times the same answer: set answers to 1")
