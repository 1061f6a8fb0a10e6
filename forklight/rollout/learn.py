"""From experience to the loss of a visit: statistics passes, selection, denominators, loss.

`Learner.prepare_update` runs at the first visit of every update, `Learner.loss` on every visit; `Passes` says which of
them does the statistics and the selection, the result is the same.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forklight.algo.contexts import context_keys, share_entropy
from forklight.algo.losses import ClipRange, clipped_policy_loss, k3_kl
from forklight.algo.noise import hash_bits
from forklight.algo.plan import Passes, Plan, make_plan
from forklight.algo.selection import ForkSelection, select
from forklight.algo.types import Chunk, Experience, ForkMask, LossOutput, TokenStats
from forklight.models.policy import Policy
from forklight.models.reference import Reference
from forklight.rollout.ranks import Ranks


@dataclass
class Lesson:
    """A rollout's experience together with the plan of its visits."""

    experience: Experience
    plan: Plan
    passes: Passes
    rollout: int
    """Number of the rollout: the noise of `keep: random` depends on it."""
    watched: tuple[bool, ...]
    """Per visit: whether any rank has rows whose entropies only the selection needs. All ranks then run that pass."""


class Learner:
    """The algorithm's settings, and the two things a step does with them.

    Args:
        selection: which tokens carry gradient.
        clip: the ratio's range.
        kl_coef: weight of the KL term; 0 for none.
        temperature: the sampling temperature.
        seed: the run's seed.
        ranks: the data-parallel group.
        context: the Trainer's precision context; hooks run outside of it, and without it the first ratio is not 1.
    """

    def __init__(
        self,
        selection: ForkSelection,
        clip: ClipRange,
        *,
        kl_coef: float = 0.0,
        temperature: float = 1.0,
        seed: int = 0,
        ranks: Ranks | None = None,
        context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.selection = selection
        self.clip = clip
        self.kl_coef = kl_coef
        self.temperature = temperature
        self.seed = seed
        self.ranks = ranks or Ranks()
        self.context = context

    def begin(self, experience: Experience, *, rollout: int, updates: int, micro_batches: int) -> Lesson:
        """Plans the visits of a rollout, before any pass over it.

        Args:
            experience: of this rank; tensors that a checkpoint brought back are kept.
            rollout: number of the rollout.
            updates: K.
            micro_batches: A.
        """
        plan = make_plan(experience, self.selection, updates=updates, micro_batches=micro_batches, kl=self.kl_coef > 0)
        passes = Passes.of(self.selection, updates=updates, micro_batches=micro_batches)
        rows = torch.tensor([len(rows) for rows in plan.watch], device=experience.update.device)
        watched = self.ranks.reduce(rows * self.selection.needs_entropy) > 0
        return Lesson(experience, plan, passes, rollout, tuple(watched.tolist()))

    @torch.no_grad()
    def prepare_update(self, lesson: Lesson, update: int, policy: Policy, reference: Reference | None) -> None:
        """Statistics, selection and denominators that the update needs before its first visit."""
        x, plan, passes = lesson.experience, lesson.plan, lesson.passes
        updates = range(len(plan.train) // plan.micro_batches)
        if update == 0:
            dtype = torch.promote_types(policy.head_weight.dtype, torch.float32)
            x = lesson.experience = self._allocate(lesson, len(updates), dtype, reference=reference is not None)
            visits = [visit for u in updates for visit in plan.visits_of(u)]
            if reference is not None:
                self._reference_pass(x, plan, visits, reference)
            if passes.statistics:
                self._statistics_pass(lesson, update, visits, policy)
        elif passes.entropy_each_update:
            self._statistics_pass(lesson, update, list(plan.visits_of(update)), policy)
        if passes.select_in_forward:
            return
        fixed = self.selection.entropy_of == "old" or not self.selection.needs_entropy
        for u in (updates if update == 0 else ()) if fixed else (update,):
            self._select_update(lesson, u)

    def loss(self, lesson: Lesson, visit: int, policy: Policy) -> tuple[Tensor, dict[str, Tensor]]:
        """The visit's share of the loss, scaled so that accumulation and data parallelism give the update's loss.

        Returns:
            The scalar to call backward on (Lightning divides it by A, data parallelism by the ranks), and detached
            sums for `train/`.
        """
        x, plan = lesson.experience, lesson.plan
        update = visit // plan.micro_batches
        chunk = x.chunk(plan.train[visit])
        watched = x.chunk(plan.watch[visit])
        if lesson.passes.select_in_forward and lesson.watched[visit]:
            _write(x.entropy, watched, self._stats(policy, watched).entropy)

        def loss_of(stats: TokenStats) -> LossOutput:
            if lesson.passes.select_in_forward or not lesson.passes.statistics:
                _write(x.entropy, chunk, stats.entropy)
            if lesson.passes.select_in_forward:
                self._select_visit(lesson, visit)
            return self._terms(x, chunk, stats, fold_old=lesson.passes.fold_old)

        out = policy(chunk, self.temperature, loss_of)
        assert isinstance(out, LossOutput)
        assert x.denominator is not None and x.answer_tokens is not None
        shares = plan.micro_batches * self.ranks.size
        total = out.policy_sum * _inverse(x.denominator[update], shares)
        if out.kl_sum is not None:
            total = total + out.kl_sum * (self.kl_coef * _inverse(x.answer_tokens[update], shares))
        return total, out.metrics

    def _terms(self, x: Experience, chunk: Chunk, stats: TokenStats, *, fold_old: bool) -> LossOutput:
        """Clipped policy loss over the forking tokens, KL over all answer tokens."""
        logp = stats.logp
        old_logp = logp.detach() if fold_old else _read(x.old_logp, chunk)
        advantages = x.advantages[chunk.rows][:, None].expand_as(chunk.answer_mask)[chunk.answer_mask]
        fork_mask = _read(x.fork_mask, chunk)
        policy_sum, metrics = clipped_policy_loss(logp, old_logp, advantages.to(logp.dtype), fork_mask, self.clip)
        metrics["policy_loss_sum"] = policy_sum.detach()
        if x.ref_logp is None:
            return LossOutput(policy_sum, None, metrics)
        kl_sum = k3_kl(logp, _read(x.ref_logp, chunk), torch.ones_like(fork_mask))
        metrics["kl_sum"] = kl_sum.detach()
        return LossOutput(policy_sum, kl_sum, metrics)

    def eligible(self, x: Experience) -> Tensor:
        """The tokens that the selection chooses from, bool `[S,T]`."""
        return x.answer_mask & x.contributing[:, None] if self.selection.over == "contributing" else x.answer_mask

    def _allocate(self, lesson: Lesson, updates: int, dtype: torch.dtype, *, reference: bool) -> Experience:
        """Room for what the passes will find, and the denominators, which lengths alone decide."""
        x, plan = lesson.experience, lesson.plan
        shape, device = x.answer_mask.shape, x.input_ids.device
        eligible = self.eligible(x).sum(1)
        tokens = torch.zeros(updates, 2, dtype=torch.int64, device=device)
        tokens.index_add_(0, x.update, torch.stack([eligible, x.answer_length], 1))
        selected = torch.zeros(updates, dtype=torch.int64, device=device)
        if self.selection.scope == "micro_batch_rank":
            for visit in range(len(plan.train)):
                selected[visit // plan.micro_batches] += self.selection.kept(int(eligible[plan.looked_at(visit)].sum()))
            selected = self.ranks.reduce(selected)
        tokens = self.ranks.reduce(tokens)
        if self.selection.scope == "update":
            selected = torch.tensor([self.selection.kept(n) for n in tokens[:, 0].tolist()], device=device)
        nan = torch.full(shape, torch.nan, dtype=dtype, device=device)
        return replace(
            x,
            old_logp=None if lesson.passes.fold_old else nan,
            entropy=nan.clone(),
            ref_logp=nan.clone() if reference else None,
            fork_mask=torch.zeros(shape, dtype=torch.bool, device=device),
            threshold=torch.full((updates,), torch.nan, dtype=dtype, device=device),
            denominator=(selected if self.selection.denominator == "selected" else tokens[:, 0]).double(),
            answer_tokens=tokens[:, 1].double(),
        )

    def _statistics_pass(self, lesson: Lesson, update: int, visits: list[int], policy: Policy) -> None:
        """Entropies, and old log-probs if wanted, of the same rows that the training forward will see."""
        x, plan, passes = lesson.experience, lesson.plan, lesson.passes
        for visit in visits:
            # current entropies are due at the update itself, or inside its forward
            later = passes.select_in_forward or (passes.entropy_each_update and visit // plan.micro_batches != update)
            watch = lesson.watched[visit] and not later
            for rows in (plan.train[visit], plan.watch[visit]) if watch else (plan.train[visit],):
                chunk = x.chunk(rows)
                stats = self._stats(policy, chunk)
                _write(x.entropy, chunk, stats.entropy)
                if update == 0 and not passes.fold_old:
                    _write(x.old_logp, chunk, stats.logp)

    def _reference_pass(self, x: Experience, plan: Plan, visits: list[int], reference: Reference) -> None:
        for visit in visits:
            chunk = x.chunk(plan.train[visit])
            with self.context():
                _write(x.ref_logp, chunk, reference.stats(chunk, self.temperature).logp)

    @torch.no_grad()
    def _stats(self, policy: Policy, chunk: Chunk) -> TokenStats:
        with self.context():
            stats = policy(chunk, self.temperature)
        assert isinstance(stats, TokenStats)
        return stats

    def _select_update(self, lesson: Lesson, update: int) -> None:
        """The masks of an update: one selection over all ranks, or one per micro-batch of this rank."""
        if self.selection.scope == "update":
            rows = (lesson.experience.update == update).nonzero().flatten()
            self._select(lesson, rows, update, over_ranks=True)
        else:
            for visit in lesson.plan.visits_of(update):
                self._select(lesson, lesson.plan.looked_at(visit), update, over_ranks=False)

    def _select_visit(self, lesson: Lesson, visit: int) -> None:
        """The selection inside a training forward: over the micro-batch, which is the whole update if A = 1."""
        over_ranks = self.selection.scope == "update"
        self._select(lesson, lesson.plan.looked_at(visit), visit // lesson.plan.micro_batches, over_ranks=over_ranks)

    @torch.no_grad()
    def _select(self, lesson: Lesson, rows: Tensor, update: int, *, over_ranks: bool) -> ForkMask:
        x = lesson.experience
        assert x.entropy is not None and x.fork_mask is not None and x.threshold is not None
        entropy, eligible = x.entropy[rows], self.eligible(x)[rows]
        if self.selection.needs_entropy:
            entropy = share_entropy(entropy, context_keys(x.answer_ids[rows], x.group[rows]), eligible)
        found = select(
            entropy,
            eligible,
            self.selection,
            row_key=x.row_key[rows],
            seed=int(hash_bits(self.seed, lesson.rollout)),
            reduce=self.ranks.reduce if over_ranks else None,
        )
        x.fork_mask[rows] = found.mask
        x.threshold[update] = found.threshold
        return found


def _inverse(denominator: Tensor, shares: int) -> float:
    """Shares / denominator; 0 for an update without a single token, whose loss is 0 already."""
    return shares / float(denominator) if denominator > 0 else 0.0


def _read(values: Tensor | None, chunk: Chunk) -> Tensor:
    """The values of the chunk's N answer tokens, `[N]`."""
    assert values is not None
    return values[chunk.rows][:, : chunk.answer_mask.shape[1]][chunk.answer_mask]


def _write(values: Tensor | None, chunk: Chunk, tokens: Tensor) -> None:
    """Puts the values of the chunk's N answer tokens into `[S,T]`, in place."""
    assert values is not None
    row = chunk.rows[:, None].expand_as(chunk.answer_mask)[chunk.answer_mask]
    column = torch.arange(chunk.answer_mask.shape[1], device=chunk.rows.device).expand_as(chunk.answer_mask)
    values[row, column[chunk.answer_mask]] = tokens.detach().to(values.dtype)
