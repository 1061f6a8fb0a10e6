"""A rollout as it is worked through: experience, plan and passes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forklight.algo.plan import Passes, Plan
from forklight.algo.types import Experience


@dataclass
class Lesson:
    """A rollout's experience together with the plan of its visits."""

    experience: Experience
    plan: Plan
    passes: Passes
    rollout: int
    """Number of the rollout: the noise of `keep: random` depends on it."""
    watched: tuple[bool, ...]
    """Per visit: whether any rank has rows that only the selection looks at. All ranks then run that pass."""
    uids: Mapping[int, str] = field(default_factory=dict)
    """The problems' uids by draw number, for messages."""

    @property
    def updates(self) -> int:
        """K."""
        return len(self.plan.train) // self.plan.micro_batches


class NonFiniteError(ValueError):
    """A log-probability, an entropy or a gradient is NaN or infinite.

    Args:
        message: with the place of the number.
        batch: what a dump should show where no lesson has begun: `uids` and `experience` as a dump names them, or
            `answers`, one dict of `uid`, `prompt_ids`, `token_ids` and `logp` each.
    """

    def __init__(self, message: str, batch: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.batch = dict(batch or {})
