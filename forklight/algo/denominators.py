"""The denominators of an update: one explicit number per update for the sums over all its micro-batches and ranks.

Masked terms are divided by tokens, by sequences, or by sequences times the length limit, as the objective says; terms
without a mask by the same count over all answers. Zero-advantage sequences that are in no pass count like all others.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from forklight.algo.batch import Reduce, RolloutBatch
from forklight.algo.objectives.base import Aggregate
from forklight.algo.plan import Plan, eligible_rows
from forklight.algo.rows import row_sums
from forklight.algo.selection.spec import ForkSelection


def known_from_lengths(spec: ForkSelection, aggregate: Aggregate, *, updates: int) -> bool:
    """True if lengths alone give the denominators, before any token is ranked.

    Args:
        spec: the selection.
        aggregate: of the objective.
        updates: K.
    """
    if aggregate != "token" or spec.denominator != "selected":
        return True
    by_number = spec.rule == "count" and spec.balance == "none" and not spec.keep_eos
    return by_number and (spec.scope != "rollout" or updates == 1)


class Denominators(NamedTuple):
    """The denominators of the sums of each update, over all ranks."""

    masked: Tensor  # float64 [K] of terms that the mask acts on; NaN if it needs the masks: see `kept_tokens`
    unmasked: Tensor  # float64 [K] of the other terms


def denominators(
    batch: RolloutBatch,
    plan: Plan,
    spec: ForkSelection,
    aggregate: Aggregate,
    *,
    updates: int,
    length_limit: int,
    reduce: Reduce,
) -> Denominators:
    """The denominators of all updates of a rollout, as far as lengths alone give them.

    Args:
        batch: of one rank; lengths, updates, contributing and truncated are read.
        plan: its micro-batches, each of which is ranked alone for some scopes.
        spec: the selection.
        aggregate: of the objective.
        updates: K.
        length_limit: longest answer, in tokens.
        reduce: sums over the ranks.
    """
    rows = eligible_rows(batch, spec)
    tokens = rows * batch.answer_length
    sums = torch.stack([tokens, rows.long(), batch.answer_length, torch.ones_like(tokens)], 1)
    total = reduce(torch.zeros(updates, 4, dtype=torch.int64, device=rows.device).index_add_(0, batch.update, sums))
    eligible_tokens, sequences, all_tokens, all_sequences = total.double().unbind(1)
    if aggregate != "token":
        limit = 1 if aggregate == "sequence" else length_limit
        return Denominators(sequences * limit, all_sequences * limit)
    if spec.denominator == "micro_batch":
        return Denominators(sequences, all_tokens)
    if spec.denominator == "answer":
        return Denominators(eligible_tokens, all_tokens)
    if not known_from_lengths(spec, aggregate, updates=updates):
        return Denominators(torch.full_like(all_tokens, torch.nan), all_tokens)
    return Denominators(_kept_by_count(batch, plan, spec, tokens, total[:, 0], reduce), all_tokens)


def kept_tokens(fork_mask: Tensor, update: Tensor, updates: int, reduce: Reduce) -> Tensor:
    """Tokens kept in each update over all ranks, float64 `[K]`.

    Args:
        fork_mask: bool [S,T].
        update: int64 [S], each sequence's.
        updates: K.
        reduce: sums over the ranks.
    """
    kept = torch.zeros(updates, dtype=torch.int64, device=update.device)
    return reduce(kept.index_add_(0, update, fork_mask.sum(1))).double()


def _kept_by_count(
    batch: RolloutBatch, plan: Plan, spec: ForkSelection, tokens: Tensor, per_update: Tensor, reduce: Reduce
) -> Tensor:
    """Tokens that `rule: count` keeps in each update, from the number of eligible tokens of each set."""
    kept = torch.zeros_like(per_update)
    if spec.scope == "sequence":
        rows = torch.tensor([spec.kept(n) for n in tokens.tolist()], dtype=torch.int64, device=kept.device)
        return reduce(kept.index_add_(0, batch.update, rows)).double()
    if spec.scope in ("update", "rollout"):
        return torch.tensor([spec.kept(n) for n in per_update.tolist()], device=kept.device).double()
    eligible = [int(tokens[plan.ranked_rows(number)].sum()) for number in range(len(plan.train))]
    if spec.scope == "micro_batch":
        eligible = reduce(torch.tensor(eligible, device=kept.device)).tolist()
    of_update = torch.tensor([spec.kept(n) for n in eligible], device=kept.device).view(len(kept), -1).sum(1)
    return (of_update if spec.scope == "micro_batch" else reduce(of_update)).double()


def row_weights(tokens: Tensor, row: Tensor, rows: int, aggregate: Aggregate) -> Tensor | None:
    """Weight of every token in a micro-batch's sum, `[N]`: for `sequence`, 1 / its sequence's number of counted tokens.

    Args:
        tokens: bool [N], the tokens that are counted.
        row: int64 [N], each token's sequence.
        rows: number of sequences.
        aggregate: for all but `sequence` the weights are 1, and None is returned.
    """
    if aggregate != "sequence":
        return None
    count = row_sums(tokens.double(), row, rows)
    return count.clamp(min=1).reciprocal()[row]


def micro_batch_factor(sequences: int, kept: int) -> float:
    """Factor of a micro-batch's masked sums with `denominator: micro_batch`, besides 1 / sequences of the update.

    The loss is the mean over each micro-batch's kept tokens, weighted by the micro-batch's share of the sequences: that
    of the code of arXiv 2506.01939.

    Args:
        sequences: sequences of the micro-batch with eligible tokens.
        kept: tokens kept in the micro-batch.
    """
    return sequences / kept if kept else 0.0
