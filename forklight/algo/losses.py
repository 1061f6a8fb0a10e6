"""Loss terms as sums over tokens.

Every function returns a *sum* over the tokens of its mask, never a mean: a mean over a micro-batch depends on how the
update was cut into micro-batches and ranks. The caller divides by one denominator for the whole update. Tokens outside
the mask have no influence at all: neither their value (also if infinite or NaN) nor a gradient passes through.
"""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

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


def clipped_policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip: ClipRange
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate loss, summed over the tokens of the mask.

    With `r = exp(logp - old_logp)` one token contributes `max(-A r, -A clip(r, 1 - low, 1 + high))`: arXiv 1707.06347,
    Eq. 7, with the two-sided range of arXiv 2503.14476, Eq. 10. If `clip.dual` is c, tokens with A < 0 contribute at
    most `-c A`: arXiv 1912.09729, Eq. 5. A mask of forking tokens makes it the sum of arXiv 2506.01939, Eq. 6.

    Args:
        logp: [N] or [S,T], log-probabilities under the policy being trained.
        old_logp: like `logp`, under the policy that starts the rollout's updates; never differentiated, so `logp`
            itself may be given and the ratio is then exactly 1.
        advantages: broadcasts to `logp` and has as many dimensions ([S,1] for one advantage per sequence); never
            differentiated.
        mask: bool, like `logp`, the tokens that count.
        clip: range of the ratio.

    Returns:
        The sum, a scalar connected to `logp` also when the mask is empty, and detached float64 scalars over the mask:
        `tokens`, `ratio_sum`, `clip_low` (tokens with A < 0 below the range: no gradient), `clip_high` (A > 0, above
        the range: no gradient), `clip_dual` (A < 0 above the dual bound: no gradient) and `approx_kl_sum` (the k3
        estimate `r - 1 - log r` of KL(old || new)) add up over micro-batches and ranks; `ratio_max` (0 for an empty
        mask) combines by maximum.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree.
    """
    _check(logp, old_logp, mask)
    if advantages.ndim != logp.ndim:
        raise ValueError(f"advantages {tuple(advantages.shape)} must have the {logp.ndim} dimension(s) of logp")
    # masked before exp(): an infinite ratio outside the mask would come back as 0 * inf in the gradient
    log_ratio = torch.where(mask, logp - old_logp.detach(), 0.0)
    advantage = torch.where(mask, advantages.detach(), 0.0)
    if log_ratio.shape != advantage.shape:
        raise ValueError(f"advantages {tuple(advantages.shape)} do not broadcast to logp {tuple(logp.shape)}")
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip.low, 1 + clip.high)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped)
    if clip.dual is not None:
        loss = torch.minimum(loss, clip.dual * advantage.abs())  # where A > 0 the loss is negative: no effect
    return loss.sum(), _clip_metrics(log_ratio.detach(), ratio.detach(), advantage, mask, clip)


def k3_kl(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    """KL(policy || reference) by the k3 estimator, summed over the tokens of the mask.

    `exp(d) - d - 1` with `d = ref_logp - logp`: arXiv 2402.03300, Eq. 4; never negative, unbiased for tokens sampled
    from the policy.

    Args:
        logp: [N] or [S,T], log-probabilities under the policy being trained.
        ref_logp: like `logp`, under the reference model; never differentiated.
        mask: bool, like `logp`, the tokens that count.

    Returns:
        The sum, a scalar connected to `logp` also when the mask is empty.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree.
    """
    _check(logp, ref_logp, mask)
    difference = torch.where(mask, ref_logp.detach() - logp, 0.0).clamp(max=MAX_LOG_RATIO)
    # expm1: near d = 0 the plain formula is a difference of numbers close to 1
    return (torch.expm1(difference) - difference).sum()


def _clip_metrics(
    log_ratio: Tensor, ratio: Tensor, advantage: Tensor, mask: Tensor, clip: ClipRange
) -> dict[str, Tensor]:
    # float64 throughout: counts stay exact, and one stacked reduction adds all of them
    def total(values: Tensor) -> Tensor:
        return torch.where(mask, values, 0).sum(dtype=torch.float64)

    above_dual = torch.zeros_like(mask) if clip.dual is None else ratio > clip.dual
    largest = torch.cat([torch.where(mask, ratio, 0.0).flatten(), ratio.new_zeros(1)]).amax()
    return {
        "tokens": mask.sum(dtype=torch.float64),
        "ratio_sum": total(ratio),
        "ratio_max": largest.to(torch.float64),
        "clip_low": total((advantage < 0) & (ratio < 1 - clip.low)),
        "clip_high": total((advantage > 0) & (ratio > 1 + clip.high)),
        "clip_dual": total((advantage < 0) & above_dual),
        "approx_kl_sum": total(torch.expm1(log_ratio) - log_ratio),
    }


def _check(logp: Tensor, other_logp: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask must be bool, not {mask.dtype}")
    if not logp.shape == other_logp.shape == mask.shape:
        shapes = [tuple(tensor.shape) for tensor in (logp, other_logp, mask)]
        raise ValueError(f"log-probabilities and mask must have one shape, got {', '.join(map(str, shapes))}")
