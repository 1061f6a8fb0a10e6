"""Problems of reasoning-gym: tasks by name that generate as many problems as one asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forklight.data.source import ProblemSource
from forklight.types import Problem
from forklight.verify.reasoning_gym import dataset_of


@dataclass(frozen=True)
class ReasoningGym(ProblemSource):
    """A task of reasoning-gym, an optional extra: `pip install 'forklight[reasoning-gym]'`.

    Its answers are judged by `ReasoningGymVerifier`, with the task's own scorer.
    """

    task: str
    """Its name, such as `basic_arithmetic` or `countdown`."""
    size: int
    """Number of problems that are generated; repeats among them are dropped."""
    seed: int = 0
    """Which problems: take another one for an evaluation than for training."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The task's own settings, such as `{min_terms: 2, max_terms: 4}`."""

    def read(self) -> list[Problem]:
        """The problems, always in the same order.

        Raises:
            ValueError: reasoning-gym is not installed, or there is no such task or option.
        """
        if self.size < 1:
            raise ValueError(f"size = {self.size} of the task {self.task} must be at least 1")
        problems: dict[str, Problem] = {}
        for entry in dataset_of(self.task, self.options, seed=self.seed, size=self.size):
            gold = "" if entry["answer"] is None else str(entry["answer"])  # some tasks have a scorer and no gold
            fields = {**entry, "task": self.task, "options": dict(self.options)}
            problem = Problem.make(entry["question"].strip(), gold, self.task, fields)
            problems.setdefault(problem.uid, problem)
        return list(problems.values())
