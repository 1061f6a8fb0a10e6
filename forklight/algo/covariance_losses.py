"""Policy losses that hold back the few tokens which drive the entropy down: those of high covariance.

The tokens are chosen elsewhere, over the set of tokens that the selection ranks together, and for its scope `sequence`
over a whole update; here a mask tells them.
"""

import torch
from torch import Tensor

from forklight.algo.losses import MAX_LOG_RATIO, ClipRange, check_tokens, clipped_loss
from forklight.algo.types import TokenLoss


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
    loss = -torch.where(mask, advantages.detach(), 0.0) * log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    nothing = torch.zeros_like(mask)
    return TokenLoss(loss + coef * torch.where(cov_mask, log_ratio, 0.0).abs(), nothing, nothing, nothing)
