"""Passes without gradient: log-probabilities and entropies of the policy, and log-probabilities of the reference."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from forklight.algo.batch import MicroBatch, RolloutBatch, TokenStats
from forklight.algo.config import AlgorithmConfig
from forklight.algo.kl import kl_estimate
from forklight.algo.rows import row_sums
from forklight.algo.schedule import OldLogp, SelectAt
from forklight.distributed import Ranks
from forklight.errors import NonFiniteError
from forklight.models.heads import all_stats
from forklight.models.policy import Policy
from forklight.models.reference import Reference
from forklight.training.state import RolloutState, TokenState


class StatisticsPasses:
    """Runs the passes; each returns the updated state of the tokens.

    Args:
        config: gives the temperature of the entropies, and the KL's estimator.
        temperature: the sampling temperature.
        ranks: the data-parallel group.
        context: the Trainer's precision context.
    """

    def __init__(
        self,
        config: AlgorithmConfig,
        temperature: float,
        ranks: Ranks,
        context: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.config = config
        self.temperature = temperature
        self.entropy_temperature = config.selection.entropy_temperature(temperature)
        self.ranks = ranks
        self.context = context

    def policy_pass(self, state: RolloutState, update: int, numbers: Iterable[int], policy: Policy) -> TokenState:
        """Statistics of the policy on the same rows that the training forward gets, before an update.

        Args:
            state: the rollout.
            update: the update that comes next; before the first one the statistics are those of the old policy.
            numbers: of the micro-batches.
            policy: the policy.
        """
        tokens, schedule = state.tokens, state.schedule
        for number in numbers:
            for rows in self._rows(state, update, number):
                micro_batch = state.batch.micro_batch(rows)
                stats = self.policy_stats(state.batch, micro_batch, policy, state.rollout)
                tokens = self.observed(tokens, micro_batch, stats)
                if update == 0 and schedule.old_logp is not OldLogp.FORWARD:
                    tokens = replace(tokens, old_logp=micro_batch.write(tokens.old_logp, stats.logp))
        return tokens

    def forward_only_pass(self, state: RolloutState, number: int, policy: Policy) -> TokenState:
        """Statistics of the forward-only rows of a micro-batch, where its training forward selects the tokens."""
        micro_batch = state.batch.micro_batch(state.plan.forward_only[number])
        stats = self.policy_stats(state.batch, micro_batch, policy, state.rollout)
        # some versions of torch reuse casts of weights made here, without gradient, in a later pass that needs one
        torch.clear_autocast_cache()
        return self.observed(state.tokens, micro_batch, stats)

    def reference_pass(self, state: RolloutState, reference: Reference) -> TokenState:
        """Log-probabilities of the reference on all rows with a gradient."""
        ref_logp = state.tokens.ref_logp
        for rows in state.plan.train:
            micro_batch = state.batch.micro_batch(rows)
            stats = self.reference_stats(state.batch, micro_batch, reference, state.rollout)
            ref_logp = micro_batch.write(ref_logp, stats.logp)
        return replace(state.tokens, ref_logp=ref_logp)

    def kl_penalty(
        self, batch: RolloutBatch, policy: Policy, reference: Reference, *, rollout: int, parts: int
    ) -> Tensor:
        """The penalty of every answer with `kl.placement: reward`: coef * KL estimate, summed over its tokens.

        Args:
            batch: this rank's sequences.
            policy: the one that sampled.
            reference: the reference model.
            rollout: number of the rollout.
            parts: number of forward passes to spread the sequences over; the same on all ranks.

        Returns:
            `[S]`, in the type of the rewards.
        """
        penalty = torch.zeros_like(batch.rewards)
        for rows in torch.arange(len(penalty), device=penalty.device).tensor_split(parts):
            micro_batch = batch.micro_batch(rows)
            logp = self.policy_stats(batch, micro_batch, policy, rollout).logp
            ref_logp = self.reference_stats(batch, micro_batch, reference, rollout).logp
            values = kl_estimate(logp, ref_logp, torch.ones_like(logp, dtype=torch.bool), self.config.kl.estimator)
            penalty[rows] = row_sums(values, micro_batch.row, len(rows)).to(penalty.dtype)
        return self.config.kl.coef * penalty

    def observed(self, tokens: TokenState, micro_batch: MicroBatch, stats: TokenStats) -> TokenState:
        """The state with a micro-batch's statistics, of the policy that `selection.entropy_of` names."""
        tokens = replace(tokens, entropy=micro_batch.write(tokens.entropy, stats.entropy))
        if stats.grad_square is not None:
            tokens = replace(tokens, grad_square=micro_batch.write(tokens.grad_square, stats.grad_square))
        if self.config.ranks_logp:
            tokens = replace(tokens, logp=micro_batch.write(tokens.logp, stats.logp))
        return tokens

    @torch.no_grad()
    def policy_stats(self, batch: RolloutBatch, micro_batch: MicroBatch, policy: Policy, rollout: int) -> TokenStats:
        """Statistics of a micro-batch's answer tokens under the policy, checked."""
        with self.context():
            stats: TokenStats = policy(
                micro_batch, all_stats, temperature=self.temperature, entropy_temperature=self.entropy_temperature
            )
        check_finite(stats, micro_batch, batch, self.ranks, rollout=rollout)
        return stats

    def reference_stats(
        self, batch: RolloutBatch, micro_batch: MicroBatch, reference: Reference, rollout: int
    ) -> TokenStats:
        """Statistics of a micro-batch's answer tokens under the reference, checked."""
        with self.context():
            stats = reference.stats(micro_batch, self.temperature)
        check_finite(stats, micro_batch, batch, self.ranks, rollout=rollout)
        return stats

    def _rows(self, state: RolloutState, update: int, number: int) -> Iterable[Tensor]:
        """Rows with a gradient, then the forward-only ones, if the selection reads their statistics from this pass."""
        yield state.plan.train[number]
        own_update = number in state.plan.micro_batches_of(update)
        selects = {SelectAt.ROLLOUT: True, SelectAt.UPDATE: own_update, SelectAt.FORWARD: False}
        if selects[state.schedule.select_at] and state.runs_forward_only[number]:
            yield state.plan.forward_only[number]


def check_finite(
    stats: TokenStats,
    micro_batch: MicroBatch,
    batch: RolloutBatch,
    ranks: Ranks,
    *,
    rollout: int,
    tokens: Tensor | slice = slice(None),
) -> None:
    """Stops all ranks if a statistic is not finite, and says of which token.

    Args:
        stats: of all answer tokens of the micro-batch.
        micro_batch: the sequences.
        batch: the rollout that they belong to; it names the problem.
        ranks: the data-parallel group, which calls this together.
        rollout: number of the rollout.
        tokens: int64 [M], the tokens that are checked; all of them by default.

    Raises:
        NonFiniteError: a log-probability or an entropy is NaN or infinite, on this rank or another.
    """
    logp, entropy = stats.logp.detach(), stats.entropy.detach()
    broken = torch.zeros_like(logp, dtype=torch.bool)
    broken[tokens] = ~(logp.isfinite() & entropy.isfinite())[tokens]
    if not ranks.any(bool(broken.any())):
        return
    if not broken.any():
        raise NonFiniteError(f"rollout {rollout}: another rank has a log-probability that is not finite")
    token = int(broken.nonzero()[0])
    row = int(micro_batch.rows[micro_batch.row[token]])
    raise NonFiniteError(
        f"rollout {rollout}: token {int(micro_batch.column[token])} of an answer to problem {batch.problem(row)} "
        f"has log-probability {float(logp[token])} and entropy {float(entropy[token])}; {int(broken.sum())} tokens of "
        "its micro-batch are not finite"
    )
