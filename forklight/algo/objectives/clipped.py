"""The clipped surrogate of PPO, and the three means over its tokens: DAPO, GRPO and Dr. GRPO.

Like all objectives it gives a loss per token: nothing is summed or divided here. A mean over a micro-batch would depend
on how the update was cut into micro-batches and ranks: the caller sums, and divides by one denominator per
update. Tokens outside the mask have no influence at all: neither their value (also if infinite or NaN) nor a gradient
passes through. Clip flags are given for them too, so that kept and dropped tokens can be compared.
"""

import torch
from torch import Tensor

from forklight.algo.batch import TokenBatch, TokenLoss
from forklight.algo.objectives.base import Objective
from forklight.algo.ratios import ClipRange, capped_exp, check_tokens


def clipped_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip: ClipRange) -> TokenLoss:
    """Clipped surrogate loss of every token.

    With `r = exp(logp - old_logp)` one token contributes `max(-A r, -A clip(r, 1 - low, 1 + high))`: arXiv 1707.06347,
    Eq. 7, with the two-sided range of arXiv 2503.14476, Eq. 10. If `clip.dual` is c, tokens with A < 0 contribute at
    most `-c A`: arXiv 1912.09729, Eq. 5. A mask of forking tokens makes it the summand of arXiv 2506.01939, Eq. 6.

    Args:
        logp: [N], log-probabilities under the policy being trained.
        old_logp: [N], under the policy that starts the rollout's updates; never differentiated, so `logp` itself may be
            given and the ratio is then exactly 1.
        advantages: [N]; never differentiated.
        mask: bool [N], the tokens that count.
        clip: range of the ratio.

    Returns:
        The loss [N]; `clip_low` marks A < 0 below the range, `clip_high` A > 0 above it and `clip_dual` A < 0 above the
        dual bound: none of them has a gradient.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree.
    """
    check_tokens(mask, logp, old_logp, advantages)
    return clipped_surrogate(logp - old_logp.detach(), advantages, mask, clip)


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip: ClipRange) -> TokenLoss:
    """The loss of `clipped_loss` from any log-ratio, a token's or a sequence's.

    Args:
        log_ratio: [N], connected to the policy being trained.
        advantages: [N]; never differentiated.
        mask: bool [N], the tokens that count.
        clip: range of the ratio.

    Returns:
        As `clipped_loss`.
    """
    # masked before exp(): an infinite ratio outside the mask would give 0 * inf in the gradient
    ratio = capped_exp(torch.where(mask, log_ratio, 0.0))
    advantage = torch.where(mask, advantages.detach(), 0.0)
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip.low, 1 + clip.high))
    if clip.dual is not None:
        loss = torch.minimum(loss, clip.dual * advantage.abs())  # where A > 0 the loss is negative: no effect
    seen, falls, grows = capped_exp(log_ratio.detach()), advantages < 0, advantages > 0
    return TokenLoss(
        loss=loss,
        clip_low=falls & (seen < 1 - clip.low),
        clip_high=grows & (seen > 1 + clip.high),
        clip_dual=torch.zeros_like(mask) if clip.dual is None else falls & (seen > clip.dual),
    )


class _Clipped(Objective):
    """The clipped surrogate; subclasses say how it is averaged."""

    separable = True

    def __init__(self, clip: ClipRange) -> None:
        self.clip = clip

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `clipped_loss`."""
        return clipped_loss(*self._terms(tokens), self.clip)


class Dapo(_Clipped):
    """Clipped surrogate, mean over tokens: arXiv 2503.14476; with forking tokens, arXiv 2506.01939, Eq. 6.

    Args:
        clip: range of the ratio.
    """

    def __init__(self, clip: ClipRange = ClipRange()) -> None:  # noqa: B008  a frozen value
        super().__init__(clip)


class Grpo(_Clipped):
    """Clipped surrogate, mean over sequences of the mean over tokens: arXiv 2402.03300, Eq. 3.

    Args:
        clip: range of the ratio.
    """

    aggregate = "sequence"

    def __init__(self, clip: ClipRange = ClipRange(0.2, 0.2)) -> None:  # noqa: B008
        super().__init__(clip)


class DrGrpo(_Clipped):
    """Clipped surrogate, summed and divided by sequences times the length limit: arXiv 2503.20783.

    The paper also leaves out the standard deviation of the advantages: see `model.advantage: dr_grpo`.

    Args:
        clip: range of the ratio.
    """

    aggregate = "constant"

    def __init__(self, clip: ClipRange = ClipRange(0.2, 0.2)) -> None:  # noqa: B008
        super().__init__(clip)
