"""Masks, losses and gradients of whole updates against the float64 oracle, for any micro-batches, ranks and heads."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from cases import (
    CASES,
    CHOICES,
    LIMIT,
    NARROW,
    NOISE_SEED,
    ROLLOUT,
    SEED,
    Case,
    apart,
    begin,
    default_sample,
    load,
    moved_reference,
    possible_pairs,
    run_update,
    take_step,
    turned,
    with_sampler_logp,
)
from oracle import expected_update
from tiny import on_ranks, rollout_batch, rows_of

from forklight.algo import objectives
from forklight.algo.config import AlgorithmConfig
from forklight.algo.kl import KLConfig
from forklight.algo.plan import update_and_rank
from forklight.algo.ratios import ClipRange
from forklight.algo.selection import ForkSelection
from forklight.training.update import Learner

MICRO_BATCHES = (1, 2, 4)
TIED = (38, 94)
"""Cases in whose first rollout two tokens that are equal but for rounding meet at a threshold: they get another one."""
DEFAULT = set(default_sample(CASES))
TABLE = [case if case in DEFAULT else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


# -- the table of cases ------------------------------------------------------------------------------------------------


def test_cases_hold_every_pair_of_choices():
    assert 60 < len(CASES) < 160
    for first, second in itertools.combinations(CHOICES, 2):
        pairs = {(getattr(case, first), getattr(case, second)) for case in CASES}
        assert pairs == possible_pairs(first, second)


def test_the_default_sample_has_every_value_and_the_slow_cases_are_all_others():
    slow = [param.values[0] for param in TABLE if not isinstance(param, Case)]
    default = [case for case in TABLE if isinstance(case, Case)]
    assert all([mark.name for mark in param.marks] == ["slow"] for param in TABLE if not isinstance(param, Case))
    assert sorted(default + slow, key=CASES.index) == CASES
    assert len(default) < len(CASES) / 3
    for name, values in CHOICES.items():
        assert {getattr(case, name) for case in default} == set(values)


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_every_case_is_the_oracle(case, path):
    x = rollout_batch(CASES.index(case) + 1000 * (CASES.index(case) in TIED), updates=case.updates)
    policy, old = load(path), load(path)
    x = with_sampler_logp(x, case, old)
    reference = moved_reference(path) if case.config.needs_reference else None
    learner = case.learner()
    states = [begin(learner, x, case, count) for count in MICRO_BATCHES]
    for update in range(case.updates):
        expected = None
        # each number of micro-batches has a head of its own, in every case another one
        for state, head in zip(states, turned(CASES.index(case)), strict=True):
            policy.head = head
            if expected is None or case.depends_on_micro_batches:
                sets = [state.plan.ranked_rows(number).tolist() for number in state.plan.micro_batches_of(update)]
                expected = case.expected(x, update, policy, old, reference, sets=sets, micro_batches=sets)
            loss, gradients, sums = run_update(learner, state, update, policy, reference)
            assert_same(state, update, loss, gradients, expected)
            trained = torch.cat([state.plan.train[number] for number in state.plan.micro_batches_of(update)])
            assert sums["kept_tokens"] == state.tokens.fork_mask[trained].sum()
        take_step(policy, expected.gradients)


def assert_same(state, update, loss, gradients, expected):
    """Masks, loss and gradients are the oracle's."""
    assert torch.equal(state.tokens.fork_mask & (state.batch.update == update)[:, None], expected.mask)
    assert loss == pytest.approx(expected.loss.item(), rel=1e-12, abs=1e-14)
    assert apart(gradients, expected.gradients) < 1e-12


def test_ratios_leave_the_range_and_the_dual_bound_in_these_cases(path):
    """Without this the oracle's cases would say nothing about clipping."""
    case = Case(updates=3, keep="all", dual=1.1)
    x = rollout_batch(1, updates=3, shares=(0.0, 0.2, 0.8))
    policy = load(path)
    learner = case.learner()
    state = begin(learner, x, case, 1)
    first = run_update(learner, state, 0, policy)
    take_step(policy, first[1])
    later = run_update(learner, state, 1, policy)[2]
    assert first[2]["kept_clip_low"] == first[2]["kept_clip_high"] == first[2]["kept_clip_dual"] == 0
    assert min(later["kept_clip_low"], later["kept_clip_high"], later["kept_clip_dual"]) > 0


def test_a_penalty_of_the_objective_reaches_answers_without_advantage(path):
    """KL-Cov on every token: tokens of zero advantage have a gradient from the second update on."""
    settings = AlgorithmConfig(ForkSelection(keep="all"), objectives.KlCov(1.0))
    x, policy, old = rollout_batch(5, updates=2, shares=(0.0, 1.0, 0.0)), load(path), load(path)
    learner = Learner(settings, length_limit=LIMIT, seed=SEED)
    state = learner.begin(x, rollout=ROLLOUT, updates=2, micro_batches=1)
    for update in (0, 1):
        expected = expected_update(x, update, settings, model=policy.model, old_model=old.model, noise_seed=NOISE_SEED)
        loss, gradients, sums = run_update(learner, state, update, policy)
        assert_same(state, update, loss, gradients, expected)
        assert sums["cov_tokens"] == sums["kept_tokens"] > 0
        take_step(policy, gradients)
    assert ((x.advantages == 0) & x.contributing).any()


# -- ranks -------------------------------------------------------------------------------------------------------------

RANK_CASES = [
    Case(),
    Case(eligible="answers", denominator="answer"),
    Case(keep="random", kl_coef=0.1),
    Case(scope="micro_batch_rank"),
    Case(scope="micro_batch_rank", keep="all", eligible="answers"),
    Case(updates=3, dual=1.1),
    Case(updates=3, entropy_of="current", keep="bottom"),
    Case(updates=3, entropy_of="current", eligible="answers", scope="micro_batch_rank", kl_coef=0.1),
    Case(eligible="answers", scope="micro_batch", rule="threshold", denominator="answer", entropy_coef=0.1),
    Case(updates=3, entropy_of="current", scope="micro_batch_rank", denominator="micro_batch", eligible="answers"),
    Case(scope="sequence", rule="threshold", objective="Grpo"),
    Case(
        updates=3,
        scope="rollout",
        keep="covariance",
        masked_terms=("policy", "kl", "entropy"),
        kl_coef=0.1,
        entropy_coef=0.1,
    ),
    Case(updates=3, keep="low_probability", rule="threshold", entropy_of="current", select_truncated=False),
    Case(keep="band", rule="threshold", objective="DrGrpo", at=0.5),
    Case(updates=3, entropy_of="current", keep="bottom", old_logp_from="sampler"),
]


RANK_RUNS = [
    # by default each case runs with one number of micro-batches, half of them with 1 and half with 2
    pytest.param(case, micro_batches, marks=[pytest.mark.slow] * ((number + micro_batches) % 2))
    for number, case in enumerate(RANK_CASES)
    for micro_batches in (1, 2)
]


@pytest.mark.parametrize(("case", "micro_batches"), RANK_RUNS, ids=str)
def test_two_ranks_are_the_oracle(case, micro_batches, path):
    x = rollout_batch(11, updates=case.updates)
    owner = torch.tensor([rank for _, rank in update_and_rank(6, case.updates, 2)]).repeat_interleave(3)
    shares = [(owner == rank).nonzero().flatten() for rank in (0, 1)]
    old = load(path)
    x = with_sampler_logp(x, case, old)
    reference = moved_reference(path) if case.kl_coef else None

    head = turned(RANK_CASES.index(case))[micro_batches]
    policies = [load(path, head=head), load(path, head=head)]

    def train(ranks):
        policy, seen, results = policies[ranks.rank], [], []
        policy.register_forward_pre_hook(lambda _, args: seen.append(len(args[0].rows)))
        learner = case.learner(ranks=ranks)
        state = begin(learner, rows_of(x, shares[ranks.rank]), case, micro_batches)
        for update in range(case.updates):
            before = copy.deepcopy(policy)
            loss, gradients, _ = run_update(learner, state, update, policy, reference)
            gradients = [ranks.reduce(gradient) / 2 for gradient in gradients]
            results.append((before, sum(ranks.gather(loss)) / 2, gradients))
            take_step(policy, gradients)
        return results, state, len(seen)

    (results, one, calls), (_, two, as_many) = on_ranks(2, train)
    assert calls == as_many  # sharded weights are gathered in every forward pass: ranks must run as many
    mask = torch.zeros_like(x.answer_mask)
    for state, rows in zip((one, two), shares, strict=True):
        mask[rows, : state.batch.answer_mask.shape[1]] = state.tokens.fork_mask
    joined = replace(one, batch=x, tokens=replace(one.tokens, fork_mask=mask))
    for update, (policy, loss, gradients) in enumerate(results):
        numbers = one.plan.micro_batches_of(update)
        cut = [
            [rows[le.plan.ranked_rows(v)].tolist() for v in numbers]
            for le, rows in zip((one, two), shares, strict=True)
        ]
        both = [first + second for first, second in zip(*cut, strict=True)]
        sets = both if case.scope == "micro_batch" else cut[0] + cut[1]
        expected = case.expected(x, update, policy, old, reference, sets=sets, micro_batches=cut[0] + cut[1])
        assert_same(joined, update, loss, gradients, expected)


def test_a_rank_without_advantages_runs_the_same_passes_and_collectives(path):
    with_advantages = rollout_batch(1, problems=3, shares=(0.0, 0.5, 0.5))
    without = replace(rollout_batch(2, problems=3, shares=(1.0, 0.0, 0.0)), sequence_id=torch.arange(9) + 9)
    policies = [load(path), load(path)]

    def train(ranks):
        learner = Case().learner(ranks=ranks)
        state = begin(learner, (with_advantages, without)[ranks.rank], Case(), 1)
        loss, gradients, _ = run_update(learner, state, 0, policies[ranks.rank])
        return loss, gradients, state

    (loss, gradients, trained), (no_loss, no_gradients, idle) = on_ranks(2, train)
    assert loss != 0
    assert any(gradient.any() for gradient in gradients)
    assert no_loss == 0
    assert not any(gradient.any() for gradient in no_gradients)
    assert torch.equal(trained.tokens.denominator, idle.tokens.denominator)
    everywhere = torch.cat([state.tokens.threshold[state.batch.contributing] for state in (trained, idle)])
    assert len(everywhere) > 0
    assert len(everywhere.unique()) == 1
    assert not idle.tokens.fork_mask.any()


# -- every objective ---------------------------------------------------------------------------------------------------

SPREAD = {"selection": ForkSelection(rho=0.5, entropy_of="current")}
WHOLE = {"selection": ForkSelection(rho=0.5, entropy_of="current", denominator="answer")}
WIDE = ClipRange(0.9, 0.9)
OBJECTIVES = {
    "dapo": AlgorithmConfig(objective=objectives.Dapo(NARROW), **SPREAD),
    "grpo": AlgorithmConfig(objective=objectives.Grpo(NARROW), kl=KLConfig(0.1, "k1"), **SPREAD),
    "dr_grpo": AlgorithmConfig(objective=objectives.DrGrpo(NARROW), kl=KLConfig(0.1, "k2"), entropy_coef=0.1, **SPREAD),
    "gspo": AlgorithmConfig(objective=objectives.Gspo(WIDE), **SPREAD),
    "gspo_token": AlgorithmConfig(objective=objectives.GspoToken(WIDE), **SPREAD),
    "cispo": AlgorithmConfig(objective=objectives.Cispo(NARROW), **SPREAD),
    "clip_cov": AlgorithmConfig(objective=objectives.ClipCov(NARROW, share=0.2, low=0.1, high=9.0), **SPREAD),
    "kl_cov": AlgorithmConfig(objective=objectives.KlCov(0.2), **SPREAD),
    "clip_cov by sequence": AlgorithmConfig(
        selection=ForkSelection(rho=0.5, scope="sequence"), objective=objectives.ClipCov(NARROW, 0.2, 0.1, 9.0)
    ),
    "kl_cov of the old policy": AlgorithmConfig(selection=ForkSelection(keep="all"), objective=objectives.KlCov(0.2)),
    "entropy_shaped": AlgorithmConfig(objective=objectives.EntropyShaped(NARROW), **SPREAD),
    "archer": AlgorithmConfig(objective=objectives.Archer(WIDE, NARROW, fork_kl=0.0, other_kl=0.1), **WHOLE),
}


def train(learner, x, micro_batches, policy, reference, updates=3):
    """Losses, gradients and the state of a rollout, with a step after every update."""
    state = learner.begin(x, rollout=ROLLOUT, updates=updates, micro_batches=micro_batches)
    results = []
    for update in range(updates):
        loss, gradients, sums = run_update(learner, state, update, policy, reference)
        gradients = [learner.ranks.reduce(gradient) / learner.ranks.size for gradient in gradients]
        results.append((sum(learner.ranks.gather(loss)) / learner.ranks.size, gradients, sums))
        take_step(policy, gradients)
    return results, state


# the default cases of the table above run the other objectives
BY_DEFAULT = ("grpo", "gspo", "gspo_token", "clip_cov by sequence", "kl_cov of the old policy", "archer")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in BY_DEFAULT)) for name in OBJECTIVES]
)
def test_no_objective_depends_on_micro_batches_or_ranks_or_the_head(name, path):
    settings, x = OBJECTIVES[name], rollout_batch(5, updates=3, shares=(0.2, 0.3, 0.5))
    reference = moved_reference(path) if settings.needs_reference else None

    def learner(**more):
        return Learner(settings, length_limit=LIMIT, seed=SEED, **more)

    alone, state = train(learner(), x, 1, load(path, head="full"), reference)
    whole = state.tokens
    assert any(gradient.any() for gradient in alone[0][1])
    if settings.objective.covariance is not None:
        assert whole.cov_mask.any()
        assert not (whole.cov_mask & ~whole.fork_mask).any()
    for micro_batches, head in ((2, "gathered"), (3, "selected")):
        results, other = train(learner(), x, micro_batches, load(path, head=head), reference)
        assert_alike(alone, results)
        assert torch.equal(other.tokens.fork_mask, whole.fork_mask)
        if settings.objective.covariance is not None:
            assert torch.equal(other.tokens.cov_mask, whole.cov_mask)

    owner = torch.tensor([rank for _, rank in update_and_rank(6, 3, 2)]).repeat_interleave(3)
    policies = [load(path), load(path)]

    def on_rank(ranks):
        rows = (owner == ranks.rank).nonzero().flatten()
        return train(learner(ranks=ranks), rows_of(x, rows), 2, policies[ranks.rank], reference)[0]

    assert_alike(alone, on_ranks(2, on_rank)[0])


def assert_alike(expected, results):
    for (loss, gradients, _), (other, others, _) in zip(expected, results, strict=True):
        assert other == pytest.approx(loss, rel=1e-12, abs=1e-14)
        assert apart(others, gradients) < 1e-12
