"""All updates of a rollout: without any advantage, resumed in the middle, with log-probabilities of the sampler."""

import copy
from dataclasses import replace

import pytest
import torch
from cases import CHOICES, HEADS, Case, begin, load, run_update, take_step, turned, with_sampler_logp
from tiny import rollout_batch

from forklight.algo.batch import RolloutBatch
from forklight.training.state import TokenState

WITHOUT_ADVANTAGE = [
    *(Case(updates=u, keep=k, scope=s) for u in (1, 3) for k in ("top", "all") for s in CHOICES["scope"]),
    Case(keep="random"),
    Case(eligible="answers"),
    Case(updates=3, entropy_of="current"),
    Case(updates=3, objective="Gspo"),
    Case(entropy_coef=0.1, masked_terms=("policy", "entropy")),
]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("case", WITHOUT_ADVANTAGE, ids=str)
def test_a_rollout_without_any_advantage_has_a_connected_zero_loss(case, micro_batches, path):
    x = rollout_batch(0, updates=case.updates, shares=(1.0, 0.0, 0.0))
    policy = load(path, head=turned(WITHOUT_ADVANTAGE.index(case))[micro_batches])
    learner = case.learner()
    state = begin(learner, x, case, micro_batches)
    for update in range(case.updates):
        loss, gradients, sums = run_update(learner, state, update, policy)
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients)
        assert sums["kept_tokens"] == 0
    if case.eligible == "contributing":
        assert not state.tokens.fork_mask.any()
        assert not state.tokens.denominator.any()


@pytest.mark.parametrize(
    ("case", "micro_batches", "head"),
    [
        *((Case(updates=3), 1, head) for head in HEADS),
        *((Case(updates=3, entropy_of="current"), 2, head) for head in HEADS),
        (Case(updates=3), 2, "selected"),
        (Case(updates=3, entropy_of="current"), 1, "selected"),
        (Case(updates=3, old_logp_from="sampler"), 2, "selected"),
    ],
    ids=str,
)
def test_a_saved_rollout_goes_on_bit_for_bit(case, micro_batches, head, path):
    learner = case.learner()
    policy = load(path, "float32", head=head)
    x = with_sampler_logp(rollout_batch(6, updates=3, shares=(0.0, 0.3, 0.7)), case, policy)
    state = begin(learner, x, case, micro_batches)
    take_step(policy, run_update(learner, state, 0, policy)[1])
    saved = copy.deepcopy((state.batch.state_dict(), state.tokens.state_dict()))
    resumed = begin(learner, RolloutBatch(**saved[0]), case, micro_batches, TokenState(**saved[1]))
    for update in (1, 2):
        loss, gradients, sums = run_update(learner, state, update, policy)
        same_loss, same_gradients, same_sums = run_update(learner, resumed, update, policy)
        assert same_loss == loss != 0
        assert all(map(torch.equal, same_gradients, gradients))
        assert same_sums == sums
        take_step(policy, gradients)
    assert torch.equal(state.tokens.fork_mask, resumed.tokens.fork_mask)


@pytest.mark.parametrize(
    ("case", "micro_batches"), [(Case(), 1), (Case(updates=3), 2), (Case(updates=3, entropy_of="current"), 2)], ids=str
)
def test_the_mismatch_is_measured_all_the_same(case, micro_batches, path):
    """What trainer and sampler disagree on does not hang on whose log-probabilities are the old ones."""
    shifted = replace(case, old_logp_from="sampler")
    x = with_sampler_logp(rollout_batch(3, updates=case.updates, shares=(0.0, 0.5, 0.5)), shifted, load(path))
    found = []
    for each in (case, shifted):
        policy, learner = load(path), each.learner()
        state = begin(learner, x, each, micro_batches)
        found.append([])
        for update in range(case.updates):
            _, gradients, sums = run_update(learner, state, update, policy)
            found[-1].append({name: float(value) for name, value in sums.items() if "mismatch" in name})
            take_step(policy, gradients)
    for update, (expected, sums) in enumerate(zip(*found, strict=True)):
        assert expected["kept_mismatch_tokens"] > 0
        assert expected["dropped_mismatch_tokens"] > 0
        if case.entropy_of == "current" and update:  # no pass has seen these tokens under the policy that sampled
            assert not any(sums.values())
        else:
            assert sums == pytest.approx(expected, rel=1e-9)


def test_a_silent_sampler_has_no_old_log_probabilities():
    case = Case(old_logp_from="sampler")
    with pytest.raises(ValueError, match=r"model.old_logp_from: sampler .* does not give"):
        begin(case.learner(), rollout_batch(3), case, 1)
