"""Every policy loss against a naive twin: token by token in float64, as the papers write it, with autograd."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import flat

from forklight.algo.batch import TokenBatch
from forklight.algo.kl import kl_estimate
from forklight.algo.objectives.archer import dual_token_loss
from forklight.algo.objectives.cispo import cispo_loss
from forklight.algo.objectives.clipped import clipped_loss
from forklight.algo.objectives.covariance import clip_cov_loss, kl_cov_loss
from forklight.algo.objectives.entropy_shaped import entropy_shaped_advantages
from forklight.algo.objectives.gspo import gspo_loss, gspo_token_loss
from forklight.algo.ratios import ClipRange, ratio_metrics

clips = st.builds(ClipRange, st.floats(0, 1), st.floats(0, 1), st.none() | st.floats(1.5, 20))
ADDING = ("tokens", "ratio_sum", "clip_low", "clip_high", "clip_dual", "approx_kl_sum")
FLAGS = ("clip_low", "clip_high", "clip_dual")
SHAPE = {"alpha": 0.4, "kappa": 2.0}
OTHER = ClipRange(0.1, 0.15)

LOSSES = {
    "clipped": lambda b, m, c: clipped_loss(b.logp, b.old_logp, b.advantages, m, c),
    "cispo": lambda b, m, c: cispo_loss(b.logp, b.old_logp, b.advantages, m, replace(c, dual=None)),
    "gspo": lambda b, m, c: gspo_loss(b.logp, b.old_logp, b.advantages, m, b.row, b.rows, c),
    "gspo_token": lambda b, m, c: gspo_token_loss(b.logp, b.old_logp, b.advantages, m, b.row, b.rows, c),
    "clip_cov": lambda b, m, c: clip_cov_loss(b.logp, b.old_logp, b.advantages, m, b.cov_mask, c),
    "kl_cov": lambda b, m, c: kl_cov_loss(b.logp, b.old_logp, b.advantages, m, b.cov_mask, 0.7),
    "shaped": lambda b, m, c: clipped_loss(
        b.logp, b.old_logp, entropy_shaped_advantages(b.advantages, b.entropy, **SHAPE), m, c
    ),
    "dual_token": lambda b, m, c: dual_token_loss(
        b.logp,
        b.old_logp,
        b.advantages,
        m,
        b.fork_mask,
        fork_clip=c,
        other_clip=OTHER,
        ref_logp=b.ref_logp,
        fork_kl=0.01,
        other_kl=0.1,
    ),
}


@st.composite
def batches(draw, constant_advantages=False):
    """Some rows of tokens, each with at least one, and a mask of the tokens that count."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    lengths = torch.tensor(draw(st.lists(st.integers(1, 7), min_size=1, max_size=5)))
    rows, n = len(lengths), int(lengths.sum())

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def mask(share):
        return torch.rand(n, generator=generator) < share

    row = torch.arange(rows).repeat_interleave(lengths)
    old_logp = -noise(n).abs() * 3
    logp = old_logp + noise(n) * draw(st.floats(0, 2))
    advantages = noise(rows)[row] if constant_advantages else noise(n)
    batch = TokenBatch(
        logp=logp.requires_grad_(),
        old_logp=old_logp,
        advantages=advantages,
        fork_mask=mask(0.4),
        eligible=mask(1.0),
        row=row,
        rows=rows,
        entropy=noise(n).abs(),
        ref_logp=old_logp + noise(n),
        cov_mask=mask(0.3),
    )
    return batch, mask(draw(st.floats(0, 1)))


def surrogate(ratio, advantage, clip):
    """One clipped term, an objective to maximise, and the name of the bound that holds it."""
    r = ratio.item()
    bound = min(max(r, 1 - clip.low), 1 + clip.high) * advantage
    if clip.dual is not None and advantage < 0 and min(r * advantage, bound) < clip.dual * advantage:
        return clip.dual * advantage
    return ratio * advantage if r * advantage <= bound else bound


def naive(name, b, mask, clip):
    """Losses of all tokens, as a list of scalars."""
    kept_of = {s: [t for t in range(len(b.row)) if b.row[t] == s and mask[t]] for s in range(b.rows)}
    losses = []
    for t in range(len(mask)):
        if not mask[t]:
            losses.append(b.logp[t] * 0)
            continue
        logp, old, advantage = b.logp[t], b.old_logp[t].item(), b.advantages[t].item()
        ratio = torch.exp(logp - old)
        kept = kept_of[int(b.row[t])]
        s = math.prod(torch.exp(b.logp[k] - b.old_logp[k]) for k in kept) ** (1 / len(kept))
        match name:
            case "clipped":
                gain = surrogate(ratio, advantage, clip)
            case "cispo":
                gain = min(max(ratio.item(), 1 - clip.low), 1 + clip.high) * advantage * logp
            case "gspo":
                gain = surrogate(s, advantage, clip)
            case "gspo_token":
                gain = surrogate(s.item() * torch.exp(logp) / torch.exp(logp).item(), advantage, clip)
            case "clip_cov":
                gain = logp * 0 if b.cov_mask[t] else surrogate(ratio, advantage, clip)
            case "kl_cov":
                gain = ratio * advantage - (0.7 * abs(logp - old) if b.cov_mask[t] else 0)
            case "shaped":
                raised = advantage + min(SHAPE["alpha"] * b.entropy[t].item(), abs(advantage) / SHAPE["kappa"])
                gain = surrogate(ratio, raised, clip)
            case "dual_token":
                q = torch.exp(b.ref_logp[t] - logp)
                own_clip, beta = (clip, 0.01) if b.fork_mask[t] else (OTHER, 0.1)
                gain = surrogate(ratio, advantage, own_clip) - beta * (q - torch.log(q) - 1)
        losses.append(logp * 0 - gain)
    return torch.stack(losses)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=40)
@given(data=batches(), clip=clips)
def test_losses_and_gradients_equal_the_naive_twin(name, data, clip):
    batch, mask = data
    found, expected = LOSSES[name](batch, mask, clip).loss, naive(name, batch, mask, clip)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(0.5, 2, len(mask), dtype=torch.float64)
    gradients = [torch.autograd.grad(loss @ weights, batch.logp)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=30)
@given(data=batches(), clip=clips, junk=st.sampled_from([0.0, 50.0, 1e4, math.inf, -math.inf, math.nan]))
def test_tokens_outside_the_mask_have_no_influence(name, data, clip, junk):
    batch, mask = data
    clean = LOSSES[name](batch, mask, clip).loss
    (clean_gradient,) = torch.autograd.grad(clean.sum(), batch.logp)
    names = ("logp", "old_logp", "advantages", "entropy", "ref_logp")
    dirty = {name: torch.where(mask, getattr(batch, name).detach(), junk) for name in names}
    for changes in ({"logp": dirty["logp"]}, dirty):
        spoilt = replace(batch, **changes)
        spoilt.logp.requires_grad_()
        found = LOSSES[name](spoilt, mask, clip)
        (gradient,) = torch.autograd.grad(found.loss.sum(), spoilt.logp)
        assert torch.equal(found.loss, clean)
        assert torch.equal(gradient, clean_gradient)
        assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
        assert all(getattr(found, flag).dtype == torch.bool for flag in FLAGS)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=20)
@given(data=batches(), clip=clips, seed=st.integers(0, 1000))
def test_the_order_of_tokens_does_not_matter(name, data, clip, seed):
    batch, mask = data
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
    tensors = {name: value[order] for name in vars_of(batch) if isinstance(value := getattr(batch, name), torch.Tensor)}
    straight, shuffled = LOSSES[name](batch, mask, clip), LOSSES[name](replace(batch, **tensors), mask[order], clip)
    torch.testing.assert_close(shuffled.loss, straight.loss[order], rtol=1e-12, atol=1e-12)
    assert all(torch.equal(getattr(shuffled, flag), getattr(straight, flag)[order]) for flag in FLAGS)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=20)
@given(data=batches(), clip=clips, cut=st.integers(0, 5))
def test_whole_rows_are_independent_of_each_other(name, data, clip, cut):
    batch, mask = data
    whole = LOSSES[name](batch, mask, clip).loss
    parts = [LOSSES[name](part, part_mask, clip).loss for part, part_mask in split(batch, mask, cut)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(data=batches(), clip=clips, cut=st.integers(0, 5))
def test_metrics_add_over_micro_batches(data, clip, cut):
    batch, mask = data
    whole = flat(ratio_metrics(batch, LOSSES["clipped"](batch, mask, clip), mask))
    parts = [flat(ratio_metrics(b, LOSSES["clipped"](b, m, clip), m)) for b, m in split(batch, mask, cut)]
    for name in ADDING:
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name], rtol=1e-9, atol=1e-12)
    assert max(part["ratio_max"] for part in parts) == whole["ratio_max"]
    assert set(whole) == {*ADDING, "ratio_max"}


@settings(deadline=None, max_examples=40)
@given(data=batches(), clip=clips)
def test_flags_tell_where_a_bound_holds_for_kept_and_dropped_tokens(data, clip):
    batch, mask = data
    found, everything = (LOSSES["clipped"](batch, m, clip) for m in (mask, torch.ones_like(mask)))
    assert all(torch.equal(getattr(found, flag), getattr(everything, flag)) for flag in FLAGS)
    (gradient,) = torch.autograd.grad(everything.loss.sum(), batch.logp)
    held = found.clip_low | found.clip_high | found.clip_dual
    assert torch.equal(gradient == 0, held)
    capped, ratio = LOSSES["cispo"](batch, mask, clip), (batch.logp - batch.old_logp).exp()
    assert torch.equal(capped.clip_low, ratio < 1 - clip.low)
    assert torch.equal(capped.clip_high, ratio > 1 + clip.high)


@settings(deadline=None, max_examples=40)
@given(data=batches(constant_advantages=True), clip=clips)
def test_gspo_and_gspo_token_are_one_where_a_sequence_has_one_advantage(data, clip):
    batch, mask = data
    count = torch.zeros(batch.rows, dtype=torch.float64).index_add(0, batch.row, mask.double()).clamp(min=1)
    sequence, token = LOSSES["gspo"](batch, mask, clip), LOSSES["gspo_token"](batch, mask, clip)
    means = [(found.loss / count[batch.row]).sum() for found in (sequence, token)]
    torch.testing.assert_close(*means, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(mean, batch.logp)[0] for mean in means), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(getattr(sequence, flag), getattr(token, flag)) for flag in FLAGS)


@pytest.mark.parametrize("name", ["clipped", "cispo", "gspo_token", "clip_cov", "kl_cov"])
@settings(deadline=None, max_examples=30)
@given(data=batches(), clip=clips)
def test_on_policy_the_gradient_is_the_policy_gradient(name, data, clip):
    batch, mask = data
    on_policy = replace(batch, old_logp=batch.logp.detach(), cov_mask=torch.zeros_like(mask))
    (gradient,) = torch.autograd.grad(LOSSES[name](on_policy, mask, clip).loss.sum(), batch.logp)
    assert torch.equal(gradient, torch.where(mask, -batch.advantages, 0.0))


@settings(deadline=None, max_examples=40)
@given(data=batches(), alpha=st.floats(0, 5), kappa=st.floats(1.001, 10))
def test_shaping_never_turns_an_advantage_round(data, alpha, kappa):
    batch, _ = data
    shaped = entropy_shaped_advantages(batch.advantages, batch.entropy, alpha, kappa)
    assert torch.equal(shaped.sign(), batch.advantages.sign())
    assert (shaped >= batch.advantages).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@settings(deadline=None, max_examples=40)
@given(data=batches())
def test_kl_equals_the_naive_twin(estimator, data):
    batch, mask = data
    ratio = (batch.ref_logp - batch.logp)[mask].exp()
    expected = {"k1": -ratio.log(), "k2": ratio.log() ** 2 / 2, "k3": ratio - ratio.log() - 1}[estimator]
    found = kl_estimate(batch.logp, batch.ref_logp, mask, estimator)
    torch.testing.assert_close(found[mask], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(found[~mask], torch.zeros_like(found[~mask]))
    assert estimator == "k1" or (found >= 0).all()
    gradients = [torch.autograd.grad(value.sum(), batch.logp)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def vars_of(batch):
    return batch.__dataclass_fields__


def split(batch, mask, cut):
    """The batch as two: the rows below `cut`, and the others, numbered from 0."""
    for first, last in ((0, min(cut, batch.rows)), (min(cut, batch.rows), batch.rows)):
        tokens = (batch.row >= first) & (batch.row < last)
        values = {name: getattr(batch, name) for name in vars_of(batch)}
        chosen = {name: value[tokens] for name, value in values.items() if isinstance(value, torch.Tensor)}
        yield TokenBatch(**{**chosen, "row": batch.row[tokens] - first, "rows": last - first}), mask[tokens]
