"""What an update must be, computed the plain way: every sequence alone through the whole model, all logits kept.

No packing, no micro-batches, no ranks, no dropped sequences, one autograd graph. The learner must give the same masks,
the same loss and the same gradients in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor, nn

from forklight.algo.losses import ClipRange
from forklight.algo.noise import hash_bits
from forklight.algo.selection import ForkSelection
from forklight.algo.types import Experience


@dataclass(frozen=True)
class Expected:
    """One update."""

    loss: Tensor  # []
    mask: Tensor  # bool [S,T] of the whole rollout, False outside of the update
    gradients: tuple[Tensor, ...]  # one per parameter of the model
    threshold: float  # entropy of the last token kept, of the last set


def tokens_of(model: nn.Module, x: Experience, row: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each answer token of one sequence."""
    start, end = int(x.prompt_length[row]), int(x.prompt_length[row] + x.answer_length[row])
    logits = model(input_ids=x.input_ids[row : row + 1, :end]).logits[0, start - 1 : end - 1]
    log_p = (logits / temperature).log_softmax(-1)
    return log_p[range(end - start), x.input_ids[row, start:end]], -(log_p.exp() * log_p).sum(-1)


def expected_update(
    x: Experience,
    update: int,
    spec: ForkSelection,
    clip: ClipRange,
    *,
    model: nn.Module,
    old_model: nn.Module,
    reference: nn.Module | None = None,
    kl_coef: float = 0.0,
    temperature: float = 1.0,
    noise_seed: int = 0,
    micro_batches: Sequence[Sequence[int]] | None = None,
) -> Expected:
    """Loss, mask and gradients of one update; tokens of a group that follow the same tokens have one entropy.

    `micro_batches` are the sets of `scope: micro_batch_rank`, all ranks.
    """
    rows = (x.update == update).nonzero().flatten().tolist()
    now = {row: tokens_of(model, x, row, temperature) for row in rows}
    with torch.no_grad():
        old = {row: tokens_of(old_model, x, row, temperature) for row in rows}
        ref = {row: tokens_of(reference, x, row, temperature)[0] for row in rows} if reference else {}
    entropy = {row: (old if spec.entropy_of == "old" else now)[row][1].detach() for row in rows}

    kept: list[tuple[int, int]] = []
    eligible = 0
    for members in [rows] if spec.scope == "update" else micro_batches or ():
        counted = [row for row in members if spec.over == "answers" or x.contributing[row]]
        tokens = [(row, t) for row in counted for t in range(int(x.answer_length[row]))]
        tokens.sort(key=_order(x, _shared(x, entropy, tokens), spec, noise_seed))
        share = 1.0 if spec.keep == "all" else spec.rho
        kept += tokens[: max(1, floor(share * len(tokens) + 0.9999)) if share < 1 else len(tokens)]
        eligible += len(tokens)

    policy_loss = kl = sum(now[row][0].sum() * 0 for row in rows)
    for row, t in kept:
        advantage = x.advantages[row]
        ratio = (now[row][0][t] - old[row][0][t]).exp()
        bounded = ratio.clamp(max=1 + clip.high) if advantage > 0 else ratio.clamp(min=1 - clip.low)
        if clip.dual is not None and advantage < 0:
            bounded = bounded.clamp(max=clip.dual)
        policy_loss = policy_loss - advantage * bounded
    for row in ref:
        difference = ref[row] - now[row][0]
        kl = kl + (difference.exp() - difference - 1).sum()
    divisor = len(kept) if spec.denominator == "selected" else eligible
    loss = policy_loss / max(divisor, 1) + kl_coef * kl / int(x.answer_length[rows].sum())

    mask = torch.zeros_like(x.answer_mask)
    for token in kept:
        mask[token] = True
    last = kept[-1] if kept and spec.needs_entropy else None
    return Expected(
        loss=loss.detach(),
        mask=mask,
        gradients=torch.autograd.grad(loss, list(model.parameters())),
        threshold=float(entropy[last[0]][last[1]]) if last else torch.nan,
    )


def _shared(
    x: Experience, entropy: dict[int, Tensor], tokens: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """The entropy of each token: that of the first one behind the same tokens of the same group."""
    first: dict[tuple[int, ...], float] = {}
    shared = {}
    for row, t in tokens:
        start = int(x.prompt_length[row])
        context = (int(x.group[row]), *x.input_ids[row, start : start + t].tolist())
        shared[row, t] = first.setdefault(context, float(entropy[row][t]))
    return shared


def _order(
    x: Experience, entropy: dict[tuple[int, int], float], spec: ForkSelection, noise_seed: int
) -> Callable[[tuple[int, int]], tuple[float, int, int]]:
    """Sort key: the first tokens are kept; ties go to the smallest (row_key, position)."""

    def key(token: tuple[int, int]) -> tuple[float, int, int]:
        row, t = token
        row_key = int(x.row_key[row])
        if spec.keep == "random":
            return -int(hash_bits(noise_seed, row_key, t)), row_key, t
        score = 0.0 if spec.keep == "all" else entropy[row, t]
        return (-score if spec.keep == "top" else score), row_key, t

    return key
