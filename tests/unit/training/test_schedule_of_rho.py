"""A share of tokens that changes from rollout to rollout, through the learner."""

from dataclasses import replace

import pytest
import torch
from cases import LIMIT, SEED, load
from tiny import on_ranks, rollout_batch

from forklight.algo.config import AlgorithmConfig
from forklight.algo.selection import ForkSelection
from forklight.training.report import update_report
from forklight.training.update import Learner

LINEAR = {"from": 1.0, "to": 0.2, "over_rollouts": 4}


def learner(selection, **settings):
    return Learner(AlgorithmConfig(selection), length_limit=LIMIT, seed=SEED, **settings)


def report(one, x, rollout, policy):
    """The rollout's state after its update, and the update's curves."""
    state = one.begin(x, rollout=rollout, updates=1, micro_batches=1)
    one.prepare_update(state, 0, policy, None)
    policy.zero_grad()
    loss, metrics = one.loss(state, 0, policy)
    loss.backward()
    return state, update_report(one, state, 0, metrics, vocabulary=50).scalars


def test_every_rollout_is_that_of_the_share_as_a_number(path):
    x, policy, scheduled = rollout_batch(3), load(path), learner(ForkSelection(rho=LINEAR))
    for rollout, rho in enumerate((1.0, 0.8, 0.6, 0.4, 0.2, 0.2)):
        state, curves = report(scheduled, x, rollout, policy)
        fixed, expected = report(learner(ForkSelection(rho=rho, keep="all" if rho == 1 else "top")), x, rollout, policy)
        assert torch.equal(state.tokens.fork_mask, fixed.tokens.fork_mask)
        assert curves.pop("fork/rho") == pytest.approx(rho)
        assert curves == expected


def sampled(x):
    """With log-probabilities of a sampler: -1 nat on average over eligible tokens, and others elsewhere."""
    logp = torch.linspace(-0.5, -1.5, int((x.answer_mask & x.contributing[:, None]).sum()))
    values = torch.full(x.answer_mask.shape, -9.0)
    values[x.answer_mask & x.contributing[:, None]] = logp
    return replace(x, sampler_logp=values)


def test_it_waits_until_the_mean_entropy_of_eligible_tokens_is_low_and_remembers(path):
    x, policy = sampled(rollout_batch(3)), load(path)
    waiting = {"from": 1.0, "to": 0.2, "over_rollouts": 2}
    high = learner(ForkSelection(rho={**waiting, "until_entropy": 0.99}))
    assert [report(high, x, rollout, policy)[1]["fork/rho"] for rollout in range(3)] == [1.0, 1.0, 1.0]
    assert high.low_since is None
    low = learner(ForkSelection(rho={**waiting, "until_entropy": 1.01}))
    sure = replace(x, sampler_logp=2 * x.sampler_logp)
    rollouts = [sure, x, sure, sure, sure]  # once is enough
    shares = [report(low, one, rollout, policy)[1]["fork/rho"] for rollout, one in enumerate(rollouts)]
    assert shares == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2])
    assert low.low_since == 1
    at_once = learner(ForkSelection(rho={"from": 1.0, "to": 0.2, "until_entropy": 1.01}))
    assert report(at_once, x, 0, policy)[1]["fork/rho"] == 0.2


def test_it_needs_a_sampler_that_tells_log_probabilities(path):
    waiting = learner(ForkSelection(rho={"from": 1.0, "to": 0.2, "until_entropy": 1.0}))
    with pytest.raises(ValueError, match=r"selection\.rho\.until_entropy needs the log-probabilities of the sampler"):
        report(waiting, replace(rollout_batch(3), sampler_logp=None), 0, load(path))


def test_all_ranks_see_the_mean_of_all(path):
    parts = [sampled(rollout_batch(seed, problems=3)) for seed in (1, 2)]
    tokens = [int((x.answer_mask & x.contributing[:, None]).sum()) for x in parts]
    parts[1] = replace(parts[1], sampler_logp=3 * parts[1].sampler_logp)
    mean = (tokens[0] + 3 * tokens[1]) / sum(tokens)

    def since(ranks, until):
        one = learner(ForkSelection(rho={"from": 1.0, "to": 0.2, "until_entropy": until}), ranks=ranks)
        one.begin(parts[ranks.rank], rollout=4, updates=1, micro_batches=1)
        return one.low_since

    assert on_ranks(2, lambda ranks: since(ranks, mean + 1e-3)) == [4, 4]
    assert on_ranks(2, lambda ranks: since(ranks, mean - 1e-3)) == [None, None]


def test_an_absolute_threshold_above_every_entropy_trains_nothing(path):
    policy = load(path)
    one = learner(ForkSelection(rule="absolute", tau=20.0))
    state, curves = report(one, rollout_batch(3), 0, policy)
    assert not state.tokens.fork_mask.any()
    assert curves["fork/kept_share"] == 0
    assert curves["train/policy_loss"] == 0
    assert all(not parameter.grad.any() for parameter in policy.parameters() if parameter.grad is not None)
