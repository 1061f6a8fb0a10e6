"""One entropy for tokens that follow the same tokens.

The answers of a group begin alike: their first token always has one and the same distribution. Computed in other rows
of a batch, its entropy differs in the last digits, and a selection would prefer one answer to another by rounding.
"""

import torch
from torch import Tensor

from forklight.algo.noise import hash_bits


def context_keys(answer_ids: Tensor, group: Tensor) -> Tensor:
    """A 64-bit key of everything before each token: the problem and the answer so far.

    Args:
        answer_ids: int64 [S,T]; what stands behind an answer's end has no influence on keys before it.
        group: int64 [S], equal for answers to one prompt.

    Returns:
        int64 [S,T]; tokens in equal contexts have equal keys, others differ but for a chance of 2**-64 a pair.
    """
    position = torch.arange(answer_ids.shape[1], device=answer_ids.device)
    tokens = hash_bits(answer_ids, position)
    before = tokens.cumsum(1) - tokens  # a sum modulo 2**64 over the tokens so far, each hashed with its position
    return hash_bits(group)[:, None] + before


def share_entropy(entropy: Tensor, contexts: Tensor, answer_mask: Tensor) -> Tensor:
    """Gives every token the entropy of the first row that has its context.

    Args:
        entropy: [S,T].
        contexts: int64 [S,T], as from `context_keys`.
        answer_mask: bool [S,T], the tokens that matter.

    Returns:
        [S,T], unchanged outside the mask.
    """
    values = entropy[answer_mask]
    keys, inverse = torch.unique(contexts[answer_mask], return_inverse=True)
    index = torch.arange(len(values), device=values.device)
    first = torch.full_like(keys, len(values)).scatter_reduce(0, inverse, index, "amin")
    shared = entropy.clone()
    shared[answer_mask] = values[first[inverse]]
    return shared
