"""Three ways from hidden states to the loss of a visit, which give the same numbers.

- `selected`: the rows that the loss reads, in tiles; never [rows x V]. What unselected tokens cost is at most one pass
  without gradient, and nothing where their statistics are known.
- `gathered`: the same rows under plain autograd: the readable path.
- `full`: all answer rows under plain autograd: the reference.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from forklight.algo.logprobs import selected_policy_loss, selected_stats, token_stats
from forklight.algo.plain_head import plain_stats
from forklight.algo.types import TokenStats

HeadName = Literal["selected", "gathered", "full"]


class VisitOutput(NamedTuple):
    """What a visit contributes."""

    loss: Tensor
    """Scalar, connected to the policy."""
    metrics: dict[str, Tensor]
    """Detached sums and counts."""
    head_products: int = 0
    """Rows times the products with the head's weight that each went through, those of backward included."""


class VisitLoss(Protocol):
    """The loss of a visit, as the heads see it. Its N tokens are those of the chunk, in row order."""

    separable: bool
    """True if a token's part of the loss depends on its own log-probability alone, all else given."""
    wants_all: bool
    """True if statistics of all tokens are wanted, whether they have a gradient or not."""

    def rows(self) -> Tensor | None:
        """The tokens that some term gives a gradient, int64 `[M]`; None if that hangs on their statistics."""

    def see(self, stats: TokenStats) -> None:
        """Takes the statistics of all N tokens; the selection is made of them if it is made in here."""

    def token_loss(self, stats: TokenStats, rows: Tensor) -> Tensor:
        """What some tokens contribute to the loss, `[m]`; for a separable loss."""

    def total(self, stats: TokenStats) -> VisitOutput:
        """The loss from the statistics of all N tokens; NaN stands where a token was not looked at."""


class HeadInput(NamedTuple):
    """What goes into the head."""

    hidden: Tensor  # [N,H]
    weight: Tensor  # [V,H]
    targets: Tensor  # int64 [N]
    temperature: float
    entropy_temperature: float
    entropy_grad: bool


def full_head(x: HeadInput, loss: VisitLoss) -> VisitOutput:
    """Every answer row, plain autograd."""
    stats = plain_stats(*x)
    loss.see(stats)
    return loss.total(stats)._replace(head_products=3 * len(x.targets))


def gathered_head(x: HeadInput, loss: VisitLoss) -> VisitOutput:
    """The rows that the loss reads, plain autograd."""
    known, rows = _before(x, loss, plain_stats)
    some = x._replace(hidden=x.hidden[rows], targets=x.targets[rows])
    out = _total(loss, _spread(plain_stats(*some), rows, known, len(x.targets)), known)
    return out._replace(head_products=3 * len(rows) + (0 if known is None else len(x.targets)))


def selected_head(x: HeadInput, loss: VisitLoss) -> VisitOutput:
    """The rows that the loss reads, in tiles."""
    rows = loss.rows()
    if rows is not None and loss.separable and not x.entropy_grad and x.entropy_temperature == x.temperature:
        everything = len(rows) == len(x.targets)
        if everything or not loss.wants_all:
            return _in_one_pass(x, loss, rows)
    known, rows = _before(x, loss, token_stats)
    reusable = known if x.entropy_temperature == x.temperature or not x.entropy_grad else None
    found = selected_stats(*x[:3], rows, *x[3:], known=reusable)
    out = _total(loss, _spread(found, rows, known, len(x.targets)), known)
    products = 3 * len(rows) + (len(rows) if reusable is None else 0) + (0 if known is None else len(x.targets))
    return out._replace(head_products=products)


HEADS: dict[HeadName, Callable[[HeadInput, VisitLoss], VisitOutput]] = {
    "selected": selected_head,
    "gathered": gathered_head,
    "full": full_head,
}


def _in_one_pass(x: HeadInput, loss: VisitLoss, rows: Tensor) -> VisitOutput:
    """The gradient is formed while the logits are at hand; the curves are made of the log-probabilities afterwards."""
    found = selected_policy_loss(
        *x[:3], rows, lambda stats, part: loss.token_loss(stats, rows[part]), temperature=x.temperature
    )
    stats = _spread(found.stats, rows, None, len(x.targets))
    # connected to itself, so that a gradient of tokens outside of the mask is seen
    out = _total(loss, replace(stats, logp=stats.logp.requires_grad_()), None)
    return VisitOutput(found.loss, out.metrics, 3 * len(rows))


def _total(loss: VisitLoss, stats: TokenStats, known: TokenStats | None) -> VisitOutput:
    """The loss, after it has seen statistics of all tokens if it wants them: then the pass over its rows found them."""
    if loss.wants_all and known is None:
        loss.see(replace(stats, logp=stats.logp.detach(), entropy=stats.entropy.detach()))
    return loss.total(stats)


def _before(x: HeadInput, loss: VisitLoss, statistics: Callable[..., TokenStats]) -> tuple[TokenStats | None, Tensor]:
    """Statistics of all rows, where they are wanted, and the rows that the loss reads."""
    known, rows = None, loss.rows()
    if rows is None or (loss.wants_all and len(rows) < len(x.targets)):
        with torch.no_grad():
            known = statistics(*x)
        loss.see(known)
        # some versions of torch keep the casts of weights made here, without gradient, for the pass that needs one
        torch.clear_autocast_cache()
        rows = loss.rows()
    assert rows is not None, "the selection is made of the statistics of all tokens"
    return known, rows


def _spread(some: TokenStats, rows: Tensor, known: TokenStats | None, count: int) -> TokenStats:
    """Statistics of some rows among those of all, which are NaN where nobody has looked."""
    if known is None:
        nan = some.logp.new_full((count,), torch.nan)
        known = TokenStats(nan, nan)
    return TokenStats(
        logp=known.logp.index_put((rows,), some.logp), entropy=known.entropy.index_put((rows,), some.entropy)
    )
