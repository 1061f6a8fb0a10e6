import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forklight.algo.advantages import group_advantages

rewards_of = st.integers(1, 4).flatmap(
    lambda p: st.integers(2, 8).flatmap(
        lambda g: st.lists(st.lists(st.floats(-10, 10), min_size=g, max_size=g), min_size=p, max_size=p)
    )
)
scales = st.sampled_from(["std", "none"])


def float64(rows):
    return torch.tensor(rows, dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(rewards_of, scales)
def test_zero_mean_and_the_order_of_the_rewards(rows, scale):
    rewards = float64(rows)
    advantages = group_advantages(rewards, scale=scale)
    assert advantages.mean(dim=1).abs().max() < 1e-8
    higher = rewards[:, :, None] > rewards[:, None, :]
    assert (advantages[:, :, None] >= advantages[:, None, :])[higher].all()


@settings(deadline=None, max_examples=60)
@given(rewards_of)
def test_unit_spread_unless_the_spread_is_as_small_as_eps(rows):
    rewards = float64(rows)
    std = rewards.std(dim=1)
    expected = std / (std + 1e-6)
    torch.testing.assert_close(group_advantages(rewards).std(dim=1), expected, rtol=1e-6, atol=1e-8)


@settings(deadline=None, max_examples=60)
@given(rewards_of, scales, st.randoms(use_true_random=False))
def test_equivariant_to_the_order_of_answers_and_problems(rows, scale, random):
    rewards = float64(rows)
    answers = random.sample(range(rewards.shape[1]), rewards.shape[1])
    problems = random.sample(range(rewards.shape[0]), rewards.shape[0])
    expected = group_advantages(rewards, scale=scale)[problems][:, answers]
    actual = group_advantages(rewards[problems][:, answers], scale=scale)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


@settings(deadline=None, max_examples=60)
@given(rewards_of, scales)
def test_negated_rewards_give_negated_advantages(rows, scale):
    rewards = float64(rows)
    assert torch.equal(group_advantages(-rewards, scale=scale), -group_advantages(rewards, scale=scale))


@settings(deadline=None, max_examples=60)
@given(st.floats(-1e6, 1e6), st.integers(2, 64), scales, st.sampled_from([torch.float32, torch.float64]))
def test_equal_rewards_give_exact_zero(value, g, scale, dtype):
    advantages = group_advantages(torch.full((2, g), value, dtype=dtype), scale=scale)
    assert torch.equal(advantages, torch.zeros(2, g, dtype=dtype))
