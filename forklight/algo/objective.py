"""What an objective is: the interface of the policy losses, those that ship and a user's own."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor

from forklight.algo.covariance import CovarianceTokens
from forklight.algo.types import TokenBatch, TokenLoss

Aggregate = Literal["token", "sequence", "constant"]
"""How token losses become one number: their mean; the mean over sequences of the mean over their tokens (GRPO); or
their sum over sequences times the length limit (Dr. GRPO)."""


class Objective(ABC):
    """A policy loss: what each token contributes and what the contributions are divided by.

    A class of one's own is chosen by its `class_path`, like those of `forklight.algo.objectives`.
    """

    aggregate: Aggregate = "token"
    """How token losses become one number."""
    trains: Literal["forks", "eligible"] = "forks"
    """The tokens with a gradient: those that the selection keeps, or all that it chose from."""
    needs_reference: bool = False
    """True if `token_loss` reads `ref_logp`."""
    trains_zero_advantage: bool = False
    """True if tokens of advantage 0 can have a gradient, of a penalty that is part of the loss."""
    separable: bool = False
    """True if a token's loss depends on its own log-probability and entropy alone, all other fields given: the head
    can then form its gradient tile by tile."""
    covariance: CovarianceTokens | None = None
    """The tokens of `cov_mask`; None if `token_loss` reads no such mask."""

    @abstractmethod
    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """The loss of every token of a visit.

        Args:
            tokens: of the visit.

        Returns:
            Losses, 0 and without gradient outside `trained(tokens)`, and clip flags of all tokens.
        """

    def trained(self, tokens: TokenBatch) -> Tensor:
        """The tokens that have a gradient, bool `[N]`."""
        return tokens.fork_mask if self.trains == "forks" else tokens.eligible

    def _terms(self, tokens: TokenBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return tokens.logp, tokens.old_logp, tokens.advantages, self.trained(tokens)
