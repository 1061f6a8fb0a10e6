"""Scores of an evaluation with n sampled answers per problem, as torchmetrics.

Every class keeps the raw answers and removes repeated problems (by uid) before it scores: distributed samplers pad
their shards by showing some problems twice. All classes share one `update` and one set of states, so a
`MetricCollection` stores them once; `answer_metrics` builds the usual one.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

NO_ANSWER = -1
"""The vote of an answer from which nothing could be extracted."""


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


class Answers(NamedTuple):
    """The answers to N different problems, n for each."""

    right: Tensor  # [N,n] bool
    votes: Tensor  # [N,n] int64, class of mathematically equal answers, NO_ANSWER where there is none
    truncated: Tensor  # [N,n] bool
    length: Tensor  # [N,n] int64, tokens


class AnswerMetric(Metric):
    """Base class: collects the answers to problems and scores each problem once.

    A problem seen again (same uid) is counted once, with the answers of the first rank that saw it. In distributed runs
    every rank must call `update` at least once before `compute`; a rank without problems passes `[0,n]` tensors.
    """

    is_differentiable = False
    full_state_update = False

    least_answers: int = 1
    """Fewest answers per problem for which the score is defined."""

    key: list[Tensor]
    right: list[Tensor]
    votes: list[Tensor]
    truncated: list[Tensor]
    length: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("key", *Answers._fields):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, uid: str | Sequence[str], right: Tensor, votes: Tensor, truncated: Tensor, length: Tensor) -> None:
        """Adds the answers to B problems.

        Args:
            uid: the B problems' uids; a single string stands for one problem, whose tensors may then be `[n]`.
            right: bool `[B,n]`, whether the answer was judged right.
            votes: int64 `[B,n]`, answers with equal numbers are mathematically equal; -1 where there is no answer.
            truncated: bool `[B,n]`, whether the length limit came before the end of the answer.
            length: int64 `[B,n]`, tokens in the answer.

        Raises:
            TypeError: if a tensor has another dtype.
            ValueError: if shapes disagree, n changes or is too small, or a right answer has no vote.
        """
        uids = [uid] if isinstance(uid, str) else list(uid)
        values = (right, votes, truncated, length)
        answers = Answers(*(value.unsqueeze(0) if value.ndim == 1 else value for value in values))
        _check(answers, len(uids), self.least_answers)
        if self.right and self.right[0].shape[1] != answers.right.shape[1]:
            raise ValueError(f"n changed from {self.right[0].shape[1]} to {answers.right.shape[1]} answers per problem")
        self.key.append(torch.tensor([_key(name) for name in uids], dtype=torch.int64, device=self.device))
        for state, value in zip(Answers._fields, answers, strict=True):
            getattr(self, state).append(value.to(self.device))

    def compute(self) -> Tensor:
        """Scores the problems seen so far, over all ranks.

        Returns:
            A float64 scalar.

        Raises:
            ValueError: if no problem was seen.
        """
        key, *values = (_cat(getattr(self, state)) for state in ("key", *Answers._fields))
        if not key.numel():
            raise ValueError("no answers were given to the metric: the evaluation set is empty")
        key, order = key.sort(stable=True)  # by uid: the same order of summation for every number of ranks
        first = torch.cat([key.new_ones(1, dtype=torch.bool), key[1:] != key[:-1]])
        rows = order[first]
        return self.score(Answers(*(value[rows] for value in values)))

    def score(self, answers: Answers) -> Tensor:
        """The score of N different problems, a float64 scalar."""
        raise NotImplementedError


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


class MajAtK(AnswerMetric):
    """maj@k, k = n: the mean over problems of whether the most frequent answer is right.

    Votes are cast for classes of mathematically equal answers, never for strings. An answer that could not be extracted
    does not vote. Among m classes tied for the most votes each wins with chance 1/m, and the expected value is taken. A
    class is worth the share of its answers judged right: 0 or 1 where the verifier and the grouping agree. A problem
    without any vote counts 0.
    """

    def score(self, answers: Answers) -> Tensor:
        """Mean expected rightness of the winning class."""
        votes = answers.votes
        cast = votes != NO_ANSWER  # [N,n]
        support = ((votes.unsqueeze(2) == votes.unsqueeze(1)) & cast.unsqueeze(1)).sum(
            dim=2
        ) * cast  # [N,n] own class size
        # Tied classes have equally many answers, so the mean over all their answers is the mean over the classes.
        winners = cast & (support == support.amax(dim=1, keepdim=True))
        won = (winners & answers.right).sum(dim=1).double() / winners.sum(dim=1).clamp(min=1)
        return won.mean()


class TruncatedShare(AnswerMetric):
    """Share of answers cut off by the length limit."""

    def score(self, answers: Answers) -> Tensor:
        """Mean over all answers."""
        return answers.truncated.double().mean()


class MeanLength(AnswerMetric):
    """Mean length of an answer, in tokens."""

    def score(self, answers: Answers) -> Tensor:
        """Mean over all answers."""
        return answers.length.double().mean()


def answer_metrics(n: int, prefix: str = "") -> MetricCollection:
    """All scores for n answers per problem, under the names used in logs.

    Args:
        n: number of answers per problem, n >= 1.
        prefix: written before every name, for example `val/aime24/`.

    Returns:
        A collection with `avg@n`, `avg@n_se`, `maj@n`, `truncated` and `length`; for n > 1 also `avg@n_se_decoding` and
        `pass@k` for k = 2, 4, 8, ... up to n.

    Raises:
        ValueError: if n < 1.
    """
    if n < 1:
        raise ValueError(f"an evaluation needs at least one answer per problem, got n={n}")
    metrics: dict[str, Metric | MetricCollection] = {
        f"avg@{n}": AvgAtK(),
        f"avg@{n}_se": AvgStandardError(),
        f"maj@{n}": MajAtK(),
        "truncated": TruncatedShare(),
        "length": MeanLength(),
    }
    if n > 1:
        metrics[f"avg@{n}_se_decoding"] = AvgStandardError("decoding")
    metrics |= {f"pass@{2**i}": PassAtK(2**i) for i in range(1, n.bit_length())}
    return MetricCollection(metrics, prefix=prefix)


def _key(uid: str) -> int:
    """The first 8 bytes of a hexadecimal uid as a signed 64-bit number."""
    if not re.match(r"[0-9a-f]{16}", uid):
        raise ValueError(f"uid {uid!r} does not start with 16 hexadecimal digits, as `Problem.make` writes them")
    return int.from_bytes(bytes.fromhex(uid[:16]), "big", signed=True)


def _cat(state: Tensor | list[Tensor]) -> Tensor:
    """One tensor from a list state; after a sync it already is one."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.empty(0)


def _check(answers: Answers, problems: int, least_answers: int) -> None:
    """Raises if the tensors of one update are malformed."""
    dtypes = (torch.bool, torch.int64, torch.bool, torch.int64)
    for name, value, dtype in zip(Answers._fields, answers, dtypes, strict=True):
        if value.dtype != dtype:
            raise TypeError(f"`{name}` must be {dtype}, got {value.dtype}")
        if value.ndim != 2 or value.shape != (problems, answers.right.shape[-1]):
            raise ValueError(f"`{name}` must be [B,n] with B={problems} uids, like `right`, got {tuple(value.shape)}")
    if answers.right.shape[1] < least_answers:
        raise ValueError(f"needs at least {least_answers} answers per problem, got n={answers.right.shape[1]}")
    if bool((answers.votes < NO_ANSWER).any()):
        raise ValueError(f"votes must be class numbers >= 0, or {NO_ANSWER} for no answer")
    if bool((answers.right & (answers.votes == NO_ANSWER)).any()):
        raise ValueError(f"an answer judged right has no vote ({NO_ANSWER}): every right answer belongs to a class")
