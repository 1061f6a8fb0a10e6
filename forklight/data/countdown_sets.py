"""Countdown as components of a config: a source of problems, and worked examples for the cold start."""

from dataclasses import dataclass, field
from typing import Literal

from forklight.data.countdown import CountdownTask, countdown_problems, worked_example
from forklight.data.source import ProblemSource
from forklight.types import Problem


@dataclass(frozen=True)
class CountdownProblems(ProblemSource):
    """A source of Countdown problems; no multiset of numbers is in both splits."""

    size: int
    """Number of different problems."""
    split: Literal["train", "eval"] = "train"
    """`train`, or `eval` for held-out problems."""
    task: CountdownTask = field(default_factory=CountdownTask)
    """The kind of problems."""
    seed: int = 0
    """Which sequence of problems."""

    def read(self) -> list[Problem]:
        """The problems, always in the same order."""
        return countdown_problems(self.size, self.task, self.split, self.seed)


@dataclass(frozen=True)
class CountdownExamples:
    """An endless sequence of prompts with worked answers."""

    task: CountdownTask = field(default_factory=CountdownTask)
    """The kind of problems."""
    hit_share: float = 0.5
    """Share of answers that reach the target; the others are right in every step and end elsewhere."""
    seed: int = 0
    """Which sequence of examples."""

    def example(self, index: int) -> tuple[str, str]:
        """Prompt, template applied, and worked answer number `index`."""
        trace = worked_example(index, self.task, self.hit_share, seed=self.seed)
        return trace.prompt, trace.answer
