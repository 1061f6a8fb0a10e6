"""The clipped surrogate, the k3 estimate, and the metrics of ratios."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import GOLDEN, ONE, expect, one_row, tensor
from tiny import flat

from forklight.algo.correction import mismatch_metrics
from forklight.algo.kl import kl_estimate
from forklight.algo.objectives.clipped import clipped_loss
from forklight.algo.ratios import ClipRange, k3, ratio_metrics


@pytest.mark.parametrize("case", GOLDEN["clip"], ids=str)
def test_hand_worked_clipping(case):
    logp = tensor(math.log(case["ratio"]) - 1.5).requires_grad_()
    clip = ClipRange(0.2, 0.28, case["dual"])
    expect(case, clipped_loss(logp, tensor(-1.5), tensor(case["advantage"]), ONE, clip), logp)


def test_dual_clip_bounds_the_loss():
    logp = torch.linspace(-3, 6, 50, dtype=torch.float64)
    zeros, mask = torch.zeros_like(logp), torch.ones(50).bool()
    for advantage in (-2.0, -0.1):
        bounded = clipped_loss(logp, zeros, torch.full_like(logp, advantage), mask, ClipRange(dual=3.0)).loss
        plain = clipped_loss(logp, zeros, torch.full_like(logp, advantage), mask, ClipRange()).loss
        assert (bounded <= 3.0 * -advantage).all()
        assert (bounded <= plain).all()
        assert (bounded < plain).any()


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"low": -0.1}, "clip.low"),
        ({"low": 1.1}, "clip.low"),
        ({"low": math.nan}, "clip.low"),
        ({"high": -0.1}, "clip.high"),
        ({"high": math.inf}, "clip.high"),
        ({"dual": 1.0}, "clip.dual"),
        ({"dual": math.nan}, "clip.dual"),
    ],
)
def test_wrong_ranges_are_refused_by_name(kwargs, name):
    with pytest.raises(ValueError, match=name):
        ClipRange(**kwargs)


# -- the k3 estimate ---------------------------------------------------------------------------------------------------


def test_hand_worked_k3():
    log_ratio = tensor(0, math.log(2), -math.log(2)).requires_grad_()
    found = k3(log_ratio)
    found.sum().backward()
    assert found.tolist() == pytest.approx([0, 1 - math.log(2), -0.5 + math.log(2)], rel=1e-14)
    assert log_ratio.grad.tolist() == pytest.approx([0, 1, -0.5], rel=1e-14)


def test_k3_keeps_its_digits_near_zero_in_float32():
    small = torch.tensor(2.0**-10)
    assert k3(small).item() == pytest.approx(2.0**-21, rel=1e-3)


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=9))
def test_all_estimates_of_a_kl_are_k3(values):
    q, p = tensor(*values), torch.zeros(len(values), dtype=torch.float64)
    mask, expected = torch.ones(len(values)).bool(), k3(q)
    assert torch.equal(kl_estimate(p, q, mask, "k3"), expected)
    tokens = one_row(q, p, p)
    metrics = ratio_metrics(tokens, clipped_loss(q, p, p, mask, ClipRange()), mask)
    assert torch.equal(metrics.sums["approx_kl_sum"], expected.sum())
    assert torch.equal(mismatch_metrics(q, p, mask).sums["kl_sum"], expected.sum())


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_are_sums_over_the_mask():
    ratio = tensor(1.0, 2.0, 0.5, 7.0)
    tokens = one_row(ratio.log().requires_grad_(), torch.zeros(4, dtype=torch.float64), tensor(1, 1, -1, 1))
    loss = clipped_loss(tokens.logp, tokens.old_logp, tokens.advantages, tokens.fork_mask, ClipRange())
    metrics = flat(ratio_metrics(tokens, loss, torch.tensor([True, True, True, False])))
    kl = (2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2))
    expected = {"tokens": 3, "ratio_sum": 3.5, "ratio_max": 2, "clip_low": 1, "clip_high": 1, "clip_dual": 0}
    assert {name: metrics[name].item() for name in expected} == pytest.approx(expected)
    assert metrics["approx_kl_sum"].item() == pytest.approx(kl)
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in metrics.values())
    assert not any(value.requires_grad for value in metrics.values())
    dropped = flat(ratio_metrics(tokens, loss, torch.tensor([False, False, False, True])))
    assert dropped["clip_high"] == dropped["tokens"] == 1
    nothing = flat(ratio_metrics(tokens, loss, torch.zeros(4).bool()))
    assert all(value.item() == 0 for value in nothing.values())


def test_logp_as_its_own_old_value_gives_ratio_one_and_the_policy_gradient():
    logp = torch.randn(6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tokens = one_row(logp, logp, torch.tensor([2.0, 2, 2, -1, -1, -1]))
    loss = clipped_loss(logp, logp, tokens.advantages, tokens.fork_mask, ClipRange())
    loss.loss.sum().backward()
    metrics = flat(ratio_metrics(tokens, loss, tokens.fork_mask))
    assert metrics["ratio_sum"] == 6
    assert metrics["ratio_max"] == 1
    assert torch.equal(logp.grad, -tokens.advantages)
