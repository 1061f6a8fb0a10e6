"""STARE: surprising tokens get separate weights while the entropy is below a target."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from forklight.algo.batch import TokenBatch, TokenLoss
from forklight.algo.objectives.base import Objective, check_coef, check_share
from forklight.algo.objectives.clipped import clipped_loss
from forklight.algo.ratios import ClipRange, check_tokens


@dataclass(eq=False)
class Stare(Objective):
    """Clipped surrogate, weighted by `stare_weights` per micro-batch as in the authors' code: arXiv 2606.19236."""

    within_micro_batch = True
    clip: ClipRange = field(default_factory=ClipRange)
    """Range of the ratio."""
    surprising_share: float = 0.1
    """Share P of the tokens with A > 0, and of those with A < 0, that count as surprising."""
    positive_weight: float = 1.1
    """Weight W of surprising tokens with A > 0."""
    negative_weight: float = 1.0
    """Weight M of surprising tokens with A < 0: 1 in the paper's variant O1, 0.9 in its variant C2."""
    target_entropy: float = 0.3
    """In nats; where the mean entropy of the tokens reaches it, all weights are 1."""

    def __post_init__(self) -> None:
        check_share("surprising_share", self.surprising_share)
        for name in ("positive_weight", "negative_weight", "target_entropy"):
            check_coef(name, getattr(self, name))

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `stare_weights`."""
        weights = stare_weights(tokens, self._given(tokens.entropy, "entropy"), self.trained(tokens), self)
        found = clipped_loss(*self._terms(tokens), self.clip)
        return replace(found, loss=found.loss * weights)


def stare_weights(tokens: TokenBatch, entropy: Tensor, mask: Tensor, spec: Stare) -> Tensor:
    """Weights of token losses, `[N]` and detached: arXiv 2606.19236, sections 4.1 to 4.3, without adaptive weights.

    W on the ceil(P n) least likely of the n tokens of `mask` with A > 0, M likewise for A < 0, and 1 elsewhere; 1 on
    all tokens if the mean entropy over `mask` reaches the target. Of equally likely tokens the first ones are weighted.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree.
    """
    check_tokens(mask, tokens.logp, tokens.advantages, entropy)
    weights, count = torch.ones_like(tokens.advantages), mask.sum(dtype=torch.float64)
    below = torch.where(mask, entropy.detach(), 0.0).sum(dtype=torch.float64) < spec.target_entropy * count
    for sign, weight in ((1, spec.positive_weight), (-1, spec.negative_weight)):
        side = mask & (tokens.advantages.sign() == sign)
        rank = torch.where(side, tokens.logp.detach(), torch.inf).argsort(stable=True).argsort()
        k = (spec.surprising_share * side.sum(dtype=torch.float64) - 1e-6).ceil().clamp(min=1)  # 0.07 * 100 > 7
        weights = torch.where(below & side & (rank < k), weight, weights)
    return weights
