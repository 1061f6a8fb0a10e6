from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import rollout_batch

from forklight.algo.plan import eligible_rows, make_plan, update_and_rank
from forklight.algo.selection.spec import ForkSelection

specs = st.builds(
    ForkSelection,
    keep=st.sampled_from(["top", "bottom", "random", "all", "band", "covariance"]),
    scope=st.sampled_from(["update", "rollout", "sequence", "micro_batch", "micro_batch_rank"]),
    eligible=st.sampled_from(["contributing", "answers"]),
    select_truncated=st.booleans(),
)
ranked = specs.filter(lambda spec: spec.needs_ranking)
others = st.sampled_from(["none", "eligible", "all"])
seeds = st.integers(0, 10**6)


def in_micro_batches(parts):
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
    assert places == sorted(places)  # the order of the rollout: blocks of updates, in them blocks of ranks


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
    x = rollout_batch(seed, updates=updates)
    plan = make_plan(x, spec, updates=updates, micro_batches=micro_batches, extra_gradient=other)
    assert len(plan.train) == len(plan.forward_only) == updates * micro_batches
    in_set = (x.contributing | (spec.eligible == "answers")) & (~x.truncated | spec.select_truncated)
    assert torch.equal(eligible_rows(x, spec), in_set)
    with_gradient = {"none": (x.advantages != 0) & in_set, "eligible": in_set, "all": torch.ones_like(in_set)}
    assert in_micro_batches(plan.train) == rows_where(with_gradient[other])
    for update in range(updates):
        for number in plan.micro_batches_of(update):
            assert (x.update[plan.ranked_rows(number)] == update).all()


@settings(deadline=None)
@given(seeds, specs, st.sampled_from([1, 2, 3]), st.integers(1, 6), others)
def test_the_selection_sees_every_row_that_it_ranks(seed, spec, updates, micro_batches, other):
    x = rollout_batch(seed, updates=updates)
    plan = make_plan(x, spec, updates=updates, micro_batches=micro_batches, extra_gradient=other)
    eligible = eligible_rows(x, spec)
    in_plan = in_micro_batches(map(plan.ranked_rows, range(len(plan.train))))
    assert set(in_plan.values()) <= {1}
    if spec.needs_ranking or spec.scope.startswith("micro_batch"):
        assert not rows_where(eligible) - in_plan
    if spec.eligible == "contributing" and other != "all":  # groups without advantage are in no pass at all
        assert not in_plan - rows_where(x.contributing)


@settings(deadline=None)
@given(seeds, ranked, st.integers(1, 6))
def test_groups_stay_whole_while_there_are_enough(seed, spec, micro_batches):
    x = rollout_batch(seed)
    plan = make_plan(x, spec, updates=1, micro_batches=micro_batches)
    in_plan = [plan.ranked_rows(number) for number in range(micro_batches)]
    groups = [set(x.problem_index[rows].tolist()) for rows in in_plan]
    different = set().union(*groups)
    if len(different) >= micro_batches:
        assert sum(map(len, groups)) == len(different)
        assert all(groups)
    else:
        assert all(map(len, in_plan)) or sum(map(len, in_plan)) < micro_batches


@settings(deadline=None)
@given(seeds, specs, st.integers(1, 6))
def test_micro_batches_differ_in_cost_by_no_more_than_one_item(seed, spec, micro_batches):
    x = rollout_batch(seed)
    plan = make_plan(x, spec, updates=1, micro_batches=micro_batches)
    cost = x.prompt_length + x.answer_length
    in_plan = [plan.ranked_rows(number) for number in range(micro_batches)]
    groups = x.problem_index[torch.cat(in_plan)]
    whole = len(groups.unique()) >= micro_batches
    weights = [cost[torch.cat(in_plan)][groups == g].sum() for g in groups.unique()] if whole else cost
    loads = torch.stack([cost[rows].sum() for rows in in_plan])
    assert loads.max() - loads.min() <= max(weights, default=0)


@settings(deadline=None)
@given(seeds, specs, st.integers(1, 4))
def test_rows_of_a_visit_are_in_draw_order_and_the_plan_is_a_function_of_the_experience(seed, spec, micro_batches):
    x = rollout_batch(seed, updates=3)
    plan = make_plan(x, spec, updates=3, micro_batches=micro_batches)
    again = make_plan(x, spec, updates=3, micro_batches=micro_batches)
    for number in range(3 * micro_batches):
        assert torch.equal(plan.train[number], again.train[number])
        for rows in (plan.train[number], plan.forward_only[number], plan.ranked_rows(number)):
            assert rows.tolist() == sorted(rows.tolist())


def test_more_micro_batches_than_sequences_are_an_error_with_the_key():
    x = rollout_batch(0, problems=2, answers=3, updates=2)
    with pytest.raises(ValueError, match=r"trainer.accumulate_grad_batches = 4 .* 3 sequences"):
        make_plan(x, ForkSelection(), updates=2, micro_batches=4)
    assert len(make_plan(x, ForkSelection(), updates=2, micro_batches=3).train) == 6
