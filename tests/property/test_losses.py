import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forklight.algo.losses import ClipRange, clipped_policy_loss, k3_kl

clips = st.builds(ClipRange, st.floats(0, 1), st.floats(0, 1), st.none() | st.floats(1.5, 20))
adding = ("tokens", "ratio_sum", "clip_low", "clip_high", "clip_dual", "approx_kl_sum")


@st.composite
def batches(draw):
    """Log-probabilities, old ones, advantages per sequence and a mask."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    old_logp = -torch.rand(shape, generator=generator, dtype=torch.float64) * 5
    logp = old_logp + torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.floats(0, 2))
    advantages = torch.randn(shape[0], 1, generator=generator, dtype=torch.float64)
    return logp, old_logp, advantages, torch.rand(shape, generator=generator) < draw(st.floats(0, 1))


def naive_loss(logp, old_logp, advantages, mask, clip):
    """Token by token, as the papers write it: an objective to maximise."""
    objective = logp.sum() * 0
    for s, t in mask.nonzero().tolist():
        advantage, ratio = advantages[s, 0].item(), torch.exp(logp[s, t] - old_logp[s, t])
        r = ratio.item()
        bound = min(max(r, 1 - clip.low), 1 + clip.high) * advantage
        term = ratio * advantage if r * advantage <= bound else bound
        if clip.dual is not None and advantage < 0 and min(r * advantage, bound) < clip.dual * advantage:
            term = clip.dual * advantage
        objective = objective + term
    return -objective


@settings(deadline=None, max_examples=80)
@given(batches(), clips)
def test_loss_and_gradient_equal_the_naive_twin(batch, clip):
    logp, *others = batch
    logp.requires_grad_()
    loss, _ = clipped_policy_loss(logp, *others, clip)
    expected = naive_loss(logp, *others, clip)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    gradient, expected_gradient = (torch.autograd.grad(value, logp)[0] for value in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(batches())
def test_kl_equals_the_naive_twin_and_is_never_negative(batch):
    logp, ref_logp, _, mask = batch
    logp.requires_grad_()
    ratio = (ref_logp - logp)[mask].exp()
    expected = (ratio - ratio.log() - 1).sum()
    kl = k3_kl(logp, ref_logp, mask)
    assert kl >= 0
    torch.testing.assert_close(kl, expected, rtol=1e-9, atol=1e-12)
    gradient, expected_gradient = (torch.autograd.grad(value, logp)[0] for value in (kl, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(batches(), clips, st.sampled_from([0.0, 50.0, 1e4, math.inf, -math.inf, math.nan]))
def test_tokens_outside_the_mask_have_no_influence(batch, clip, junk):
    logp, old_logp, advantages, mask = batch
    advantages = advantages.expand_as(logp)
    clean, clean_metrics = clipped_policy_loss(logp, old_logp, advantages, mask, clip)
    clean_kl = k3_kl(logp, old_logp, mask)
    logp = torch.where(mask, logp, junk).requires_grad_()
    for old, advantage in ((old_logp, advantages), (old_logp.where(mask, junk), advantages.where(mask, junk))):
        loss, metrics = clipped_policy_loss(logp, old, advantage, mask, clip)
        kl = k3_kl(logp, old, mask)
        (gradient,) = torch.autograd.grad(loss + kl, logp)
        assert loss == clean
        assert kl == clean_kl
        assert metrics == clean_metrics
        assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
        assert gradient.isfinite().all()


@settings(deadline=None, max_examples=60)
@given(batches(), clips, st.integers(0, 5))
def test_sums_add_over_chunks(batch, clip, cut):
    logp, old_logp, _, mask = batch
    loss, metrics = clipped_policy_loss(*batch, clip)
    parts = [[tensor[part] for tensor in batch] for part in (slice(None, cut), slice(cut, None))]
    losses, part_metrics = zip(*(clipped_policy_loss(*part, clip) for part in parts), strict=True)
    torch.testing.assert_close(sum(losses), loss, rtol=1e-12, atol=1e-12)
    for name in adding:
        torch.testing.assert_close(sum(values[name] for values in part_metrics), metrics[name], rtol=1e-9, atol=1e-12)
    assert max(values["ratio_max"] for values in part_metrics) == metrics["ratio_max"]
    kls = [k3_kl(part[0], part[1], part[3]) for part in parts]
    torch.testing.assert_close(sum(kls), k3_kl(logp, old_logp, mask), rtol=1e-12, atol=1e-12)
    assert set(metrics) == {*adding, "ratio_max"}


@settings(deadline=None, max_examples=40)
@given(batches(), clips)
def test_flat_tokens_equal_the_padded_layout(batch, clip):
    logp, old_logp, advantages, mask = batch
    loss, _ = clipped_policy_loss(*batch, clip)
    flat = [tensor[mask] for tensor in (logp, old_logp, advantages.expand_as(logp), mask)]
    torch.testing.assert_close(clipped_policy_loss(*flat, clip)[0], loss, rtol=1e-12, atol=1e-12)
