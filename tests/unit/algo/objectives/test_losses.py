"""What the losses of all families have in common: empty masks, extreme ratios, wrong shapes."""

import math

import pytest
import torch
from loss_cases import ONE

from forklight.algo.objectives.archer import dual_token_loss
from forklight.algo.objectives.cispo import cispo_loss
from forklight.algo.objectives.clipped import clipped_loss
from forklight.algo.objectives.covariance import clip_cov_loss, kl_cov_loss
from forklight.algo.objectives.gspo import gspo_loss, gspo_token_loss
from forklight.algo.ratios import ClipRange


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


@pytest.mark.parametrize("loss", [clipped_loss, cispo_loss])
def test_wrong_shapes_and_types_are_refused(loss):
    row, mask, clip = torch.zeros(3), torch.ones(3).bool(), ClipRange()
    with pytest.raises(TypeError, match="bool"):
        loss(row, row, row, mask.float(), clip)
    with pytest.raises(ValueError, match="one shape"):
        loss(row, row[:1], row, mask, clip)
    with pytest.raises(ValueError, match="one shape"):  # [1] would broadcast
        loss(row, row, row[:1], mask, clip)
    with pytest.raises(ValueError, match="one shape"):
        loss(row[None], row[None], row[None], mask[None], clip)
