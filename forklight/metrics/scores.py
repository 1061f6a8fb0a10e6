"""The scores: avg@k with its standard error, pass@k, shares and lengths."""

import math
from typing import Literal

import torch
from torch import Tensor

from forklight.metrics.answers import AnswerMetric, Answers
from forklight.metrics.majority import MajAtK


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k answers is right: 1 - C(n-c, k) / C(n, k).

    Chen et al., "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), equation 1. The k answers are
    drawn without replacement from the n that were sampled; with k = n this is 1 if any answer is right, else 0.

    Args:
        n: number of sampled answers, n >= 1.
        c: number of right ones among them, 0 <= c <= n.
        k: number of answers drawn, 1 <= k <= n.

    Returns:
        A probability in [0, 1].

    Raises:
        ValueError: if n, c or k is out of its range.
    """
    if n < 1 or not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs n >= 1, 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


class AvgAtK(AnswerMetric):
    """avg@k, k = n: the mean over problems of the share of right answers c/n."""

    def score(self, answers: Answers) -> Tensor:
        """Mean share of right answers."""
        return answers.right.double().mean()


class AvgStandardError(AnswerMetric):
    """Standard error of avg@k.

    With p_i = c_i/n the share of right answers to problem i, out of N problems:

    - `problems`: sqrt(sum (p_i - mean p)^2 / (N (N-1))). Problems are the sampling unit and keep their answers together
      (clusters), so this covers both the choice of problems and the sampling of answers. NaN for N = 1.
    - `decoding`: sqrt(sum p_i (1-p_i) / (n-1)) / N. The problems are taken as given and only the sampling of answers
      varies; right for two checkpoints on one benchmark. NaN for n = 1.

    For N around 30 the normal interval from either is only approximate.

    Args:
        over: what would be drawn anew if the evaluation were repeated.
    """

    def __init__(self, over: Literal["problems", "decoding"] = "problems") -> None:
        if over not in ("problems", "decoding"):
            raise ValueError(f"over must be 'problems' or 'decoding', got {over!r}")
        super().__init__()
        self.over = over

    def score(self, answers: Answers) -> Tensor:
        """The standard error, in the unit of avg@k."""
        problems, n = answers.right.shape
        share = answers.right.double().mean(dim=1)  # [N]
        if self.over == "problems":
            variance = (share - share.mean()).square().sum() / (problems - 1 or math.nan)
            return (variance / problems).sqrt()
        return (share * (1 - share)).sum().div(n - 1 or math.nan).sqrt() / problems


class PassAtK(AnswerMetric):
    """pass@k: the mean over problems of the unbiased `pass_at_k(n, c, k)`.

    Args:
        k: number of answers drawn, at most n.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        super().__init__()
        self.least_answers = k

    def score(self, answers: Answers) -> Tensor:
        """Mean chance that one of k answers is right."""
        n = answers.right.shape[1]
        table = torch.tensor([pass_at_k(n, c, self.least_answers) for c in range(n + 1)], dtype=torch.float64)
        return table.to(answers.right.device)[answers.right.sum(dim=1)].mean()


class TruncatedShare(AnswerMetric):
    """Share of answers cut off by the length limit."""

    def score(self, answers: Answers) -> Tensor:
        """Mean over all answers."""
        return answers.truncated.double().mean()


class UnjudgedShare(AnswerMetric):
    """Share of answers that the verifier could not judge; they count as not right."""

    def score(self, answers: Answers) -> Tensor:
        """Mean over all answers."""
        return answers.unjudged.double().mean()


class MeanLength(AnswerMetric):
    """Mean length of an answer, in tokens.

    Args:
        of: which answers: `all`, the `right` ones, or the `wrong` ones, which are all others. NaN if there are none.
    """

    def __init__(self, of: Literal["all", "right", "wrong"] = "all") -> None:
        if of not in ("all", "right", "wrong"):
            raise ValueError(f"of must be 'all', 'right' or 'wrong', got {of!r}")
        super().__init__()
        self.of = of

    def score(self, answers: Answers) -> Tensor:
        """Mean over those answers."""
        chosen = {"all": torch.ones_like(answers.right), "right": answers.right, "wrong": ~answers.right}[self.of]
        return answers.length.double()[chosen].mean()


class AnswerScores(AnswerMetric):
    """All scores for n answers per problem, from one set of states.

    `avg@n`, `avg@n_se`, for n > 1 `avg@n_se_decoding`; `pass@k` for k = 2 .. n; `maj@k` for k = 2, 4, 8 .. and n;
    `truncated`, `unjudged`, `length`, `length_right`, `length_wrong`.

    Args:
        n: number of answers per problem.

    Raises:
        ValueError: if n < 1.
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"an evaluation needs at least one answer per problem, got n={n}")
        super().__init__()
        self.least_answers = n
        scores: dict[str, AnswerMetric] = {f"avg@{n}": AvgAtK(), f"avg@{n}_se": AvgStandardError()}
        if n > 1:
            scores[f"avg@{n}_se_decoding"] = AvgStandardError("decoding")
        scores |= {f"pass@{k}": PassAtK(k) for k in range(2, n + 1)}
        scores |= {f"maj@{k}": MajAtK(k) for k in shown_k(n)}
        scores |= {"truncated": TruncatedShare(), "unjudged": UnjudgedShare(), "length": MeanLength()}
        scores |= {f"length_{of}": MeanLength(of) for of in ("right", "wrong")}
        self.scores = scores

    def score(self, answers: Answers) -> dict[str, Tensor]:
        """Every score by its name."""
        return {name: metric.score(answers) for name, metric in self.scores.items()}


def shown_k(n: int) -> list[int]:
    """The k of pass@k and maj@k that curves show: powers of two below n, and n itself if it is above 1."""
    powers = [2**i for i in range(1, n.bit_length()) if 2**i < n]
    return [*powers, n] if n > 1 else []
