"""Log-probabilities and entropies of tokens, from hidden states and the weight of the LM head, never [N,V] at once.

The head is most of a small model's computation, and its output is the largest tensor of a step. Here it is computed in
tiles, only for the rows that are asked for:

- `token_stats`: log-probability and entropy of every row; backward recomputes the logits.
- `selected_logprob`: log-probabilities of some rows; if they are known from a pass without gradient, only backward
  computes logits.
- `selected_policy_loss`: the loss of some rows, and its gradient while their logits are in memory.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from forklight.algo.batch import TokenStats
from forklight.algo.logprobs.plain import check_head
from forklight.algo.logprobs.tiles import Gradients, Head, Slope, Softmax, gradient_pass, one_pass, softmax_pass
from forklight.algo.logprobs.transform import PLAIN, LogitTransform


class SelectedLoss(NamedTuple):
    """The result of `selected_policy_loss`."""

    loss: Tensor
    """The sum of the token losses, `[]`, connected to hidden states and weight."""
    stats: TokenStats
    """Statistics of the M rows, detached."""


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy_temperature: float | None = None,
    entropy_grad: bool = False,
    transform: LogitTransform = PLAIN,
) -> TokenStats:
    """Log-probability of each target token, and entropy of the distribution over the vocabulary at its position.

    `p = softmax(z / temperature)`, `logp = log p[target]`, and `entropy = -sum_j p_j log p_j` in nats over the full
    vocabulary: arXiv 2506.01939, Eq. 1. Logits are upcast to at least float32 before the division by the temperature.

    Args:
        hidden: [N,H], the state that predicts each target; N may be 0.
        weight: [V,H], the LM head.
        targets: [N], int64 token ids.
        temperature: of the log-probabilities.
        entropy_temperature: of the entropies; `temperature` if None.
        entropy_grad: whether the entropies have a gradient too; their values are the same.
        transform: what makes logits of the products of hidden states and weight.

    Returns:
        `logp` [N], connected to `hidden`, `weight` and the transform's bias; `entropy` [N], detached unless
        `entropy_grad`; and `grad_square` [N], detached, by the logits as the softmax has them. They are float64 for
        float64 operands, otherwise float32. A logit of -inf counts as probability 0.

    Raises:
        TypeError: targets are not int64, or hidden states or weights are float16 on a CPU.
        ValueError: shapes do not agree, a target is not in the vocabulary, or a temperature is not positive.
    """
    rows = torch.arange(len(targets), device=targets.device)
    return selected_stats(
        hidden, weight, targets, rows, temperature, entropy_temperature, entropy_grad, None, transform
    )


def selected_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: Tensor,
    temperature: float = 1.0,
    entropy_temperature: float | None = None,
    entropy_grad: bool = False,
    known: TokenStats | None = None,
    transform: LogitTransform = PLAIN,
) -> TokenStats:
    """`token_stats` of some rows; the others never enter the LM head.

    Args:
        hidden: [N,H].
        weight: [V,H], the LM head.
        targets: [N], int64 token ids.
        rows: the rows wanted, as an int64 index [M] or a bool mask [N].
        temperature: of the log-probabilities.
        entropy_temperature: of the entropies; `temperature` if None.
        entropy_grad: whether the entropies have a gradient too.
        known: result of `token_stats` for all N rows with the same arguments; then only backward computes logits.
        transform: what makes logits of the products of hidden states and weight.

    Raises:
        TypeError: as `token_stats`, or rows are neither int64 nor bool.
        ValueError: as `token_stats`; `known` has another number of rows, or entropies that cannot have a gradient.
    """
    entropy_temperature = temperature if entropy_temperature is None else entropy_temperature
    check_head(hidden, weight, targets, temperature, entropy_temperature, transform=transform)
    _check_rows(rows, targets)
    softmax = None
    if known is not None:
        if known.normaliser is None or known.grad_square is None or known.logp.shape != targets.shape:
            raise ValueError(f"known must be token_stats of all {len(targets)} rows, with their normalisers")
        if entropy_grad and entropy_temperature != temperature:
            raise ValueError("known entropies of another temperature than the log-probabilities cannot be connected")
        every = known.logp, known.normaliser, known.entropy, known.grad_square
        softmax = Softmax(*(values.detach()[rows] for values in every))
    logp, entropy, normaliser, grad_square = _Statistics.apply(  # type: ignore[no-untyped-call]
        hidden[rows], weight, transform.bias, targets[rows], temperature, entropy_temperature, softmax, transform
    )
    return TokenStats(logp, entropy if entropy_grad else entropy.detach(), normaliser, grad_square)


def selected_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: Tensor,
    temperature: float = 1.0,
    known: TokenStats | None = None,
    transform: LogitTransform = PLAIN,
) -> Tensor:
    """Log-probabilities of some rows only; the others never enter the LM head.

    Args:
        hidden: [N,H].
        weight: [V,H], the LM head.
        targets: [N], int64 token ids.
        rows: the rows wanted, as an int64 index [M] or a bool mask [N].
        temperature: as for `token_stats`.
        known: result of `token_stats` for all N rows at this temperature; then only backward computes logits.
        transform: what makes logits of the products of hidden states and weight.

    Returns:
        [M], as `token_stats(hidden[rows], weight, targets[rows], temperature).logp`, connected also when M is 0.

    Raises:
        TypeError: as `token_stats`, or rows are neither int64 nor bool.
        ValueError: as `token_stats`, or `known` has another number of rows.
    """
    return selected_stats(hidden, weight, targets, rows, temperature, known=known, transform=transform).logp


def selected_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: Tensor,
    token_loss: Callable[[TokenStats, slice], Tensor],
    temperature: float = 1.0,
    transform: LogitTransform = PLAIN,
) -> SelectedLoss:
    """The summed loss of some rows in one pass: the gradient is computed while a tile's logits are in memory.

    For losses in which each token's term depends on its own log-probability alone. It needs a third fewer matrix
    products than `selected_logprob`, which computes the logits twice.

    Args:
        hidden: [N,H].
        weight: [V,H], the LM head.
        targets: [N], int64 token ids.
        rows: the rows with a loss, as an int64 index [M] or a bool mask [N].
        token_loss: loss of some of the M rows, `[m]`, connected to the `logp` it is given; `entropy` has no gradient.
            It is called once per tile, with the tile's slice of the M rows, also without gradients.
        temperature: of log-probabilities and entropies.
        transform: what makes logits of the products of hidden states and weight.

    Raises:
        TypeError: as `token_stats`, or rows are neither int64 nor bool.
        ValueError: as `token_stats`, or `token_loss` returns another shape.
    """
    check_head(hidden, weight, targets, temperature, transform=transform)
    _check_rows(rows, targets)
    loss, logp, entropy, grad_square = _OnePass.apply(  # type: ignore[no-untyped-call]
        hidden[rows], weight, transform.bias, targets[rows], token_loss, temperature, transform
    )
    return SelectedLoss(loss, TokenStats(logp, entropy, grad_square=grad_square))


def _check_rows(rows: Tensor, targets: Tensor) -> None:
    if rows.dtype not in (torch.int64, torch.bool):
        raise TypeError(f"rows must be int64 or bool, not {rows.dtype}")
    if rows.ndim != 1 or (rows.dtype == torch.bool and rows.shape != targets.shape):
        raise ValueError(f"rows must be an index [M] or a mask {list(targets.shape)}, got shape {list(rows.shape)}")


class _Statistics(torch.autograd.Function):
    """The statistics of every row; backward recomputes the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy_temperature: float,
        known: Softmax | None,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.lower = _autocast_type(hidden)
        ctx.temperatures = temperature, entropy_temperature
        if known is not None:
            first = last = known
        else:
            wanted = (temperature,) if temperature == entropy_temperature else (temperature, entropy_temperature)
            with _no_autocast(hidden):
                first, *others = softmax_pass(Head(hidden, weight, targets, ctx.lower, transform), *wanted)
            last = others[0] if others else first
        ctx.transform = replace(transform, bias=None)
        ctx.save_for_backward(hidden, weight, bias, targets, first.normaliser, last.normaliser, last.entropy)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(first.normaliser, first.grad_square)
        return first.logp, last.entropy, first.normaliser, first.grad_square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logp: Tensor | None, by_entropy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, entropy_normaliser, entropy = ctx.saved_tensors
        temperature, entropy_temperature = ctx.temperatures
        if by_entropy is None or temperature == entropy_temperature:
            slopes = [Slope(temperature, normaliser, by_logp, by_entropy, entropy)]
        else:
            slopes = [
                Slope(temperature, normaliser, by_logp),
                Slope(entropy_temperature, entropy_normaliser, None, by_entropy, entropy),
            ]
        with _no_autocast(hidden):
            head = Head(hidden, weight, targets, ctx.lower, replace(ctx.transform, bias=bias))
            found = gradient_pass(head, slopes, of_weight=ctx.needs_input_grad[1])
        return *_cast(found, hidden, weight, bias), None, None, None, None, None


class _OnePass(torch.autograd.Function):
    """The loss of every tile of rows, and its gradient at once; backward only scales."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        token_loss: Callable[[TokenStats, slice], Tensor],
        temperature: float,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        losses = []

        def slope_of(softmax: Softmax, rows: slice) -> Tensor:
            logp = softmax.logp.requires_grad_()
            with torch.enable_grad():
                values = token_loss(TokenStats(logp, softmax.entropy, grad_square=softmax.grad_square), rows)
                if values.shape != logp.shape:
                    raise ValueError(f"token_loss must return {list(logp.shape)} losses, got {list(values.shape)}")
                slope = torch.zeros_like(logp)
                if values.requires_grad:
                    (slope,) = torch.autograd.grad(values.sum(), logp)
            losses.append(values.detach().sum())
            softmax.logp.requires_grad_(False)
            return slope

        lower = _autocast_type(hidden)
        with _no_autocast(hidden):
            head = Head(hidden, weight, targets, lower, transform)
            softmax, found = one_pass(head, temperature, slope_of, of_weight=ctx.needs_input_grad[1])
        ctx.save_for_backward(*_cast(found, hidden, weight, bias))
        ctx.mark_non_differentiable(softmax.logp, softmax.entropy, softmax.grad_square)
        return torch.stack(losses).sum(), softmax.logp, softmax.entropy, softmax.grad_square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight, by_bias = ctx.saved_tensors
        by_weight = None if by_weight is None else by_weight.mul_(scale)
        by_bias = None if by_bias is None else by_bias * scale
        return by_hidden * scale, by_weight, by_bias, None, None, None, None


def _autocast_type(like: Tensor) -> torch.dtype | None:
    """The type to which autocast casts operands; None without autocast and for float64, which it does not cast."""
    device = like.device.type
    if like.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _no_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off: `Head` chooses the types of products, and backward runs outside forward's autocast."""
    return torch.autocast(like.device.type, enabled=False)


def _cast(
    found: Gradients, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return (
        found.hidden.to(hidden.dtype),
        None if found.weight is None else found.weight.to(weight.dtype),
        None if found.bias is None or bias is None else found.bias.to(bias.dtype),
    )
