"""CISPO: the importance weight is clipped, and every token keeps its gradient."""

import torch
from torch import Tensor

from forklight.algo.batch import TokenBatch, TokenLoss
from forklight.algo.objectives.base import Objective
from forklight.algo.ratios import ClipRange, capped_exp, check_tokens


class Cispo(Objective):
    """Every token keeps its gradient, its weight is capped: arXiv 2506.13585, Eq. 4.

    Args:
        weight_clip: range of the weight; by default at most 5 and unbounded from below. No dual bound.
    """

    separable = True

    def __init__(self, weight_clip: ClipRange = ClipRange(low=1.0, high=4.0)) -> None:  # noqa: B008
        if weight_clip.dual is not None:
            raise ValueError(
                f"model.objective.weight_clip.dual must be null, CISPO has no such bound; got {weight_clip.dual}"
            )
        self.weight_clip = weight_clip

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `cispo_loss`."""
        return cispo_loss(*self._terms(tokens), self.weight_clip)


def cispo_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip: ClipRange) -> TokenLoss:
    """CISPO: the weight is clipped, never the gradient.

    `-sg(clip(r, 1 - low, 1 + high)) A logp` with `sg` for stop-gradient: arXiv 2506.13585, Eqs. 4 and 5. Only its
    gradient means something; the value is no measure of progress.

    Args:
        logp: [N], log-probabilities under the policy being trained.
        old_logp: [N], under the policy that starts the rollout's updates; never differentiated.
        advantages: [N]; never differentiated.
        mask: bool [N], the tokens that count.
        clip: range of the weight; without a dual bound.

    Returns:
        The loss [N]; `clip_low` and `clip_high` mark where the weight was raised or capped and A is not 0.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree, or there is a dual bound.
    """
    check_tokens(mask, logp, old_logp, advantages)
    if clip.dual is not None:
        raise ValueError(f"CISPO has no dual bound: clip.dual must be null, got {clip.dual}")
    ratio = capped_exp((logp - old_logp).detach())
    weight = torch.where(mask, ratio, 1.0).clamp(1 - clip.low, 1 + clip.high)
    loss = -weight * torch.where(mask, advantages.detach(), 0.0) * torch.where(mask, logp, 0.0)
    matters = advantages != 0
    return TokenLoss(
        loss=loss,
        clip_low=matters & (ratio < 1 - clip.low),
        clip_high=matters & (ratio > 1 + clip.high),
        clip_dual=torch.zeros_like(mask),
    )
