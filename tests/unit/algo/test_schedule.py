import pytest

from forklight.algo.denominators import known_from_lengths
from forklight.algo.schedule import OldLogp, PassSchedule, SelectAt
from forklight.algo.selection.spec import PRESETS, ForkSelection


def passes_of(schedule, updates):
    """Passes before the first and before each later update; selection in the forward; old log-probabilities of it."""
    before_first = schedule.pass_before_rollout or (updates == 1 and schedule.pass_before_update(0))
    return (
        before_first,
        updates > 1 and schedule.pass_before_update(1),
        schedule.select_at is SelectAt.FORWARD,
        schedule.old_logp is OldLogp.FORWARD,
    )


PASSES = [
    # K, A, selection, passes as `passes_of` has them
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
    (1, 4, {"scope": "micro_batch"}, (False, False, True, True)),
    (1, 1, {"keep": "random"}, (False, False, False, True)),
    (1, 4, {"keep": "random", "entropy_of": "current"}, (False, False, False, True)),
    (1, 4, {"keep": "all"}, (False, False, False, True)),
    (1, 2, {}, (True, False, False, True)),
    (1, 2, {"eligible": "answers", "entropy_of": "current"}, (True, False, False, True)),
    (1, 2, {"keep": "covariance"}, (True, False, False, True)),
    (1, 2, {"scope": "sequence", "keep": "low_probability"}, (False, False, True, True)),
    (1, 2, {"scope": "rollout"}, (True, False, False, True)),
    (1, 2, {"scope": "rollout", "entropy_of": "current"}, (True, False, False, True)),
    (3, 4, {"scope": "sequence", "entropy_of": "current"}, (True, False, True, False)),
    (3, 4, {"scope": "micro_batch", "entropy_of": "current"}, (True, False, True, False)),
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
    schedule = PassSchedule.of(ForkSelection(**choices), updates=updates, micro_batches=micro_batches)
    assert passes_of(schedule, updates) == expected
    said = schedule.describe(updates)
    assert ("statistics pass" in said, "before each later update" in said, "selection inside" in said) == expected[:3]
    assert said.startswith("sampling")


OF_THE_SAMPLER = [
    # K, A, selection, the first three of `passes_of`, and the reason that is given for entropies
    (1, 1, {}, (False, False, True), "no pass: the training forward computes all tokens"),
    (1, 2, {}, (True, False, False), "statistics pass: tokens of several micro-batches"),
    (1, 2, {"scope": "sequence"}, (False, False, True), "no pass: the training forward computes all tokens"),
    (1, 2, {"keep": "all"}, (False, False, False), "no pass: the selection does not use them"),
    (1, 1, {"keep": "random"}, (False, False, False), "no pass: the selection does not use them"),
    (3, 1, {}, (True, False, False), "statistics pass: tokens of several micro-batches"),
    (3, 1, {"entropy_of": "current"}, (False, False, True), "no pass: the training forward computes all tokens"),
    (3, 2, {"entropy_of": "current"}, (False, True, False), "a pass before each update: tokens of several"),
    (3, 2, {"scope": "rollout"}, (True, False, False), "statistics pass: tokens of several micro-batches"),
    (3, 2, {"keep": "random"}, (False, False, False), "no pass: the selection does not use them"),
    (
        3,
        2,
        {"keep": "all", "entropy_of": "current"},
        (False, False, False),
        "no pass: the selection does not use them",
    ),
    (1, 2, vars(PRESETS["paper-code"]), (False, False, True), "no pass: the training forward computes all tokens"),
    (3, 2, vars(PRESETS["paper-code"]), (False, False, True), "no pass: the training forward computes all tokens"),
    (3, 2, vars(PRESETS["trl"]), (False, False, True), "no pass: the training forward computes all tokens"),
    (3, 2, vars(PRESETS["paper"]), (False, True, False), "a pass before each update: tokens of several"),
]


@pytest.mark.parametrize(("updates", "micro_batches", "choices", "expected", "why"), OF_THE_SAMPLER)
def test_no_pass_runs_for_old_log_probabilities_of_the_sampler(updates, micro_batches, choices, expected, why):
    spec = ForkSelection(**choices)
    schedule = PassSchedule.of(spec, updates=updates, micro_batches=micro_batches, old_from_sampler=True)
    assert passes_of(schedule, updates) == (*expected, False)
    assert schedule.old_logp is OldLogp.SAMPLER
    said = schedule.describe(updates)
    assert said.startswith("sampling (old log-probs)")
    assert ("statistics pass (entropies)" in said, "before each update" in said) == expected[:2]
    assert ("selection inside" in said) == expected[2]
    reasons = schedule.reasons(updates)
    assert reasons["old log-probabilities"].startswith("no pass: the sampler reports them")
    assert reasons["entropies"].startswith(why)


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
def test_a_denominator_that_only_masks_tell_costs_a_statistics_pass(scope):
    spec = ForkSelection(scope=scope, rule="threshold")
    assert not known_from_lengths(spec, "token", updates=1)
    several = PassSchedule.of(spec, updates=1, micro_batches=2, known_from_lengths=False)
    assert passes_of(several, 1) == (True, False, False, True)
    one = PassSchedule.of(spec, updates=1, micro_batches=1, known_from_lengths=False)
    assert passes_of(one, 1) == (False, False, True, True)


@pytest.mark.parametrize(
    ("updates", "micro_batches", "choices", "select_at"),
    [
        (3, 1, {}, "rollout"),
        (3, 2, {}, "rollout"),
        (3, 2, {"scope": "micro_batch_rank"}, "rollout"),
        (3, 2, {"entropy_of": "current"}, "update"),
        (3, 1, {"entropy_of": "current"}, "forward"),
        (3, 2, {"keep": "random", "entropy_of": "current"}, "rollout"),
        (1, 1, {}, "forward"),
        (1, 2, {}, "update"),
        (1, 2, {"scope": "rollout"}, "update"),
        (1, 2, {"scope": "sequence"}, "forward"),
        (1, 2, {"scope": "micro_batch"}, "forward"),
        (1, 2, {"scope": "micro_batch_rank"}, "forward"),
        (1, 2, {"keep": "all"}, "update"),
        (1, 1, {"keep": "random"}, "update"),
        (1, 2, vars(PRESETS["trl"]), "forward"),
        (3, 2, vars(PRESETS["trl"]), "forward"),
        (1, 2, vars(PRESETS["paper-code"]), "forward"),
        (3, 2, vars(PRESETS["paper-code"]), "forward"),
    ],
)
@pytest.mark.parametrize("old_from_sampler", [False, True])
def test_where_the_tokens_are_selected(updates, micro_batches, choices, select_at, old_from_sampler):
    spec = ForkSelection(**choices)
    found = PassSchedule.of(spec, updates=updates, micro_batches=micro_batches, old_from_sampler=old_from_sampler)
    assert found.select_at == select_at
    assert found.old_logp == ("sampler" if old_from_sampler else "forward" if updates == 1 else "pass")


def test_a_whole_rollout_cannot_be_ranked_by_a_policy_that_changes_within_it():
    spec = ForkSelection(scope="rollout", entropy_of="current")
    with pytest.raises(
        ValueError, match=r"selection.scope: rollout .* data.updates_per_rollout = 4 .* selection.entropy_of"
    ):
        PassSchedule.of(spec, updates=4, micro_batches=1)


@pytest.mark.parametrize(
    ("choices", "old_from_sampler", "before_rollout", "before_updates"),
    [
        ({}, False, True, [False, False, False]),
        ({"entropy_of": "current"}, False, True, [False, True, True]),
        ({"entropy_of": "current"}, True, False, [True, True, True]),
        ({"entropy_of": "current", "scope": "micro_batch_rank"}, False, True, [False, False, False]),
        ({}, True, True, [False, False, False]),
        ({"keep": "all"}, False, True, [False, False, False]),
        ({"keep": "all"}, True, False, [False, False, False]),
    ],
)
def test_a_pass_before_the_rollout_spares_the_first_update_a_pass_of_its_own(
    choices, old_from_sampler, before_rollout, before_updates
):
    spec = ForkSelection(**choices)
    schedule = PassSchedule.of(spec, updates=3, micro_batches=2, old_from_sampler=old_from_sampler)
    assert schedule.pass_before_rollout == before_rollout
    assert [schedule.pass_before_update(update) for update in range(3)] == before_updates


@pytest.mark.parametrize(
    ("updates", "micro_batches", "choices", "old_from_sampler", "observes"),
    [
        (1, 1, {}, False, True),  # selects
        (1, 2, {}, False, False),  # a pass before the update
        (3, 2, {}, False, False),  # a pass before the rollout
        (3, 2, {"entropy_of": "current"}, True, False),  # a pass before each update
        (3, 1, {"entropy_of": "current"}, False, True),  # selects, after a pass for old log-probabilities
        (1, 2, {"keep": "all"}, False, True),  # no pass at all
        (3, 2, {"keep": "random"}, True, True),
    ],
)
def test_a_training_forward_records_what_no_pass_has_found(updates, micro_batches, choices, old_from_sampler, observes):
    found = PassSchedule.of(
        ForkSelection(**choices), updates=updates, micro_batches=micro_batches, old_from_sampler=old_from_sampler
    )
    assert found.forward_observes == observes


@pytest.mark.parametrize(("updates", "micro_batches"), [(1, 1), (1, 2), (3, 2)])
def test_an_objective_that_ranks_tokens_needs_the_passes_of_a_ranking_selection(updates, micro_batches):
    """A covariance objective ranks tokens also where the selection keeps all of them."""
    sizes = {"updates": updates, "micro_batches": micro_batches}
    everything, ranking = ForkSelection(keep="all"), ForkSelection()
    assert PassSchedule.of(everything, **sizes, needs_ranking=True) == PassSchedule.of(ranking, **sizes)
    assert not PassSchedule.of(everything, **sizes).needs_ranking
