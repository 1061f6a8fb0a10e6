"""Probability ratios: their range, their exponential, the k3 estimate, and metrics of them."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from forklight.algo.batch import Metrics, TokenBatch, TokenLoss

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this (no gradient): exp() would overflow, and a clipped branch would then give 0 * inf."""


@dataclass(frozen=True)
class ClipRange:
    """The trust region of the probability ratio `r = pi / pi_old`."""

    low: float = 0.2
    """The ratio is clipped from below at 1 - low; 1 switches this off."""
    high: float = 0.28
    """The ratio is clipped from above at 1 + high; a value above `low` lets unlikely tokens grow (clip-higher)."""
    dual: float | None = None
    """Bound on the ratio of tokens with negative advantage (dual clip), above 1, for example 10; none by default."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1:
            raise ValueError(f"clip.low must be in [0, 1], got {self.low}")
        if not (self.high >= 0 and isfinite(self.high)):
            raise ValueError(f"clip.high must be a finite number >= 0, got {self.high}")
        if self.dual is not None and not (self.dual > 1 and isfinite(self.dual)):
            raise ValueError(f"clip.dual must be a finite number > 1 or null, got {self.dual}")


def capped_exp(log_ratio: Tensor) -> Tensor:
    """`exp(log_ratio)`, with log-ratios clamped to at most `MAX_LOG_RATIO`; clamped ones have no gradient."""
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def k3(log_ratio: Tensor) -> Tensor:
    """The k3 estimate of a KL divergence, `r - 1 - log r`: Schulman, "Approximating KL divergence" (2020).

    Args:
        log_ratio: `log r = log q - log p` of tokens sampled from p, of any shape. The caller clamps values for which
            exp() overflows.

    Returns:
        Estimates of KL(p || q) in nats, connected to `log_ratio`; none is negative.
    """
    return torch.expm1(log_ratio) - log_ratio  # r - 1 near r = 1 is a difference of nearly equal numbers


def ratio_metrics(tokens: TokenBatch, loss: TokenLoss, mask: Tensor) -> Metrics:
    """Metrics of the probability ratios of some tokens.

    Args:
        tokens: their log-probabilities.
        loss: their clip flags.
        mask: bool [N], the tokens that are counted.

    Returns:
        The sums `tokens`, `ratio_sum`, `clip_low`, `clip_high`, `clip_dual` and `approx_kl_sum` (the k3 estimate
        `r - 1 - log r` of KL(old || new)), and the maximum `ratio` (0 for an empty mask). Ratios are per token, also
        if the objective clips the ratio of sequences.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree.
    """
    check_tokens(mask, tokens.logp, tokens.old_logp, loss.clip_low)
    log_ratio = torch.where(mask, (tokens.logp - tokens.old_logp).detach(), 0.0)
    ratio = capped_exp(log_ratio)

    # float64 throughout: counts stay exact, and one stacked reduction adds all of them
    def total(values: Tensor) -> Tensor:
        return torch.where(mask, values, 0).sum(dtype=torch.float64)

    largest = torch.cat([torch.where(mask, ratio, 0.0), ratio.new_zeros(1)]).amax()
    sums = {
        "tokens": mask.sum(dtype=torch.float64),
        "ratio_sum": total(ratio),
        "clip_low": total(loss.clip_low),
        "clip_high": total(loss.clip_high),
        "clip_dual": total(loss.clip_dual),
        "approx_kl_sum": total(k3(log_ratio)),
    }
    return Metrics(sums, {"ratio": largest.to(torch.float64)})


def check_tokens(mask: Tensor, *values: Tensor) -> None:
    """Refuses a mask that is not bool, and values of another shape.

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
