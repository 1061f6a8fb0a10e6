"""The LM head over the answer tokens of a micro-batch: three ways to the same log-probabilities and gradients.

- `selected`: the rows that the loss reads, in tiles; never [rows x V]. A token that the loss does not read costs at
  most one pass without gradient, and nothing if its statistics are known.
- `gathered`: the same rows under plain autograd: the readable path.
- `full`: all answer rows under plain autograd: the reference.

A head is valid during one forward pass, in which the LM head's weight may be gathered from shards; a loss function must
not keep it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from forklight.algo.batch import TokenStats
from forklight.algo.logprobs.fused import SelectedLoss, selected_policy_loss, selected_stats, token_stats
from forklight.algo.logprobs.plain import plain_stats
from forklight.algo.logprobs.transform import PLAIN, LogitTransform

HeadName = Literal["selected", "gathered", "full"]

TokenLossFn = Callable[[TokenStats, slice], Tensor]
"""The loss of some rows, `[m]`, from their statistics and their slice of the rows that have a loss."""


@dataclass
class Head(ABC):
    """Hidden states of N answer tokens and the LM head's weight."""

    hidden: Tensor  # [N,H] the states that predict the tokens
    weight: Tensor  # [V,H]
    targets: Tensor  # int64 [N] the tokens
    temperature: float
    """Of log-probabilities: those of logits / temperature."""
    entropy_temperature: float
    """Of entropies."""
    entropy_grad: bool
    """Whether the statistics of `stats` have differentiable entropies."""
    transform: LogitTransform = PLAIN
    """What makes logits of the products of hidden states and weight; all statistics are those of the logits."""
    products: int = field(default=0, init=False)
    """Products of a row with the weight so far, those of backward included."""

    covers_all = False
    """True if every row gets a gradient anyway, so that statistics of all rows cost nothing extra."""

    def __len__(self) -> int:
        """N."""
        return len(self.targets)

    @property
    def dtype(self) -> torch.dtype:
        """Of statistics: float64 for a float64 policy, else float32."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def fuses(self) -> bool:
        """True if `fused_loss` can be used."""
        return False

    @abstractmethod
    def all_stats(self) -> TokenStats:
        """Statistics of all tokens, `[N]`; without gradient unless the head `covers_all`."""

    @abstractmethod
    def stats(self, rows: Tensor, known: TokenStats | None = None) -> TokenStats:
        """Differentiable statistics of some rows among those of all tokens, `[N]`.

        Args:
            rows: int64 [M], the tokens with a gradient.
            known: what `all_stats` returned, if it was called.

        Returns:
            Those of `rows` are connected to hidden states and weight; the others are those of `known`, or NaN.
        """

    def fused_loss(self, rows: Tensor, token_loss: TokenLossFn) -> tuple[Tensor, TokenStats]:
        """The summed loss of some rows, whose gradient is computed while their logits are in memory.

        Args:
            rows: int64 [M], the tokens with a loss.
            token_loss: the loss, of which each value depends on its own token's log-probability alone.

        Returns:
            The loss `[]`, connected, and detached statistics of all tokens `[N]`, NaN outside `rows`.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot fuse the loss")

    def _spread(self, some: TokenStats, rows: Tensor, known: TokenStats | None) -> TokenStats:
        """Statistics of all rows: `some` at `rows`, elsewhere those of `known`, or NaN."""
        if known is None:
            nan = some.logp.new_full((len(self),), torch.nan)
            known = TokenStats(nan, nan, grad_square=nan)
        assert some.grad_square is not None and known.grad_square is not None
        return TokenStats(
            logp=known.logp.index_put((rows,), some.logp),
            entropy=known.entropy.index_put((rows,), some.entropy),
            grad_square=known.grad_square.index_put((rows,), some.grad_square),
        )


class FullHead(Head):
    """Every answer row, plain autograd."""

    covers_all = True

    def all_stats(self) -> TokenStats:
        """See `Head.all_stats`; connected, if gradients are recorded."""
        self.products += len(self) * (3 if torch.is_grad_enabled() else 1)
        return _plain(self, self.hidden, self.targets)

    def stats(self, rows: Tensor, known: TokenStats | None = None) -> TokenStats:
        """See `Head.stats`: all rows are connected."""
        return self.all_stats() if known is None else known


class GatheredHead(Head):
    """The rows that the loss reads, plain autograd."""

    def all_stats(self) -> TokenStats:
        """See `Head.all_stats`."""
        self.products += len(self)
        with torch.no_grad():
            # by the same products as those of rows with a gradient later, so that their ratio is exactly 1
            return _without_cast_cache(_plain(self, self.hidden, self.targets))

    def stats(self, rows: Tensor, known: TokenStats | None = None) -> TokenStats:
        """See `Head.stats`."""
        self.products += 3 * len(rows)
        return self._spread(_plain(self, self.hidden[rows], self.targets[rows]), rows, known)


class SelectedHead(Head):
    """The rows that the loss reads, in tiles."""

    @property
    def fuses(self) -> bool:
        """True if there is one softmax per row, and a gradient of its log-probability alone."""
        return not self.entropy_grad and self.entropy_temperature == self.temperature

    def all_stats(self) -> TokenStats:
        """See `Head.all_stats`."""
        self.products += len(self)
        with torch.no_grad():
            found = token_stats(
                self.hidden, self.weight, self.targets, self.temperature, self.entropy_temperature, self.entropy_grad,
                self.transform,
            )  # fmt: skip
            return _without_cast_cache(found)

    def stats(self, rows: Tensor, known: TokenStats | None = None) -> TokenStats:
        """See `Head.stats`; logits of rows with known statistics are computed in backward only."""
        one_softmax = self.entropy_temperature == self.temperature or not self.entropy_grad
        reusable = known if one_softmax else None
        self.products += len(rows) * (3 if reusable is not None else 4)
        found = selected_stats(
            self.hidden, self.weight, self.targets, rows,
            self.temperature, self.entropy_temperature, self.entropy_grad, known=reusable,
            transform=self.transform,
        )  # fmt: skip
        return self._spread(found, rows, known)

    def fused_loss(self, rows: Tensor, token_loss: TokenLossFn) -> tuple[Tensor, TokenStats]:
        """See `Head.fused_loss`."""
        self.products += 3 * len(rows)
        found: SelectedLoss = selected_policy_loss(
            self.hidden, self.weight, self.targets, rows, token_loss, self.temperature, self.transform
        )
        return found.loss, self._spread(found.stats, rows, None)


HEADS: dict[HeadName, type[Head]] = {"selected": SelectedHead, "gathered": GatheredHead, "full": FullHead}


def all_stats(head: Head) -> TokenStats:
    """A loss function for passes that only need statistics: those of all tokens."""
    return head.all_stats()


def differentiable_stats(head: Head) -> TokenStats:
    """A loss function for passes that need differentiable statistics of all tokens."""
    return head.stats(torch.arange(len(head), device=head.targets.device))


def _plain(head: Head, hidden: Tensor, targets: Tensor) -> TokenStats:
    return plain_stats(
        hidden, head.weight, targets, head.temperature, head.entropy_temperature, head.entropy_grad, head.transform
    )


def _without_cast_cache(stats: TokenStats) -> TokenStats:
    """Clears the cache: some versions of torch reuse casts made without gradient in a later pass that needs one."""
    torch.clear_autocast_cache()
    return stats
