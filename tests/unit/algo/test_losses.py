import json
import math
from pathlib import Path

import pytest
import torch

from forklight.algo.losses import ClipRange, clipped_policy_loss, k3_kl

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "losses.json").read_text())
HITS = ("clip_low", "clip_high", "clip_dual")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", GOLDEN["clip"], ids=str)
def test_hand_worked_clipping(case):
    logp = tensor(math.log(case["ratio"]) - 1.5).requires_grad_()
    clip = ClipRange(0.2, 0.28, case["dual"])
    loss, metrics = clipped_policy_loss(logp, tensor(-1.5), tensor(case["advantage"]), torch.ones(1).bool(), clip)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    assert logp.grad.item() == pytest.approx(case["grad"], rel=1e-12)
    assert {name: metrics[name].item() for name in HITS} == {name: float(name == case["hit"]) for name in HITS}


def test_metrics_are_sums_over_the_mask():
    ratio = tensor(1.0, 2.0, 0.5, 7.0)
    mask = torch.tensor([True, True, True, False])
    _, metrics = clipped_policy_loss(ratio.log(), torch.zeros_like(ratio), tensor(1.0, 1, -1, 1), mask, ClipRange())
    kl = (2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2))
    expected = {"tokens": 3, "ratio_sum": 3.5, "ratio_max": 2, "clip_low": 1, "clip_high": 1, "clip_dual": 0}
    assert {name: metrics[name].item() for name in expected} == pytest.approx(expected)
    assert metrics["approx_kl_sum"].item() == pytest.approx(kl)
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in metrics.values())
    assert not any(value.requires_grad for value in metrics.values())


def test_logp_as_its_own_old_value_gives_ratio_one_and_the_policy_gradient():
    logp = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    advantages = torch.tensor([[2.0], [-1.0]])
    loss, metrics = clipped_policy_loss(logp, logp, advantages, torch.ones(2, 3).bool(), ClipRange())
    loss.backward()
    assert metrics["ratio_sum"] == 6
    assert metrics["ratio_max"] == 1
    assert torch.equal(logp.grad, -advantages.expand(2, 3))


@pytest.mark.parametrize("case", GOLDEN["k3"], ids=str)
def test_hand_worked_kl(case):
    logp = tensor(math.log(case["policy"])).requires_grad_()
    kl = k3_kl(logp, tensor(math.log(case["reference"])), torch.ones(1).bool())
    kl.backward()
    assert kl.item() == pytest.approx(case["kl"], abs=1e-15)
    assert logp.grad.item() == pytest.approx(case["grad"], abs=1e-15)


def test_kl_resolves_small_differences_in_float32():
    logp, ref_logp = torch.tensor([-1.0]), torch.tensor([-1.0 + 2**-14])
    assert k3_kl(logp, ref_logp, torch.ones(1).bool()).item() == pytest.approx(2**-29, rel=1e-3)


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 0), (2, 3)])
def test_empty_mask_gives_a_connected_zero(shape):
    logp = torch.zeros(shape).requires_grad_()
    mask = torch.zeros(shape).bool()
    loss, metrics = clipped_policy_loss(logp, torch.zeros(shape), torch.ones(shape), mask, ClipRange())
    total = loss + k3_kl(logp, torch.zeros(shape), mask)
    total.backward()
    assert total.item() == 0
    assert torch.equal(logp.grad, torch.zeros(shape))
    assert all(value.item() == 0 for value in metrics.values())


@pytest.mark.parametrize("dual", [None, 10.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [100.0, 1000.0, -1000.0])
def test_extreme_ratios_give_finite_losses_and_gradients(dual, advantage, log_ratio):
    logp = torch.tensor([log_ratio - 5]).requires_grad_()
    mask, old = torch.ones(1).bool(), torch.tensor([-5.0])
    loss, _ = clipped_policy_loss(logp, old, torch.tensor([advantage]), mask, ClipRange(dual=dual))
    (loss + k3_kl(logp, old, mask)).backward()
    assert math.isfinite(loss.item())
    assert math.isfinite(logp.grad.item())


def test_dual_clip_bounds_the_loss():
    logp = torch.linspace(-3, 6, 50, dtype=torch.float64)
    zeros, mask = torch.zeros_like(logp), torch.ones(50).bool()
    for advantage in (-2.0, -0.1):
        loss, _ = clipped_policy_loss(logp, zeros, torch.full_like(logp, advantage), mask, ClipRange(dual=3.0))
        plain, _ = clipped_policy_loss(logp, zeros, torch.full_like(logp, advantage), mask, ClipRange())
        assert loss.item() <= 50 * 3.0 * -advantage
        assert loss < plain


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


def test_wrong_shapes_and_types_are_refused():
    row, mask = torch.zeros(3, 3), torch.ones(3, 3).bool()
    with pytest.raises(TypeError, match="bool"):
        clipped_policy_loss(row, row, row, mask.float(), ClipRange())
    with pytest.raises(ValueError, match="one shape"):
        clipped_policy_loss(row, row[:, :1], row, mask, ClipRange())
    with pytest.raises(ValueError, match="dimension"):  # [3] would broadcast along the wrong dimension
        clipped_policy_loss(row, row, torch.zeros(3), mask, ClipRange())
    with pytest.raises(ValueError, match="broadcast"):
        clipped_policy_loss(row[:, :1], row[:, :1], row, mask[:, :1], ClipRange())
    with pytest.raises(TypeError, match="bool"):
        k3_kl(row, row, mask.long())
    with pytest.raises(ValueError, match="one shape"):
        k3_kl(row, row[:2], mask)
