"""Which sets of tokens are ranked together: the scopes of the selection, over visits and ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from forklight.algo.contexts import context_keys, share_first
from forklight.algo.covariance import covariance_tokens
from forklight.algo.noise import hash_bits
from forklight.algo.plan import eligible_rows
from forklight.algo.selection import select
from forklight.algo.terms import Loss
from forklight.algo.types import Experience, TokenBatch
from forklight.rollout.lesson import Lesson
from forklight.rollout.ranks import Ranks

_BLOCK = 2**20
"""Tokens whose contexts are compared at a time: keys and token numbers take a few bytes each."""


class Chooser:
    """Writes masks and thresholds into a lesson's experience.

    Args:
        settings: the selection, and the objective, which may choose tokens of its own.
        seed: the run's seed.
        ranks: the data-parallel group.
    """

    def __init__(self, settings: Loss, seed: int, ranks: Ranks) -> None:
        self.spec = settings.selection
        self.objective = settings.objective
        self.seed = seed
        self.ranks = ranks

    def _eligible(self, x: Experience, rows: Tensor) -> Tensor:
        length = x.answer_length[rows] * eligible_rows(x, self.spec)[rows]
        return torch.arange(x.width, device=rows.device) < length[:, None]

    def choose(self, lesson: Lesson, updates: range) -> None:
        """The masks of some updates, one selection per set."""
        x, plan = lesson.experience, lesson.plan
        if self.spec.scope == "rollout":
            self._choose(lesson, torch.arange(len(x.update), device=x.update.device))
            return
        for update in updates:
            if self.spec.scope in ("update", "sequence"):
                self._choose(lesson, (x.update == update).nonzero().flatten())
            else:
                for visit in plan.visits_of(update):
                    self._choose(lesson, plan.looked_at(visit))

    def choose_visit(self, lesson: Lesson, visit: int) -> None:
        """The masks of one visit, inside its forward pass: with scope `update` and A = 1 it is the whole update."""
        self._choose(lesson, lesson.plan.looked_at(visit))

    def _choose(self, lesson: Lesson, rows: Tensor) -> None:
        x = lesson.experience
        assert x.entropy is not None and x.fork_mask is not None and x.threshold is not None
        eligible, advantages, row_key = self._eligible(x, rows), x.advantages[rows], x.row_key[rows]
        entropy, logp = x.entropy[rows], None if x.logp is None else x.logp[rows]
        if self.spec.needs_entropy:
            _share(x, rows, entropy, eligible, inclusive=False)
        if logp is not None:
            _share(x, rows, logp, eligible, inclusive=True)
        reduce = None if self.spec.scope == "micro_batch_rank" else self.ranks.reduce
        seed = int(hash_bits(self.seed, lesson.rollout))
        with self._together():
            found = select(
                entropy,
                eligible,
                self.spec,
                logp=logp,
                advantages=advantages,
                row_key=row_key,
                seed=seed,
                reduce=reduce,
            )
        x.fork_mask[rows] = found.mask
        x.threshold[rows] = found.threshold.to(x.threshold.dtype)
        if self.objective.covariance is not None:
            assert x.cov_mask is not None and logp is not None
            x.cov_mask[rows] = covariance_tokens(
                logp,
                advantages,
                found.mask,
                self.objective.covariance,
                exclude=self._already_clipped(lesson, rows, found.mask),
                row_key=row_key,
                seed=int(hash_bits(seed, 1)),
                reduce=reduce,
            )

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Lets a score of one's own that fails on one rank stop all ranks, also where each selects by itself."""
        alone = self.spec.own_score and self.spec.scope == "micro_batch_rank"
        failure: Exception | None = None
        try:
            yield
        except ValueError as error:
            if not alone:
                raise
            failure = error
        if alone and self.ranks.any(failure is not None):
            raise failure or ValueError(f"selection.keep: {type(self.spec.keep).__name__} failed on another rank")

    def _already_clipped(self, lesson: Lesson, rows: Tensor, mask: Tensor) -> Tensor | None:
        """Kept tokens that have no gradient left to take away, bool `[S,T]`; None while all ratios are 1."""
        x, covariance = lesson.experience, self.objective.covariance
        old_logp = x.sampler_logp if lesson.passes.old_from_sampler else x.old_logp
        if old_logp is None or x.logp is None or x.entropy is None or covariance is None or covariance.low is None:
            return None
        advantages = x.advantages[rows][:, None].expand_as(mask)[mask]
        every = torch.ones_like(advantages, dtype=torch.bool)
        tokens = TokenBatch(
            logp=x.logp[rows][mask],
            old_logp=old_logp[rows][mask].to(x.logp.dtype),
            advantages=advantages.to(x.logp.dtype),
            fork_mask=every,
            eligible=every,
            row=torch.zeros_like(every, dtype=torch.int64),
            rows=1,
            entropy=x.entropy[rows][mask],
            ref_logp=None if x.ref_logp is None else x.ref_logp[rows][mask],
            cov_mask=torch.zeros_like(every),
        )
        loss = self.objective.token_loss(tokens)
        clipped = torch.zeros_like(mask)
        clipped[mask] = loss.clip_low | loss.clip_high
        return clipped


def _share(x: Experience, rows: Tensor, values: Tensor, eligible: Tensor, *, inclusive: bool) -> None:
    """Gives tokens that follow the same tokens one value, in place, some whole groups at a time.

    Args:
        x: the experience.
        rows: int64 [R], in draw order, so that the rows of a group are neighbours.
        values: [R,T].
        eligible: bool [R,T].
        inclusive: as for `context_keys`.
    """
    group = x.group[rows]
    starts = [0, *((group[1:] != group[:-1]).nonzero().flatten() + 1).tolist(), len(rows)]
    start = 0
    for end in starts[1:]:
        if end == len(rows) or (end - start) * x.width >= _BLOCK:
            part = slice(start, end)
            keys = context_keys(x.answer_ids(rows[part]), group[part], inclusive=inclusive)
            values[part] = share_first(values[part], keys, eligible[part])
            start = end
