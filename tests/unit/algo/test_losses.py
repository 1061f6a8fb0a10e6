import json
import math
from pathlib import Path

import pytest
import torch

from forklight.algo.covariance_losses import clip_cov_loss, kl_cov_loss
from forklight.algo.entropy_losses import dual_token_loss, entropy_shaped_advantages
from forklight.algo.losses import ClipRange, cispo_loss, clipped_loss, ratio_metrics
from forklight.algo.sequence_losses import gspo_loss, gspo_token_loss
from forklight.algo.types import TokenBatch

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "losses.json").read_text())
HITS = ("clip_low", "clip_high", "clip_dual")
ONE = torch.ones(1).bool()


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def expect(case, found, logp):
    """The numbers of one token."""
    found.loss.sum().backward()
    assert found.loss.item() == pytest.approx(case["loss"], rel=1e-12)
    assert logp.grad.item() == pytest.approx(case["grad"], rel=1e-12)
    assert hits(found) == {name: [name == case.get("hit")] for name in HITS}


def hits(found):
    return {name: getattr(found, name).tolist() for name in HITS}


@pytest.mark.parametrize("case", GOLDEN["clip"], ids=str)
def test_hand_worked_clipping(case):
    logp = tensor(math.log(case["ratio"]) - 1.5).requires_grad_()
    clip = ClipRange(0.2, 0.28, case["dual"])
    expect(case, clipped_loss(logp, tensor(-1.5), tensor(case["advantage"]), ONE, clip), logp)


@pytest.mark.parametrize("case", GOLDEN["cispo"], ids=str)
def test_hand_worked_cispo(case):
    logp = tensor(case["logp"]).requires_grad_()
    old = tensor(case["logp"] - math.log(case["ratio"]))
    expect(case, cispo_loss(logp, old, tensor(case["advantage"]), ONE, ClipRange(case["low"], 4.0)), logp)


@pytest.mark.parametrize("loss", [gspo_loss, gspo_token_loss])
def test_hand_worked_gspo(loss):
    cases = GOLDEN["gspo"]
    lengths = torch.tensor([len(case["ratios"]) for case in cases])
    row = torch.arange(len(cases)).repeat_interleave(lengths)
    logp = tensor(*[math.log(r) - 1 for case in cases for r in case["ratios"]]).requires_grad_()
    mask = torch.tensor([kept for case in cases for kept in case["kept"]])
    advantages = tensor(*[case["advantage"] for case in cases])[row]
    found = loss(logp, torch.full_like(logp, -1), advantages, mask, row, len(cases), ClipRange(0.2, 0.28))
    kept = torch.zeros(len(cases), dtype=torch.float64).index_add(0, row, mask.double())
    (found.loss / kept[row]).sum().backward()
    for name in ("loss", "grad"):
        expected = torch.where(mask, tensor(*[case[name] for case in cases])[row], 0.0)
        torch.testing.assert_close({"loss": found.loss, "grad": logp.grad}[name], expected, rtol=1e-12, atol=1e-12)
    assert hits(found) == {name: [cases[i]["hit"] == name for i in row] for name in HITS}


def test_gspo_without_kept_tokens_in_a_sequence():
    logp = tensor(-1, -2, -3).requires_grad_()
    mask, row = torch.tensor([False, False, True]), torch.tensor([0, 0, 2])
    found = gspo_loss(logp, tensor(-5, -5, -3), tensor(1, 1, 1), mask, row, 3, ClipRange())
    assert found.loss.tolist() == [0, 0, -1]
    assert not any(any(values) for values in hits(found).values())


def test_gspo_keeps_its_narrow_range_apart_over_long_sequences_in_float32():
    n = 20_000
    old = -torch.rand(n, generator=torch.Generator().manual_seed(0)) * 9
    for shift, hit in ((3.9e-4, False), (4.1e-4, True)):
        logp = (old.double() + math.log1p(shift)).float()
        row, mask = torch.zeros(n, dtype=torch.int64), torch.ones(n).bool()
        found = gspo_loss(logp, old, torch.ones(n), mask, row, 1, ClipRange(3e-4, 4e-4))
        assert bool(found.clip_high.all()) == bool(found.clip_high.any()) == hit


def test_clip_cov_takes_loss_and_gradient_from_its_tokens():
    logp, old = tensor(0.1, 0.1, 0.9).requires_grad_(), tensor(0, 0, 0)
    mask, cov_mask = torch.ones(3).bool(), torch.tensor([False, True, True])
    found = clip_cov_loss(logp, old, tensor(2, 2, 2), mask, cov_mask, ClipRange())
    found.loss.sum().backward()
    ratio = math.exp(0.1)
    assert found.loss.tolist() == pytest.approx([-2 * ratio, 0, 0])
    assert logp.grad.tolist() == pytest.approx([-2 * ratio, 0, 0])
    assert found.clip_high.tolist() == [False, False, True]


@pytest.mark.parametrize("case", GOLDEN["kl_cov"], ids=str)
def test_hand_worked_kl_cov(case):
    logp = tensor(math.log(case["ratio"]) - 1.5).requires_grad_()
    held = torch.tensor([case["held"]])
    expect(case, kl_cov_loss(logp, tensor(-1.5), tensor(case["advantage"]), ONE, held, 1.0), logp)


@pytest.mark.parametrize("case", GOLDEN["shaped"], ids=str)
def test_hand_worked_shaping(case):
    entropy = tensor(case["entropy"]).requires_grad_()
    shaped = entropy_shaped_advantages(tensor(case["advantage"]), entropy, 0.4, 2.0)
    assert shaped.item() == pytest.approx(case["shaped"])
    assert not shaped.requires_grad


@pytest.mark.parametrize("case", GOLDEN["archer"], ids=str)
def test_hand_worked_archer(case):
    logp = tensor(math.log(case["ratio"]) - 1.5).requires_grad_()
    found = dual_token_loss(
        logp,
        tensor(-1.5),
        tensor(case["advantage"]),
        ONE,
        torch.tensor([case["fork"]]),
        fork_clip=ClipRange(0.5, 0.5),
        other_clip=ClipRange(0.2, 0.2),
        ref_logp=logp.detach() + math.log(case["reference_ratio"]),
        other_kl=0.1,
    )
    expect(case, found, logp)


def test_metrics_are_sums_over_the_mask():
    ratio = tensor(1.0, 2.0, 0.5, 7.0)
    tokens = batch(ratio.log().requires_grad_(), torch.zeros(4, dtype=torch.float64), tensor(1, 1, -1, 1))
    loss = clipped_loss(tokens.logp, tokens.old_logp, tokens.advantages, tokens.fork_mask, ClipRange())
    metrics = ratio_metrics(tokens, loss, torch.tensor([True, True, True, False]))
    kl = (2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2))
    expected = {"tokens": 3, "ratio_sum": 3.5, "ratio_max": 2, "clip_low": 1, "clip_high": 1, "clip_dual": 0}
    assert {name: metrics[name].item() for name in expected} == pytest.approx(expected)
    assert metrics["approx_kl_sum"].item() == pytest.approx(kl)
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in metrics.values())
    assert not any(value.requires_grad for value in metrics.values())
    dropped = ratio_metrics(tokens, loss, torch.tensor([False, False, False, True]))
    assert dropped["clip_high"] == dropped["tokens"] == 1
    nothing = ratio_metrics(tokens, loss, torch.zeros(4).bool())
    assert all(value.item() == 0 for value in nothing.values())


def test_logp_as_its_own_old_value_gives_ratio_one_and_the_policy_gradient():
    logp = torch.randn(6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tokens = batch(logp, logp, torch.tensor([2.0, 2, 2, -1, -1, -1]))
    loss = clipped_loss(logp, logp, tokens.advantages, tokens.fork_mask, ClipRange())
    loss.loss.sum().backward()
    metrics = ratio_metrics(tokens, loss, tokens.fork_mask)
    assert metrics["ratio_sum"] == 6
    assert metrics["ratio_max"] == 1
    assert torch.equal(logp.grad, -tokens.advantages)


def batch(logp, old_logp, advantages):
    everything, row = torch.ones(len(logp)).bool(), torch.zeros(len(logp), dtype=torch.int64)
    return TokenBatch(logp, old_logp, advantages, everything, everything, row, 1)


def every_loss(logp, old, advantages, mask, clip):
    """All losses of this package on one set of tokens."""
    row = torch.zeros(len(logp), dtype=torch.int64)
    yield clipped_loss(logp, old, advantages, mask, clip)
    yield cispo_loss(logp, old, advantages, mask, ClipRange(clip.low, clip.high))
    yield gspo_loss(logp, old, advantages, mask, row, 1, clip)
    yield gspo_token_loss(logp, old, advantages, mask, row, 1, clip)
    yield clip_cov_loss(logp, old, advantages, mask, ~mask, clip)
    yield kl_cov_loss(logp, old, advantages, mask, mask, 1.0)
    yield dual_token_loss(logp, old, advantages, mask, mask, fork_clip=clip, other_clip=clip, other_kl=0.0)


@pytest.mark.parametrize("n", [0, 3])
def test_empty_mask_gives_connected_zeros(n):
    logp = torch.zeros(n).requires_grad_()
    for found in every_loss(logp, torch.zeros(n), torch.ones(n), torch.zeros(n).bool(), ClipRange()):
        (gradient,) = torch.autograd.grad(found.loss.sum(), logp)
        assert torch.equal(found.loss, torch.zeros(n))
        assert torch.equal(gradient, torch.zeros(n))


@pytest.mark.parametrize("dual", [None, 10.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [100.0, 1000.0, -1000.0])
def test_extreme_ratios_give_finite_losses_and_gradients(dual, advantage, log_ratio):
    logp = torch.tensor([log_ratio - 5]).requires_grad_()
    for found in every_loss(logp, torch.tensor([-5.0]), torch.tensor([advantage]), ONE, ClipRange(dual=dual)):
        (gradient,) = torch.autograd.grad(found.loss.sum(), logp)
        assert math.isfinite(found.loss.item())
        assert math.isfinite(gradient.item())


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


def test_wrong_shapes_and_types_are_refused():
    row, mask, clip = torch.zeros(3), torch.ones(3).bool(), ClipRange()
    for loss in (clipped_loss, cispo_loss):
        with pytest.raises(TypeError, match="bool"):
            loss(row, row, row, mask.float(), clip)
        with pytest.raises(ValueError, match="one shape"):
            loss(row, row[:1], row, mask, clip)
        with pytest.raises(ValueError, match="one shape"):  # [1] would broadcast
            loss(row, row, row[:1], mask, clip)
        with pytest.raises(ValueError, match="one shape"):
            loss(row[None], row[None], row[None], mask[None], clip)
    for loss in (gspo_loss, gspo_token_loss):
        with pytest.raises(TypeError, match="int64"):
            loss(row, row, row, mask, row, 1, clip)
    with pytest.raises(TypeError, match="bool"):
        clip_cov_loss(row, row, row, mask, row, clip)
    with pytest.raises(ValueError, match="one shape"):
        kl_cov_loss(row, row, row, mask, mask[:1], 1.0)
    with pytest.raises(ValueError, match=r"clip\.dual"):
        cispo_loss(row, row, row, mask, ClipRange(dual=10.0))
    with pytest.raises(ValueError, match="reference"):
        dual_token_loss(row, row, row, mask, mask, fork_clip=clip, other_clip=clip)
