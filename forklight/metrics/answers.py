"""What all scores have in common: the answers, each problem once, whatever the number of ranks."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

NO_ANSWER = -1
"""The vote of an answer from which nothing could be extracted."""


class Answers(NamedTuple):
    """The answers to N different problems, n for each."""

    right: Tensor  # [N,n] bool
    votes: Tensor  # [N,n] int64, class of mathematically equal answers, NO_ANSWER where there is none
    truncated: Tensor  # [N,n] bool
    length: Tensor  # [N,n] int64, tokens
    unjudged: Tensor  # [N,n] bool


_DTYPES = (torch.bool, torch.int64, torch.bool, torch.int64, torch.bool)


class AnswerMetric(Metric):
    """Base class: collects the answers to problems and scores each problem once.

    Distributed samplers pad their shards by showing some problems twice. A problem seen again (same uid) is counted
    once, with the answers of the first rank that saw it, and problems are summed in the order of their uids: so a score
    is the same to the last digit for every number of ranks. In distributed runs every rank must call `update` at least
    once before `compute`; a rank without problems passes `[0,n]` tensors.
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
    unjudged: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("key", *Answers._fields):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self,
        uid: str | Sequence[str],
        right: Tensor,
        votes: Tensor,
        truncated: Tensor,
        length: Tensor,
        unjudged: Tensor | None = None,
    ) -> None:
        """Adds the answers to B problems.

        Args:
            uid: the B problems' uids; a single string stands for one problem, whose tensors may then be `[n]`.
            right: bool `[B,n]`, whether the answer was judged right.
            votes: int64 `[B,n]`, answers with equal numbers are mathematically equal; -1 where there is no answer.
            truncated: bool `[B,n]`, whether the length limit came before the end of the answer.
            length: int64 `[B,n]`, tokens in the answer.
            unjudged: bool `[B,n]`, whether the verifier could not tell; none if not given.

        Raises:
            TypeError: if a tensor has another dtype.
            ValueError: if shapes disagree, n changes or is too small, or a right answer has no vote.
        """
        uids = [uid] if isinstance(uid, str) else list(uid)
        values = (right, votes, truncated, length, torch.zeros_like(right) if unjudged is None else unjudged)
        answers = Answers(*(value.unsqueeze(0) if value.ndim == 1 else value for value in values))
        _check(answers, len(uids), self.least_answers)
        if self.right and self.right[0].shape[1] != answers.right.shape[1]:
            raise ValueError(f"n changed from {self.right[0].shape[1]} to {answers.right.shape[1]} answers per problem")
        self.key.append(torch.tensor([_key(name) for name in uids], dtype=torch.int64, device=self.device))
        for state, value in zip(Answers._fields, answers, strict=True):
            getattr(self, state).append(value.to(self.device))

    def compute(self) -> Any:
        """Scores the problems seen so far, over all ranks.

        Returns:
            What `score` returns: a float64 scalar, or several by name.

        Raises:
            ValueError: if no problem was seen.
        """
        key, *values = (_cat(getattr(self, state)) for state in ("key", *Answers._fields))
        if not key.numel():
            raise ValueError("no answers were given to the metric: the evaluation set is empty")
        key, order = key.sort(stable=True)
        first = torch.cat([key.new_ones(1, dtype=torch.bool), key[1:] != key[:-1]])
        rows = order[first]
        return self.score(Answers(*(value[rows] for value in values)))

    def score(self, answers: Answers) -> Any:
        """The score of N different problems."""
        raise NotImplementedError


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
    for name, value, dtype in zip(Answers._fields, answers, _DTYPES, strict=True):
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
