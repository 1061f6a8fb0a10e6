"""Majority votes: maj@k, exactly, without drawing subsets."""

from functools import lru_cache
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forklight.metrics.answers import NO_ANSWER, AnswerMetric, Answers


class MajAtK(AnswerMetric):
    """maj@k: the mean over problems of the chance that the most frequent of k answers is right.

    Votes are cast for classes of mathematically equal answers, never for strings. An answer that could not be extracted
    does not vote. Among m classes tied for the most votes each wins with chance 1/m, and the expected value is taken. A
    class is worth the share of its answers judged right: 0 or 1 where the verifier and the grouping agree. A problem
    without any vote counts 0. For k < n it is the mean over all subsets of k of the n answers; see `majority_at_k`.

    Args:
        k: number of answers drawn, at most n; all n if None.

    Raises:
        ValueError: if k < 1.
    """

    def __init__(self, k: int | None = None) -> None:
        if k is not None and k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        super().__init__()
        self.k = k
        self.least_answers = k or 1

    def score(self, answers: Answers) -> Tensor:
        """Mean chance that the vote of k answers is right."""
        n = answers.right.shape[1]
        rows = zip(answers.votes.tolist(), answers.right.tolist(), strict=True)
        chances = [_chance(votes, right, self.k or n) for votes, right in rows]
        return torch.tensor(chances, dtype=torch.float64, device=answers.right.device).mean()


def _chance(votes: list[int], right: list[bool], k: int) -> float:
    sizes: dict[int, int] = {}
    rights: dict[int, int] = {}
    for vote, good in zip(votes, right, strict=True):
        if vote != NO_ANSWER:
            sizes[vote] = sizes.get(vote, 0) + 1
            rights[vote] = rights.get(vote, 0) + good
    # sorted, so that equal problems are looked up, whatever their classes are called
    classes = sorted((size, rights[vote] / size) for vote, size in sizes.items())
    return majority_at_k(tuple(size for size, _ in classes), tuple(worth for _, worth in classes), k, len(votes))


@lru_cache(maxsize=65536)
def majority_at_k(sizes: tuple[int, ...], worth: tuple[float, ...], k: int, n: int) -> float:
    """The expected worth of the class that most of k answers vote for, ties broken evenly.

    The k answers are drawn without replacement from n, of which `sizes` vote for their class and the others do not
    vote. For a class with s answers, v of them drawn, the other k - v fall on the others: the ways in which none of
    these has more than v, by how many have just v, are coefficients of a product of polynomials, one per class.

    Args:
        sizes: answers that vote for each class.
        worth: what each class is worth.
        k: answers drawn, 1 <= k <= n.
        n: answers in all, at least the sum of `sizes`.

    Returns:
        The expected worth; draws without any vote count 0.

    Raises:
        ValueError: if k or n is out of its range.

    Example:
        >>> majority_at_k((2, 1), (1.0, 0.0), 3, 3), majority_at_k((2, 1), (1.0, 0.0), 1, 3)
        (1.0, 0.6666666666666666)
    """
    if not 1 <= k <= n or sum(sizes) > n:
        raise ValueError(f"maj@k needs 1 <= k <= n and no more votes than n, got k={k}, n={n}, votes={sum(sizes)}")
    expected = 0.0
    for own, value in enumerate(worth):
        if value:
            others = sizes[:own] + sizes[own + 1 :]
            for votes in range(1, min(sizes[own], k) + 1):
                ways = _ways(tuple(sorted(others)), n - sum(sizes), votes, k - votes)
                shares = ways / np.arange(1, len(ways) + 1)  # with t others of as many votes it wins once in t + 1
                expected += value * comb(sizes[own], votes) * float(shares.sum())
    return expected / comb(n, k)


@lru_cache(maxsize=65536)
def _ways(others: tuple[int, ...], silent: int, most: int, drawn: int) -> NDArray[np.float64]:
    """In how many ways `drawn` answers fall on the others, none above `most`; by the number of classes that have it."""
    ways = np.zeros((drawn // most + 1, drawn + 1))
    ways[0, : silent + 1] = [comb(silent, count) for count in range(min(silent, drawn) + 1)]
    for size in others:
        below = sum(comb(size, count) * _shifted(ways, 0, count) for count in range(min(size, most - 1) + 1))
        ways = below + comb(size, most) * _shifted(ways, 1, most)
    return ways[:, drawn]


def _shifted(ways: NDArray[np.float64], tied: int, count: int) -> NDArray[np.float64]:
    """The ways after one more class has got `count` answers."""
    moved = np.zeros_like(ways)
    rows, columns = ways.shape
    if tied < rows and count < columns:
        moved[tied:, count:] = ways[: rows - tied, : columns - count]
    return moved
