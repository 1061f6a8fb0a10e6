"""The interface of an objective, the policy term of the loss, and the checks that several objectives share."""

from abc import ABC, abstractmethod
from math import isfinite
from typing import Literal

from torch import Tensor

from forklight.algo.batch import TokenBatch, TokenLoss
from forklight.algo.selection.covariance import CovarianceTokens
from forklight.algo.selection.spec import ForkSelection

Aggregate = Literal["token", "sequence", "constant"]
"""How token losses become one number: their mean; the mean over sequences of the mean over their tokens (GRPO); or
their sum over sequences times the length limit (Dr. GRPO)."""


class Objective(ABC):
    """A policy loss: what each token contributes and what the contributions are divided by.

    A config names it by `class_path`: one of `forklight.algo.objectives` or a class of your own.
    """

    aggregate: Aggregate = "token"
    """How token losses become one number."""
    trains: Literal["forks", "eligible"] = "forks"
    """The tokens with a gradient: those that the selection keeps, or all eligible tokens."""
    needs_reference: bool = False
    """True if `token_loss` reads `ref_logp`."""
    trains_zero_advantage: bool = False
    """True if tokens of advantage 0 can have a gradient, from a penalty in the loss."""
    separable: bool = False
    """True if a token's loss depends on its own log-probability and entropy alone, all other fields given: the head
    can then form its gradient tile by tile."""
    within_micro_batch: bool = False
    """True if a token's loss depends on other sequences of the same micro-batch: it changes with the batch split."""
    covariance: CovarianceTokens | None = None
    """Which tokens `cov_mask` has; None if `token_loss` does not read it."""

    @abstractmethod
    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """The loss of every token of a micro-batch.

        Args:
            tokens: of the micro-batch, or of a part of it if the objective is separable.

        Returns:
            Losses, 0 and without gradient outside `trained(tokens)`, and clip flags of all tokens.
        """

    def trained(self, tokens: TokenBatch) -> Tensor:
        """The tokens that have a gradient, bool `[N]`."""
        return tokens.fork_mask if self.trains == "forks" else tokens.eligible

    def check_selection(self, selection: ForkSelection) -> None:
        """Refuses a selection that the objective cannot be combined with; subclasses add to this.

        Args:
            selection: of the same config.

        Raises:
            ValueError: selection and objective contradict each other.
        """
        name = type(self).__name__
        if selection.denominator == "micro_batch" and self.aggregate != "token":
            raise ValueError(f"selection.denominator: micro_batch divides by tokens, {name} by sequences: use selected")
        if self.trains == "eligible" and selection.denominator != "answer":
            raise ValueError(
                f"{name} trains forking and other tokens; selection.denominator must be answer, not "
                f"{selection.denominator}"
            )
        if self.within_micro_batch and selection.scope != "micro_batch_rank":
            raise ValueError(
                f"{name} compares the tokens of a micro-batch; selection.scope must be micro_batch_rank, not "
                f"{selection.scope}"
            )

    def _terms(self, tokens: TokenBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first arguments of a formula: log-probabilities, old ones, advantages and the tokens that count."""
        return tokens.logp, tokens.old_logp, tokens.advantages, self.trained(tokens)

    def _given(self, values: Tensor | None, name: str) -> Tensor:
        """Returns an optional field of a `TokenBatch`; refuses a batch without it."""
        if values is None:
            raise ValueError(f"{type(self).__name__} needs {name} of the tokens")
        return values


def check_share(name: str, share: float) -> None:
    """Refuses a share that is not in (0, 1].

    Raises:
        ValueError: with the name of the objective's argument.
    """
    if not 0 < share <= 1:
        raise ValueError(f"model.objective.{name} must be above 0 and at most 1, got {share}")


def check_coef(name: str, value: float) -> None:
    """Refuses a coefficient that is negative, infinite or NaN.

    Raises:
        ValueError: with the name of the objective's argument.
    """
    if not (value >= 0 and isfinite(value)):
        raise ValueError(f"model.objective.{name} must be a finite number >= 0, got {value}")
