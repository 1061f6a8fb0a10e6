import math
from fractions import Fraction
from typing import get_args

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forklight.algo.advantages import AdvantageName, estimate_advantages, group_advantages

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


NAMES = get_args(AdvantageName)
GROUP_RELATIVE = [name for name in NAMES if name != "reinforce_pp"]


def naive(kind, rows, eps=1e-6):
    """Answer by answer with exact rational sums, so that equal rewards centre to zero without a special case."""

    def mean(values):
        return sum(map(Fraction, values)) / len(values)

    def std(values):
        centre = mean(values)
        return math.sqrt(sum((Fraction(v) - centre) ** 2 for v in values) / (len(values) - 1)) + eps

    batch = [r for row in rows for r in row]
    deviations = [Fraction(r) - mean(row) for row in rows for r in row]
    result = []
    for row in rows:
        for i, r in enumerate(row):
            relative, others = Fraction(r) - mean(row), row[:i] + row[i + 1 :]
            result.append(
                {
                    "grpo": lambda r=relative, row=row: float(r) / std(row),
                    "dr_grpo": lambda r=relative: float(r),
                    "batch_std": lambda r=relative: float(r) / std(batch),
                    "rloo": lambda r=r, others=others: float(Fraction(r) - mean(others)),
                    "reinforce_pp": lambda r=r: float(Fraction(r) - mean(batch)) / std(batch),
                    "reinforce_pp_baseline": lambda r=relative: float(r) / std(deviations),
                }[kind]()
            )
    return float64(result).reshape(len(rows), -1)


# the twins agree to rounding of the rewards (10 * 2^-53) over the smallest possible denominator, eps
TWIN = {"rtol": 1e-6, "atol": 1e-8}


@settings(deadline=None, max_examples=150)
@given(rewards_of, st.sampled_from(NAMES))
def test_naive_twin(rows, kind):
    torch.testing.assert_close(estimate_advantages(kind, float64(rows)), naive(kind, rows), **TWIN)


@settings(deadline=None, max_examples=80)
@given(rewards_of, st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_every_estimator_is_equivariant_to_the_order(rows, kind, random):
    rewards = float64(rows)
    answers = random.sample(range(rewards.shape[1]), rewards.shape[1])
    problems = random.sample(range(rewards.shape[0]), rewards.shape[0])
    expected = estimate_advantages(kind, rewards)[problems][:, answers]
    torch.testing.assert_close(estimate_advantages(kind, rewards[problems][:, answers]), expected, **TWIN)


@settings(deadline=None, max_examples=80)
@given(
    rewards_of, st.sampled_from(GROUP_RELATIVE), st.floats(-1e6, 1e6), st.sampled_from([torch.float32, torch.float64])
)
def test_a_group_of_equal_rewards_is_exactly_zero_among_others(rows, kind, value, dtype):
    rewards = torch.cat([float64(rows), torch.full((1, len(rows[0])), value, dtype=torch.float64)]).to(dtype)
    advantages = estimate_advantages(kind, rewards)
    assert advantages.dtype == dtype and advantages.shape == rewards.shape
    assert torch.equal(advantages[-1], torch.zeros(len(rows[0]), dtype=dtype))
    assert advantages.isfinite().all()


@settings(deadline=None, max_examples=60)
@given(
    st.floats(-1e6, 1e6),
    st.integers(1, 9),
    st.integers(2, 9),
    st.sampled_from(NAMES),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_a_batch_of_equal_rewards_is_exactly_zero(value, p, g, kind, dtype):
    advantages = estimate_advantages(kind, torch.full((p, g), value, dtype=dtype))
    assert torch.equal(advantages, torch.zeros(p, g, dtype=dtype))


@settings(deadline=None, max_examples=60)
@given(rewards_of)
def test_normalised_over_the_batch(rows):
    for kind in ("reinforce_pp", "reinforce_pp_baseline"):
        advantages = estimate_advantages(kind, float64(rows))
        std = float64(rows).sub(0 if kind == "reinforce_pp" else float64(rows).mean(dim=1, keepdim=True)).std()
        assert abs(advantages.mean()) < 1e-8
        torch.testing.assert_close(advantages.std(), std / (std + 1e-6), **TWIN)


@settings(deadline=None, max_examples=60)
@given(rewards_of)
def test_centring_baselines_differ_by_one_factor(rows):
    # with one advantage per answer all group-centred estimators agree up to a factor per group or per batch
    rewards = float64(rows)
    centred = estimate_advantages("dr_grpo", rewards)
    g = rewards.shape[1]
    torch.testing.assert_close(estimate_advantages("rloo", rewards), centred * (g / (g - 1)), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(estimate_advantages("batch_std", rewards), centred / (rewards.std() + 1e-6), **TWIN)
