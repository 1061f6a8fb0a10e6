import math
from functools import partial
from typing import get_args

import pytest
import torch

from forklight.algo.advantages import (
    Advantage,
    AdvantageName,
    batch_std_advantages,
    estimate_advantages,
    group_advantages,
    reinforce_pp_advantages,
    rloo_advantages,
)


def test_hand_worked():
    # row 0: mean 1/4, deviations 3/4 and three times -1/4, sample variance (9/16 + 3/16) / 3 = 1/4
    # row 1: mean 0, sample variance 4/3
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, -1, 1, -1]], dtype=torch.float64)
    std = 2 / math.sqrt(3)
    expected = torch.tensor(
        [[0.75 / (0.5 + 1e-6)] + [-0.25 / (0.5 + 1e-6)] * 3, [s / (std + 1e-6) for s in (1, -1, 1, -1)]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(group_advantages(rewards), expected, rtol=1e-12, atol=0)


def test_without_scale_only_the_mean_is_subtracted():
    rewards = torch.tensor([[1.0, 0, 0, 0]])
    assert group_advantages(rewards, scale="none").tolist() == [[0.75, -0.25, -0.25, -0.25]]


def test_equal_rewards_give_exact_zero_where_the_mean_rounds():
    rewards = torch.full((1, 3), 0.1)
    rewards64 = torch.full((2, 6), 0.7, dtype=torch.float64)
    assert (rewards64 - rewards64.mean(dim=1, keepdim=True)).abs().max() > 0  # the case exists
    for tensor in (rewards, rewards64):
        for scale in ("std", "none"):
            assert torch.equal(group_advantages(tensor, scale=scale), torch.zeros_like(tensor))


def test_no_problems_give_no_advantages():
    assert group_advantages(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_reward_that_is_not_finite_names_the_group(value):
    rewards = torch.zeros(3, 4)
    rewards[2, 1] = value
    with pytest.raises(ValueError, match="group 2"):
        group_advantages(rewards)


@pytest.mark.parametrize(
    ("rewards", "kwargs", "error", "message"),
    [
        (torch.zeros(3, 1), {}, ValueError, "at least 2"),
        (torch.zeros(3), {}, ValueError, r"\[P,G\]"),
        (torch.zeros(3, 2, dtype=torch.int64), {}, TypeError, "floating"),
        (torch.zeros(3, 2), {"scale": "max"}, ValueError, "scale"),
        (torch.zeros(3, 2), {"eps": 0.0}, ValueError, "eps"),
    ],
)
def test_wrong_arguments_are_refused(rewards, kwargs, error, message):
    with pytest.raises(error, match=message):
        group_advantages(rewards, **kwargs)


# a batch for hand work: group means 1/2 and 0 and 1, batch mean 1/2, squared deviations 6 * 1/4 = 3/2 over 5
BATCH = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
BATCH_STD = math.sqrt(0.3)


def test_batch_std_hand_worked():
    half = 0.5 / (BATCH_STD + 1e-6)
    expected = torch.tensor([[half, -half], [0, 0], [0, 0]], dtype=torch.float64)
    actual = batch_std_advantages(torch.tensor(BATCH, dtype=torch.float64))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_rloo_hand_worked():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 2]], dtype=torch.float64)
    expected = torch.tensor([[1, -1 / 3, -1 / 3, -1 / 3], [0, 0, -4 / 3, 4 / 3]], dtype=torch.float64)
    torch.testing.assert_close(rloo_advantages(rewards), expected, rtol=1e-12, atol=0)


def test_reinforce_pp_hand_worked():
    rewards = torch.tensor(BATCH, dtype=torch.float64)
    half = 0.5 / (BATCH_STD + 1e-6)
    expected = torch.tensor([[half, -half], [-half, -half], [half, half]], dtype=torch.float64)
    torch.testing.assert_close(reinforce_pp_advantages(rewards, baseline=False), expected, rtol=1e-12, atol=0)
    # centred by group: 1/2, -1/2 and four zeros, sample variance 1/2 over 5
    half = 0.5 / (math.sqrt(0.1) + 1e-6)
    expected = torch.tensor([[half, -half], [0, 0], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(reinforce_pp_advantages(rewards, baseline=True), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", get_args(AdvantageName))
def test_names_reach_their_function(kind):
    rewards = torch.tensor([[1.0, 0, 0, 0.5], [0, 1, 1, 1]])
    expected = {
        "grpo": group_advantages(rewards),
        "dr_grpo": group_advantages(rewards, scale="none"),
        "batch_std": batch_std_advantages(rewards),
        "rloo": rloo_advantages(rewards),
        "reinforce_pp": reinforce_pp_advantages(rewards, baseline=False),
        "reinforce_pp_baseline": reinforce_pp_advantages(rewards, baseline=True),
    }
    assert torch.equal(estimate_advantages(kind, rewards), expected[kind])
    assert sum(torch.equal(estimate_advantages(kind, rewards), other) for other in expected.values()) == 1


@pytest.mark.parametrize("kind", get_args(AdvantageName))
def test_every_estimator_checks_the_rewards(kind):
    assert estimate_advantages(kind, torch.zeros(0, 4)).shape == (0, 4)
    with pytest.raises(ValueError, match="group 1"):
        estimate_advantages(kind, torch.tensor([[0.0, 1.0], [math.nan, 1.0]]))
    with pytest.raises(ValueError, match="at least 2"):
        estimate_advantages(kind, torch.zeros(3, 1))
    with pytest.raises(TypeError, match="floating"):
        estimate_advantages(kind, torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="critic"):
        estimate_advantages(kind, torch.zeros(3, 2), torch.zeros(3, 2))


@pytest.mark.parametrize("estimate", [batch_std_advantages, partial(reinforce_pp_advantages, baseline=True)])
def test_eps_must_be_positive(estimate):
    with pytest.raises(ValueError, match="eps"):
        estimate(torch.zeros(3, 2), eps=0.0)


class OverCritic:
    """Rewards over a critic's estimates; over zero without a critic."""

    def advantages(self, rewards, values=None):
        return rewards.double() - (0 if values is None else values)


class Returns:
    """Whatever it is told to return."""

    def __init__(self, result):
        self.result = result

    def advantages(self, rewards, values=None):
        return self.result


def test_an_own_advantage_gets_the_values_and_keeps_the_dtype():
    rewards, values = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.25, 0.5]], requires_grad=True)
    assert isinstance(OverCritic(), Advantage)
    actual = estimate_advantages(OverCritic(), rewards, values)
    assert actual.tolist() == [[0.75, -0.5]]
    assert actual.dtype == torch.float32 and not actual.requires_grad
    assert estimate_advantages(OverCritic(), rewards).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (torch.zeros(2), ValueError, r"model\.advantage \(Returns\).*\[2, 3\].*\[2\]"),
        (torch.zeros(3, 2), ValueError, r"model\.advantage"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, r"model\.advantage.*floating"),
        (torch.tensor([[0.0, 0, 0], [0, math.inf, 0]]), ValueError, r"model\.advantage.*group 1"),
        (torch.full((2, 3), 1e300, dtype=torch.float64), ValueError, r"model\.advantage.*group 0"),
    ],
)
def test_what_an_own_advantage_returns_is_checked(result, error, message):
    with pytest.raises(error, match=message):
        estimate_advantages(Returns(result), torch.zeros(2, 3))


def test_an_own_advantage_never_sees_broken_arguments():
    with pytest.raises(ValueError, match="group 0"):
        estimate_advantages(OverCritic(), torch.full((1, 2), math.inf))
    with pytest.raises(ValueError, match="shape of the rewards"):
        estimate_advantages(OverCritic(), torch.zeros(1, 2), torch.zeros(2, 1))


@pytest.mark.parametrize("kind", ["gae", None, 3])
def test_an_unknown_advantage_is_refused(kind):
    with pytest.raises(ValueError, match=r"model\.advantage must be one of .*rloo"):
        estimate_advantages(kind, torch.zeros(1, 2))
