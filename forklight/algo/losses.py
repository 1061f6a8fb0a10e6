"""Policy losses token by token: the clipped surrogate of DAPO and GRPO, and its relatives whose ratio is a token's.

Nothing is summed or divided here. A mean over a micro-batch would depend on how the update was cut into micro-batches
and ranks: the caller sums, and divides by one denominator for the whole update. Tokens outside the mask have no
influence at all: neither their value (also if infinite or NaN) nor a gradient passes through. Clip flags are given for
them too, so that kept and dropped tokens can be compared.
"""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from forklight.algo.types import TokenBatch, TokenLoss

MAX_LOG_RATIO = 20.0
"""Log-ratios above this are cut (no gradient): exp() would overflow, and a clipped branch would then give 0 * inf."""


@dataclass(frozen=True)
class ClipRange:
    """The trust region of the probability ratio `r = pi / pi_old`."""

    low: float = 0.2
    """The ratio is clipped from below at 1 - low; 1 switches this off."""
    high: float = 0.28
    """The ratio is clipped from above at 1 + high; larger than `low`, it leaves unlikely tokens room to grow."""
    dual: float | None = None
    """Bound on the ratio of tokens with negative advantage (dual clip), above 1, for example 10; none by default."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1:
            raise ValueError(f"clip.low must be in [0, 1], got {self.low}")
        if not (self.high >= 0 and isfinite(self.high)):
            raise ValueError(f"clip.high must be a finite number >= 0, got {self.high}")
        if self.dual is not None and not (self.dual > 1 and isfinite(self.dual)):
            raise ValueError(f"clip.dual must be a finite number > 1 or null, got {self.dual}")


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
    # masked before exp(): an infinite ratio outside the mask would come back as 0 * inf in the gradient
    ratio = _exp(torch.where(mask, log_ratio, 0.0))
    advantage = torch.where(mask, advantages.detach(), 0.0)
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip.low, 1 + clip.high))
    if clip.dual is not None:
        loss = torch.minimum(loss, clip.dual * advantage.abs())  # where A > 0 the loss is negative: no effect
    seen, falls, grows = _exp(log_ratio.detach()), advantages < 0, advantages > 0
    return TokenLoss(
        loss=loss,
        clip_low=falls & (seen < 1 - clip.low),
        clip_high=grows & (seen > 1 + clip.high),
        clip_dual=torch.zeros_like(mask) if clip.dual is None else falls & (seen > clip.dual),
    )


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
    ratio = _exp((logp - old_logp).detach())
    weight = torch.where(mask, ratio, 1.0).clamp(1 - clip.low, 1 + clip.high)
    loss = -weight * torch.where(mask, advantages.detach(), 0.0) * torch.where(mask, logp, 0.0)
    matters = advantages != 0
    return TokenLoss(
        loss=loss,
        clip_low=matters & (ratio < 1 - clip.low),
        clip_high=matters & (ratio > 1 + clip.high),
        clip_dual=torch.zeros_like(mask),
    )


def ratio_metrics(tokens: TokenBatch, loss: TokenLoss, mask: Tensor) -> dict[str, Tensor]:
    """What the probability ratios of some tokens look like, as sums.

    Args:
        tokens: their log-probabilities.
        loss: their clip flags.
        mask: bool [N], the tokens that are counted.

    Returns:
        Detached float64 scalars: `tokens`, `ratio_sum`, `clip_low`, `clip_high`, `clip_dual` and `approx_kl_sum` (the
        k3 estimate `r - 1 - log r` of KL(old || new)) add up over micro-batches and ranks; `ratio_max` (0 for an empty
        mask) combines by maximum. Ratios are those of tokens, whatever ratio the objective clips.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree.
    """
    check_tokens(mask, tokens.logp, tokens.old_logp, loss.clip_low)
    log_ratio = torch.where(mask, (tokens.logp - tokens.old_logp).detach(), 0.0)
    ratio = _exp(log_ratio)

    # float64 throughout: counts stay exact, and one stacked reduction adds all of them
    def total(values: Tensor) -> Tensor:
        return torch.where(mask, values, 0).sum(dtype=torch.float64)

    largest = torch.cat([torch.where(mask, ratio, 0.0), ratio.new_zeros(1)]).amax()
    return {
        "tokens": mask.sum(dtype=torch.float64),
        "ratio_sum": total(ratio),
        "ratio_max": largest.to(torch.float64),
        "clip_low": total(loss.clip_low),
        "clip_high": total(loss.clip_high),
        "clip_dual": total(loss.clip_dual),
        "approx_kl_sum": total(torch.expm1(log_ratio) - log_ratio),
    }


def check_tokens(mask: Tensor, *values: Tensor) -> None:
    """Refuses values and a mask that do not belong together.

    Args:
        mask: bool [N].
        *values: [N] each.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask must be bool, not {mask.dtype}")
    shapes = [tuple(tensor.shape) for tensor in (*values, mask)]
    if mask.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(f"token values and mask must have one shape [N], got {', '.join(map(str, shapes))}")


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()
