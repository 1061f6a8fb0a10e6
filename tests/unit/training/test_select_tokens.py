"""The selection over micro-batches and ranks."""

import pytest
import torch
from cases import Case, apart, begin, load, run_update
from tiny import on_ranks, rollout_batch

from forklight.algo.config import AlgorithmConfig
from forklight.algo.selection import ForkSelection
from forklight.training import select_tokens
from forklight.training.update import Learner


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("scope", ["update", "micro_batch_rank"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_rho_1_is_all_tokens_bit_for_bit(updates, scope, micro_batches, path):
    # a group with single zeros has rows that only the ranking reads; cut in two they would move other rows
    x = rollout_batch(4, updates=updates, shares=(0.0, 1.0, 0.0) if micro_batches == 1 else (0.0, 0.0, 1.0))
    policy, results = load(path, "float32", head="full"), []
    for keep in ("top", "bottom", "random", "all"):
        case = Case(updates=updates, keep=keep, scope=scope, rho=1.0)
        learner = case.learner()
        state = begin(learner, x, case, micro_batches)
        results.append(run_update(learner, state, 0, policy)[:2])
    loss, gradients = results.pop()
    assert any(gradient.any() for gradient in gradients)
    for same_loss, same_gradients in results:
        assert same_loss == loss
        assert all(map(torch.equal, same_gradients, gradients))


@pytest.mark.parametrize("head", ["selected", "gathered"])
@pytest.mark.parametrize("updates", [1, 3])
def test_rho_1_is_all_tokens_whatever_the_head(head, updates, path):
    x = rollout_batch(4, updates=updates, shares=(0.0, 1.0, 0.0))
    policy, results = load(path, "float32"), []
    for keep in ("all", "top", "random"):
        policy.head = "full" if keep == "all" else head
        case = Case(updates=updates, keep=keep, rho=1.0)
        learner = case.learner()
        results.append(run_update(learner, begin(learner, x, case, 1), 0, policy)[:2])
    (loss, gradients), *others = results
    for same_loss, same_gradients in others:
        assert same_loss == pytest.approx(loss, rel=1e-5)
        assert apart(same_gradients, gradients) < 1e-5


@pytest.mark.parametrize("keep", ["top", "low_probability", "covariance"])
def test_prefixes_are_compared_in_any_blocks(keep, path, monkeypatch):
    case, masks = Case(keep=keep, rho=0.5), []
    for block in (1, 40, 2**20):
        monkeypatch.setattr(select_tokens, "_BLOCK", block)
        learner = case.learner()
        state = begin(learner, rollout_batch(9, problems=8, shares=(0.0, 0.0, 1.0)), case, 2)
        learner.prepare_update(state, 0, load(path), None)
        masks.append(state.tokens.fork_mask)
    assert masks[0].any()
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_a_score_of_ones_own_that_fails_on_one_rank_stops_all_of_them(path):
    class Own:
        def scores(self, entropy, logp, advantages, eligible):
            return entropy * torch.where(advantages > 1, torch.nan, 1.0)[:, None]

    shares = [rollout_batch(seed, problems=3, shares=(0.0, 0.0, 1.0)) for seed in (1, 2)]
    for share, advantage in zip(shares, (0.5, 1.5), strict=True):
        share.advantages.fill_(advantage)
    policies, failed = [load(path), load(path)], {}

    def train(ranks):
        learner = Learner(AlgorithmConfig(ForkSelection(keep=Own(), scope="micro_batch_rank")), ranks=ranks)
        state = learner.begin(shares[ranks.rank], rollout=0, updates=1, micro_batches=1)
        try:
            run_update(learner, state, 0, policies[ranks.rank])
        except ValueError as error:
            failed[ranks.rank] = str(error)

    on_ranks(2, train)
    assert "selection.keep: Own failed on another rank" in failed[0]
    assert "scores of Own are NaN or infinite" in failed[1]
