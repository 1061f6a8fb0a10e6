"""GSPO: one probability ratio per sequence.

With a mask the ratio of a sequence is that of its kept tokens: dropped tokens do not enter it.
"""

import torch
from torch import Tensor

from forklight.algo.batch import TokenBatch, TokenLoss
from forklight.algo.objectives.base import Objective
from forklight.algo.objectives.clipped import clipped_surrogate
from forklight.algo.ratios import ClipRange, check_tokens
from forklight.algo.rows import row_sums
from forklight.algo.selection.spec import ForkSelection


class Gspo(Objective):
    """One ratio per sequence, the geometric mean over its kept tokens: arXiv 2507.18071, Eq. 5.

    Args:
        sequence_clip: range of the sequences' ratios, which stay much nearer to 1 than those of tokens.
    """

    aggregate = "sequence"

    def __init__(self, sequence_clip: ClipRange = ClipRange(3e-4, 4e-4)) -> None:  # noqa: B008
        self.sequence_clip = sequence_clip

    def check_selection(self, selection: ForkSelection) -> None:
        """Refuses `denominator: answer` too: the log-ratio is a mean over kept tokens, and so must be the loss.

        Args:
            selection: of the same config.

        Raises:
            ValueError: selection and objective contradict each other.
        """
        super().check_selection(selection)
        if selection.denominator == "answer":
            raise ValueError(
                f"{type(self).__name__} averages over a sequence's kept tokens: selection.denominator must be selected"
            )

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `gspo_loss`."""
        return gspo_loss(*self._terms(tokens), tokens.row, tokens.rows, self.sequence_clip)


class GspoToken(Gspo):
    """GSPO with each token's own gradient, for advantages that differ inside a sequence: arXiv 2507.18071, Eq. 13.

    Args:
        sequence_clip: range of the sequences' ratios.
    """

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `gspo_token_loss`."""
        return gspo_token_loss(*self._terms(tokens), tokens.row, tokens.rows, self.sequence_clip)


def gspo_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, row: Tensor, rows: int, clip: ClipRange
) -> TokenLoss:
    """GSPO: one ratio per sequence, `s = exp(mean over its kept tokens of (logp - old_logp))`.

    Every kept token has the full term of its sequence, `max(-s A, -clip(s, 1 - low, 1 + high) A)`: arXiv 2507.18071,
    Eqs. 5 and 7. The mean over the kept tokens of a sequence is then the term of the paper, in value and in gradient
    (each of the n equal copies is connected to all n tokens). A mean over all tokens would weigh long sequences more,
    which is another objective.

    Args:
        logp: [N], log-probabilities under the policy being trained.
        old_logp: [N], under the policy that starts the rollout's updates; never differentiated.
        advantages: [N]; never differentiated.
        mask: bool [N], the tokens that count.
        row: int64 [N], each token's sequence, 0 .. rows-1.
        rows: number of sequences.
        clip: range of the sequences' ratios.

    Returns:
        The loss [N]; flags as for `clipped_loss`, the same for all tokens of a sequence whose advantages are equal.

    Raises:
        TypeError: the mask is not bool or `row` not int64.
        ValueError: shapes do not agree.
    """
    _check(logp, old_logp, advantages, mask, row)
    mean = _mean_of_kept(logp - old_logp.detach(), mask, row, rows)
    return clipped_surrogate(mean, advantages, mask, clip)


def gspo_token_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, row: Tensor, rows: int, clip: ClipRange
) -> TokenLoss:
    """GSPO-token: the sequence's ratio in value, each token's own gradient.

    The ratio is `s_t = sg(s) pi / sg(pi)` with `sg` for stop-gradient: arXiv 2507.18071, Eqs. 13 and 14. Averaged over
    the kept tokens of a sequence, value and gradient are those of `gspo_loss` where all its advantages are equal; where
    they differ, each acts on its own token.

    Args:
        logp: [N], log-probabilities under the policy being trained.
        old_logp: [N], under the policy that starts the rollout's updates; never differentiated.
        advantages: [N]; never differentiated.
        mask: bool [N], the tokens that count.
        row: int64 [N], each token's sequence, 0 .. rows-1.
        rows: number of sequences.
        clip: range of the sequences' ratios.

    Returns:
        As `gspo_loss`.

    Raises:
        TypeError: the mask is not bool or `row` not int64.
        ValueError: shapes do not agree.
    """
    _check(logp, old_logp, advantages, mask, row)
    mean = _mean_of_kept((logp - old_logp).detach(), mask, row, rows)
    kept = torch.where(mask, logp, 0.0)
    return clipped_surrogate(mean + (kept - kept.detach()), advantages, mask, clip)


def _mean_of_kept(values: Tensor, mask: Tensor, row: Tensor, rows: int) -> Tensor:
    """The mean over the kept tokens of each token's sequence, `[N]`; 0 where none is kept."""
    # float64: the range of GSPO is a few 1e-4 wide, and a sequence has thousands of tokens
    total = row_sums(torch.where(mask, values, 0.0), row, rows)
    count = row_sums(mask.double(), row, rows)
    return (total / count.clamp(min=1))[row].to(values.dtype)  # indexing adds up gradients in one order


def _check(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, row: Tensor) -> None:
    check_tokens(mask, logp, old_logp, advantages, row)
    if row.dtype != torch.int64:
        raise TypeError(f"row must be int64, not {row.dtype}")
