"""Which answer tokens carry gradient.

The selection is exact and depends on a *set* of tokens, not on their layout: the k best of all eligible tokens over all
ranks, ties broken by (sequence_id, position). So it does not change with the order of the rows, the padding, or the
number of ranks the set is spread over.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from forklight.algo.batch import ForkMask, Reduce
from forklight.algo.selection.scores import Scores, token_scores
from forklight.algo.selection.spec import ForkSelection
from forklight.algo.selection.topk import Order, Ranking, RowRanking, check_count

__all__ = ["ForkSelection", "select"]


def select(
    entropy: Tensor | None,
    answer_mask: Tensor,
    spec: ForkSelection,
    *,
    logp: Tensor | None = None,
    advantages: Tensor | None = None,
    sequence_id: Tensor | None = None,
    seed: int = 0,
    reduce: Reduce | None = None,
    always: Tensor | None = None,
) -> ForkMask:
    """Keeps the tokens that `spec` names: by default arXiv 2506.01939, Eq. 6, as an exact count.

    One call ranks one set of tokens, or with `scope: sequence` each row alone: for all other scopes the caller decides
    which rows and ranks take part. The caller also applies `spec.eligible`, `spec.select_truncated`,
    `spec.entropy_of`, `spec.relative_to` and, as `always`, `spec.keep_eos`. With `reduce`, every rank calls this with
    its own rows.

    | keep | tokens of the set that are kept, of n | threshold |
    | --- | --- | --- |
    | `top`, `bottom` | the k = spec.kept(n) highest, lowest entropies | entropy |
    | `band` | of the tokens by falling entropy, (n-k)//2 are skipped and the next k kept | its lowest entropy |
    | `low_probability` | the k largest -logp | -logp |
    | `covariance` | the k largest (A - mean A)(logp - mean logp), arXiv 2505.22617, means over the set | covariance |
    | `abs_advantage`, `entropy_times_advantage` | the k largest abs(A), entropy * abs(A) | score |
    | a `TokenScore` | the k largest scores | score |
    | `random` | the k largest hashes of (seed, sequence_id, position) | NaN |
    | `all` | every token, whatever the rule | NaN |

    With `rule: threshold`, kept is every token whose score reaches the linearly interpolated quantile 1 - rho, bitwise
    equal to `torch.quantile`; `band`: from quantile (1-rho)/2 to (1+rho)/2, both included; `random`: of uniform hashes.
    With `rule: absolute` it is every token whose entropy is above tau. With `balance: outcome` tokens of rows with a
    positive advantage are a set of their own, and all others are another.

    Args:
        entropy: [S,T] in nats, any floating point; not read, and may be None, if the score does not use it.
        answer_mask: bool [S,T], the eligible tokens. A token's position is its column, so answers start in column 0.
        spec: the selection.
        logp: [S,T], log-probabilities of the sampled tokens, for the scores that use them.
        advantages: [S], for the scores that use them and for `balance: outcome`.
        sequence_id: int64 [S], unique over all ranks: ties go to the smallest (sequence_id, position), and the noise of
            `random` depends on it. By default the row number, on a single rank only.
        seed: of the noise of `random`.
        reduce: sums an int64 tensor over the ranks; None on a single rank.
        always: bool [S,T], eligible tokens that are kept whatever their score. They are counted in n and in k; if they
            are more than k, they alone are kept.

    Returns:
        The mask of this rank's rows; the threshold, the lowest score kept or the quantile, in float32 or float64, []
        or for `scope: sequence` and `balance: outcome` [S], NaN for a set without tokens; and the number of tokens kept
        *over all ranks*.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes do not agree, an eligible score is NaN or infinite, an input of the score is missing, or
            sequence ids are not unique.
    """
    sequence_id = _check(answer_mask, sequence_id, reduce, always, entropy=entropy, logp=logp, advantages=advantages)
    if spec.balance == "outcome":
        if advantages is None:
            raise ValueError("selection.balance: outcome needs advantages")
        inputs: dict[str, Any] = {
            "logp": logp,
            "advantages": advantages,
            "sequence_id": sequence_id,
            "seed": seed,
            "reduce": reduce,
        }
        one = partial(select, entropy=entropy, spec=replace(spec, balance="none"), **inputs)
        return _balanced(one, answer_mask, always, advantages > 0)
    add = reduce or _alone
    if spec.keep == "all":
        shape = answer_mask.shape[:1] if spec.scope == "sequence" else ()
        nothing = torch.full(shape, torch.nan, device=answer_mask.device)
        return ForkMask(answer_mask.clone(), nothing, add(answer_mask.count_nonzero()))
    scores = token_scores(spec, answer_mask, entropy, logp, advantages, sequence_id, seed, add)
    ranked = answer_mask if always is None else answer_mask & ~always
    order = (
        RowRanking(scores.tile, ranked, add)
        if spec.scope == "sequence"
        else Ranking(scores.tile, ranked, sequence_id, add)
    )
    # counted over all ranks, so that all raise: a rank that raised alone would leave the others waiting
    if order.bad:
        raise ValueError(f"{order.bad} of {order.tokens} eligible {scores.name} are NaN or infinite")
    return _keep(order, scores, spec, always, add)


def _keep(order: Order, scores: Scores, spec: ForkSelection, always: Tensor | None, add: Reduce) -> ForkMask:
    """Keeps the best tokens of each set, beside those that are always kept."""
    k, anyway = _counts(order, spec, always, add)
    dtype = torch.float32 if scores.sign == 0 else order.dtype
    threshold = torch.full(order.size.shape, torch.nan, dtype=dtype, device=k.device)
    mask = torch.zeros_like(order.eligible)
    if order.tokens:
        mask, found = _RULES[spec.rule](order, spec, k)
        known = (order.size > 0) & (scores.sign != 0) & ((k > 0) | (spec.rule != "count"))
        threshold = torch.where(known, scores.sign * found.to(dtype) + 0.0, threshold)
    elif always is None:
        return ForkMask(mask, threshold, torch.zeros_like(k.sum()))
    mask = mask if always is None else mask | always
    count = add(mask.count_nonzero())
    if spec.rule == "count" and spec.scope != "sequence":
        check_count(count, int(k + anyway))
    return ForkMask(mask, threshold, count)


def _balanced(one: Callable[..., ForkMask], answer_mask: Tensor, always: Tensor | None, positive: Tensor) -> ForkMask:
    """Two selections with the same rho: of the rows with a positive advantage, bool `[S]`, and of the others."""
    right, wrong = (
        one(answer_mask=answer_mask & rows, always=None if always is None else always & rows)
        for rows in (positive[:, None], ~positive[:, None])
    )
    threshold = torch.where(positive, right.threshold, wrong.threshold)
    return ForkMask(right.mask | wrong.mask, threshold, right.count + wrong.count)


def _counts(order: Order, spec: ForkSelection, always: Tensor | None, add: Reduce) -> tuple[Tensor, Tensor]:
    """Of each set: ranked tokens that `rule: count` keeps, and tokens that are kept anyway; together they are k."""
    anyway = torch.zeros_like(order.size)
    if always is not None:
        anyway = always.sum(1) if order.size.ndim else add(always.count_nonzero())
    sizes = zip(order.size.flatten().tolist(), anyway.flatten().tolist(), strict=True)
    k = [min(n, max(0, spec.kept(n + m) - m)) if n else 0 for n, m in sizes]
    return order.size.new_tensor(k).view(order.size.shape), anyway


def _by_count(order: Order, spec: ForkSelection, k: Tensor) -> tuple[Tensor, Tensor]:
    if spec.keep != "band":
        return order.top(k)
    skipped = (order.size - k) // 2
    mask, last = order.top(skipped + k)
    mask ^= order.top(skipped)[0]
    return mask, last


def _by_threshold(order: Order, spec: ForkSelection, k: Tensor) -> tuple[Tensor, Tensor]:
    if spec.keep != "band":
        low = order.quantile(1 - spec.share)
        return order.between(low), low
    low, high = order.quantile((1 - spec.share) / 2), order.quantile((1 + spec.share) / 2)
    return order.between(low, high), low


def _by_tau(order: Order, spec: ForkSelection, k: Tensor) -> tuple[Tensor, Tensor]:
    tau = torch.full(order.size.shape, spec.tau or 0.0, dtype=order.dtype, device=k.device)
    return order.between(tau.nextafter(torch.full_like(tau, torch.inf))), tau


_RULES = {"count": _by_count, "threshold": _by_threshold, "absolute": _by_tau}


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def _check(
    answer_mask: Tensor,
    sequence_id: Tensor | None,
    reduce: Reduce | None,
    always: Tensor | None,
    **inputs: Tensor | None,
) -> Tensor:
    """Refuses wrong shapes and types; returns the sequence ids, by default row numbers."""
    if answer_mask.dtype != torch.bool:
        raise TypeError(f"answer_mask must be bool, not {answer_mask.dtype}")
    if answer_mask.ndim != 2:
        raise ValueError(f"answer_mask must be [S,T], got shape {tuple(answer_mask.shape)}")
    if always is not None and (always.dtype != torch.bool or always.shape != answer_mask.shape):
        raise ValueError(f"always must be bool {tuple(answer_mask.shape)}, got {always.dtype} {tuple(always.shape)}")
    for name, value in inputs.items():
        if value is not None and not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, not {value.dtype}")
        shape = answer_mask.shape[:1] if name == "advantages" else answer_mask.shape
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} {tuple(value.shape)} and answer_mask {tuple(answer_mask.shape)} do not agree")
    if sequence_id is None:
        if reduce is not None:
            raise ValueError("sequence_id is required with reduce: row numbers are not unique over ranks")
        return torch.arange(len(answer_mask), device=answer_mask.device)
    if sequence_id.dtype != torch.int64:
        raise TypeError(f"sequence_id must be int64, not {sequence_id.dtype}")
    if sequence_id.shape != answer_mask.shape[:1]:
        raise ValueError(
            f"sequence_id {tuple(sequence_id.shape)} must be [{len(answer_mask)}], one per row of answer_mask"
        )
    return sequence_id
