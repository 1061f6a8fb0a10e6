"""What can be known of golds and verifiers before a run: golds are read, reward functions are tried."""

import logging
from collections.abc import Sequence
from typing import Literal, get_args

from forklight.data.problems import GSM8K_ANSWER
from forklight.types import Problem
from forklight.verify import Verifier, gold_faults
from forklight.verify.trial import try_out

log = logging.getLogger(__name__)

TrialAction = Literal["error", "warn", "off"]

LISTED = 3
"""Golds that a message shows."""

_PATTERNS = {"####": GSM8K_ANSWER, "<answer>": "<answer>(.+?)</answer>", "answer is": r"answer is:?\s*(.+?)\.?$"}
"""What golds that are no answers often have in them, and the `answer_pattern` that cuts out the answer."""


class SetChecks:
    """Checks each set of problems once, and each verifier with the first set that it judges.

    Args:
        unreadable_golds: as `data.unreadable_golds`.
        reward_trial: as `data.reward_trial`.

    Raises:
        ValueError: one of them is out of range.
    """

    def __init__(self, unreadable_golds: float, reward_trial: TrialAction) -> None:
        if not 0 <= unreadable_golds <= 1:
            raise ValueError(f"data.unreadable_golds = {unreadable_golds} must be a share, 0 to 1")
        if reward_trial not in get_args(TrialAction):
            raise ValueError(f"data.reward_trial = {reward_trial!r} must be one of {', '.join(get_args(TrialAction))}")
        self.unreadable_golds = unreadable_golds
        self.reward_trial = reward_trial
        self._checked = set[str]()
        self._tried: list[Verifier] = []

    def __call__(self, problems: Sequence[Problem], verifier: Verifier, key: str, verifier_key: str) -> None:
        """Checks a set; see `check_golds` and `check_verifier`."""
        if key in self._checked:
            return
        if not any(verifier is other for other in self._tried):
            check_verifier(problems, verifier, self.reward_trial, verifier_key)
            self._tried.append(verifier)
        check_golds(problems, verifier, self.unreadable_golds, key)
        self._checked.add(key)


def check_golds(problems: Sequence[Problem], verifier: Verifier, share: float, key: str) -> None:
    """Reads the golds of a set as the verifier will.

    Args:
        problems: of one set.
        verifier: judges their answers.
        share: `data.unreadable_golds`, the largest share of golds that it may be unable to read.
        key: of the set, for messages.

    Raises:
        ValueError: it cannot read a larger share.
    """
    faults = gold_faults(verifier, [problem.answer for problem in problems])
    found = [(problem.answer, fault) for problem, fault in zip(problems, faults, strict=True) if fault]
    if not found:
        return
    examples = ", ".join(f"{gold[-40:]!r} ({fault})" for gold, fault in found[:LISTED])
    message = (
        f"{key}: {type(verifier).__name__} cannot read {len(found)} of {len(problems)} golds "
        f"({len(found) / len(problems):.1%}): {examples}{', ..' if len(found) > LISTED else ''}"
    )
    hint = next((pattern for sign, pattern in _PATTERNS.items() if sign in found[0][0]), None)
    if len(found) / len(problems) > share:
        way_out = f"set its answer_pattern: '{hint}'" if hint else "another verifier or answer_field"
        raise ValueError(f"{message}; data.unreadable_golds = {share:g} allows less: {way_out}")
    log.warning("%s; no answer to these problems can be judged (data.unreadable_golds = %g)", message, share)


def check_verifier(problems: Sequence[Problem], verifier: Verifier, action: TrialAction, key: str) -> None:
    """Tries a reward function, or a verifier class of the user's, on the first problems.

    Args:
        problems: those it will judge.
        verifier: the verifier.
        action: `data.reward_trial`.
        key: of the verifier, for messages.

    Raises:
        ValueError: it cannot judge the trial answers.
    """
    if action == "off":
        return
    trial = try_out(verifier, problems)
    for warning in trial.warnings:
        log.warning("%s: %s", key, warning)
    for fault in trial.faults:
        if action == "error":
            raise ValueError(f"{key}, tried before the run: {fault} (data.reward_trial: warn starts all the same)")
        log.warning("%s, tried before the run: %s", key, fault)
