"""The share of tokens to keep as a function of the rollout: from many tokens to few, by count or by entropy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, cast, get_args

Shape = Literal["linear", "cosine", "step"]

RhoKeys = TypedDict(
    "RhoKeys",
    {
        "from": float,
        "to": float,
        "over_rollouts": NotRequired[int],
        "shape": NotRequired[Shape],
        "until_entropy": NotRequired[float | None],
    },
)
"""The keys of a schedule in a config; see `RhoSchedule`."""


@dataclass(frozen=True, slots=True)
class RhoSchedule:
    """A share of tokens that changes from rollout to rollout.

    In a config: `rho: {from: 1.0, to: 0.2, over_rollouts: 100, shape: linear, until_entropy: 0.7}`.
    """

    start: float
    """Share at the beginning (`from`), above 0 and at most 1."""
    to: float
    """Share at the end, above 0 and at most 1."""
    over_rollouts: int
    """Rollouts until the share is `to`; 0 only with `until_entropy`: the share changes at once."""
    shape: Shape = "linear"
    """`linear` and `cosine` go from one share to the other; `step` stays, and jumps at the end."""
    until_entropy: float | None = None
    """If given, the share stays until the mean entropy of a rollout's eligible tokens is at most this, in nats; that
    rollout is the first of `over_rollouts`. The entropy is estimated by the mean -log p with which the tokens were
    sampled."""

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> "RhoSchedule":
        """Reads and checks the keys of a config.

        Raises:
            ValueError: a key is unknown, missing or out of range.
        """
        given = dict(keys)
        unknown, missing = set(given) - set(RhoKeys.__annotations__), {"from", "to"} - set(given)
        if unknown or missing:
            raise ValueError(
                f"selection.rho as a schedule needs `from` and `to`, and takes {', '.join(RhoKeys.__annotations__)}; "
                f"got {', '.join(map(str, given))}"
            )
        return cls(
            float(given["from"]),
            float(given["to"]),
            given.get("over_rollouts", 0),
            cast(Shape, given.get("shape", "linear")),
            given.get("until_entropy"),
        )

    def __post_init__(self) -> None:
        for name, share in (("from", self.start), ("to", self.to)):
            if not 0 < share <= 1:
                raise ValueError(f"selection.rho.{name} must be above 0 and at most 1, got {share}")
        if self.shape not in get_args(Shape):
            raise ValueError(f"selection.rho.shape must be one of {get_args(Shape)}, got {self.shape!r}")
        if self.until_entropy is not None and not 0 < self.until_entropy < math.inf:
            raise ValueError(f"selection.rho.until_entropy must be above 0, in nats, got {self.until_entropy}")
        least = 1 if self.until_entropy is None else 0
        if self.over_rollouts < least:
            raise ValueError(
                f"selection.rho.over_rollouts must be at least {least}, got {self.over_rollouts}: the schedule would "
                "end before it begins"
            )

    def at(self, rollout: int, low_since: int | None = None) -> float:
        """The share of a rollout.

        Args:
            rollout: its number, from 0.
            low_since: the first rollout whose mean entropy was at most `until_entropy`; None if there was none yet.
        """
        if self.until_entropy is not None:
            if low_since is None:
                return self.start
            rollout -= low_since
        if rollout >= self.over_rollouts:
            return self.to
        done = rollout / self.over_rollouts
        if self.shape == "step":
            done = 0.0
        elif self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.to - self.start) * done

    def __str__(self) -> str:
        """As the table at the start of a run shows it."""
        over = f" over {self.over_rollouts} rollouts ({self.shape})" if self.over_rollouts else " at once"
        when = "" if self.until_entropy is None else f" when the mean entropy is at most {self.until_entropy:g}"
        return f"{self.start:g} -> {self.to:g}{over}{when}"
