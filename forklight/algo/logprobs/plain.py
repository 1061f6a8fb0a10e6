"""The LM head under plain autograd: the reference of `forklight.algo.logprobs.fused`, and a path for adapters.

The head's output [N,V] is the largest tensor of a step. It is computed in tiles of `ROWS_PER_TILE` rows: without
gradients only one tile is in memory. The tiles are the same with and without gradients: the same rows go through the
same matrix products, and the ratio of a policy to itself is exactly 1. Under autocast there is one tile, because
gradients of the weight from several tiles would be summed in low precision.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from forklight.algo.batch import TokenStats
from forklight.algo.logprobs.tiles import least_square_root
from forklight.algo.logprobs.transform import PLAIN, LogitTransform

ROWS_PER_TILE = 512
"""Rows of the head's output computed at a time."""


def plain_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy_temperature: float | None = None,
    entropy_grad: bool = False,
    transform: LogitTransform = PLAIN,
) -> TokenStats:
    """As `forklight.algo.logprobs.fused.token_stats`, without normalisers, under plain autograd.

    Args:
        hidden: [N,H]; N may be 0.
        weight: [V,H], the LM head.
        targets: [N], int64 token ids.
        temperature: of the log-probabilities.
        entropy_temperature: of the entropies; `temperature` if None.
        entropy_grad: whether the entropies have a gradient too, at the cost of two more tensors [N,V].
        transform: what makes logits of the products of hidden states and weight.

    Raises:
        TypeError: as `check_head`.
        ValueError: as `check_head`.
    """
    entropy_temperature = temperature if entropy_temperature is None else entropy_temperature
    check_head(hidden, weight, targets, temperature, entropy_temperature, transform=transform)
    logps, entropies, squares = [], [], []
    for rows, row_targets in _tiles(hidden, targets):
        scores = _shifted_scores(rows, weight, temperature, transform)
        column, normaliser = row_targets.unsqueeze(-1), scores.logsumexp(dim=-1, keepdim=True)
        logps.append((scores.gather(-1, column) - normaliser).squeeze(-1))
        squares.append(_grad_square(scores.detach(), column, normaliser.detach()))
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            if entropy_temperature != temperature:
                scores = scores * (temperature / entropy_temperature)
                normaliser = scores.logsumexp(dim=-1, keepdim=True)
            entropies.append(_entropy(scores, normaliser))
    return TokenStats(logp=torch.cat(logps), entropy=torch.cat(entropies), grad_square=torch.cat(squares))


def _tiles(hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, len(targets))  # without rows one empty tile keeps the graph connected
    step = rows if torch.is_autocast_enabled(hidden.device.type) else ROWS_PER_TILE
    for start in range(0, rows, step):
        tile = slice(start, start + step)
        yield hidden[tile], targets[tile]


def _shifted_scores(hidden: Tensor, weight: Tensor, temperature: float, transform: LogitTransform) -> Tensor:
    """Logits / temperature minus the largest: the same softmax, and float32 is most precise near 0."""
    products = F.linear(hidden, weight, transform.bias)
    logits = transform.after(products.to(torch.promote_types(products.dtype, torch.float32)))
    # in place: no backward formula needs the previous values
    logits = logits.div_(temperature)
    return logits.sub_(logits.detach().amax(dim=-1, keepdim=True))


def _grad_square(scores: Tensor, column: Tensor, normaliser: Tensor) -> Tensor:
    """Sum of the squares of 1[target] - p, without a difference of large numbers near certainty; no gradient."""
    missing = (scores.gather(-1, column) - normaliser).squeeze(-1).expm1_()
    others = (scores - normaliser).exp_().scatter_(-1, column, 0.0).clamp_(min=least_square_root(scores.dtype))
    norm: Tensor = torch.linalg.vector_norm(others, dim=-1)
    return missing.square_() + norm.square_()


def _entropy(scores: Tensor, normaliser: Tensor) -> Tensor:
    """Entropy as logsumexp(z) - sum_j p_j z_j, which takes no logarithm of a small probability."""
    probabilities = (scores - normaliser).exp_()
    # 0 * -inf would be NaN. At the bound the probability is 0, and the bound times the entropy's gradient is finite
    finite = scores.clamp(min=-1e9)
    # in place unless backward needs the probabilities
    products = probabilities * finite if torch.is_grad_enabled() else probabilities.mul_(finite)
    return normaliser.squeeze(-1) - products.sum(dim=-1)


def check_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, *temperatures: float, transform: LogitTransform = PLAIN
) -> None:
    """Refuses inputs of a wrong type or shape.

    Args:
        hidden: [N,H].
        weight: [V,H].
        targets: int64 [N].
        *temperatures: each must be positive.
        transform: its bias must have a number per token, its soft cap must be positive.

    Raises:
        TypeError: targets are not int64, or hidden states or weights are float16 on a CPU.
        ValueError: shapes do not agree, a target is not in the vocabulary, or a temperature or soft cap is not
            positive.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"expected hidden [N,H] and weight [V,H], got {list(hidden.shape)} and {list(weight.shape)}")
    if transform.bias is not None and transform.bias.shape != weight.shape[:1]:
        raise ValueError(f"expected a bias [{len(weight)}], got {list(transform.bias.shape)}")
    if transform.softcap is not None and not transform.softcap > 0:
        raise ValueError(f"a soft cap must be positive, got {transform.softcap}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, not {targets.dtype}")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"expected targets [{hidden.shape[0]}], got {list(targets.shape)}")
    if not hidden.is_cuda and torch.float16 in (hidden.dtype, weight.dtype):
        raise TypeError("float16 is for GPUs: on a CPU take float32, float64 or bfloat16 (model.policy.dtype)")
    if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= len(weight)):
        raise ValueError(
            f"targets are tokens {int(targets.min())} to {int(targets.max())}, the head has {len(weight)}: the "
            "tokenizer and the model do not belong together"
        )
    for temperature in temperatures:
        if not temperature > 0:
            raise ValueError(f"temperatures must be positive, got {temperature}")
