"""Mean entropies, the same for every order and split of the tokens, and entropies relative to them."""

import torch
from torch import Tensor

from forklight.algo.batch import Reduce
from forklight.algo.selection.scores import fixed_point, from_fixed_point
from forklight.algo.selection.topk import tiles


def mean_surprisal(logp: Tensor, eligible: Tensor, reduce: Reduce) -> float | None:
    """Mean -log p of the eligible tokens over all ranks, in nats; None if there are none.

    For sampled tokens it estimates their mean entropy, and needs no pass.

    Args:
        logp: [S,T], log-probabilities of the tokens.
        eligible: bool [S,T].
        reduce: sums an int64 tensor over the ranks, called once.
    """
    values = fixed_point(-logp[eligible])
    total, tokens = reduce(torch.stack([values.sum(), eligible.sum()]))
    return float(from_fixed_point(total)) / int(tokens) if tokens else None


def relative_entropies(entropy: Tensor, kinds: Tensor, eligible: Tensor, number: int, reduce: Reduce) -> Tensor:
    """Every token's entropy minus the mean entropy of the eligible tokens of its kind.

    The means are sums of integers (fixed point), so they are the same for every order and split of the tokens.

    Args:
        entropy: [S,T] in nats.
        kinds: int64 [S,T], 0 .. number-1: positions in the answer, or token ids; read under `eligible` only.
        eligible: bool [S,T].
        number: of kinds.
        reduce: sums an int64 tensor over the ranks, called once.

    Returns:
        [S,T] in the dtype of `entropy`; unchanged where not eligible.
    """
    sums = torch.zeros(2, number, dtype=torch.int64, device=entropy.device)
    for rows in tiles(eligible):
        counted = eligible[rows]
        which, values = kinds[rows][counted], fixed_point(entropy[rows].detach()[counted])
        sums[0].index_add_(0, which, values)
        sums[1].index_add_(0, which, torch.ones_like(values))
    total, tokens = reduce(sums)
    found = entropy.detach().clone()
    for rows in tiles(eligible):
        counted, values = eligible[rows], found[rows]
        which = kinds[rows][counted]
        # exactly 0 for a token that is alone of its kind
        above = fixed_point(values[counted]) * tokens[which] - total[which]
        values[counted] = (from_fixed_point(above) / tokens[which]).to(found.dtype)
    return found
