"""Two checkpoints on the same problems."""

from typing import NamedTuple

import torch
from torch import Tensor

_DRAWS_AT_ONCE = 2**24  # problems drawn side by side: 128 MiB of indices


class Paired(NamedTuple):
    """The difference of two scores on the same problems."""

    difference: float
    """Mean over problems of b - a."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    standard_error: float
    """Standard deviation of the problems' differences / sqrt(N); NaN for one problem."""
    b_ahead: float
    """Share of the resamples in which b is ahead; ties count half."""


def paired_difference(
    a: Tensor, b: Tensor, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Paired:
    """The mean difference of two scores, with a percentile interval from a bootstrap over problems.

    Problems are drawn with replacement, each with all its answers on both sides. So the interval covers the choice of
    problems as well as the sampling of answers, and what both sides share, the difficulty of a problem, cancels out.
    Efron, "Bootstrap methods: another look at the jackknife", 1979; paired evaluations: arXiv 2411.00640.

    Args:
        a: share of right answers to each problem, float64 `[N]`.
        b: the same of the other side, problem by problem.
        confidence: of the interval, between 0 and 1.
        resamples: number of resamples.
        seed: of the resamples.

    Raises:
        ValueError: if the shapes differ, there is no problem, or a setting is out of its range.
    """
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"paired scores must be two tensors [N] with N >= 1, got {tuple(a.shape)}, {tuple(b.shape)}")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence = {confidence} must lie in (0, 1), resamples = {resamples} must be at least 1")
    difference = b.double() - a.double()
    count = len(difference)
    generator = torch.Generator().manual_seed(seed)
    means = []
    for start in range(0, resamples, max(1, _DRAWS_AT_ONCE // count)):
        rows = min(max(1, _DRAWS_AT_ONCE // count), resamples - start)
        means.append(difference[torch.randint(count, (rows, count), generator=generator)].mean(1))
    drawn = torch.cat(means).sort().values
    tail = (1 - confidence) / 2
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Paired(
        difference=float(difference.mean()),
        low=low,
        high=high,
        standard_error=float(difference.std() / count**0.5) if count > 1 else float("nan"),
        b_ahead=float((drawn > 0).double().mean() + (drawn == 0).double().mean() / 2),
    )
