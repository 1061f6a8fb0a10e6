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
    normaliser: Tensor | None = None  # [N] log of the sum of exp(logits / temperature), detached


@dataclass(frozen=True, slots=True)
class ForkMask:
    """The forking tokens: those that carry gradient."""

    mask: Tensor  # bool [S,T]
    threshold: Tensor  # [] lowest score that is kept, [S] for scope sequence; NaN where no score was used
    count: Tensor  # [] int64, tokens kept over all ranks


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The N answer tokens of one visit, in row order: all that an objective sees."""

    logp: Tensor  # [N] under the policy being trained, differentiable
    old_logp: Tensor  # [N] before the rollout's updates, of the trainer or the sampler; may be logp itself, detached
    advantages: Tensor  # [N]
    fork_mask: Tensor  # bool [N] kept by the selection
    eligible: Tensor  # bool [N] could have been kept
    row: Tensor  # int64 [N] number of the token's sequence in the visit, 0 .. rows-1
    rows: int  # sequences in the visit
    entropy: Tensor | None = None  # [N] of the policy being trained
    ref_logp: Tensor | None = None  # [N]
    cov_mask: Tensor | None = None  # bool [N] tokens that a covariance objective acts on

    def part(self, tokens: Tensor, stats: TokenStats, *, fold_old: bool) -> "TokenBatch":
        """Some of the tokens, with statistics of their own.

        Args:
            tokens: int64 [m], which.
            stats: of these tokens, [m].
            fold_old: whether the log-probability, detached, is the old one too.
        """

        def some(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[tokens]

        return replace(
            self,
            logp=stats.logp,
            old_logp=stats.logp.detach() if fold_old else self.old_logp[tokens],
            advantages=self.advantages[tokens],
            fork_mask=self.fork_mask[tokens],
            eligible=self.eligible[tokens],
            row=self.row[tokens],
            entropy=stats.entropy,
            ref_logp=some(self.ref_logp),
            cov_mask=some(self.cov_mask),
        )


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A policy loss token by token, and which tokens its trust region acts on."""

    loss: Tensor  # [N] 0 (and without gradient) on tokens that do not count
    clip_low: Tensor  # bool [N] ratio below the range, and that matters; also for tokens that do not count
    clip_high: Tensor  # bool [N] ratio above the range, and that matters
    clip_dual: Tensor  # bool [N] the dual bound acts


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Sums, never means: the caller divides by one explicit global denominator."""

    policy_sum: Tensor  # [] policy loss over the tokens that the objective trains
    kl_sum: Tensor | None = None  # [] KL to the reference; None without that term
    entropy_sum: Tensor | None = None  # [] entropy; None without that term
    metrics: dict[str, Tensor] = field(default_factory=dict)  # detached sums and counts


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of an `Experience`, cut to their longest: what one forward pass sees."""

    input_ids: Tensor  # int64 [S,L] prompt, answer, right padding
    prompt_length: Tensor  # int64 [S]
    answer_mask: Tensor  # bool [S,T] True on sampled tokens, EOS included
    rows: Tensor  # int64 [S] row numbers in the Experience
    group: Tensor  # int64 [S] neighbours with one number have the same prompt

    @property
    def answer_positions(self) -> Tensor:
        """Column in `input_ids` of every answer token, `[S,T]`; only meaningful under `answer_mask`."""
        return self.prompt_length[:, None] + torch.arange(self.answer_mask.shape[1], device=self.rows.device)

    @property
    def row(self) -> Tensor:
        """Number of each answer token's sequence in the chunk, int64 `[N]`."""
        row = torch.arange(len(self.rows), device=self.rows.device)
        return row[:, None].expand_as(self.answer_mask)[self.answer_mask]

    @property
    def column(self) -> Tensor:
        """Place of each answer token in its answer, int64 `[N]`."""
        column = torch.arange(self.answer_mask.shape[1], device=self.rows.device)
        return column.expand_as(self.answer_mask)[self.answer_mask]

    @property
    def answer_ids(self) -> Tensor:
        """The N answer tokens in row order, `[N]`."""
        return self.input_ids[self.row, self.answer_positions[self.answer_mask]]

    def read(self, values: Tensor) -> Tensor:
        """The values of the chunk's N answer tokens, `[N]`, out of an Experience's `[S,T]`."""
        return values[self.rows][:, : self.answer_mask.shape[1]][self.answer_mask]

    def write(self, values: Tensor, tokens: Tensor) -> None:
        """Puts values of the chunk's N answer tokens, `[N]`, into an Experience's `[S,T]`, in place."""
        values[self.rows[self.row], self.column] = tokens.detach().to(values.dtype)


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
    right: Tensor  # bool [S] the verifier's outcome
    truncated: Tensor  # bool [S] the length limit came before an EOS
    update: Tensor  # int64 [S] the update the sequence belongs to, 0 .. K-1
    group: Tensor  # int64 [S] draw number of the sequence's problem
    row_key: Tensor  # int64 [S] draw number * G + answer number: unique over ranks, breaks ties
    sampler_logp: Tensor | None = None  # float32 [S,T] that the sampler drew the tokens with, if it told
    old_logp: Tensor | None = None  # float [S,T] of the trainer, before the first update of the rollout
    entropy: Tensor | None = None  # float [S,T] of the policy that the selection asks for
    logp: Tensor | None = None  # float [S,T] of that same policy, where a score is made of it
    ref_logp: Tensor | None = None  # float [S,T]
    fork_mask: Tensor | None = None  # bool [S,T]
    cov_mask: Tensor | None = None  # bool [S,T] tokens that a covariance objective acts on
    threshold: Tensor | None = None  # float [S] lowest score kept in the set that the sequence was ranked in
    denominator: Tensor | None = None  # float64 [K] of the masked terms, over all ranks
    whole: Tensor | None = None  # float64 [K] denominator of terms without a mask, over all ranks

    @property
    def width(self) -> int:
        """T, the longest answer."""
        return int(self.answer_length.max()) if len(self.answer_length) else 0

    @property
    def answer_mask(self) -> Tensor:
        """True on sampled tokens, EOS included: bool `[S,T]`."""
        return torch.arange(self.width, device=self.answer_length.device) < self.answer_length[:, None]

    def answer_ids(self, rows: Tensor) -> Tensor:
        """The sampled tokens of some rows, `[rows,T]`; anything behind an answer's end."""
        columns = self.prompt_length[rows, None] + torch.arange(self.width, device=rows.device)
        return self.input_ids[rows].gather(1, columns.clamp_(max=self.input_ids.shape[1] - 1))

    def chunk(self, rows: Tensor) -> Chunk:
        """The given rows, without the columns that none of them needs."""
        prompt, answer = self.prompt_length[rows], self.answer_length[rows]
        length = int((prompt + answer).max()) if len(rows) else 0
        longest = int(answer.max()) if len(rows) else 0
        answer_mask = torch.arange(longest, device=rows.device) < answer[:, None]
        return Chunk(self.input_ids[rows, :length], prompt, answer_mask, rows, self.group[rows])

    def to(self, device: torch.device) -> "Experience":
        """The same on another device."""
        return replace(self, **{name: value.to(device) for name, value in self._tensors().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU, for a checkpoint."""
        return {name: value.cpu() for name, value in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
