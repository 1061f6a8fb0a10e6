"""Passes without gradient: log-probabilities and entropies of the policy, and those of the reference."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from forklight.algo.kl import kl_estimate
from forklight.algo.plan import Passes, Plan
from forklight.algo.rows import row_sums
from forklight.algo.terms import Loss
from forklight.algo.types import Chunk, Experience, TokenStats
from forklight.models.policy import Policy
from forklight.models.reference import Reference
from forklight.rollout.lesson import Lesson, NonFiniteError
from forklight.rollout.ranks import Ranks


class Statistics:
    """Runs the passes, and stops the run at the first number that is not finite.

    Args:
        settings: the selection tells the temperature of the entropies, the KL its estimator.
        temperature: the sampling temperature.
        ranks: the data-parallel group.
        context: the Trainer's precision context.
    """

    def __init__(
        self, settings: Loss, temperature: float, ranks: Ranks, context: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.settings = settings
        self.temperature = temperature
        self.entropy_temperature = settings.selection.entropy_temperature(temperature)
        self.ranks = ranks
        self.context = context

    def policy_pass(self, lesson: Lesson, update: int, visits: list[int], policy: Policy) -> None:
        """Entropies, and old log-probs if wanted, of the same rows that the training forward will see."""
        x, plan, passes = lesson.experience, lesson.plan, lesson.passes
        for visit in visits:
            # current entropies are due at the update itself, or inside its forward
            later = passes.select_in_forward or (passes.entropy_each_update and visit // plan.micro_batches != update)
            watch = lesson.watched[visit] and not later
            for rows in (plan.train[visit], plan.watch[visit]) if watch else (plan.train[visit],):
                chunk = x.chunk(rows)
                stats = self.of(lesson, chunk, policy)
                keep(x, chunk, stats)
                if update == 0 and x.old_logp is not None:
                    chunk.write(x.old_logp, stats.logp)

    def reference_pass(self, lesson: Lesson, visits: list[int], reference: Reference) -> None:
        """Log-probabilities of the reference, where the loss compares with them."""
        x = lesson.experience
        if x.ref_logp is None:
            return
        for visit in visits:
            chunk = x.chunk(lesson.plan.train[visit])
            chunk.write(x.ref_logp, self.of_reference(lesson, chunk, reference).logp)

    def penalty(
        self,
        x: Experience,
        policy: Policy,
        reference: Reference,
        *,
        rollout: int,
        uids: Mapping[int, str],
        passes: int,
    ) -> Tensor:
        """What `kl.placement: reward` takes from every answer's reward: coef * KL estimate, summed over its tokens.

        Args:
            x: this rank's experience.
            policy: the one that sampled.
            reference: what it is compared with.
            rollout: number of the rollout.
            uids: the problems' uids by draw number.
            passes: number of forward passes to spread the sequences over; the same on all ranks.

        Returns:
            `[S]`, in the type of the rewards.
        """
        taken = torch.zeros_like(x.rewards)
        rows = torch.arange(len(x.rewards), device=x.rewards.device)
        whole = Lesson(x, Plan((rows,), (rows[:0],), 1), Passes(True, False, False, True), rollout, (False,), uids)
        for part in rows.tensor_split(passes):
            chunk = x.chunk(part)
            logp = self.of(whole, chunk, policy).logp
            ref_logp = self.of_reference(whole, chunk, reference).logp
            values = kl_estimate(logp, ref_logp, torch.ones_like(logp, dtype=torch.bool), self.settings.kl.estimator)
            taken[chunk.rows] = row_sums(values, chunk.row, len(chunk.rows)).to(taken.dtype)
        return self.settings.kl.coef * taken

    @torch.no_grad()
    def of(self, lesson: Lesson, chunk: Chunk, policy: Policy) -> TokenStats:
        """Statistics of a chunk's answer tokens, checked."""
        with self.context():
            stats = policy(chunk, self.temperature, entropy_temperature=self.entropy_temperature)
        assert isinstance(stats, TokenStats)
        self.check(lesson, chunk, stats)
        return stats

    def of_reference(self, lesson: Lesson, chunk: Chunk, reference: Reference) -> TokenStats:
        """Those of the reference, checked."""
        with self.context():
            stats = reference.stats(chunk, self.temperature)
        self.check(lesson, chunk, stats)
        return stats

    def check(self, lesson: Lesson, chunk: Chunk, stats: TokenStats, tokens: Tensor | slice = slice(None)) -> None:
        """Stops all ranks at the first number of some tokens that is not finite, and says where it stands.

        Raises:
            NonFiniteError: a log-probability or an entropy is NaN or infinite, on this rank or another.
        """
        logp, entropy = stats.logp.detach(), stats.entropy.detach()
        broken = torch.zeros_like(logp, dtype=torch.bool)
        broken[tokens] = ~(logp.isfinite() & entropy.isfinite())[tokens]
        if not self.ranks.any(bool(broken.any())):
            return
        if not broken.any():
            raise NonFiniteError(f"rollout {lesson.rollout}: another rank met a log-probability that is not finite")
        token = int(broken.nonzero()[0])
        draw = int(lesson.experience.group[chunk.rows[chunk.row[token]]])
        raise NonFiniteError(
            f"rollout {lesson.rollout}: token {int(chunk.column[token])} of an answer to problem "
            f"{lesson.uids.get(draw, f'of draw {draw}')} has log-probability {float(logp[token])} and entropy "
            f"{float(entropy[token])}; {int(broken.sum())} tokens of its micro-batch are not finite"
        )


def keep(x: Experience, chunk: Chunk, stats: TokenStats) -> None:
    """Stores the statistics of the policy that the selection asks for."""
    assert x.entropy is not None
    chunk.write(x.entropy, stats.entropy)
    if x.logp is not None:
        chunk.write(x.logp, stats.logp)
