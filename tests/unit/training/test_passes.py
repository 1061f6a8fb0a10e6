"""Which rows go through which passes, and what the passes find."""

from dataclasses import replace

import pytest
import torch
from cases import Case, apart, autocast, begin, load, moved_reference, run_update, with_sampler_logp
from oracle import stats_of
from tiny import rollout_batch

from forklight.algo.config import AlgorithmConfig
from forklight.algo.kl import KLConfig
from forklight.models import PolicyConfig, Reference
from forklight.training.update import Learner

T, W = "train", "forward_only"
PASSES = [
    # case, A, rows of the pass at the first update, at later updates, and beside the training forward; `all` updates'
    (Case(updates=3, eligible="answers"), 2, {"all": (T, W)}, (), ()),
    (Case(updates=3, eligible="answers", scope="micro_batch_rank"), 2, {"all": (T, W)}, (), ()),
    (Case(updates=3, eligible="answers", entropy_of="current"), 2, {"all": (T,), "own": (W,)}, (T, W), ()),
    (Case(updates=3, eligible="answers", entropy_of="current"), 1, {"all": (T,)}, (), (W,)),
    (Case(updates=3, eligible="answers", entropy_of="current", scope="micro_batch_rank"), 2, {"all": (T,)}, (), (W,)),
    (Case(updates=3, keep="random", eligible="answers"), 2, {"all": (T,)}, (), ()),
    (Case(updates=3, keep="all", entropy_of="current"), 1, {"all": (T,)}, (), ()),
    (Case(updates=3), 1, {"all": (T, W)}, (), ()),
    (Case(eligible="answers"), 1, {}, (), (W,)),
    (Case(), 1, {}, (), (W,)),
    (Case(eligible="answers", scope="micro_batch_rank"), 4, {}, (), (W,)),
    (Case(keep="random", eligible="answers"), 2, {}, (), ()),
    (Case(keep="all"), 4, {}, (), ()),
    (Case(keep="all", eligible="answers", scope="micro_batch_rank"), 2, {}, (), ()),
    (Case(eligible="answers"), 2, {"all": (T, W)}, (), ()),
    (Case(kl_coef=0.1), 2, {"all": (T,)}, (), ()),
    (Case(updates=3, eligible="answers", old_logp_from="sampler"), 1, {"all": (T, W)}, (), ()),
    (
        Case(updates=3, eligible="answers", entropy_of="current", old_logp_from="sampler"),
        2,
        {"own": (T, W)},
        (T, W),
        (),
    ),
    (Case(updates=3, eligible="answers", entropy_of="current", old_logp_from="sampler"), 1, {}, (), (W,)),
    (Case(updates=3, keep="random", eligible="answers", old_logp_from="sampler"), 2, {}, (), ()),
    (Case(eligible="answers", old_logp_from="sampler"), 2, {"all": (T, W)}, (), ()),
    (Case(eligible="answers", old_logp_from="sampler"), 1, {}, (), (W,)),
]


@pytest.mark.parametrize(("case", "micro_batches", "first", "later", "inside"), PASSES, ids=str)
def test_no_pass_runs_twice(case, micro_batches, first, later, inside, path):
    x = rollout_batch(8, updates=case.updates, shares=(0.3, 0.4, 0.3))
    has_gradient = (x.advantages != 0) | bool(case.kl_coef)
    ranked = has_gradient | (x.contributing if case.eligible == "contributing" else True)
    assert not x.contributing.all()
    assert (x.contributing & (x.advantages == 0)).any()
    policy = load(path)
    x, seen = with_sampler_logp(x, case, policy), {True: [], False: []}
    policy.register_forward_pre_hook(lambda _, args: seen[torch.is_grad_enabled()].extend(args[0].rows.tolist()))
    reference = Reference(PolicyConfig(path=path, dtype="float64")) if case.kl_coef else None
    in_reference = []
    if reference:
        reference.policy.register_forward_pre_hook(lambda _, args: in_reference.extend(args[0].rows.tolist()))

    def rows(kinds, update=None):
        of_update = ranked if update is None else ranked & (x.update == update)
        chosen = (of_update & has_gradient if kind == T else of_update & ~has_gradient for kind in kinds)
        return sorted(row for which in chosen for row in which.nonzero().flatten().tolist())

    learner = case.learner()
    state = begin(learner, x, case, micro_batches)
    for update in range(case.updates):
        seen[False].clear()
        learner.prepare_update(state, update, policy, reference)
        wanted = rows(first.get("all", ())) + rows(first.get("own", ()), 0) if update == 0 else rows(later, update)
        assert sorted(seen[False]) == sorted(wanted)
        assert not seen[True]
        seen[False].clear()
        for number in state.plan.micro_batches_of(update):
            learner.loss(state, number, policy)
        assert sorted(seen[False]) == rows(inside, update)
        assert sorted(seen[True]) == rows((T,), update)
        seen[True].clear()
    assert sorted(in_reference) == (rows((T,)) if reference else [])


@pytest.mark.parametrize(("head", "tolerance"), [("full", 0), ("gathered", 2e-2), ("selected", 2e-2)])
def test_a_pass_over_forward_only_rows_leaves_the_gradient_alone_under_autocast(head, tolerance, path):
    """Forward-only rows run without gradients in the same autocast context, whose cache of weights must not stay."""
    policy, case = load(path, "float32", head=head), Case(eligible="answers", rho=1.0, denominator="answer")
    x = rollout_batch(0)
    watching, alone = case.learner(context=autocast), replace(case, keep="all").learner(context=autocast)
    gradients = []
    for learner in (watching, alone):
        state = begin(learner, x, case, 1)
        with autocast():
            gradients.append(run_update(learner, state, 0, policy)[1])
    assert all(gradient.any() for gradient in gradients[0])
    assert apart(*gradients) <= tolerance


def test_a_penalty_is_the_kl_of_every_answer(path):
    x, reference, policy = rollout_batch(5), moved_reference(path), load(path)
    learner = Learner(AlgorithmConfig(kl=KLConfig(0.3, "k3", "reward")), temperature=0.7)
    found = learner.kl_penalty(x, policy, reference, rollout=0, parts=4)
    rows = range(len(x.update))
    now, ref = (stats_of(model, x, rows, 0.7, 0.7).logp for model in (policy.model, reference.policy.model))
    gaps = [ref[row] - now[row] for row in rows]
    expected = torch.stack([0.3 * (gap.exp() - gap - 1).sum() for gap in gaps]).detach()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert learner.config.extra_gradient == "none"
    assert learner.config.needs_reference
    assert not learner.config.reference_in_loss
