"""Policy losses in which a token's entropy does more than decide whether it counts."""

import torch
from torch import Tensor

from forklight.algo.kl import kl_estimate
from forklight.algo.losses import ClipRange, check_tokens, clipped_loss
from forklight.algo.types import TokenLoss


def entropy_shaped_advantages(advantages: Tensor, entropy: Tensor, alpha: float, kappa: float) -> Tensor:
    """Advantages raised where the policy is uncertain: arXiv 2506.14758, Eqs. 5 and 6.

    `A + min(alpha H, |A| / kappa)`, without a gradient through H. With `kappa` above 1 no advantage changes its sign.

    Args:
        advantages: [N].
        entropy: [N], in nats, of the policy being trained.
        alpha: advantage per nat.
        kappa: the raise is at most `|A| / kappa`.

    Returns:
        [N], detached.
    """
    bonus = torch.minimum(alpha * entropy.detach(), advantages.detach().abs() / kappa)
    return advantages.detach() + bonus


def dual_token_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    fork_mask: Tensor,
    *,
    fork_clip: ClipRange,
    other_clip: ClipRange,
    ref_logp: Tensor | None = None,
    fork_kl: float = 0.0,
    other_kl: float = 0.001,
) -> TokenLoss:
    """Archer: all tokens are trained, forking tokens on a longer leash than the others.

    `clipped_loss + beta k3(logp, ref_logp)` with a clip range and a beta of its own for each kind of token: arXiv
    2507.15778 (v2), Eqs. 3 to 5.

    Args:
        logp: [N], log-probabilities under the policy being trained.
        old_logp: [N], under the policy that starts the rollout's updates; never differentiated.
        advantages: [N]; never differentiated.
        mask: bool [N], the tokens that count.
        fork_mask: bool [N], the forking tokens among them.
        fork_clip: range of the ratio of forking tokens.
        other_clip: that of the others.
        ref_logp: [N], under the reference model; only needed with a KL coefficient above 0.
        fork_kl: KL coefficient of forking tokens.
        other_kl: that of the others.

    Returns:
        As `clipped_loss`, each token flagged by its own range.

    Raises:
        TypeError: a mask is not bool.
        ValueError: shapes do not agree, or a KL coefficient is above 0 without `ref_logp`.
    """
    check_tokens(fork_mask, logp)
    fork = clipped_loss(logp, old_logp, advantages, mask & fork_mask, fork_clip)
    other = clipped_loss(logp, old_logp, advantages, mask & ~fork_mask, other_clip)
    loss = fork.loss + other.loss
    for part, coef in ((mask & fork_mask, fork_kl), (mask & ~fork_mask, other_kl)):
        if coef > 0:
            if ref_logp is None:
                raise ValueError(f"the KL coefficient {coef} needs the reference model's log-probabilities")
            loss = loss + coef * kl_estimate(logp, ref_logp, part, "k3")
    return TokenLoss(
        loss=loss,
        clip_low=torch.where(fork_mask, fork.clip_low, other.clip_low),
        clip_high=torch.where(fork_mask, fork.clip_high, other.clip_high),
        clip_dual=torch.where(fork_mask, fork.clip_dual, other.clip_dual),
    )
