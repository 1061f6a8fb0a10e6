import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import FACTS, facts, one_row, random_tokens, tensor

from forklight.algo.objectives import Dapo, Stare
from forklight.algo.objectives.stare import stare_weights
from forklight.algo.ratios import ClipRange
from forklight.algo.selection import ForkSelection

ALWAYS = 100.0
"""A target that no mean entropy reaches."""


def six_tokens(ratio=1.0):
    """Three kept tokens with A > 0, two with A < 0, and a dropped one; the mean entropy of the kept ones is 0.25."""
    logp = tensor(-1, -3, -2, -0.5, -4, -9).requires_grad_()
    tokens = one_row(logp, logp.detach() - math.log(ratio), tensor(2, 2, 2, -1, -1, 2))
    kept = torch.tensor([True, True, True, True, True, False])
    return replace(tokens, fork_mask=kept, entropy=tensor(0.125, 0.25, 0.375, 0.5, 0, math.nan))


@pytest.mark.parametrize(
    ("share", "target", "expected"),
    [
        (0.5, 0.3, [1, 1.1, 1.1, 1, 0.9, 1]),  # 2 of 3, and 1 of 2
        (0.1, 0.3, [1, 1.1, 1, 1, 0.9, 1]),  # at least one
        (1.0, 0.3, [1.1, 1.1, 1.1, 0.9, 0.9, 1]),
        (0.5, 0.25, [1, 1, 1, 1, 1, 1]),  # the target is reached
    ],
)
def test_hand_worked_weights(share, target, expected):
    tokens, objective = six_tokens(), Stare(ClipRange(), share, 1.1, 0.9, target)
    weights = stare_weights(tokens, tokens.entropy, tokens.fork_mask, objective)
    assert weights.tolist() == expected
    assert not weights.requires_grad
    found = objective.token_loss(tokens)
    found.loss.sum().backward()
    policy_gradient = (weights * torch.where(tokens.fork_mask, -tokens.advantages, 0.0)).tolist()
    assert found.loss.tolist() == tokens.logp.grad.tolist() == policy_gradient


def test_hand_worked_clipping():
    tokens = six_tokens(ratio=1.5)
    found = Stare(ClipRange(0.2, 0.28), 0.5, 1.1, 0.9).token_loss(tokens)
    found.loss.sum().backward()
    assert found.loss.tolist() == pytest.approx([-2.56, -2.56 * 1.1, -2.56 * 1.1, 1.5, 1.5 * 0.9, 0], rel=1e-14)
    assert tokens.logp.grad.tolist() == pytest.approx([0, 0, 0, 1.5, 1.5 * 0.9, 0], rel=1e-14)
    assert found.clip_high.tolist() == [True, True, True, False, False, True]


def test_the_share_of_a_whole_number_is_that_number():
    n = 100  # 0.07 * 100 is a little more than 7
    tokens = replace(one_row(-torch.arange(n).double(), torch.zeros(n), torch.ones(n)), entropy=torch.zeros(n))
    weights = stare_weights(tokens, tokens.entropy, tokens.fork_mask, Stare(surprising_share=0.07, positive_weight=2.0))
    assert weights.tolist() == [1.0] * 93 + [2.0] * 7


# -- against a naive twin ----------------------------------------------------------------------------------------------

objectives = st.builds(
    Stare,
    st.builds(ClipRange, st.floats(0, 1), st.floats(0, 1), st.none() | st.floats(1.5, 20)),
    surprising_share=st.floats(0.01, 1),
    positive_weight=st.floats(0, 2),
    negative_weight=st.floats(0, 2),
    target_entropy=st.sampled_from([0.0, 0.5, 0.8, ALWAYS]),
)


def drawn(seed, n, spread):
    """Random tokens of one micro-batch, a third of them without an advantage."""
    generator = torch.Generator().manual_seed(seed)

    def noise():
        return torch.randn(n, generator=generator, dtype=torch.float64)

    old_logp = -3 * noise().abs()
    tokens = one_row((old_logp + spread * noise()).requires_grad_(), old_logp, noise())
    advantages = torch.where(torch.rand(n, generator=generator) < 0.33, 0.0, tokens.advantages)
    kept = torch.rand(n, generator=generator) < 0.7
    return replace(tokens, advantages=advantages, fork_mask=kept, entropy=noise().abs())


micro_batches = st.builds(drawn, st.integers(0, 2**32), st.integers(1, 30), st.floats(0, 1))


def surprising(share, n):
    """ceil(share * n), at least one; rounding of the product does not add a token."""
    return min(n, max(1, math.ceil(share * n - 1e-6)))


def naive(tokens, o):
    """Token losses as the paper writes them, one by one."""
    kept = [t for t in range(len(tokens.logp)) if tokens.fork_mask[t]]
    gate = bool(kept) and sum(tokens.entropy[t].item() for t in kept) / len(kept) < o.target_entropy
    weight = [1.0] * len(tokens.logp)
    for sign, of_sign in ((1, o.positive_weight), (-1, o.negative_weight)):
        side = sorted((t for t in kept if sign * tokens.advantages[t] > 0), key=lambda t: tokens.logp[t].item())
        for t in side[: surprising(o.surprising_share, len(side))] if gate else []:
            weight[t] = of_sign
    losses = []
    for t, (logp, old, advantage) in enumerate(zip(tokens.logp, tokens.old_logp, tokens.advantages, strict=True)):
        ratio, a = torch.exp(logp - old.item()), advantage.item()
        gain = torch.minimum(ratio * a, ratio.clamp(1 - o.clip.low, 1 + o.clip.high) * a)
        if o.clip.dual is not None and a < 0:
            gain = gain.clamp(min=o.clip.dual * a)
        losses.append(-weight[t] * gain if tokens.fork_mask[t] else logp * 0)
    return torch.stack(losses)


@settings(deadline=None, max_examples=150)
@given(tokens=micro_batches, objective=objectives)
def test_loss_and_gradient_equal_the_naive_twin(tokens, objective):
    found, expected = objective.token_loss(tokens).loss, naive(tokens, objective)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), tokens.logp)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(tokens=micro_batches, share=st.floats(0.01, 1))
def test_the_least_likely_tokens_of_each_sign_have_the_weight(tokens, share):
    spec = Stare(surprising_share=share, positive_weight=3.0, negative_weight=2.0, target_entropy=ALWAYS)
    weights = stare_weights(tokens, tokens.entropy, tokens.fork_mask, spec)
    for sign, weight in ((1, 3.0), (-1, 2.0)):
        side = tokens.fork_mask & (tokens.advantages.sign() == sign)
        heavy, light = side & (weights == weight), side & (weights == 1)
        n = int(side.sum())
        assert heavy.sum() + light.sum() == n
        assert heavy.sum() == surprising(share, n)
        if heavy.any() and light.any():
            assert tokens.logp[heavy].max() <= tokens.logp[light].min()
    assert (weights[(tokens.advantages == 0) | ~tokens.fork_mask] == 1).all()


@settings(deadline=None, max_examples=60)
@given(tokens=micro_batches, objective=objectives, junk=st.sampled_from([0.0, 1e4, math.inf, -math.inf, math.nan]))
def test_tokens_outside_the_mask_have_no_influence(tokens, objective, junk):
    clean = objective.token_loss(tokens).loss
    names = ("logp", "old_logp", "advantages", "entropy")
    dirty = {name: torch.where(tokens.fork_mask, getattr(tokens, name).detach(), junk) for name in names}
    spoilt = replace(tokens, **dirty)
    spoilt.logp.requires_grad_()
    found = objective.token_loss(spoilt).loss
    gradients = [torch.autograd.grad(loss.sum(), t.logp)[0] for loss, t in ((found, spoilt), (clean, tokens))]
    assert torch.equal(found, clean)
    assert torch.equal(*gradients)


@settings(deadline=None, max_examples=30)
@given(tokens=micro_batches, objective=objectives)
def test_above_the_target_it_is_the_clipped_surrogate(tokens, objective):
    closed = replace(objective, target_entropy=0.0)
    assert torch.equal(closed.token_loss(tokens).loss, Dapo(objective.clip).token_loss(tokens).loss)


# -- the class ---------------------------------------------------------------------------------------------------------


def test_what_it_is():
    assert facts(Stare()) == FACTS | {"within_micro_batch": True}


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="Stare needs entropy"):
        Stare().token_loss(replace(random_tokens(), entropy=None))
    tokens = random_tokens()
    with pytest.raises(ValueError, match="one shape"):
        stare_weights(tokens, tokens.entropy[:1], tokens.fork_mask, Stare())


def test_a_scope_that_hides_the_batch_split_is_refused():
    Stare().check_selection(ForkSelection.preset("paper-code"))
    with pytest.raises(ValueError, match=r"Stare compares .* selection\.scope must be micro_batch_rank, not update"):
        Stare().check_selection(ForkSelection())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("surprising_share", 0.0),
        ("surprising_share", 1.1),
        ("positive_weight", -1.0),
        ("negative_weight", math.inf),
        ("target_entropy", math.nan),
    ],
)
def test_wrong_arguments_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"model\.objective\.{key}"):
        Stare(**{key: value})
