"""One value for tokens that follow the same tokens.

The answers of a group begin alike: their first token always has one and the same distribution. Computed in other rows
of a batch, its entropy differs in the last digits, and a selection would prefer one answer to another by rounding.
"""

import torch
from torch import Tensor

from forklight.algo.noise import hash_bits
from forklight.algo.topk import tiles


def context_keys(answer_ids: Tensor, group: Tensor, *, inclusive: bool = False) -> Tensor:
    """A 64-bit key of everything before each token: the problem and the answer so far.

    Args:
        answer_ids: int64 [S,T]; what stands behind an answer's end has no influence on keys before it.
        group: int64 [S], equal for answers to one prompt.
        inclusive: the token itself belongs to its key, as for log-probabilities: those of other tokens in the same
            context differ.

    Returns:
        int64 [S,T]; tokens in equal contexts have equal keys, others differ but for a chance of 2**-64 a pair.
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

    Answers part early and never meet again: the work is done on the columns where two rows still agree, in stretches
    that double in length.

    Args:
        values: [S,T], such as entropies.
        keys: int64 [S,T], as from `context_keys`: two rows that differ in one column differ in all columns after it.
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
