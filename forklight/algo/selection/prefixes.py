"""One value for tokens with the same prefix.

The answers of a group share prefixes: the distribution of the first token is always the same. Computed in different
rows of a batch, its entropy differs in the last digits, and rounding would decide which answer's token is kept.
"""

import torch
from torch import Tensor

from forklight.algo.noise import hash_bits
from forklight.algo.selection.topk import tiles


def prefix_keys(answer_ids: Tensor, group: Tensor, *, inclusive: bool = False) -> Tensor:
    """A 64-bit key of each token's prefix: the problem and the answer so far.

    Args:
        answer_ids: int64 [S,T]; ids after an answer's end do not change the keys before it.
        group: int64 [S], equal for answers to one prompt.
        inclusive: whether the key includes the token itself, as needed for log-probabilities: those of other tokens
            with the same prefix differ.

    Returns:
        int64 [S,T]; tokens with equal prefixes have equal keys, two others collide with probability 2**-64.
    """
    position = torch.arange(answer_ids.shape[1], device=answer_ids.device)
    keys = torch.empty_like(answer_ids)
    for rows in tiles(answer_ids):
        tokens = hash_bits(answer_ids[rows], position)
        so_far = tokens.cumsum(1)  # a sum modulo 2**64 over the tokens, each hashed with its position
        keys[rows] = hash_bits(group[rows])[:, None] + (so_far if inclusive else so_far - tokens)
    return keys


def share_first(values: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Gives every token the value of the first row that has its key in its column.

    Answers diverge early and for good, so only the columns where two rows still agree are processed, in blocks that
    double in length.

    Args:
        values: [S,T], such as entropies.
        keys: int64 [S,T], as from `prefix_keys`: two rows that differ in one column differ in all columns after it.
        mask: bool [S,T], the tokens that matter.

    Returns:
        [S,T], unchanged outside the mask.
    """
    shared = values.clone()
    rows = torch.arange(len(keys), device=keys.device)
    start, width = 0, keys.shape[1]
    while start < width:
        rows = rows[mask[rows, start:].any(1)]
        _, inverse, counts = torch.unique(keys[rows, start], return_inverse=True, return_counts=True)
        rows = rows[counts[inverse] > 1]
        if len(rows) == 0:
            break
        stop = min(width, max(1, 2 * start))
        shared[rows, start:stop] = _first_of_equals(
            values[rows, start:stop], keys[rows, start:stop], mask[rows, start:stop]
        )
        start = stop
    return shared


def _first_of_equals(values: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    masked = values[mask]
    unique, inverse = torch.unique(keys[mask], return_inverse=True)
    index = torch.arange(len(masked), device=masked.device)
    first = torch.full_like(unique, len(masked)).scatter_reduce(0, inverse, index, "amin")
    return values.masked_scatter(mask, masked[first[inverse]])
