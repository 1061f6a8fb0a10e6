"""The share of tokens over rollouts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.config import AlgorithmConfig
from forklight.algo.selection import ForkSelection
from forklight.algo.selection.rho import RhoSchedule

SHARES = st.floats(0.01, 1.0)
SCHEDULES = st.builds(
    RhoSchedule,
    start=SHARES,
    to=SHARES,
    over_rollouts=st.integers(1, 50),
    shape=st.sampled_from(["linear", "cosine", "step"]),
)


@pytest.mark.parametrize(
    ("shape", "shares"),
    [
        ("linear", [1.0, 0.8, 0.6, 0.4, 0.2, 0.2]),
        ("step", [1.0, 1.0, 1.0, 1.0, 0.2, 0.2]),
        ("cosine", [1.0, 0.8 * (2 + math.sqrt(2)) / 4 + 0.2, 0.6, 0.8 * (2 - math.sqrt(2)) / 4 + 0.2, 0.2, 0.2]),
    ],
)
def test_hand_worked(shape, shares):
    schedule = RhoSchedule.of({"from": 1.0, "to": 0.2, "over_rollouts": 4, "shape": shape})
    assert [schedule.at(rollout) for rollout in range(6)] == pytest.approx(shares, rel=1e-12)


@given(SCHEDULES)
def test_it_goes_from_one_share_to_the_other_without_turning(schedule):
    shares = [schedule.at(rollout) for rollout in range(60)]
    assert shares[0] == pytest.approx(schedule.start)
    assert set(shares[schedule.over_rollouts :]) == {schedule.to}
    falls = schedule.to <= schedule.start
    assert shares == sorted(shares, reverse=falls) or max(shares) - min(shares) < 1e-12


@given(SCHEDULES, st.integers(0, 20))
def test_one_that_waits_for_a_low_entropy_is_the_same_later(schedule, since):
    waiting = RhoSchedule(schedule.start, schedule.to, schedule.over_rollouts, schedule.shape, until_entropy=0.5)
    assert {waiting.at(rollout) for rollout in range(30)} == {schedule.start}
    assert [waiting.at(since + n, since) for n in range(30)] == [schedule.at(n) for n in range(30)]


def test_it_may_change_at_once_when_the_entropy_is_low():
    schedule = RhoSchedule.of({"from": 1.0, "to": 0.2, "until_entropy": 0.7})
    assert (schedule.at(9), schedule.at(9, 9), schedule.at(10, 9)) == (1.0, 0.2, 0.2)
    assert str(schedule) == "1 -> 0.2 at once when the mean entropy is at most 0.7"


def test_a_selection_has_a_number_in_every_rollout():
    spec = ForkSelection(rho={"from": 1.0, "to": 0.5, "over_rollouts": 2}, balance="outcome")
    config = AlgorithmConfig(spec)
    first, second, third = (config.at(rollout).selection for rollout in range(3))
    assert (first.rho, first.keep, first.balance) == (1.0, "all", "none")  # nothing is left to rank
    assert (second.rho, second.keep, second.balance) == (0.75, "top", "outcome")
    assert third == ForkSelection(rho=0.5, balance="outcome")
    assert third.kept(10) == 5
    with pytest.raises(TypeError, match="schedule"):
        spec.kept(10)
    fixed = AlgorithmConfig(ForkSelection())
    assert fixed.at(7) is fixed


LINEAR = {"from": 1.0, "to": 0.2, "over_rollouts": 5}


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"from": 1.0, "to": 0.2}, "over_rollouts must be at least 1, got 0: the schedule would end before it begins"),
        (LINEAR | {"over_rollouts": -3}, "at least 1, got -3"),
        (LINEAR | {"over_rollouts": -1, "until_entropy": 0.5}, "at least 0, got -1"),
        (LINEAR | {"from": 1.5}, r"selection.rho.from must be above 0 and at most 1, got 1.5"),
        (LINEAR | {"to": 0.0}, r"selection.rho.to must be above 0 and at most 1, got 0.0"),
        (LINEAR | {"shape": "cubic"}, "selection.rho.shape must be one of .*, got 'cubic'"),
        (LINEAR | {"until_entropy": 0.0}, "selection.rho.until_entropy must be above 0"),
        ({"from": 1.0, "over_rollouts": 5}, "needs `from` and `to`"),
        (LINEAR | {"until": 5}, "takes from, to, over_rollouts, shape, until_entropy; got .*until"),
    ],
)
def test_refused(keys, match):
    with pytest.raises(ValueError, match=match):
        ForkSelection(rho=keys)


def test_refused_where_a_schedule_has_no_meaning_and_read_by_none_where_all_are_kept():
    with pytest.raises(ValueError, match=r"selection\.rho is a schedule, which rule: absolute does not use"):
        ForkSelection(rho=LINEAR, rule="absolute", tau=1.0)
    config = AlgorithmConfig(ForkSelection(rho=LINEAR, keep="all"))
    assert {config.at(rollout).selection.kept(10) for rollout in range(7)} == {10}
