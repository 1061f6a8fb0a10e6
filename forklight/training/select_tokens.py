"""Which sets of tokens are ranked together: the scopes of the selection, over micro-batches and ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from forklight.algo.batch import Reduce, RolloutBatch, TokenBatch
from forklight.algo.denominators import kept_tokens, known_from_lengths
from forklight.algo.noise import hash_bits
from forklight.algo.plan import eligible_rows
from forklight.algo.schedule import OldLogp
from forklight.algo.selection.covariance import CovarianceTokens, covariance_tokens
from forklight.algo.selection.mask import select
from forklight.algo.selection.prefixes import prefix_keys, share_first
from forklight.algo.selection.relative import relative_entropies
from forklight.algo.selection.spec import ForkSelection
from forklight.distributed import Ranks
from forklight.training.state import RolloutState, TokenState

_BLOCK = 2**20
"""Tokens whose prefixes are compared at a time: keys and token ids take a few bytes each."""


class TokenSelector:
    """Selects the tokens of updates and micro-batches; returns the updated state of the tokens.

    Args:
        seed: the run's seed.
        ranks: the data-parallel group.
    """

    def __init__(self, seed: int, ranks: Ranks) -> None:
        self.seed = seed
        self.ranks = ranks

    @torch.no_grad()
    def select_updates(self, state: RolloutState, updates: range) -> TokenState:
        """The masks of some updates, one selection per set of tokens that are ranked together."""
        tokens = state.tokens
        for rows in self._sets(state, updates):
            tokens = self._select(state, tokens, rows)
        return self._with_denominators(state, tokens)

    @torch.no_grad()
    def select_micro_batch(self, state: RolloutState, number: int) -> TokenState:
        """The masks of one micro-batch, in its forward pass; with scope `update` and A = 1 it is the full update."""
        tokens = self._select(state, state.tokens, state.plan.ranked_rows(number))
        return self._with_denominators(state, tokens)

    def _sets(self, state: RolloutState, updates: range) -> Iterator[Tensor]:
        """The rows of each set."""
        update, scope = state.batch.update, state.config.selection.scope
        if scope == "rollout":
            yield torch.arange(len(update), device=update.device)
            return
        for number in updates:
            if scope in ("update", "sequence"):
                yield (update == number).nonzero().flatten()
            else:
                yield from map(state.plan.ranked_rows, state.plan.micro_batches_of(number))

    def _select(self, state: RolloutState, tokens: TokenState, rows: Tensor) -> TokenState:
        """Selects in one set: all ranks call this together, unless each rank selects alone."""
        batch, config = state.batch, state.config
        spec, eligible = config.selection, _eligible(state, rows)
        advantages, sequence_id, entropy = batch.advantages[rows], batch.sequence_id[rows], tokens.entropy[rows]
        reduce = None if spec.scope == "micro_batch_rank" else self.ranks.reduce
        if spec.needs_entropy:
            entropy = shared(entropy, batch, rows, eligible, inclusive=False)
        if spec.relative_to != "none":
            entropy = self._relative(state, entropy, rows, eligible, reduce)
        logp = shared(tokens.logp[rows], batch, rows, eligible, inclusive=True) if config.ranks_logp else None
        seed = int(hash_bits(self.seed, state.rollout))
        with self._failing_together(spec):
            found = select(
                entropy,
                eligible,
                spec,
                logp=logp,
                advantages=advantages,
                sequence_id=sequence_id,
                seed=seed,
                reduce=reduce,
                always=_last_tokens(batch, rows, eligible) if spec.keep_eos else None,
            )
        tokens = replace(
            tokens,
            fork_mask=tokens.fork_mask.index_put((rows,), found.mask),
            threshold=_put(tokens.threshold, rows, found.threshold),
        )
        if config.objective.covariance is None or logp is None:
            return tokens
        cov_mask = self._covariance_tokens(state, rows, logp, found.mask, config.objective.covariance, seed, reduce)
        return replace(tokens, cov_mask=tokens.cov_mask.index_put((rows,), cov_mask))

    def _with_denominators(self, state: RolloutState, tokens: TokenState) -> TokenState:
        """Adds the denominators that depend on the masks."""
        if known_from_lengths(state.config.selection, state.config.objective.aggregate, updates=state.updates):
            return tokens
        kept = kept_tokens(tokens.fork_mask, state.batch.update, state.updates, self.ranks.reduce)
        return replace(tokens, denominator=kept)

    def _relative(
        self, state: RolloutState, entropy: Tensor, rows: Tensor, eligible: Tensor, reduce: Reduce | None
    ) -> Tensor:
        """Entropies relative to the mean of tokens of the same kind, `[R,T]`; for scope `sequence` over the update."""
        if state.config.selection.relative_to == "type":
            kinds = state.batch.answer_ids(rows)
            highest = kinds[eligible].max() if eligible.any() else kinds.new_zeros(())
            number = int(self.ranks.maximum(highest)) + 1
        else:
            kinds = torch.arange(eligible.shape[1], device=rows.device).expand_as(eligible)
            number = int(self.ranks.maximum(kinds.new_tensor(eligible.shape[1])))
        return relative_entropies(entropy, kinds, eligible, number, reduce or (lambda tensor: tensor))

    @contextmanager
    def _failing_together(self, spec: ForkSelection) -> Iterator[None]:
        """Stops all ranks if a user's score fails on one, also if each rank selects alone."""
        alone = spec.own_score and spec.scope == "micro_batch_rank"
        failure: Exception | None = None
        try:
            yield
        except ValueError as error:
            if not alone:
                raise
            failure = error
        if alone and self.ranks.any(failure is not None):
            raise failure or ValueError(f"selection.keep: {type(spec.keep).__name__} failed on another rank")

    def _covariance_tokens(
        self,
        state: RolloutState,
        rows: Tensor,
        logp: Tensor,
        mask: Tensor,
        spec: CovarianceTokens,
        seed: int,
        reduce: Reduce | None,
    ) -> Tensor:
        """The kept tokens that a covariance objective treats differently, bool `[R,T]`."""
        return covariance_tokens(
            logp,
            state.batch.advantages[rows],
            mask,
            spec,
            exclude=self._already_clipped(state, rows, mask) if spec.low is not None else None,
            sequence_id=state.batch.sequence_id[rows],
            seed=int(hash_bits(seed, 1)),
            reduce=reduce,
        )

    def _already_clipped(self, state: RolloutState, rows: Tensor, mask: Tensor) -> Tensor | None:
        """Kept tokens that are clipped, so without gradient, bool `[R,T]`; None while all ratios are 1."""
        tokens, old_logp = state.tokens, state.tokens.old_logp
        if state.schedule.old_logp is OldLogp.FORWARD:
            return None
        if state.schedule.old_logp is OldLogp.SAMPLER and state.batch.sampler_logp is not None:
            old_logp = state.batch.sampler_logp
        advantages = state.batch.advantages[rows][:, None].expand_as(mask)[mask]
        every = torch.ones_like(advantages, dtype=torch.bool)
        loss = state.config.objective.token_loss(
            TokenBatch(
                logp=tokens.logp[rows][mask],
                old_logp=old_logp[rows][mask].to(tokens.logp.dtype),
                advantages=advantages.to(tokens.logp.dtype),
                fork_mask=every,
                eligible=every,
                row=torch.zeros_like(every, dtype=torch.int64),
                rows=1,
                entropy=tokens.entropy[rows][mask],
                ref_logp=tokens.ref_logp[rows][mask],
                cov_mask=torch.zeros_like(every),
            )
        )
        clipped = torch.zeros_like(mask)
        clipped[mask] = loss.clip_low | loss.clip_high
        return clipped


def _eligible(state: RolloutState, rows: Tensor) -> Tensor:
    """The tokens that can be kept, bool `[R,T]`."""
    length = state.batch.answer_length[rows] * eligible_rows(state.batch, state.config.selection)[rows]
    return torch.arange(state.batch.width, device=rows.device) < length[:, None]


def _last_tokens(batch: RolloutBatch, rows: Tensor, eligible: Tensor) -> Tensor:
    """The last token of every answer that ended before the length limit, bool `[R,T]`."""
    column = torch.arange(batch.width, device=rows.device)
    last = (column == batch.answer_length[rows, None] - 1) & ~batch.truncated[rows, None]
    return last & eligible


def shared(values: Tensor, batch: RolloutBatch, rows: Tensor, eligible: Tensor, *, inclusive: bool) -> Tensor:
    """One value for tokens with the same prefix, computed for some complete groups at a time.

    Args:
        values: [R,T].
        batch: the sequences.
        rows: int64 [R], in the order of the rollout, so that the rows of a group are adjacent.
        eligible: bool [R,T].
        inclusive: as for `prefix_keys`.
    """
    problem, values = batch.problem_index[rows], values.clone()
    starts = [0, *((problem[1:] != problem[:-1]).nonzero().flatten() + 1).tolist(), len(rows)]
    start = 0
    for end in starts[1:]:
        if end == len(rows) or (end - start) * batch.width >= _BLOCK:
            part = slice(start, end)
            keys = prefix_keys(batch.answer_ids(rows[part]), problem[part], inclusive=inclusive)
            values[part] = share_first(values[part], keys, eligible[part])
            start = end
    return values


def _put(values: Tensor, rows: Tensor, found: Tensor) -> Tensor:
    """A copy of `[S]` values with new ones in some rows, `[]` or `[R]`; it has the dtype of the new ones."""
    return values.to(found.dtype).index_put((rows,), found)
