"""Clip-Cov and KL-Cov: losses that restrain the few tokens of high covariance, which lower the entropy.

`forklight.algo.selection.covariance` finds these tokens in the set of tokens that the selection ranks together, or in
all of an update with `scope: sequence`; here they are given as a mask.
"""

from math import isfinite

import torch
from torch import Tensor

from forklight.algo.batch import TokenBatch, TokenLoss
from forklight.algo.objectives.base import Objective, check_coef, check_share
from forklight.algo.objectives.clipped import clipped_loss
from forklight.algo.ratios import ClipRange, capped_exp, check_tokens
from forklight.algo.selection.covariance import CovarianceTokens


class ClipCov(Objective):
    """The clipped surrogate without a few random tokens of high covariance: arXiv 2505.22617, Eqs. 10 to 12.

    Args:
        clip: range of the ratio; the default is that of the authors' recipes, wide because the covariance does the
            clipping.
        share: share of the kept tokens that lose their gradient.
        low: lowest covariance of these tokens.
        high: highest covariance of these tokens.
    """

    separable = True

    def __init__(
        self,
        clip: ClipRange = ClipRange(1.0, 1.0),  # noqa: B008
        share: float = 0.0002,
        low: float = 1.0,
        high: float = 5.0,
    ) -> None:
        check_share("share", share)
        if not (isfinite(low) and low < high):
            raise ValueError(f"model.objective.low = {low} must be finite and below model.objective.high = {high}")
        self.clip = clip
        self.covariance = CovarianceTokens(share, low, high)

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `clip_cov_loss`."""
        return clip_cov_loss(*self._terms(tokens), self._given(tokens.cov_mask, "cov_mask"), self.clip)


class KlCov(Objective):
    """No clipping, and a penalty on the log-ratio of the tokens of highest covariance: arXiv 2505.22617, Eqs. 13, 14.

    Args:
        penalised_share: share of the kept tokens that are penalised; the paper's for 7B models (0.0002 for 32B).
        coef: weight of the penalty.
    """

    separable = True
    trains_zero_advantage = True

    def __init__(self, penalised_share: float = 0.002, coef: float = 1.0) -> None:
        check_share("penalised_share", penalised_share)
        check_coef("coef", coef)
        self.coef = coef
        self.covariance = CovarianceTokens(penalised_share)

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `kl_cov_loss`."""
        return kl_cov_loss(*self._terms(tokens), self._given(tokens.cov_mask, "cov_mask"), self.coef)


def clip_cov_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, cov_mask: Tensor, clip: ClipRange
) -> TokenLoss:
    """Clip-Cov: the clipped surrogate, 0 on the tokens of `cov_mask`: arXiv 2505.22617, Eq. 12.

    Args:
        logp: [N], log-probabilities under the policy being trained.
        old_logp: [N], under the policy that starts the rollout's updates; never differentiated.
        advantages: [N]; never differentiated.
        mask: bool [N], the tokens that count; those of `cov_mask` still count in a denominator.
        cov_mask: bool [N], the tokens that lose their loss and gradient.
        clip: range of the ratio.

    Returns:
        As `clipped_loss`.

    Raises:
        TypeError: a mask is not bool.
        ValueError: shapes do not agree.
    """
    check_tokens(cov_mask, mask)
    return clipped_loss(logp, old_logp, advantages, mask & ~cov_mask, clip)


def kl_cov_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, cov_mask: Tensor, coef: float
) -> TokenLoss:
    """KL-Cov: no clipping, and a penalty on the tokens of `cov_mask`.

    `-A r + coef |logp - old_logp|` on tokens of `cov_mask`, `-A r` on the others: arXiv 2505.22617, Eq. 14, with the
    absolute log-ratio of its Listing 1 for the divergence. Where the ratio is 1 the penalty has no gradient, so it acts
    from the second update of a rollout on.

    Args:
        logp: [N], log-probabilities under the policy being trained.
        old_logp: [N], under the policy that starts the rollout's updates; never differentiated.
        advantages: [N]; never differentiated.
        mask: bool [N], the tokens that count.
        cov_mask: bool [N], the tokens with a penalty, as far as they count.
        coef: weight of the penalty.

    Returns:
        The loss [N]; no flags.

    Raises:
        TypeError: a mask is not bool.
        ValueError: shapes do not agree.
    """
    check_tokens(mask, logp, old_logp, advantages)
    check_tokens(cov_mask, mask)
    log_ratio = torch.where(mask, logp - old_logp.detach(), 0.0)
    loss = -torch.where(mask, advantages.detach(), 0.0) * capped_exp(log_ratio)
    nothing = torch.zeros_like(mask)
    return TokenLoss(loss + coef * torch.where(cov_mask, log_ratio, 0.0).abs(), nothing, nothing, nothing)
