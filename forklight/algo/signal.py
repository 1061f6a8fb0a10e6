"""Where the learning signal lies: the policy gradient of an update by entropy and by part of its answers.

The loss -A log p of a token has the squared gradient norm `(A / T)^2 * grad_square` with respect to the token's logits,
where `grad_square = (1 - p)^2 + sum_{j != token} p_j^2` (`TokenStats`). Summed over tokens this is the *gradient mass*.
The temperature T and the denominator of the loss are the same for all tokens of an update and cancel in shares. The
ratio is taken to be 1, so nothing is clipped. It is the signal that enters the network at its output: how much of it
arrives at the weights depends on the hidden states too, and gradients of different tokens may cancel there.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

EDGES = (0.01, 0.1, 0.3, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Bounds of the entropy bins, in nats; the first bin begins at 0 and the last has no end.

They are fixed, so that updates, runs and ranks have the same bins and can be compared and added up: quantiles would
move with the policy. Log 2, a choice between two equal tokens, is 0.69."""

MEASURES = ("tokens", "advantage", "gradient")
"""What is summed over tokens: 1, |A| and A^2 * grad_square."""


def signal_sums(
    entropy: Tensor, grad_square: Tensor, advantages: Tensor, kept: Tensor, parts: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Sums over tokens by entropy bin, for each part; they add up over micro-batches and ranks.

    Args:
        entropy: [N] in nats. A bin has its lower bound and not its upper one.
        grad_square: [N].
        advantages: [N].
        kept: bool [N], the tokens that the selection keeps.
        parts: bool [N] by name, the tokens of each part; a token may be in several or in none.

    Returns:
        By part float64 `[bins, 2, measures]`: over all tokens, and over those that are kept.
    """
    size = advantages.double().abs()
    values = torch.stack([torch.ones_like(size), size, size.square() * grad_square.double()], 1)
    values = torch.stack([values, values * kept[:, None]], 1)
    bins = torch.bucketize(entropy.double(), values.new_tensor(EDGES), right=True)
    empty = values.new_zeros(len(EDGES) + 1, *values.shape[1:])
    return {name: empty.index_add(0, bins[part], values[part]) for name, part in parts.items()}
