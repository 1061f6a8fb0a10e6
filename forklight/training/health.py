"""Rules that tell a run that does not learn, from the curves of its rollouts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Action = Literal["warn", "stop", "off"]

WINDOW = 4
"""Rollouts whose means are compared: the first ones of the run, and the last ones."""

CONTRIBUTING = 0.25
"""Mean share of groups with a non-zero advantage below which a still reward has another cause than the selection."""

PARTS = {"before_box": "before the box", "whole": "of answers that ended", "right": "of right answers"}
"""Parts of the answers whose gradient a mask should not miss: parts of `signal/`, and their names in messages."""

OUTCOMES = ("right", "wrong", "unjudged")

TRACKED = (
    "rollout/reward",
    "rollout/reward_se",
    "rollout/truncated",
    "rollout/contributing",
    "fork/kept_share",
    *(f"signal/kept_{part}" for part in PARTS),
    *(f"verify/{outcome}" for outcome in OUTCOMES),
)


@dataclass(frozen=True)
class Guard:
    """What a rule does, and when."""

    threshold: float
    """In the unit of the rule."""
    action: Action = "warn"
    """`warn`: say it once; `stop`: end the run after this rollout; `off`: nothing."""

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise ValueError(f"guards: action must be one of {get_args(Action)}, got {self.action!r}")
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"guards: threshold must be a number above 0, got {self.threshold}")


class Curves:
    """The tracked curves of a run, one value per rollout; NaN where a rollout has none."""

    def __init__(self, values: Mapping[str, list[float]] | None = None) -> None:
        self.values = {tag: list((values or {}).get(tag, [])) for tag in TRACKED}
        self.reasons: tuple[tuple[str, int], ...] = ()
        """Why answers of the last rollout could not be judged, with their numbers, the most frequent first."""

    def add(self, scalars: Mapping[str, float], reasons: Sequence[tuple[str, int]] = ()) -> None:
        """Adds a rollout."""
        self.reasons = tuple(reasons)
        for tag, values in self.values.items():
            values.append(float(scalars.get(tag, math.nan)))

    @property
    def rollouts(self) -> int:
        """Rollouts so far."""
        return len(self.values["rollout/reward"])

    def first(self, tag: str) -> float:
        """Mean of the first rollouts that have a value; NaN if none has."""
        return _mean(self.values[tag][:WINDOW])

    def last(self, tag: str, count: int = WINDOW) -> float:
        """Mean of the last rollouts that have a value; NaN if none has."""
        return _mean(self.values[tag][-count:])

    @property
    def gain(self) -> tuple[float, float]:
        """How far the mean reward has risen since the first rollouts, and the standard error of that."""
        errors = self.values["rollout/reward_se"]
        squares = [_mean([error**2 for error in part]) / WINDOW for part in (errors[:WINDOW], errors[-WINDOW:])]
        return self.last("rollout/reward") - self.first("rollout/reward"), math.sqrt(sum(squares))


class Finding(NamedTuple):
    """A rule that applies."""

    rule: str
    action: Action
    message: str
    """One line: what is seen, with numbers, and the keys to try."""


def still_reward(curves: Curves, threshold: float) -> str | None:
    """The mean reward has not risen by its standard error after `threshold` rollouts, while groups contribute."""
    gain, error = curves.gain
    contributing = curves.last("rollout/contributing", int(threshold))
    if curves.rollouts < threshold or not gain < error or not contributing >= CONTRIBUTING:
        return None
    return (
        f"after {curves.rollouts} rollouts the reward has not moved: {curves.first('rollout/reward'):.3f}, now "
        f"{curves.last('rollout/reward'):.3f} (standard error of the difference {error:.3f}), while "
        f"{contributing:.0%} of the groups contribute; try model.selection.rho as a schedule from 1.0, or another "
        "learning rate (model.optimizer)"
    )


def rising_cuts(curves: Curves, threshold: float) -> str | None:
    """The share of answers that the length limit cuts has risen by `threshold`, and the reward has not."""
    gain, error = curves.gain
    first, last = curves.first("rollout/truncated"), curves.last("rollout/truncated")
    if not gain < error or not last - first > threshold:
        return None
    return (
        f"answers cut by the length limit rose from {first:.0%} to {last:.0%}, and the reward from "
        f"{curves.first('rollout/reward'):.3f} to {curves.last('rollout/reward'):.3f}; try "
        "model.selection.select_truncated: false, or model.rollout.stop"
    )


def low_signal(curves: Curves, threshold: float) -> str | None:
    """Of the squared gradient of some part the mask keeps less than `threshold` times what a random mask would."""
    count = 2 * WINDOW
    share = curves.last("fork/kept_share", count)
    kept = {part: curves.last(f"signal/kept_{part}", count) for part in PARTS}
    low = {part: value for part, value in kept.items() if value < threshold * share}
    if not low:
        return None
    part = min(low, key=lambda name: low[name])
    return (
        f"the mask keeps {share:.0%} of the tokens, but of the squared gradient {PARTS[part]} only {low[part]:.1%}, "
        f"less than {threshold:g} times what a random mask would; try model.selection.rho with until_entropy, or "
        "model.selection.select_truncated: false"
    )


def unjudged(curves: Curves, threshold: float) -> str | None:
    """More than a share `threshold` of the last rollout's answers could not be judged."""
    counts = {outcome: curves.last(f"verify/{outcome}", 1) for outcome in OUTCOMES}
    share = counts["unjudged"] / max(sum(counts.values()), 1.0)
    if not share > threshold:
        return None
    reasons = ", ".join(f"{reason} ({count})" for reason, count in curves.reasons) or "unknown reasons"
    return (
        f"{counts['unjudged']:.0f} of {sum(counts.values()):.0f} answers ({share:.0%}) of rollout {curves.rollouts} "
        f"could not be judged and earned nothing: {reasons}; see data.verifier"
    )


RULES: dict[str, Callable[[Curves, float], str | None]] = {
    "still_reward": still_reward,
    "rising_cuts": rising_cuts,
    "low_signal": low_signal,
    "unjudged": unjudged,
}

AT_ONCE = ("unjudged",)
"""Rules that look at one rollout, from the first one on."""


def findings(curves: Curves, guards: Mapping[str, Guard], told: set[str]) -> list[Finding]:
    """The rules that apply now and have not been told before; within the first 2 * WINDOW rollouts only AT_ONCE."""
    found = []
    for rule, guard in guards.items():
        if rule not in AT_ONCE and curves.rollouts < 2 * WINDOW:
            continue
        if guard.action != "off" and rule not in told and (message := RULES[rule](curves, guard.threshold)):
            found.append(Finding(rule, guard.action, f"guards.{rule}: {message}"))
    return found


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
