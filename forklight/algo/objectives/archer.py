"""Archer: all tokens are trained, with a separate clip range and KL coefficient for forking tokens."""

import torch
from torch import Tensor

from forklight.algo.batch import TokenBatch, TokenLoss
from forklight.algo.kl import kl_estimate
from forklight.algo.objectives.base import Objective, check_coef
from forklight.algo.objectives.clipped import clipped_loss
from forklight.algo.ratios import ClipRange, check_tokens


class Archer(Objective):
    """All tokens are trained; forking tokens have a wider range and a smaller KL term: arXiv 2507.15778 (v2), Eq. 5.

    The paper selects per answer: `selection.scope: sequence`, `rho: 0.2`, `rule: threshold`.

    Args:
        fork_clip: range of the ratio of forking tokens.
        other_clip: that of the other tokens.
        fork_kl: coefficient of the KL (k3) to the reference on forking tokens.
        other_kl: that on the other tokens.
    """

    trains = "eligible"
    separable = True

    def __init__(
        self,
        fork_clip: ClipRange = ClipRange(0.5, 0.5),  # noqa: B008
        other_clip: ClipRange = ClipRange(0.2, 0.2),  # noqa: B008
        fork_kl: float = 0.0,
        other_kl: float = 0.001,
    ) -> None:
        check_coef("fork_kl", fork_kl)
        check_coef("other_kl", other_kl)
        self.fork_clip = fork_clip
        self.other_clip = other_clip
        self.fork_kl = fork_kl
        self.other_kl = other_kl
        self.needs_reference = self.trains_zero_advantage = fork_kl > 0 or other_kl > 0

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `dual_token_loss`."""
        return dual_token_loss(
            *self._terms(tokens),
            tokens.fork_mask,
            fork_clip=self.fork_clip,
            other_clip=self.other_clip,
            ref_logp=self._given(tokens.ref_logp, "ref_logp") if self.needs_reference else None,
            fork_kl=self.fork_kl,
            other_kl=self.other_kl,
        )


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
    """Archer: the clipped surrogate and a KL term on all tokens, with separate settings for forking tokens.

    `clipped_loss + beta k3(logp, ref_logp)` with one clip range and beta for forking tokens and another for the rest:
    arXiv 2507.15778 (v2), Eqs. 3 to 5.

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
