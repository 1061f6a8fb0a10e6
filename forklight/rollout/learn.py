"""From experience to the loss of a visit: statistics passes, selection, denominators, loss.

`Learner.prepare_update` runs at the first visit of every update, `Learner.loss` on every visit; `Passes` says which of
them does the statistics and the selection, the result is the same.
"""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from forklight.algo.denominators import counted, kept_tokens, visit_factor, with_denominators
from forklight.algo.plan import eligible_rows, make_plan
from forklight.algo.terms import Loss, loss_terms
from forklight.algo.types import Chunk, Experience, LossOutput, TokenBatch, TokenStats
from forklight.models.policy import Policy
from forklight.models.reference import Reference
from forklight.rollout.choose import Chooser
from forklight.rollout.lesson import Lesson
from forklight.rollout.ranks import Ranks
from forklight.rollout.statistics import Statistics, keep


class Learner:
    """The algorithm's settings, and the two things a step does with them.

    Args:
        settings: what the loss is made of, the selection included.
        temperature: the sampling temperature.
        length_limit: longest answer, in tokens.
        seed: the run's seed.
        ranks: the data-parallel group.
        context: the Trainer's precision context; hooks run outside of it, and without it the first ratio is not 1.
    """

    def __init__(
        self,
        settings: Loss,
        *,
        temperature: float = 1.0,
        length_limit: int = 1,
        seed: int = 0,
        ranks: Ranks | None = None,
        context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.settings = settings
        self.selection = settings.selection
        self.temperature = temperature
        self.length_limit = length_limit
        self.ranks = ranks or Ranks()
        self.chooser = Chooser(settings, seed, self.ranks)
        self.statistics = Statistics(settings, temperature, self.ranks, context)

    def begin(
        self,
        experience: Experience,
        *,
        rollout: int,
        updates: int,
        micro_batches: int,
        uids: Mapping[int, str] | None = None,
    ) -> Lesson:
        """Plans the visits of a rollout, before any pass over it.

        Args:
            experience: of this rank; tensors that a checkpoint brought back are kept.
            rollout: number of the rollout.
            updates: K.
            micro_batches: A.
            uids: the problems' uids by draw number.
        """
        plan = make_plan(
            experience,
            self.selection,
            updates=updates,
            micro_batches=micro_batches,
            others=self.settings.others,
            ranked=self.settings.ranked,
        )
        rows = torch.tensor([len(rows) for rows in plan.watch], device=experience.update.device)
        watched = self.ranks.reduce(rows * self.settings.ranked) > 0
        passes = self.settings.passes(updates, micro_batches)
        return Lesson(experience, plan, passes, rollout, tuple(watched.tolist()), uids or {})

    @torch.no_grad()
    def prepare_update(self, lesson: Lesson, update: int, policy: Policy, reference: Reference | None) -> None:
        """Statistics, selection and denominators that the update needs before its first visit."""
        passes, plan = lesson.passes, lesson.plan
        if update == 0:
            dtype = torch.promote_types(policy.head_weight.dtype, torch.float32)
            lesson.experience = self._allocate(lesson, dtype)
            visits = list(range(len(plan.train)))
            if reference is not None:
                self.statistics.reference_pass(lesson, visits, reference)
            if passes.statistics:
                self.statistics.policy_pass(lesson, update, visits, policy)
        elif passes.entropy_each_update:
            self.statistics.policy_pass(lesson, update, list(plan.visits_of(update)), policy)
        if passes.select_in_forward:
            return
        if not passes.entropy_each_update:
            if update == 0:
                self.chooser.choose(lesson, range(lesson.updates))
        else:
            self.chooser.choose(lesson, range(update, update + 1))
        self._count_kept(lesson)

    def loss(self, lesson: Lesson, visit: int, policy: Policy) -> tuple[Tensor, dict[str, Tensor]]:
        """The visit's share of the loss, scaled so that accumulation and data parallelism give the update's loss.

        Returns:
            The scalar to call backward on (Lightning divides it by A, data parallelism by the ranks), and detached
            sums for the curves.
        """
        x, plan, settings = lesson.experience, lesson.plan, self.settings
        update = visit // plan.micro_batches
        chunk = x.chunk(plan.train[visit])
        if lesson.passes.select_in_forward and lesson.watched[visit]:
            watched = x.chunk(plan.watch[visit])
            keep(x, watched, self.statistics.of(lesson, watched, policy))
            # some versions of torch keep the casts of weights made here, without gradient, for the pass that needs one
            torch.clear_autocast_cache()

        def loss_of(stats: TokenStats) -> LossOutput:
            self.statistics.check(lesson, chunk, stats)
            if lesson.passes.select_in_forward or not lesson.passes.statistics:
                keep(x, chunk, stats)
            if lesson.passes.select_in_forward:
                with torch.no_grad():
                    self.chooser.choose_visit(lesson, visit)
                    self._count_kept(lesson)
            sampler_logp = None if x.sampler_logp is None else chunk.read(x.sampler_logp)
            return loss_terms(self._tokens(lesson, chunk, stats), settings, sampler_logp)

        out = policy(
            chunk,
            self.temperature,
            loss_of,
            entropy_temperature=self.statistics.entropy_temperature,
            entropy_grad=settings.entropy_coef > 0,
        )
        assert isinstance(out, LossOutput)
        return self._scaled(lesson, update, visit, out), out.metrics

    def _scaled(self, lesson: Lesson, update: int, visit: int, out: LossOutput) -> Tensor:
        """The sum of the terms, each over its denominator, times A and the ranks; metrics get the same factor."""
        x, settings = lesson.experience, self.settings
        assert x.denominator is not None and x.whole is not None
        shares = lesson.plan.micro_batches * self.ranks.size
        factor = self._visit_factor(lesson, visit)
        masked = factor * _inverse(x.denominator[update], shares)
        whole = _inverse(x.whole[update], shares)
        total = out.policy_sum * masked
        out.metrics["policy_loss_sum"] *= factor
        for name, term, coef in (
            ("kl", out.kl_sum, settings.kl.coef),
            ("entropy", out.entropy_sum, -settings.entropy_coef),
        ):
            if term is not None:
                in_mask = name in self.selection.terms
                total = total + term * (coef * (masked if in_mask else whole))
                out.metrics[f"{name}_loss_sum"] *= factor if in_mask else 1.0
        return total

    def _visit_factor(self, lesson: Lesson, visit: int) -> float:
        if self.selection.denominator != "micro_batch":
            return 1.0
        x, rows = lesson.experience, lesson.plan.looked_at(visit)
        sequences = int(eligible_rows(x, self.selection)[rows].sum())
        return visit_factor(sequences, int(_there(x.fork_mask)[rows].sum()))

    def _tokens(self, lesson: Lesson, chunk: Chunk, stats: TokenStats) -> TokenBatch:
        """What the objective sees of the visit."""
        x = lesson.experience
        assert x.fork_mask is not None
        per_row = x.advantages[chunk.rows].to(stats.logp.dtype)
        return TokenBatch(
            logp=stats.logp,
            old_logp=stats.logp.detach() if lesson.passes.fold_old else chunk.read(_there(x.old_logp)),
            advantages=per_row[chunk.row],
            fork_mask=chunk.read(x.fork_mask),
            eligible=eligible_rows(x, self.selection)[chunk.rows][chunk.row],
            row=chunk.row,
            rows=len(chunk.rows),
            entropy=stats.entropy,
            ref_logp=None if x.ref_logp is None else chunk.read(x.ref_logp),
            cov_mask=None if x.cov_mask is None else chunk.read(x.cov_mask),
        )

    def _allocate(self, lesson: Lesson, dtype: torch.dtype) -> Experience:
        """Room for what the passes will find, and the denominators that lengths alone decide."""
        x = lesson.experience
        shape, device = x.answer_mask.shape, x.input_ids.device
        nan = torch.full(shape, torch.nan, dtype=dtype, device=device)
        covariance = self.settings.objective.covariance is not None
        x = replace(
            x,
            old_logp=None if lesson.passes.fold_old else nan.clone(),
            entropy=nan,
            logp=nan.clone() if self.selection.needs_logp or covariance else None,
            ref_logp=nan.clone() if self.settings.reference_in_loss else None,
            fork_mask=torch.zeros(shape, dtype=torch.bool, device=device),
            cov_mask=torch.zeros(shape, dtype=torch.bool, device=device) if covariance else None,
            threshold=torch.full(shape[:1], torch.nan, dtype=dtype, device=device),
        )
        return with_denominators(
            x,
            lesson.plan,
            self.selection,
            self.settings.objective.aggregate,
            updates=lesson.updates,
            length_limit=self.length_limit,
            reduce=self.ranks.reduce,
        )

    def _count_kept(self, lesson: Lesson) -> None:
        """The denominators that only the masks decide."""
        if not counted(self.selection, self.settings.objective.aggregate, updates=lesson.updates):
            kept = kept_tokens(lesson.experience, lesson.updates, self.ranks.reduce)
            lesson.experience = replace(lesson.experience, denominator=kept)


def _there(values: Tensor | None) -> Tensor:
    assert values is not None
    return values


def _inverse(denominator: Tensor, shares: int) -> float:
    """Shares / denominator; 0 for an update without a single token, whose loss is 0 already."""
    return shares / float(denominator) if denominator > 0 else 0.0
