"""Tokens whose covariance with the advantage is large: they lower the entropy (arXiv 2505.22617)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from forklight.algo.batch import Reduce
from forklight.algo.noise import hash_bits
from forklight.algo.selection.scores import covariance_moments, covariance_scores
from forklight.algo.selection.topk import Ranking, check_count, tiles


@dataclass(frozen=True)
class CovarianceTokens:
    """Which of n eligible tokens a covariance objective treats differently: at most k = max(1, floor(share * n))."""

    share: float
    """Share of the eligible tokens (in a loss, of the kept tokens), above 0 and at most 1."""
    low: float | None = None
    """Without bounds: the k tokens of the largest covariance (KL-Cov). With both: any k of those strictly between
    them (Clip-Cov)."""
    high: float | None = None
    """Upper bound of the covariance, above `low`."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of covariance tokens must be above 0 and at most 1, got {self.share}")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"give both bounds of the covariance or none, got low={self.low}, high={self.high}")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"the bounds of the covariance must be low < high, got {self.low} and {self.high}")

    def kept(self, n: int) -> int:
        """Number of tokens out of n eligible ones, if so many are candidates."""
        return min(n, max(1, int(self.share * n)))


def covariance_tokens(
    logp: Tensor,
    advantages: Tensor,
    eligible: Tensor,
    spec: CovarianceTokens,
    *,
    exclude: Tensor | None = None,
    sequence_id: Tensor,
    seed: int = 0,
    reduce: Reduce | None = None,
) -> Tensor:
    """The tokens that KL-Cov penalises or Clip-Cov detaches, arXiv 2505.22617, Eqs. 9 to 13.

    A token's covariance is (A - mean A)(logp - mean logp), with means over all eligible tokens of all ranks. The choice
    is exact and the same for every order of the rows and number of ranks; of ties the smallest (sequence_id, position)
    is chosen.

    Args:
        logp: [S,T], log-probabilities of the sampled tokens.
        advantages: [S].
        eligible: bool [S,T], the tokens that are counted in n and in the means.
        spec: how many, and which.
        exclude: bool [S,T], tokens that cannot be chosen (already clipped), but are counted in n and in the means.
        sequence_id: int64 [S], unique over all ranks.
        seed: of Clip-Cov's noise, a hash of (seed, sequence_id, position).
        reduce: sums an int64 tensor over the ranks, all of which call this with their own rows; None on a single rank.

    Returns:
        bool [S,T]. Of n eligible and m candidate tokens over all ranks exactly min(m, spec.kept(n)) are True.

    Raises:
        ValueError: shapes do not agree, an eligible value is NaN or infinite, or sequence ids are not unique.
    """
    _check(logp, advantages, eligible, exclude, sequence_id)
    add = reduce or (lambda tensor: tensor)
    moments = covariance_moments(logp, advantages, eligible, add)
    covariance = covariance_scores(logp, advantages, moments)
    candidates = eligible if exclude is None else eligible & ~exclude
    if spec.low is None or spec.high is None:
        ranking = Ranking(covariance, candidates, sequence_id, add)
    else:
        inside = torch.empty(eligible.shape, dtype=torch.bool, device=eligible.device)
        for rows in tiles(eligible):
            values = covariance(rows)
            inside[rows] = (values > spec.low) & (values < spec.high) & candidates[rows]
        position = torch.arange(eligible.shape[1], device=eligible.device)
        ranking = Ranking(lambda rows: hash_bits(seed, sequence_id[rows, None], position), inside, sequence_id, add)
    k = ranking.size.clamp(max=spec.kept(int(moments.tokens)))
    mask, _ = ranking.top(k)
    check_count(add(mask.count_nonzero()), int(k))
    return mask


def _check(logp: Tensor, advantages: Tensor, eligible: Tensor, exclude: Tensor | None, sequence_id: Tensor) -> None:
    shape = tuple(eligible.shape)
    wanted = {"logp": (logp, shape), "advantages": (advantages, shape[:1]), "sequence_id": (sequence_id, shape[:1])}
    if exclude is not None:
        wanted["exclude"] = (exclude, shape)
    for name, (value, expected) in wanted.items():
        if tuple(value.shape) != expected:
            raise ValueError(f"{name} must be {expected} to agree with eligible {shape}, got {tuple(value.shape)}")
