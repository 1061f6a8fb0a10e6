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

from forklight.algo.denominators import counted, kept_tokens, with_denominators
from forklight.algo.plan import Cost, make_plan
from forklight.algo.terms import Loss
from forklight.algo.types import Experience
from forklight.models.heads import VisitOutput
from forklight.models.policy import Policy
from forklight.models.reference import Reference
from forklight.rollout.choose import Chooser
from forklight.rollout.lesson import Lesson
from forklight.rollout.ranks import Ranks
from forklight.rollout.statistics import Statistics, keep
from forklight.rollout.visit import Visit


class Learner:
    """The algorithm's settings, and the two things a step does with them.

    Args:
        settings: what the loss is made of, the selection included.
        temperature: the sampling temperature.
        length_limit: longest answer, in tokens.
        seed: the run's seed.
        ranks: the data-parallel group.
        context: the Trainer's precision context; hooks run outside of it, and without it the first ratio is not 1.
        cost: of sequences, by which micro-batches are balanced.
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
        cost: Cost = Cost(),  # noqa: B008  a frozen value
    ) -> None:
        self.settings = settings
        self.selection = settings.selection
        self.temperature = temperature
        self.length_limit = length_limit
        self.ranks = ranks or Ranks()
        self.cost = cost
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

        Raises:
            ValueError: the old log-probabilities are to be the sampler's, which tells none; or an update has fewer
                sequences than micro-batches.
        """
        passes = self.settings.passes(updates, micro_batches)
        if passes.old_from_sampler and experience.sampler_logp is None:
            raise ValueError(
                "model.old_logp_from: sampler needs the log-probabilities of the sampler, which this one does not tell"
            )
        plan = make_plan(
            experience,
            self.selection,
            updates=updates,
            micro_batches=micro_batches,
            others=self.settings.others,
            ranked=self.settings.ranked,
            cost=self.cost,
        )
        rows = torch.tensor([len(rows) for rows in plan.watch], device=experience.update.device)
        watched = self.ranks.reduce(rows * self.settings.ranked) > 0
        return Lesson(experience, plan, passes, rollout, tuple(watched.tolist()), uids or {})

    @torch.no_grad()
    def prepare_update(self, lesson: Lesson, update: int, policy: Policy, reference: Reference | None) -> None:
        """Statistics, selection and denominators that the update needs before its first visit."""
        passes, plan = lesson.passes, lesson.plan
        every = list(range(len(plan.train)))
        if update == 0:
            dtype = torch.promote_types(policy.head_weight.dtype, torch.float32)
            lesson.experience = self._allocate(lesson, dtype)
            if reference is not None:
                self.statistics.reference_pass(lesson, every, reference)
        if update == 0 and passes.statistics:
            self.statistics.policy_pass(lesson, update, every, policy)
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
        if lesson.passes.select_in_forward and lesson.watched[visit]:
            watched = lesson.experience.chunk(lesson.plan.watch[visit])
            keep(lesson.experience, watched, self.statistics.of(lesson, watched, policy))
            # some versions of torch keep the casts of weights made here, without gradient, for the pass that needs one
            torch.clear_autocast_cache()

        def choose() -> None:
            self.chooser.choose_visit(lesson, visit)
            self._count_kept(lesson)

        shares = lesson.plan.micro_batches * self.ranks.size
        terms = Visit(lesson, visit, self.settings, self.statistics, choose, shares)
        out = policy(
            terms.chunk,
            self.temperature,
            terms,
            entropy_temperature=self.statistics.entropy_temperature,
            entropy_grad=self.settings.entropy_coef > 0,
        )
        assert isinstance(out, VisitOutput)
        return out.loss, out.metrics

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
