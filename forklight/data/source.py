"""Where problems come from."""

from typing import Protocol, runtime_checkable

from forklight.types import Problem


@runtime_checkable
class ProblemSource(Protocol):
    """Anything that yields problems: a file, a hub data set, a generator."""

    def read(self) -> list[Problem]:
        """All problems, in a fixed order."""
