"""The tensors of a step.

Letter legend, used in shapes, configs and docs:

P problems per rollout, over all ranks; G answers per problem (a *group*); S = P*G sequences, or those of one rank;
L prompt plus answer length; T answer length; K optimiser updates per rollout; A micro-batches per update;
V vocabulary; H hidden size; N answer tokens of a micro-batch in row order; rho share of tokens that carry gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks and returns the sum; every rank must call it in the same order."""


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Log-probability and entropy of answer tokens, and how far a change of the logits moves the log-probability.

    `grad_square` is T^2 times the squared norm of the gradient of `logp` with respect to the logits, which is
    `(1[token] - p) / T`: with the probability p of the token it is `(1 - p)^2 + sum_{j != token} p_j^2`, from 0 for a
    certain token to almost 2. The policy gradient of a token with advantage A has the squared norm A^2 / T^2 times it.
    """

    logp: Tensor  # [N] of the sampled token, differentiable
    entropy: Tensor  # [N] in nats, over the full vocabulary, detached
    normaliser: Tensor | None = None  # [N] log of the sum of exp(logits / temperature), detached
    grad_square: Tensor | None = None  # [N] at the temperature of `logp`, detached

    def detached(self) -> "TokenStats":
        """The same values without a gradient."""
        return replace(self, logp=self.logp.detach(), entropy=self.entropy.detach())


@dataclass(frozen=True, slots=True)
class ForkMask:
    """The forking tokens: those that carry gradient."""

    mask: Tensor  # bool [S,T]
    threshold: Tensor  # [] lowest score that is kept, [S] for scope sequence; NaN where no score was used
    count: Tensor  # [] int64, tokens kept over all ranks


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The N answer tokens of one micro-batch, in row order: all that an objective sees."""

    logp: Tensor  # [N] under the policy being trained, differentiable
    old_logp: Tensor  # [N] before the rollout's updates, of the trainer or the sampler; may be logp itself, detached
    advantages: Tensor  # [N]
    fork_mask: Tensor  # bool [N] kept by the selection
    eligible: Tensor  # bool [N] could have been kept
    row: Tensor  # int64 [N] number of the token's sequence in the micro-batch, 0 .. rows-1
    rows: int  # sequences in the micro-batch
    entropy: Tensor | None = None  # [N] of the policy being trained
    ref_logp: Tensor | None = None  # [N]
    cov_mask: Tensor | None = None  # bool [N] tokens that a covariance objective acts on

    def at(self, tokens: Tensor | slice) -> "TokenBatch":
        """The batch of some of its tokens.

        Args:
            tokens: their indices, int64 [m], or a slice.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        some: dict[str, Any] = {name: v[tokens] if isinstance(v, Tensor) else v for name, v in values.items()}
        return TokenBatch(**some)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A policy loss token by token, and which tokens its trust region acts on."""

    loss: Tensor  # [N] 0 and without gradient on tokens that are not trained
    clip_low: Tensor  # bool [N] the lower bound of the range acts; flagged also on tokens that are not trained
    clip_high: Tensor  # bool [N] the upper bound of the range acts
    clip_dual: Tensor  # bool [N] the dual bound acts


class Metrics(NamedTuple):
    """Detached float64 scalars by name, from which curves are made, combined over micro-batches and ranks."""

    sums: dict[str, Tensor]
    """Combined by addition."""
    maxima: dict[str, Tensor]
    """Combined by maximum."""

    def named(self, prefix: str) -> "Metrics":
        """The same metrics with a prefix before every name."""
        return Metrics(*({f"{prefix}{name}": value for name, value in part.items()} for part in self))

    def and_also(self, other: "Metrics") -> "Metrics":
        """Combines the metrics of two micro-batches, or two sets of metrics of one micro-batch."""
        return Metrics(_combined(self.sums, other.sums, torch.add), _combined(self.maxima, other.maxima, torch.maximum))


def _combined(
    a: dict[str, Tensor], b: dict[str, Tensor], combine: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    return a | {name: combine(a[name], value) if name in a else value for name, value in b.items()}


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of a `RolloutBatch`, padded to the longest of them: the input of one forward pass."""

    input_ids: Tensor  # int64 [S,L] prompt, answer, right padding
    prompt_length: Tensor  # int64 [S]
    answer_mask: Tensor  # bool [S,T] True on sampled tokens, EOS included
    rows: Tensor  # int64 [S] row numbers in the RolloutBatch
    problem_index: Tensor  # int64 [S] adjacent rows with the same number have the same prompt

    @property
    def answer_positions(self) -> Tensor:
        """Column in `input_ids` of every answer token, `[S,T]`; only meaningful under `answer_mask`."""
        return self.prompt_length[:, None] + torch.arange(self.answer_mask.shape[1], device=self.rows.device)

    @property
    def row(self) -> Tensor:
        """Number of each answer token's sequence in the micro-batch, int64 `[N]`."""
        row = torch.arange(len(self.rows), device=self.rows.device)
        return row[:, None].expand_as(self.answer_mask)[self.answer_mask]

    @property
    def column(self) -> Tensor:
        """Position of each answer token in its answer, int64 `[N]`."""
        column = torch.arange(self.answer_mask.shape[1], device=self.rows.device)
        return column.expand_as(self.answer_mask)[self.answer_mask]

    @property
    def answer_ids(self) -> Tensor:
        """The N answer tokens in row order, `[N]`."""
        return self.input_ids[self.row, self.answer_positions[self.answer_mask]]

    def read(self, values: Tensor) -> Tensor:
        """The values of the micro-batch's N answer tokens, `[N]`, from those of the rollout, `[S,T]`."""
        return values[self.rows][:, : self.answer_mask.shape[1]][self.answer_mask]

    def write(self, values: Tensor, tokens: Tensor) -> Tensor:
        """A copy of a rollout's values `[S,T]` with new values for the micro-batch's N answer tokens.

        Args:
            values: [S,T].
            tokens: [N], the new values; the copy has their dtype.
        """
        return values.to(tokens.dtype).index_put((self.rows[self.row], self.column), tokens.detach())


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """All sequences of one rollout on one rank, sampled and verified, ordered by problem and answer.

    Its tensors are never changed: results of passes over the tokens go into a `TokenState`.

    Example:
        Two answers to one problem with a prompt of 3 tokens: ``input_ids [2,L]``, ``prompt_length [3, 3]``,
        ``answer_length [5, 2]``, ``rewards [1, 0]``, ``advantages [0.7, -0.7]``, ``update [0, 0]``,
        ``problem_index [0, 0]``, ``sequence_id [0, 1]``, ``uids ("2f41", "2f41")``.
    """

    input_ids: Tensor  # int64 [S,L] prompt, answer, right padding
    prompt_length: Tensor  # int64 [S]
    answer_length: Tensor  # int64 [S]
    rewards: Tensor  # float [S] after shaping
    advantages: Tensor  # float [S]
    contributing: Tensor  # bool [S] the sequence's group has a non-zero advantage
    right: Tensor  # bool [S] the verifier judged the answer right
    truncated: Tensor  # bool [S] the length limit came before an EOS or a stop
    update: Tensor  # int64 [S] the update the sequence belongs to, 0 .. K-1
    problem_index: Tensor  # int64 [S] number of the sequence's problem in the rollout, over all ranks
    sequence_id: Tensor  # int64 [S] problem_index * G + answer number: unique over ranks, breaks ties
    sampler_logp: Tensor | None = None  # float32 [S,T] of the sampler; None if it reports none
    uids: tuple[str, ...] = ()  # [S] the uid of each sequence's problem, for messages; may be left out

    def with_advantages(self, rewards: Tensor, advantages: Tensor, contributing: Tensor) -> "RolloutBatch":
        """The same sequences with these rewards `[S]`, advantages `[S]` and `contributing`, bool `[S]`."""
        return replace(self, rewards=rewards, advantages=advantages, contributing=contributing)

    @property
    def width(self) -> int:
        """T, the longest answer."""
        return int(self.answer_length.max()) if len(self.answer_length) else 0

    @property
    def answer_mask(self) -> Tensor:
        """True on sampled tokens, EOS included: bool `[S,T]`."""
        return torch.arange(self.width, device=self.answer_length.device) < self.answer_length[:, None]

    def answer_ids(self, rows: Tensor) -> Tensor:
        """The sampled tokens of some rows, `[rows,T]`; undefined after an answer's end."""
        columns = self.prompt_length[rows, None] + torch.arange(self.width, device=rows.device)
        return self.input_ids[rows].gather(1, columns.clamp_(max=self.input_ids.shape[1] - 1))

    def micro_batch(self, rows: Tensor) -> MicroBatch:
        """The given rows, without the columns that are padding in all of them."""
        prompt, answer = self.prompt_length[rows], self.answer_length[rows]
        length = int((prompt + answer).max()) if len(rows) else 0
        longest = int(answer.max()) if len(rows) else 0
        answer_mask = torch.arange(longest, device=rows.device) < answer[:, None]
        return MicroBatch(self.input_ids[rows, :length], prompt, answer_mask, rows, self.problem_index[rows])

    def problem(self, row: int) -> str:
        """Names the problem of a row in a message: its uid, or its number if the uids were left out."""
        return self.uids[row] if self.uids else f"number {int(self.problem_index[row])} of the rollout"

    def to(self, device: torch.device) -> "RolloutBatch":
        """The same batch on another device."""
        moved: dict[str, Any] = {n: v.to(device) for n, v in self._fields().items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def state_dict(self) -> dict[str, Any]:
        """All fields by name, tensors on the CPU, for a checkpoint: `RolloutBatch(**state)` is the same batch."""
        return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in self._fields().items()}

    def _fields(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
