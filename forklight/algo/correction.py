"""The mismatch of log-probabilities between sampler and trainer: weights that correct it, and metrics of it.

The same weights give slightly different probabilities in the sampler (other kernels, other precision), so that tokens
are sampled from `mu` while the trained policy is `pi`. Importance weights `pi / mu` correct this; all methods bound
them. The caller multiplies the policy loss of every token by its weight; denominators do not change.

Sources. Truncated importance sampling (TIS): Yao et al. 2025, https://fengyao.notion.site/off-policy-rl. Two-sided mask
(IcePop, also MIS): arXiv 2510.18855. Sequence level (Liu et al. 2025, When Speed Kills Stability): a token's own ratio
ignores that the tokens before it were sampled from `mu` too, so only the product over the answer is unbiased before it
is bounded; its variance grows with the length.
"""

from dataclasses import dataclass
from math import isfinite, log
from typing import Literal, get_args

import torch
from torch import Tensor

from forklight.algo.batch import Metrics
from forklight.algo.ratios import MAX_LOG_RATIO, k3
from forklight.algo.rows import row_sums

Method = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True)
class CorrectionConfig:
    """Importance weights against the mismatch between sampler and trainer."""

    method: Method = "none"
    """`none`: no weights; `token_truncate`: each token's ratio trainer / sampler, at most `high` (TIS); `token_mask`:
    that ratio, 0 outside [low, high] (IcePop); `sequence_truncate` and `sequence_mask`: the same with the product of
    the answer's ratios, one weight for all its tokens. They weight the full policy term, penalties that are part of
    the objective included, but not `kl` and the entropy bonus."""
    low: float = 0.5
    """Smallest ratio that is not masked, in [0, 1]; only the two masks read it, and 0 switches this bound off."""
    high: float = 2.0
    """Bound on the ratio, at least 1: truncation clamps larger ratios to it, a mask drops them."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"model.correction.method must be one of {get_args(Method)}, got {self.method!r}")
        if not 0 <= self.low <= 1:
            raise ValueError(f"model.correction.low must be in [0, 1], got {self.low}")
        if not (self.high >= 1 and isfinite(self.high)):
            raise ValueError(f"model.correction.high must be a finite number >= 1, got {self.high}")


def correction_weights(logp: Tensor, sampler_logp: Tensor, row: Tensor, rows: int, spec: CorrectionConfig) -> Tensor:
    """Weights of the policy loss of every token.

    With `r_t = exp(logp - sampler_logp)` a token's weight is `min(r_t, high)` (token_truncate), `r_t` inside
    [low, high] and else 0 (token_mask), or the same of the product of all `r_t` of its answer (sequence_truncate,
    sequence_mask). A NaN is passed through, never masked.

    Args:
        logp: [N], log-probabilities of the trainer under the policy that sampled.
        sampler_logp: [N], the sampler's log-probabilities.
        row: int64 [N], number of the token's answer, 0 .. rows-1; all tokens of an answer must be present.
        rows: number of answers.
        spec: method and bounds.

    Returns:
        [N], dtype of `logp`, detached. Exactly 1 where the two agree (on the token, or on every token of the answer).

    Raises:
        TypeError: `row` is not int64.
        ValueError: the shapes are not [N].
    """
    if row.dtype != torch.int64:
        raise TypeError(f"row must be int64, not {row.dtype}")
    if not (logp.ndim == 1 and logp.shape == sampler_logp.shape == row.shape):
        shapes = [tuple(tensor.shape) for tensor in (logp, sampler_logp, row)]
        raise ValueError(f"log-probabilities and row must be [N], got {', '.join(map(str, shapes))}")
    if spec.method == "none":
        return torch.ones_like(logp)
    # float64: a product over thousands of tokens must not depend on the order of the sum
    log_ratio = logp.detach().double() - sampler_logp.detach().double()
    if spec.method in ("sequence_truncate", "sequence_mask"):
        log_ratio = row_sums(log_ratio, row, rows)[row]
    # clamped above the bound, where the exact value does not matter: exp() of a long answer's sum would overflow
    ratio = log_ratio.clamp(max=log(spec.high) + 1).exp()
    if spec.method in ("token_truncate", "sequence_truncate"):
        weights = ratio.clamp(max=spec.high)
    else:
        weights = torch.where((ratio < spec.low) | (ratio > spec.high), 0.0, ratio)
    return weights.to(logp.dtype)


def mismatch_metrics(logp: Tensor, sampler_logp: Tensor, mask: Tensor) -> Metrics:
    """Metrics of the mismatch between sampler and trainer, over the tokens of the mask and before any correction.

    Args:
        logp: [N] or [S,T], log-probabilities of the trainer under the policy that sampled.
        sampler_logp: like `logp`, the sampler's log-probabilities.
        mask: bool, like `logp`, the tokens that count; other tokens may hold anything.

    Returns:
        Of `w = exp(logp - sampler_logp)`, with log-ratios clamped to `MAX_LOG_RATIO`, and of
        `d = abs(logp - sampler_logp)`, in nats, not clamped, the sums `tokens`, `weight_sum`, `weight_square_sum` (the
        effective share of the tokens is `weight_sum^2 / weight_square_sum / tokens`), `kl_sum` (the k3 estimate
        `w - 1 - log w` of KL(sampler || trainer), in nats, never negative) and `diff_sum` (of d), and the maxima
        `ratio` and `diff`, the largest w and d (0 for an empty mask).

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask must be bool, not {mask.dtype}")
    if not logp.shape == sampler_logp.shape == mask.shape:
        shapes = [tuple(tensor.shape) for tensor in (logp, sampler_logp, mask)]
        raise ValueError(f"log-probabilities and mask must have one shape, got {', '.join(map(str, shapes))}")
    log_ratio = torch.where(mask, logp.detach().double() - sampler_logp.detach().double(), 0.0)
    difference = log_ratio.abs()
    log_ratio = log_ratio.clamp(max=MAX_LOG_RATIO)
    weight = torch.where(mask, log_ratio.exp(), 0.0)
    sums = {
        "tokens": mask.sum(dtype=torch.float64),
        "weight_sum": weight.sum(),
        "weight_square_sum": weight.square().sum(),
        "kl_sum": k3(log_ratio).sum(),
        "diff_sum": difference.sum(),
    }
    return Metrics(sums, {"ratio": _largest(weight), "diff": _largest(difference)})


def _largest(values: Tensor) -> Tensor:
    """The largest of values that are not negative; 0 if there are none."""
    return torch.cat([values.flatten(), values.new_zeros(1)]).amax()
