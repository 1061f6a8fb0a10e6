"""Which answer tokens carry gradient.

The selection is exact and depends on a *set* of tokens, not on their layout: the k best of all eligible tokens over all
ranks, ties broken by (sequence_id, position). So it does not change with the order of the rows, the padding, or the
number of ranks the set is spread over.
"""

import torch
from torch import Tensor

from forklight.algo.batch import ForkMask, Reduce
from forklight.algo.selection.scores import token_scores
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
) -> ForkMask:
    """Keeps the tokens that `spec` names: by default arXiv 2506.01939, Eq. 6, as an exact count.

    One call ranks one set of tokens, or with `scope: sequence` each row alone: for all other scopes the caller decides
    which rows and ranks take part. The caller also applies `spec.eligible`, `spec.select_truncated` and
    `spec.entropy_of`. With `reduce`, every rank calls this with its own rows.

    | keep | tokens of the set that are kept, of n | threshold |
    | --- | --- | --- |
    | `top`, `bottom` | the k = spec.kept(n) highest, lowest entropies | entropy |
    | `band` | of the tokens by falling entropy, (n-k)//2 are skipped and the next k kept | its lowest entropy |
    | `low_probability` | the k largest -logp | -logp |
    | `covariance` | the k largest (A - mean A)(logp - mean logp), arXiv 2505.22617, means over the set | covariance |
    | a `TokenScore` | the k largest scores | score |
    | `random` | the k largest hashes of (seed, sequence_id, position) | NaN |
    | `all` | every token, whatever the rule | NaN |

    With `rule: threshold`, kept is every token whose score reaches the linearly interpolated quantile 1 - rho, bitwise
    equal to `torch.quantile`; `band`: from quantile (1-rho)/2 to (1+rho)/2, both included; `random`: of uniform hashes.

    Args:
        entropy: [S,T] in nats, any floating point; not read, and may be None, if the score does not use it.
        answer_mask: bool [S,T], the eligible tokens. A token's position is its column, so answers start in column 0.
        spec: the selection.
        logp: [S,T], log-probabilities of the sampled tokens, for the scores that use them.
        advantages: [S], for `covariance` and a `TokenScore`.
        sequence_id: int64 [S], unique over all ranks: ties go to the smallest (sequence_id, position), and the noise of
            `random` depends on it. By default the row number, on a single rank only.
        seed: of the noise of `random`.
        reduce: sums an int64 tensor over the ranks; None on a single rank.

    Returns:
        The mask of this rank's rows; the threshold, the lowest score kept or the quantile, in float32 or float64, []
        or for `scope: sequence` [S], NaN for a set without tokens; and the number of tokens kept *over all ranks*.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes do not agree, an eligible score is NaN or infinite, an input of the score is missing, or
            sequence ids are not unique.
    """
    sequence_id = _check(answer_mask, sequence_id, reduce, entropy=entropy, logp=logp, advantages=advantages)
    add = reduce or _alone
    shape = answer_mask.shape[:1] if spec.scope == "sequence" else ()
    if spec.keep == "all":
        nothing = torch.full(shape, torch.nan, device=answer_mask.device)
        return ForkMask(answer_mask.clone(), nothing, add(answer_mask.count_nonzero()))
    scores = token_scores(spec, answer_mask, entropy, logp, advantages, sequence_id, seed, add)
    order = (
        RowRanking(scores.tile, answer_mask, add)
        if spec.scope == "sequence"
        else Ranking(scores.tile, answer_mask, sequence_id, add)
    )
    # counted over all ranks, so that all raise: a rank that raised alone would leave the others waiting
    if order.bad:
        raise ValueError(f"{order.bad} of {order.tokens} eligible {scores.name} are NaN or infinite")
    no_score = torch.full(shape, torch.nan, dtype=torch.float32 if scores.sign == 0 else order.dtype)
    no_score = no_score.to(answer_mask.device)
    if order.tokens == 0:
        return ForkMask(answer_mask.clone(), no_score, torch.zeros_like(order.size.sum()))
    mask, threshold = _by_count(order, spec) if spec.rule == "count" else _by_threshold(order, spec)
    count = add(mask.count_nonzero())
    if spec.rule == "count" and spec.scope != "sequence":
        check_count(count, spec.kept(order.tokens))
    known = (order.size > 0) & (scores.sign != 0)
    return ForkMask(mask, torch.where(known, scores.sign * threshold.to(no_score.dtype) + 0.0, no_score), count)


def _by_count(order: Order, spec: ForkSelection) -> tuple[Tensor, Tensor]:
    k = order.size.new_tensor([spec.kept(n) for n in order.size.flatten().tolist()]).view(order.size.shape)
    if spec.keep != "band":
        return order.top(k)
    skipped = (order.size - k) // 2
    mask, last = order.top(skipped + k)
    mask ^= order.top(skipped)[0]
    return mask, last


def _by_threshold(order: Order, spec: ForkSelection) -> tuple[Tensor, Tensor]:
    if spec.keep != "band":
        low = order.quantile(1 - spec.rho)
        return order.between(low), low
    low, high = order.quantile((1 - spec.rho) / 2), order.quantile((1 + spec.rho) / 2)
    return order.between(low, high), low


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def _check(answer_mask: Tensor, sequence_id: Tensor | None, reduce: Reduce | None, **inputs: Tensor | None) -> Tensor:
    """Refuses wrong shapes and types; returns the sequence ids, by default row numbers."""
    if answer_mask.dtype != torch.bool:
        raise TypeError(f"answer_mask must be bool, not {answer_mask.dtype}")
    if answer_mask.ndim != 2:
        raise ValueError(f"answer_mask must be [S,T], got shape {tuple(answer_mask.shape)}")
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
