"""The loss of a micro-batch: where its gradient is, its ratios, what it weighs, and the numbers that stop a run."""

import contextlib
from dataclasses import replace

import pytest
import torch
from cases import (
    HEADS,
    LIMIT,
    NARROW,
    Case,
    apart,
    autocast,
    begin,
    load,
    moved_reference,
    parameters,
    run_update,
    with_sampler_logp,
)
from oracle import stats_of
from tiny import flat, rollout_batch

from forklight.algo import objectives
from forklight.algo.config import AlgorithmConfig
from forklight.algo.correction import CorrectionConfig
from forklight.algo.kl import KLConfig
from forklight.algo.ratios import ClipRange
from forklight.algo.selection import ForkSelection
from forklight.errors import NonFiniteError
from forklight.models import Policy, PolicyConfig, heads
from forklight.models.heads import all_stats
from forklight.training.update import Learner

# -- the mask ----------------------------------------------------------------------------------------------------------


def watch_head(monkeypatch, name, change=lambda hidden: hidden):
    """A list that gets the changed hidden states of every forward pass with gradient, `[N,H]`, which keep theirs."""
    states, head = [], heads.HEADS[name]

    class Watched(head):
        def __init__(self, hidden, *rest):
            super().__init__(change(hidden), *rest)
            if self.hidden.requires_grad:  # no pass without gradient
                self.hidden.retain_grad()
                states.append(self.hidden)

    monkeypatch.setitem(heads.HEADS, name, Watched)
    return states


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("case", [Case(), Case(keep="bottom"), Case(updates=3, keep="random")], ids=str)
def test_tokens_outside_the_mask_have_exactly_no_gradient(case, head, path, monkeypatch):
    x = rollout_batch(2, updates=case.updates, shares=(0.0, 0.0, 1.0))
    policy, learner = load(path, "float32", head=head), case.learner()
    states = watch_head(monkeypatch, head)
    state = begin(learner, x, case, 2)
    learner.prepare_update(state, 0, policy, None)
    for number in state.plan.micro_batches_of(0):
        learner.loss(state, number, policy)[0].backward()
        micro_batch = state.batch.micro_batch(state.plan.train[number])
        kept = micro_batch.read(state.tokens.fork_mask)
        assert 0 < kept.sum() < len(kept)
        assert torch.equal(states[-1].grad.any(-1), kept)


@pytest.mark.parametrize("head", HEADS)
def test_an_objective_for_all_tokens_trains_the_dropped_ones(head, path, monkeypatch):
    selection = ForkSelection(rho=0.5, entropy_of="current", denominator="answer")
    settings = AlgorithmConfig(selection, objectives.Archer(ClipRange(0.9, 0.9), NARROW, fork_kl=0.0, other_kl=0.1))
    x = rollout_batch(5, shares=(0.0, 0.0, 1.0))
    reference = moved_reference(path)
    policy = load(path, head=head)
    states, learner = watch_head(monkeypatch, head), Learner(settings, length_limit=LIMIT)
    state = learner.begin(x, rollout=0, updates=1, micro_batches=1)
    learner.prepare_update(state, 0, policy, reference)
    loss, metrics = learner.loss(state, 0, policy)
    sums = flat(metrics)
    loss.backward()
    assert states[-1].grad.any(-1).all()
    assert sums["dropped_tokens"] > 0


class Deaf(objectives.Dapo):
    """Trains all tokens, whatever the mask; while the ratio is 1 the loss is 0."""

    def __init__(self, separable):
        super().__init__()
        self.separable = separable

    def token_loss(self, tokens):
        found = super().token_loss(tokens)
        return replace(found, loss=-tokens.advantages * (tokens.logp - tokens.old_logp))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("updates", "kl"), [(1, 0.0), (1, 0.1), (3, 0.0), (3, 0.1)])
def test_a_loss_of_value_zero_outside_of_the_mask_is_seen(updates, kl, separable, head, path):
    """Also where a KL term of all tokens makes the head look at the dropped ones."""
    reference = moved_reference(path) if kl else None
    for micro_batches in (1, 2):
        learner = Learner(AlgorithmConfig(objective=Deaf(separable), kl=KLConfig(kl)))
        x = rollout_batch(5, updates=updates, shares=(0.0, 0.0, 1.0))
        state = learner.begin(x, rollout=0, updates=updates, micro_batches=micro_batches)
        policy = load(path, head=head)
        learner.prepare_update(state, 0, policy, reference)
        for number in state.plan.micro_batches_of(0):
            _, metrics = learner.loss(state, number, policy)
            sums = flat(metrics)
            micro_batch = state.batch.micro_batch(state.plan.train[number])
            assert sums["leaked"] == (~micro_batch.read(state.tokens.fork_mask)).sum() > 0


# -- ratios ------------------------------------------------------------------------------------------------------------


def micro_batches_without_a_step(case, policy, context, micro_batches, update=0):
    """The metrics of an update's micro-batches while the policy is still the one before the first."""
    learner = case.learner(context=context)
    x = rollout_batch(3, updates=case.updates, shares=(0.0, 0.5, 0.5))
    state = begin(learner, x, case, micro_batches)
    for number in range(update + 1):
        learner.prepare_update(state, number, policy, None)
    for number in state.plan.micro_batches_of(update):
        with context():
            yield flat(learner.loss(state, number, policy)[1])


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("context", [contextlib.nullcontext, autocast])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", [Case(updates=3), Case(updates=3, keep="all", entropy_of="current")], ids=str)
def test_the_ratio_of_a_policy_to_itself_is_exactly_1_with_the_full_head(
    case, checkpointing, context, micro_batches, path
):
    policy = load(path, "float32", gradient_checkpointing=checkpointing, head="full")
    tokens = 0
    for sums in micro_batches_without_a_step(case, policy, context, micro_batches, update=1):
        tokens += sums["kept_tokens"]
        assert sums["kept_ratio_sum"] == sums["kept_tokens"]
        assert sums["kept_approx_kl_sum"] == 0
    assert tokens > 0


@pytest.mark.parametrize("head", ["selected", "gathered"])
@pytest.mark.parametrize(("context", "tolerance"), [(contextlib.nullcontext, 1e-5), (autocast, 1e-2)])
@pytest.mark.parametrize("case", [Case(updates=3), Case(updates=3, keep="all", entropy_of="current")], ids=str)
def test_the_ratio_of_a_policy_to_itself_is_nearly_1_with_the_other_heads(case, context, tolerance, head, path):
    """Other numbers of rows take other product kernels."""
    tokens = 0
    for sums in micro_batches_without_a_step(case, load(path, "float32", head=head), context, 2, update=1):
        tokens += sums["kept_tokens"]
        assert sums["kept_ratio_sum"].item() == pytest.approx(sums["kept_tokens"].item(), rel=tolerance)
        assert sums["kept_ratio_max"].item() == pytest.approx(1, abs=tolerance)
    assert tokens > 0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("context", [contextlib.nullcontext, autocast])
def test_the_first_updates_ratio_is_exactly_1(context, head, path):
    for micro_batches, case in ((1, Case()), (2, Case()), (2, Case(keep="all")), (2, Case(updates=3))):
        for sums in micro_batches_without_a_step(case, load(path, "float32", head=head), context, micro_batches):
            assert sums["kept_ratio_sum"] == sums["kept_tokens"] > 0
            assert sums["kept_approx_kl_sum"] == 0


def test_old_log_probs_outside_of_the_precision_context_are_other_ones(path):
    """The negative control of the tests above."""
    policy, case = load(path, "float32", head="full"), Case(updates=3)
    learner = case.learner()
    state = begin(learner, rollout_batch(3, updates=3, shares=(0.0, 0.5, 0.5)), case, 1)
    learner.prepare_update(state, 0, policy, None)
    with autocast():
        _, metrics = learner.loss(state, 1, policy)
        sums = flat(metrics)
    assert sums["kept_approx_kl_sum"] > 0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("updates", "micro_batches"), [(1, 1), (1, 2), (3, 2)])
def test_the_first_ratio_is_trainer_to_sampler(updates, micro_batches, head, path):
    case = Case(updates=updates, old_logp_from="sampler")
    x, policy = rollout_batch(3, updates=updates, shares=(0.0, 0.5, 0.5)), load(path, head=head)
    x = with_sampler_logp(x, case, policy)
    micro_batch = x.micro_batch(torch.arange(len(x.problem_index)))
    logp = torch.full(x.answer_mask.shape, torch.nan, dtype=torch.float64)
    logp = micro_batch.write(logp, policy(micro_batch, all_stats).logp)
    state = begin(case.learner(), x, case, micro_batches)
    sums = run_update(case.learner(), state, 0, policy)[2]
    kept = state.tokens.fork_mask & ((x.update == 0) & (x.advantages != 0))[:, None]
    ratio = (logp - x.sampler_logp)[kept].exp()
    assert sums["kept_ratio_sum"] == pytest.approx(ratio.sum().item(), rel=1e-9)
    assert sums["kept_ratio_max"] == pytest.approx(ratio.max().item(), rel=1e-9)
    falls, grows = (x.advantages[:, None].expand_as(kept)[kept] * sign > 0 for sign in (-1, 1))
    assert sums["kept_clip_low"] == (falls & (ratio < 1 - NARROW.low)).sum()
    assert sums["kept_clip_high"] == (grows & (ratio > 1 + NARROW.high)).sum()
    assert sums["kept_clip_low"] + sums["kept_clip_high"] > 0


def test_a_correction_weighs_the_policy_term_alone(path):
    x, policy = rollout_batch(5, shares=(0.0, 0.0, 1.0)), load(path)
    gap = torch.where(x.answer_mask, 0.3, torch.nan)
    stats = stats_of(policy.model, x, range(len(x.update)), 1.0, 1.0)
    sampler_logp = torch.full(x.answer_mask.shape, torch.nan, dtype=torch.float64)
    for row, logp in stats.logp.items():
        sampler_logp[row, : len(logp)] = logp.detach()
    x = replace(x, sampler_logp=sampler_logp - gap)
    results = []
    for correction in (
        CorrectionConfig(),
        CorrectionConfig("token_truncate", high=1.2),
        CorrectionConfig("token_mask", 0.5, 1.2),
    ):
        learner = Learner(AlgorithmConfig(correction=correction))
        state = learner.begin(x, rollout=0, updates=1, micro_batches=2)
        results.append(run_update(learner, state, 0, policy))
    plain, cut, masked = results
    assert cut[0] == pytest.approx(1.2 * plain[0], rel=1e-12)
    # the model's norms are float32 inside: a gradient that comes in 1.2 times as large goes out rounded otherwise
    assert apart(cut[1], [1.2 * gradient for gradient in plain[1]]) < 1e-6
    assert masked[0] == 0
    assert not any(gradient.any() for gradient in masked[1])
    sums = plain[2]
    assert sums["kept_mismatch_ratio_max"] == pytest.approx(1.3498588, rel=1e-6)
    assert sums["kept_mismatch_tokens"] == sums["kept_tokens"]


# -- numbers that are not finite ---------------------------------------------------------------------------------------


class Spoilt:
    """A head that finds other statistics."""

    def __init__(self, head, spoil):
        self.head, self.spoil = head, spoil

    def __getattr__(self, name):
        return getattr(self.head, name)

    def __len__(self):
        return len(self.head)

    def all_stats(self):
        return self.spoil(self.head.all_stats())

    def stats(self, rows, known=None):
        return self.spoil(self.head.stats(rows, known))

    def fused_loss(self, rows, token_loss):
        loss, stats = self.head.fused_loss(rows, token_loss)
        return loss, self.spoil(stats)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("what", ["logp", "entropy"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_number_that_is_not_finite_stops_with_its_place(what, micro_batches, head, path):
    class Broken(Policy):
        def forward(self, micro_batch, loss_fn, rows=None, **settings):
            def spoil(stats):
                bad = (micro_batch.rows[micro_batch.row] == 4) & (micro_batch.column == 1)
                value = -torch.inf if what == "logp" else torch.nan
                return replace(stats, **{what: torch.where(bad, value, getattr(stats, what))})

            return super().forward(micro_batch, lambda head: loss_fn(Spoilt(head, spoil)), rows, **settings)

    x = rollout_batch(5, shares=(0.0, 0.0, 1.0))
    assert x.answer_length[4] > 1
    learner = Learner(AlgorithmConfig())
    x = replace(x, uids=tuple("abc" if index == 1 else "other" for index in x.problem_index.tolist()))
    state = learner.begin(x, rollout=9, updates=1, micro_batches=micro_batches)
    with pytest.raises(NonFiniteError, match="rollout 9: token 1 of an answer to problem abc has log-probability"):
        run_update(learner, state, 0, Broken(PolicyConfig(path=path, dtype="float64", head=head)))


@pytest.mark.parametrize("objective", ["Dapo", "Gspo"])
@pytest.mark.parametrize("head", HEADS)
def test_a_number_that_is_not_finite_stops_where_the_loss_reads_it(head, objective, path, monkeypatch):
    """The full head reads all tokens; the others those of the mask, where the statistics are known."""
    case = Case(updates=3, objective=objective)
    policy, learner = load(path, head=head), case.learner()
    x = rollout_batch(5, updates=3, shares=(0.0, 0.0, 1.0))
    x = replace(x, uids=tuple("a" if index in (2, 3) else "b" for index in x.problem_index.tolist()))
    state = learner.begin(x, rollout=9, updates=3, micro_batches=1)
    learner.prepare_update(state, 0, policy, None)
    learner.prepare_update(state, 1, policy, None)
    (number,) = state.plan.micro_batches_of(1)
    micro_batch = state.batch.micro_batch(state.plan.train[number])
    kept = micro_batch.read(state.tokens.fork_mask)
    loss, _ = learner.loss(state, number, policy)
    expected = torch.autograd.grad(loss, parameters(policy))
    for token, read in ((int(kept.nonzero()[-1]), True), (int((~kept).nonzero()[-1]), head == "full")):
        bad = (torch.arange(len(kept)) == token)[:, None]
        with monkeypatch.context() as patch:
            watch_head(patch, head, lambda hidden, bad=bad: torch.where(bad, torch.nan, hidden))
            if read:
                with pytest.raises(
                    NonFiniteError, match=rf"token {int(micro_batch.column[token])} of .* problem a has .* nan"
                ):
                    learner.loss(state, number, policy)
                continue
            found, metrics = learner.loss(state, number, policy)
            sums = flat(metrics)
            assert found.item() == pytest.approx(loss.item(), rel=1e-12)
            assert apart(torch.autograd.grad(found, parameters(policy)), expected) < 1e-12
            assert sums["dropped_tokens"] == sums["leaked"] == 0
