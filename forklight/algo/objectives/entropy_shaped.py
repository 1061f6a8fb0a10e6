"""Entropy-shaped advantages: a token's advantage grows with the policy's entropy at that token."""

from math import isfinite

import torch
from torch import Tensor

from forklight.algo.batch import TokenBatch, TokenLoss
from forklight.algo.objectives.base import Objective, check_coef
from forklight.algo.objectives.clipped import clipped_loss
from forklight.algo.ratios import ClipRange


class EntropyShaped(Objective):
    """Clipped surrogate with advantages raised by the entropy: arXiv 2506.14758, Eqs. 5 and 6.

    Args:
        clip: range of the ratio.
        alpha: advantage per nat of entropy; the paper's for GRPO (0.1 for PPO).
        kappa: an advantage A is raised by at most |A| / kappa; above 1, so that none changes its sign.
    """

    separable = True

    def __init__(self, clip: ClipRange = ClipRange(), alpha: float = 0.4, kappa: float = 2.0) -> None:  # noqa: B008
        check_coef("alpha", alpha)
        if not (kappa > 1 and isfinite(kappa)):
            raise ValueError(f"model.objective.kappa must be a finite number > 1, got {kappa}")
        self.clip = clip
        self.alpha = alpha
        self.kappa = kappa

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `entropy_shaped_advantages`."""
        entropy = self._given(tokens.entropy, "entropy")
        advantages = entropy_shaped_advantages(tokens.advantages, entropy, self.alpha, self.kappa)
        return clipped_loss(tokens.logp, tokens.old_logp, advantages, self.trained(tokens), self.clip)


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
