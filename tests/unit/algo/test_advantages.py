import math

import pytest
import torch

from forklight.algo.advantages import group_advantages


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
