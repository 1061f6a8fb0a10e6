"""Policy losses whose ratio is a whole sequence's (GSPO), token by token.

With a mask the sequence's ratio is that of its kept tokens: the others never enter it.
"""

import torch
from torch import Tensor

from forklight.algo.losses import ClipRange, check_tokens, clipped_surrogate
from forklight.algo.rows import row_sums
from forklight.algo.types import TokenLoss


def gspo_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, row: Tensor, rows: int, clip: ClipRange
) -> TokenLoss:
    """GSPO: one ratio per sequence, `s = exp(mean over its kept tokens of (logp - old_logp))`.

    Every kept token carries its sequence's whole term `max(-s A, -clip(s, 1 - low, 1 + high) A)`: arXiv 2507.18071,
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
        The loss [N]; flags as for `clipped_loss`, the same for all tokens of a sequence whose advantages agree.

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
