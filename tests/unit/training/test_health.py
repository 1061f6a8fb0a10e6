"""Rules that tell a run that does not learn."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forklight.training.health import TRACKED, WINDOW, Curves, Guard, findings

GUARDS = {"still_reward": Guard(8.0), "rising_cuts": Guard(0.1), "low_signal": Guard(0.5), "unjudged": Guard(0.1)}


def rollouts(**values):
    """Curves from lists, or from one value for all rollouts; without a rise, and with nothing to complain of."""
    plain = {
        "reward": 0.2,
        "reward_se": 0.04,
        "truncated": 0.5,
        "contributing": 0.9,
        "kept_share": 0.2,
        "kept_before_box": 0.3,
        "kept_whole": 0.3,
        "kept_right": 0.3,
        "right": 2.0,
        "wrong": 8.0,
        "unjudged": 0.0,
    } | values
    count = max(len(value) for value in plain.values() if isinstance(value, list))
    curves = Curves()
    for number in range(count):
        curves.add({tag: _at(plain[tag.split("/")[1]], number) for tag in TRACKED})
    return curves


def _at(value, number):
    return value[number] if isinstance(value, list) else value


def rules(curves, told=()):
    return [found.rule for found in findings(curves, GUARDS, set(told))]


def test_a_reward_that_does_not_move_is_told_with_its_numbers():
    # the error of a mean of 4 is 0.04 / 2, of the difference sqrt(2) times that: 0.0283
    still = rollouts(reward=[0.2] * 4 + [0.225] * 4)
    assert still.gain == pytest.approx((0.025, 0.04 / math.sqrt(2)))
    (found,) = findings(still, GUARDS, set())
    assert found.message == (
        "guards.still_reward: after 8 rollouts the reward has not moved: 0.200, now 0.225 (standard error of the "
        "difference 0.028), while 90% of the groups contribute; try model.selection.rho as a schedule from 1.0, or "
        "another learning rate (model.optimizer)"
    )
    assert rules(rollouts(reward=[0.2] * 4 + [0.23] * 4)) == []
    assert rules(still, told=["still_reward"]) == []
    assert rules(rollouts(reward=[0.2] * 8, contributing=0.2)) == []  # there is nothing to learn from
    assert rules(rollouts(reward=[0.2] * 7)) == []


def test_a_later_threshold_waits():
    curves = rollouts(reward=[0.2] * 11)
    guards = {"still_reward": Guard(12.0)}
    assert findings(curves, guards, set()) == []
    curves.add(dict.fromkeys(TRACKED, 0.2) | {"rollout/contributing": 0.5})
    assert [found.rule for found in findings(curves, guards, set())] == ["still_reward"]


def test_cut_answers_that_rise_without_the_reward():
    cuts = [0.5] * 4 + [0.55, 0.6, 0.65, 0.7]
    (still, rising) = findings(rollouts(reward=[0.2] * 8, truncated=cuts), GUARDS, set())
    assert (still.rule, rising.rule) == ("still_reward", "rising_cuts")
    assert "rose from 50% to 62%, and the reward from 0.200 to 0.200" in rising.message
    assert "\n" not in rising.message
    assert rules(rollouts(reward=[0.2] * 4 + [0.5] * 4, truncated=cuts)) == []  # longer answers that are right
    assert rules(rollouts(reward=[0.2] * 8, truncated=[0.5] * 4 + [0.59] * 4)) == ["still_reward"]


def test_a_mask_that_misses_a_part():
    rising = [0.1 * number for number in range(8)]
    (found,) = findings(rollouts(reward=rising, kept_before_box=0.06, kept_right=0.09), GUARDS, set())
    assert found.message == (
        "guards.low_signal: the mask keeps 20% of the tokens, but of the squared gradient before the box only 6.0%, "
        "less than 0.5 times what a random mask would; try model.selection.rho with until_entropy, or "
        "model.selection.select_truncated: false"
    )
    (found,) = findings(rollouts(reward=rising, kept_before_box=math.nan, kept_whole=0.05), GUARDS, set())
    assert "of answers that ended only 5.0%" in found.message
    for part in ("before_box", "whole", "right"):
        assert rules(rollouts(reward=rising, **{f"kept_{part}": 0.11})) == []
        assert rules(rollouts(reward=rising, **{f"kept_{part}": 0.09})) == ["low_signal"]
        assert rules(rollouts(reward=rising, **{f"kept_{part}": [0.01] * 4 + [0.3] * 4})) == []  # the mean counts


def test_answers_that_could_not_be_judged_are_told_at_once_with_their_reasons():
    curves = Curves()
    counts = {"verify/right": 1.0, "verify/wrong": 16.0, "verify/unjudged": 3.0}
    curves.add(counts, [("the function failed (NameError: name 'anwser' is not defined)", 2), ("time limit 3.0 s", 1)])
    (found,) = findings(curves, GUARDS, set())
    assert found == (
        "unjudged",
        "warn",
        "guards.unjudged: 3 of 20 answers (15%) of rollout 1 could not be judged and earned nothing: the function "
        "failed (NameError: name 'anwser' is not defined) (2), time limit 3.0 s (1); see data.verifier",
    )
    assert rules(curves, told=["unjudged"]) == []
    assert findings(curves, {"unjudged": Guard(0.15)}, set()) == []  # more than the share, not as much
    curves.add(counts | {"verify/unjudged": 0.0})
    assert rules(curves) == []  # the last rollout counts
    assert rules(rollouts(reward=[0.1 * n for n in range(8)], unjudged=[0.0] * 7 + [9.0])) == ["unjudged"]


@given(st.lists(st.floats(0, 2), min_size=2 * WINDOW, max_size=30))
def test_a_reward_that_rose_is_never_still_and_unknown_values_say_nothing(rewards):
    rewards = [0.0] * WINDOW + [value + 0.1 for value in rewards]
    assert "still_reward" not in rules(rollouts(reward=rewards))
    unknown = rollouts(**{tag.split("/")[1]: [math.nan] * 9 for tag in TRACKED})
    assert rules(unknown) == []


def test_curves_can_be_saved():
    curves = rollouts(reward=[0.1, 0.3, 0.2])
    again = Curves(curves.values)
    curves.add({})
    assert again.rollouts == 3
    assert again.first("rollout/reward") == pytest.approx(0.2)
    assert curves.last("rollout/reward") == pytest.approx(0.2)  # a rollout without a value is left out


@pytest.mark.parametrize(
    ("settings", "match"), [((0.0,), "threshold"), ((math.inf,), "threshold"), ((1.0, "shout"), "action")]
)
def test_refused(settings, match):
    with pytest.raises(ValueError, match=f"guards: {match}"):
        Guard(*settings)
