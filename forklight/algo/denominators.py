"""What the sums of an update are divided by: one explicit number per update, over all micro-batches and ranks.

Masked terms are divided by tokens, by sequences, or by sequences times the length limit, as the objective says; a term
without a mask by the same of all answers. Zero-advantage sequences that no pass has seen are counted like all others.
"""

from dataclasses import replace

import torch
from torch import Tensor

from forklight.algo.objective import Aggregate
from forklight.algo.plan import Plan, eligible_rows
from forklight.algo.rows import row_sums
from forklight.algo.spec import ForkSelection
from forklight.algo.types import Experience, Reduce


def counted(spec: ForkSelection, aggregate: Aggregate, *, updates: int) -> bool:
    """True if lengths alone give the denominators, before any token is ranked.

    Args:
        spec: the selection.
        aggregate: of the objective.
        updates: K.
    """
    if aggregate != "token" or spec.denominator != "selected":
        return True
    return spec.rule == "count" and (spec.scope != "rollout" or updates == 1)


def with_denominators(
    x: Experience,
    plan: Plan,
    spec: ForkSelection,
    aggregate: Aggregate,
    *,
    updates: int,
    length_limit: int,
    reduce: Reduce,
) -> Experience:
    """Fills in `denominator`, where lengths alone give it (else NaN: see `kept_tokens`), and `whole`.

    Args:
        x: lengths, updates, contributing and truncated are read; one rank's.
        plan: its visits, which are sets of their own for some scopes.
        spec: the selection.
        aggregate: of the objective.
        updates: K.
        length_limit: longest answer, in tokens.
        reduce: sums over the ranks.
    """
    rows = eligible_rows(x, spec)
    tokens = rows * x.answer_length
    sums = torch.stack([tokens, rows.long(), x.answer_length, torch.ones_like(tokens)], 1)
    total = reduce(torch.zeros(updates, 4, dtype=torch.int64, device=rows.device).index_add_(0, x.update, sums))
    eligible_tokens, sequences, all_tokens, all_sequences = total.double().unbind(1)
    if aggregate == "token":
        whole, denominator = all_tokens, eligible_tokens
        if spec.denominator == "micro_batch":
            denominator = sequences
        elif spec.denominator == "selected":
            denominator = (
                _kept_by_count(x, plan, spec, tokens, total[:, 0], reduce)
                if counted(spec, aggregate, updates=updates)
                else torch.full_like(whole, torch.nan)
            )
    else:
        limit = 1 if aggregate == "sequence" else length_limit
        whole, denominator = all_sequences * limit, sequences * limit
    return replace(x, denominator=denominator, whole=whole)


def kept_tokens(x: Experience, updates: int, reduce: Reduce) -> Tensor:
    """Tokens kept in each update over all ranks, float64 `[K]`, once the mask is there."""
    assert x.fork_mask is not None
    kept = torch.zeros(updates, dtype=torch.int64, device=x.update.device)
    return reduce(kept.index_add_(0, x.update, x.fork_mask.sum(1))).double()


def _kept_by_count(
    x: Experience, plan: Plan, spec: ForkSelection, tokens: Tensor, per_update: Tensor, reduce: Reduce
) -> Tensor:
    """What `rule: count` keeps in each update, from the number of eligible tokens of each set."""
    kept = torch.zeros_like(per_update)
    if spec.scope == "sequence":
        rows = torch.tensor([spec.kept(n) for n in tokens.tolist()], dtype=torch.int64, device=kept.device)
        return reduce(kept.index_add_(0, x.update, rows)).double()
    if spec.scope in ("update", "rollout"):
        return torch.tensor([spec.kept(n) for n in per_update.tolist()], device=kept.device).double()
    visits = [int(tokens[plan.looked_at(visit)].sum()) for visit in range(len(plan.train))]
    if spec.scope == "micro_batch":
        visits = reduce(torch.tensor(visits, device=kept.device)).tolist()
    of_visits = torch.tensor([spec.kept(n) for n in visits], device=kept.device).view(len(kept), -1).sum(1)
    return (of_visits if spec.scope == "micro_batch" else reduce(of_visits)).double()


def row_weights(tokens: Tensor, row: Tensor, rows: int, aggregate: Aggregate) -> Tensor | None:
    """Weight of every token in the sum of a visit, `[N]`: 1 / number of its sequence's counted tokens for `sequence`.

    Args:
        tokens: bool [N], the tokens that are counted.
        row: int64 [N], each token's sequence.
        rows: number of sequences.
        aggregate: None is returned, for weights of 1, unless it is `sequence`.
    """
    if aggregate != "sequence":
        return None
    count = row_sums(tokens.double(), row, rows)
    return count.clamp(min=1).reciprocal()[row]


def visit_factor(sequences: int, kept: int) -> float:
    """What `denominator: micro_batch` multiplies a visit's masked sums by, beside 1 / sequences of the update.

    A micro-batch counts by its share of the sequences, and each by its own kept tokens: the loss of the code of arXiv
    2506.01939, whose token mean is taken per micro-batch.

    Args:
        sequences: those of the visit that could have kept tokens.
        kept: tokens kept in the visit.
    """
    return sequences / kept if kept else 0.0
