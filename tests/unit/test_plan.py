from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import experience

from forklight.algo.denominators import counted
from forklight.algo.plan import Passes, eligible_rows, make_plan, update_and_rank
from forklight.algo.spec import PRESETS, ForkSelection

specs = st.builds(
    ForkSelection,
    keep=st.sampled_from(["top", "bottom", "random", "all", "band", "covariance"]),
    scope=st.sampled_from(["update", "rollout", "sequence", "micro_batch", "micro_batch_rank"]),
    over=st.sampled_from(["contributing", "answers"]),
    truncated=st.booleans(),
)
ranked = specs.filter(lambda spec: spec.ranked)
others = st.sampled_from(["none", "eligible", "all"])
seeds = st.integers(0, 10**6)


def in_visits(parts):
    return Counter(row for rows in parts for row in rows.tolist())


def rows_where(mask):
    return Counter(mask.nonzero().flatten().tolist())


# -- updates and ranks -------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_every_update_and_rank_gets_an_equal_share(share, updates, ranks):
    problems = share * updates * ranks
    places = update_and_rank(problems, updates, ranks)
    assert set(Counter(places).values()) == {share}
    assert len(set(places)) == updates * ranks
    assert [update for update, _ in places] == [i * updates // problems for i in range(problems)]
    assert places == sorted(places)  # draw order: blocks of updates, in them blocks of ranks


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40))
def test_update_does_not_depend_on_the_number_of_ranks(updates, ranks, share):
    problems = share * updates * ranks
    alone = [update for update, _ in update_and_rank(problems, updates, 1)]
    assert [update for update, _ in update_and_rank(problems, updates, ranks)] == alone


def test_problems_that_cannot_be_shared_are_an_error_with_the_keys():
    with pytest.raises(ValueError, match=r"data.prompts_per_rollout = 10 .*data.updates_per_rollout.* 2 \* 3 = 6"):
        update_and_rank(10, 2, 3)


# -- the plan ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seeds, specs, st.sampled_from([1, 2, 3]), st.integers(1, 6), others)
def test_every_row_with_a_gradient_is_trained_exactly_once_in_its_update(seed, spec, updates, micro_batches, other):
    x = experience(seed, updates=updates)
    plan = make_plan(x, spec, updates=updates, micro_batches=micro_batches, others=other)
    assert len(plan.train) == len(plan.watch) == updates * micro_batches
    in_set = (x.contributing | (spec.over == "answers")) & (~x.truncated | spec.truncated)
    assert torch.equal(eligible_rows(x, spec), in_set)
    with_gradient = {"none": (x.advantages != 0) & in_set, "eligible": in_set, "all": torch.ones_like(in_set)}
    assert in_visits(plan.train) == rows_where(with_gradient[other])
    for update in range(updates):
        for visit in plan.visits_of(update):
            assert (x.update[plan.looked_at(visit)] == update).all()


@settings(deadline=None)
@given(seeds, specs, st.sampled_from([1, 2, 3]), st.integers(1, 6), others)
def test_the_selection_sees_every_row_that_it_ranks(seed, spec, updates, micro_batches, other):
    x = experience(seed, updates=updates)
    plan = make_plan(x, spec, updates=updates, micro_batches=micro_batches, others=other)
    eligible = eligible_rows(x, spec)
    looked_at = in_visits(map(plan.looked_at, range(len(plan.train))))
    assert set(looked_at.values()) <= {1}
    if spec.ranked or spec.scope.startswith("micro_batch"):
        assert not rows_where(eligible) - looked_at
    if spec.over == "contributing" and other != "all":  # groups without advantage are in no pass at all
        assert not looked_at - rows_where(x.contributing)


@settings(deadline=None)
@given(seeds, ranked, st.integers(1, 6))
def test_groups_stay_whole_while_there_are_enough(seed, spec, micro_batches):
    x = experience(seed)
    plan = make_plan(x, spec, updates=1, micro_batches=micro_batches)
    looked_at = [plan.looked_at(visit) for visit in range(micro_batches)]
    groups = [set(x.group[rows].tolist()) for rows in looked_at]
    different = set().union(*groups)
    if len(different) >= micro_batches:
        assert sum(map(len, groups)) == len(different)
        assert all(groups)
    else:
        assert all(map(len, looked_at)) or sum(map(len, looked_at)) < micro_batches


@settings(deadline=None)
@given(seeds, specs, st.integers(1, 6))
def test_micro_batches_differ_in_cost_by_no_more_than_one_item(seed, spec, micro_batches):
    x = experience(seed)
    plan = make_plan(x, spec, updates=1, micro_batches=micro_batches)
    cost = x.prompt_length + x.answer_length
    looked_at = [plan.looked_at(visit) for visit in range(micro_batches)]
    groups = x.group[torch.cat(looked_at)]
    whole = len(groups.unique()) >= micro_batches
    weights = [cost[torch.cat(looked_at)][groups == g].sum() for g in groups.unique()] if whole else cost
    loads = torch.stack([cost[rows].sum() for rows in looked_at])
    assert loads.max() - loads.min() <= max(weights, default=0)


@settings(deadline=None)
@given(seeds, specs, st.integers(1, 4))
def test_rows_of_a_visit_are_in_draw_order_and_the_plan_is_a_function_of_the_experience(seed, spec, micro_batches):
    x = experience(seed, updates=3)
    plan = make_plan(x, spec, updates=3, micro_batches=micro_batches)
    again = make_plan(x, spec, updates=3, micro_batches=micro_batches)
    for visit in range(3 * micro_batches):
        assert torch.equal(plan.train[visit], again.train[visit])
        for rows in (plan.train[visit], plan.watch[visit], plan.looked_at(visit)):
            assert rows.tolist() == sorted(rows.tolist())


def test_more_micro_batches_than_sequences_are_an_error_with_the_key():
    x = experience(0, problems=2, answers=3, updates=2)
    with pytest.raises(ValueError, match=r"trainer.accumulate_grad_batches = 4 .* 3 sequences"):
        make_plan(x, ForkSelection(), updates=2, micro_batches=4)
    assert len(make_plan(x, ForkSelection(), updates=2, micro_batches=3).train) == 6


# -- passes ------------------------------------------------------------------------------------------------------------

PASSES = [
    # K, A, selection, (statistics, entropy_each_update, select_in_forward, fold_old)
    (3, 1, {}, (True, False, False, False)),
    (3, 2, {}, (True, False, False, False)),
    (3, 1, {"entropy_of": "current"}, (True, False, True, False)),
    (3, 2, {"entropy_of": "current"}, (True, True, False, False)),
    (3, 2, {"entropy_of": "current", "scope": "micro_batch_rank"}, (True, False, True, False)),
    (3, 2, {"scope": "micro_batch_rank"}, (True, False, False, False)),
    (3, 2, {"keep": "random", "entropy_of": "current"}, (True, False, False, False)),
    (3, 1, {"keep": "all"}, (True, False, False, False)),
    (1, 1, {}, (False, False, True, True)),
    (1, 1, {"keep": "bottom", "entropy_of": "current"}, (False, False, True, True)),
    (1, 4, {"scope": "micro_batch_rank"}, (False, False, True, True)),
    (1, 4, {"scope": "micro_batch_rank", "denominator": "answer"}, (False, False, True, True)),
    (1, 1, {"keep": "random"}, (False, False, False, True)),
    (1, 4, {"keep": "all"}, (False, False, False, True)),
    (1, 2, {}, (True, False, False, True)),
    (1, 2, {"over": "answers", "entropy_of": "current"}, (True, False, False, True)),
    (1, 2, {"keep": "covariance"}, (True, False, False, True)),
    (1, 2, {"scope": "sequence", "keep": "low_probability"}, (False, False, True, True)),
    (1, 2, {"scope": "rollout"}, (True, False, False, True)),
    (3, 2, {"scope": "rollout"}, (True, False, False, False)),
    (3, 2, {"scope": "rollout", "keep": "random", "entropy_of": "current"}, (True, False, False, False)),
    (1, 2, vars(PRESETS["trl"]), (False, False, True, True)),
    (3, 2, vars(PRESETS["trl"]), (True, False, True, False)),
    (1, 2, vars(PRESETS["paper-code"]), (False, False, True, True)),
    (3, 2, vars(PRESETS["paper-code"]), (True, False, True, False)),
    (3, 2, vars(PRESETS["paper"]), (True, True, False, False)),
]


@pytest.mark.parametrize(("updates", "micro_batches", "choices", "expected"), PASSES)
def test_passes_of_every_row_of_the_table(updates, micro_batches, choices, expected):
    passes = Passes.of(ForkSelection(**choices), updates=updates, micro_batches=micro_batches)
    assert passes == Passes(*expected)
    said = passes.describe()
    assert ("statistics pass" in said, "before each later update" in said, "selection inside" in said) == expected[:3]
    assert said.startswith("sampling")


TOLD = [
    # K, A, selection, (statistics, entropy_each_update, select_in_forward), and the reason that is given for entropies
    (1, 1, {}, (False, False, True), "no pass: the training forward sees every token"),
    (1, 2, {}, (True, False, False), "statistics pass: tokens of several micro-batches"),
    (1, 2, {"keep": "all"}, (False, False, False), "no pass: the selection does not read them"),
    (3, 1, {}, (True, False, False), "statistics pass: tokens of several micro-batches"),
    (3, 1, {"entropy_of": "current"}, (False, False, True), "no pass: the training forward sees every token"),
    (3, 2, {"entropy_of": "current"}, (False, True, False), "a pass before each update: tokens of several"),
    (3, 2, {"scope": "rollout"}, (True, False, False), "statistics pass: tokens of several micro-batches"),
    (3, 2, {"keep": "random"}, (False, False, False), "no pass: the selection does not read them"),
    (3, 2, vars(PRESETS["trl"]), (False, False, True), "no pass: the training forward sees every token"),
    (3, 2, vars(PRESETS["paper"]), (False, True, False), "a pass before each update: tokens of several"),
]


@pytest.mark.parametrize(("updates", "micro_batches", "choices", "expected", "why"), TOLD)
def test_no_pass_runs_for_old_log_probabilities_that_the_sampler_tells(updates, micro_batches, choices, expected, why):
    spec = ForkSelection(**choices)
    passes = Passes.of(spec, updates=updates, micro_batches=micro_batches, old_from_sampler=True)
    assert passes == Passes(*expected, fold_old=False, old_from_sampler=True)
    said = passes.describe()
    assert said.startswith("sampling (old log-probs)")
    assert ("statistics pass (entropies)" in said, "before each update" in said) == expected[:2]
    assert ("selection inside" in said) == expected[2]
    reasons = passes.reasons()
    assert reasons["old log-probabilities"].startswith("no pass: those that the sampler")
    assert reasons["entropies"].startswith(why)


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
def test_a_denominator_that_only_masks_tell_costs_a_statistics_pass(scope):
    spec = ForkSelection(scope=scope, rule="threshold")
    assert not counted(spec, "token", updates=1)
    passes = Passes.of(spec, updates=1, micro_batches=2, counted=False)
    assert passes == Passes(True, False, False, True)
    assert Passes.of(spec, updates=1, micro_batches=1, counted=False) == Passes(False, False, True, True)


def test_a_whole_rollout_cannot_be_ranked_by_a_policy_that_changes_within_it():
    spec = ForkSelection(scope="rollout", entropy_of="current")
    with pytest.raises(
        ValueError, match=r"selection.scope: rollout .* data.updates_per_rollout = 4 .* selection.entropy_of"
    ):
        Passes.of(spec, updates=4, micro_batches=1)
