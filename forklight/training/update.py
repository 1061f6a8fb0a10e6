"""From a rollout to the loss of its micro-batches: plan, passes, selection, denominators, loss.

`Learner.begin` runs once per rollout, `Learner.prepare_update` before every update and `Learner.loss` in every
micro-batch. `PassSchedule` says which of them runs the passes and the selection; the result is the same.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from forklight.algo.batch import Metrics, RolloutBatch
from forklight.algo.config import AlgorithmConfig
from forklight.algo.denominators import denominators
from forklight.algo.plan import Cost, eligible_rows, make_plan
from forklight.algo.schedule import OldLogp, SelectAt
from forklight.algo.selection.relative import mean_surprisal
from forklight.distributed import Ranks
from forklight.errors import NonFiniteError
from forklight.models.policy import Policy
from forklight.models.reference import Reference
from forklight.stopwatch import Stopwatch
from forklight.training.micro_batch import MicroBatchLoss
from forklight.training.passes import StatisticsPasses
from forklight.training.select_tokens import TokenSelector
from forklight.training.state import RolloutState, TokenState


class Learner:
    """Computes the losses of a rollout's micro-batches.

    Args:
        config: the settings of the algorithm, the selection included.
        temperature: the sampling temperature.
        length_limit: longest answer, in tokens.
        seed: the run's seed.
        ranks: the data-parallel group.
        context: the Trainer's precision context; hooks run outside of it, and without it the first ratio is not 1.
        cost: the cost of sequences, by which micro-batches are balanced.
        stopwatch: times the phases `statistics` and `forward`.
    """

    def __init__(
        self,
        config: AlgorithmConfig,
        *,
        temperature: float = 1.0,
        length_limit: int = 1,
        seed: int = 0,
        ranks: Ranks | None = None,
        context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        cost: Cost = Cost(),  # noqa: B008  a frozen value
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.config = config
        self.temperature = temperature
        self.length_limit = length_limit
        self.ranks = ranks or Ranks()
        self.cost = cost
        self.stopwatch = stopwatch or Stopwatch()
        self.selector = TokenSelector(seed, self.ranks)
        self.passes = StatisticsPasses(config, temperature, self.ranks, context)
        self.low_since: int | None = None
        """The first rollout whose mean entropy was at most `selection.rho.until_entropy`; None if there was none."""

    def begin(
        self,
        batch: RolloutBatch,
        *,
        rollout: int,
        updates: int,
        micro_batches: int,
        tokens: TokenState | None = None,
    ) -> RolloutState:
        """Plans the micro-batches of a rollout, before any pass over it.

        Args:
            batch: the sequences of this rank.
            rollout: number of the rollout.
            updates: K.
            micro_batches: A.
            tokens: their state from a checkpoint inside the rollout; None at the start of a rollout.

        Raises:
            ValueError: the old log-probabilities are to be the sampler's, or a schedule waits for a low entropy, and
                the sampler reports none; or an update has fewer sequences than micro-batches.
        """
        self._see_entropy(batch, rollout)
        config = self.config.at(rollout, self.low_since)
        selection = config.selection
        schedule = config.schedule(updates, micro_batches)
        if schedule.old_logp is OldLogp.SAMPLER and batch.sampler_logp is None:
            raise ValueError(
                "model.old_logp_from: sampler needs the log-probabilities of the sampler, which does not give any"
            )
        plan = make_plan(
            batch,
            selection,
            updates=updates,
            micro_batches=micro_batches,
            extra_gradient=config.extra_gradient,
            needs_ranking=config.needs_ranking,
            cost=self.cost,
        )
        rows = torch.tensor([len(rows) for rows in plan.forward_only], device=batch.update.device)
        runs_forward_only = self.ranks.reduce(rows * config.needs_ranking) > 0
        if tokens is None:
            found = denominators(
                batch,
                plan,
                selection,
                config.objective.aggregate,
                updates=updates,
                length_limit=self.length_limit,
                reduce=self.ranks.reduce,
            )
            tokens = TokenState.unknown(batch, found)
        return RolloutState(config, batch, plan, schedule, rollout, tuple(runs_forward_only.tolist()), tokens)

    @torch.no_grad()
    def prepare_update(self, state: RolloutState, update: int, policy: Policy, reference: Reference | None) -> None:
        """Runs the passes and the selection that an update needs before its first micro-batch."""
        schedule, plan = state.schedule, state.plan
        with self.stopwatch.phase("statistics"):
            if update == 0 and reference is not None and self.config.reference_in_loss:
                state.tokens = self.passes.reference_pass(state, reference)
            if update == 0 and schedule.pass_before_rollout:
                state.tokens = self.passes.policy_pass(state, update, range(len(plan.train)), policy)
            if schedule.pass_before_update(update):
                state.tokens = self.passes.policy_pass(state, update, plan.micro_batches_of(update), policy)
            if update == 0 and schedule.select_at is SelectAt.ROLLOUT:
                state.tokens = self.selector.select_updates(state, range(state.updates))
            if schedule.select_at is SelectAt.UPDATE:
                state.tokens = self.selector.select_updates(state, range(update, update + 1))

    def loss(self, state: RolloutState, number: int, policy: Policy) -> tuple[Tensor, Metrics]:
        """The micro-batch's share of the loss, scaled so that accumulation and data parallelism give the update's loss.

        Args:
            state: the rollout.
            number: of the micro-batch in the rollout, 0 .. K*A-1.
            policy: the one that is trained.

        Returns:
            The scalar to call backward on (Lightning divides it by A, data parallelism by the ranks), and metrics for
            the curves.
        """
        with self.stopwatch.phase("forward"):
            if state.schedule.select_at is SelectAt.FORWARD and state.runs_forward_only[number]:
                state.tokens = self.passes.forward_only_pass(state, number, policy)
            loss_fn = MicroBatchLoss(
                state,
                number,
                self.passes,
                self.selector,
                dtype=torch.promote_types(policy.head_weight.dtype, torch.float32),
                shares=state.plan.micro_batches * self.ranks.size,
            )
            found: tuple[Tensor, Metrics] = policy(
                loss_fn.micro_batch,
                loss_fn,
                loss_fn.rows(),
                temperature=self.temperature,
                entropy_temperature=self.passes.entropy_temperature,
                entropy_grad=self.config.entropy_coef > 0,
            )
            return found

    def _see_entropy(self, batch: RolloutBatch, rollout: int) -> None:
        """Where a schedule of rho waits for a low entropy, notes the first rollout that has one."""
        schedule = self.config.selection.schedule
        if schedule is None or schedule.until_entropy is None or self.low_since is not None:
            return
        if batch.sampler_logp is None:
            raise ValueError(
                "selection.rho.until_entropy needs the log-probabilities of the sampler, which does not give any; "
                "set selection.rho to a number"
            )
        eligible = batch.answer_mask & eligible_rows(batch, self.config.selection)[:, None]
        mean = mean_surprisal(batch.sampler_logp, eligible, self.ranks.reduce)
        if mean is not None and mean <= schedule.until_entropy:
            self.low_since = rollout

    @torch.no_grad()
    def kl_penalty(
        self, batch: RolloutBatch, policy: Policy, reference: Reference, *, rollout: int, parts: int
    ) -> Tensor:
        """The KL penalty on every answer's reward, `[S]`; see `StatisticsPasses.kl_penalty`."""
        with self.stopwatch.phase("statistics"):
            try:
                return self.passes.kl_penalty(batch, policy, reference, rollout=rollout, parts=parts)
            except NonFiniteError as error:
                error.dump = {"batch": batch.state_dict()}
                raise
