"""The tensors of a step.

Letter legend, used in shapes, configs and docs:

P problems per rollout, over all ranks; G answers per problem (a *group*); S = P*G sequences (on one rank: a share);
L prompt plus answer length; T answer length; K optimiser updates per rollout; A micro-batches per update;
V vocabulary; H hidden size; N answer tokens of a micro-batch in row order; rho share of tokens that carry gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks and returns the sum; every rank must call it in the same order."""


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Log-probability and entropy of answer tokens."""

    logp: Tensor  # [N] of the sampled token, differentiable
    entropy: Tensor  # [N] in nats, over the full vocabulary, detached


@dataclass(frozen=True, slots=True)
class ForkMask:
    """The forking tokens: those that carry gradient."""

    mask: Tensor  # bool [S,T]
    threshold: Tensor  # [] score of the last token kept; NaN where no score was used
    count: Tensor  # [] int64, tokens kept over all ranks


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Sums, never means: the caller divides by one explicit global denominator."""

    policy_sum: Tensor  # [] clipped policy loss over the forking tokens
    kl_sum: Tensor | None  # [] KL to the reference over all answer tokens; None without a reference
    metrics: dict[str, Tensor] = field(default_factory=dict)  # detached sums and counts


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of an `Experience`, cut to their longest: what one forward pass sees."""

    input_ids: Tensor  # int64 [S,L] prompt, answer, right padding
    prompt_length: Tensor  # int64 [S]
    answer_mask: Tensor  # bool [S,T] True on sampled tokens, EOS included
    rows: Tensor  # int64 [S] row numbers in the Experience

    @property
    def answer_positions(self) -> Tensor:
        """Column in `input_ids` of every answer token, `[S,T]`; only meaningful under `answer_mask`."""
        return self.prompt_length[:, None] + torch.arange(self.answer_mask.shape[1], device=self.rows.device)

    @property
    def answer_ids(self) -> Tensor:
        """The N answer tokens in row order, `[N]`."""
        row = torch.arange(len(self.rows), device=self.rows.device)[:, None].expand_as(self.answer_mask)
        return self.input_ids[row[self.answer_mask], self.answer_positions[self.answer_mask]]


@dataclass(frozen=True, slots=True)
class Experience:
    """All sequences of one rollout on one rank, in global draw order, and what later passes learn about them.

    Example:
        Two answers to one problem with a prompt of 3 tokens: ``input_ids [2,L]``, ``prompt_length [3, 3]``,
        ``answer_length [5, 2]``, ``rewards [1, 0]``, ``advantages [0.7, -0.7]``, ``update [0, 0]``, ``row_key [0, 1]``.
    """

    input_ids: Tensor  # int64 [S,L] prompt, answer, right padding
    prompt_length: Tensor  # int64 [S]
    answer_length: Tensor  # int64 [S]
    rewards: Tensor  # float [S] after shaping
    advantages: Tensor  # float [S]
    contributing: Tensor  # bool [S] the sequence's group has an advantage that is not zero
    truncated: Tensor  # bool [S] the length limit came before an EOS
    update: Tensor  # int64 [S] the update the sequence belongs to, 0 .. K-1
    group: Tensor  # int64 [S] draw number of the sequence's problem
    row_key: Tensor  # int64 [S] draw number * G + answer number: unique over ranks, breaks ties
    old_logp: Tensor | None = None  # float [S,T] before the first update of the rollout
    entropy: Tensor | None = None  # float [S,T] of the policy that the selection asks for
    ref_logp: Tensor | None = None  # float [S,T]
    fork_mask: Tensor | None = None  # bool [S,T]
    threshold: Tensor | None = None  # float [K]
    denominator: Tensor | None = None  # float64 [K] of the masked terms, over all ranks
    answer_tokens: Tensor | None = None  # float64 [K] answer tokens, over all ranks

    @property
    def answer_mask(self) -> Tensor:
        """True on sampled tokens, EOS included: bool `[S,T]`."""
        longest = int(self.answer_length.max()) if len(self.answer_length) else 0
        return torch.arange(longest, device=self.answer_length.device) < self.answer_length[:, None]

    @property
    def answer_ids(self) -> Tensor:
        """The sampled tokens, `[S,T]`; 0 behind an answer's end."""
        mask = self.answer_mask
        columns = self.prompt_length[:, None] + torch.arange(mask.shape[1], device=mask.device)
        return self.input_ids.gather(1, columns.clamp(max=self.input_ids.shape[1] - 1)) * mask

    def chunk(self, rows: Tensor) -> Chunk:
        """The given rows, without the columns that none of them needs."""
        prompt, answer = self.prompt_length[rows], self.answer_length[rows]
        length = int((prompt + answer).max()) if len(rows) else 0
        longest = int(answer.max()) if len(rows) else 0
        answer_mask = torch.arange(longest, device=rows.device) < answer[:, None]
        return Chunk(self.input_ids[rows, :length], prompt, answer_mask, rows)

    def to(self, device: torch.device) -> "Experience":
        """The same on another device."""
        return replace(self, **{name: value.to(device) for name, value in self._tensors().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU, for a checkpoint."""
        return {name: value.cpu() for name, value in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
