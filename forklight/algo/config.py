"""The configuration of the algorithm: selection, objective, KL, entropy bonus, correction; checked for conflicts."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from forklight.algo.correction import CorrectionConfig
from forklight.algo.denominators import known_from_lengths
from forklight.algo.kl import KLConfig
from forklight.algo.objectives import Dapo
from forklight.algo.objectives.base import Objective
from forklight.algo.plan import ExtraGradient
from forklight.algo.schedule import PassSchedule
from forklight.algo.selection.spec import ForkSelection, Term

OldLogpFrom = Literal["trainer", "sampler"]


@dataclass(frozen=True)
class AlgorithmConfig:
    """All settings of an update, except the numbers of problems, answers and micro-batches."""

    selection: ForkSelection = field(default_factory=ForkSelection)
    """Which tokens carry gradient."""
    objective: Objective = field(default_factory=Dapo)
    """The policy term."""
    kl: KLConfig = field(default_factory=KLConfig)
    """The KL term, in the loss or subtracted from the reward if its coefficient is above 0."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, per nat of mean entropy."""
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    """Importance weights against a mismatch of sampler and trainer."""
    old_logp_from: OldLogpFrom = "trainer"
    """The old log-probabilities of the ratio: the trainer's, of the policy that starts the rollout's updates, or the
    sampler's. With the sampler's no pass has to compute them, the first ratio is trainer / sampler, and the clip range
    acts on the product of this mismatch and the change by updates."""

    def __post_init__(self) -> None:
        if self.old_logp_from not in get_args(OldLogpFrom):
            raise ValueError(f"model.old_logp_from must be one of {get_args(OldLogpFrom)}, got {self.old_logp_from!r}")
        if self.old_logp_from == "sampler" and self.correction.method != "none":
            raise ValueError(
                f"model.correction.method: {self.correction.method} weighs by trainer / sampler, which "
                "model.old_logp_from: sampler already has in the ratio: leave one of them out"
            )
        if not 0 <= self.entropy_coef < float("inf"):
            raise ValueError(f"model.entropy_coef must be a finite number >= 0, got {self.entropy_coef}")
        s = self.selection
        self.objective.check_selection(s)
        if s.keep == "covariance" and s.scope == "sequence":
            raise ValueError(
                "selection.keep: covariance needs a scope of several answers: "
                "the tokens of one answer have equal advantages"
            )
        if "kl" in s.masked_terms and not self.kl_in_loss:
            raise ValueError("selection.masked_terms has kl, but model.kl puts no KL term into the loss")
        if self.kl.placement == "reward" and self.kl.coef == 0:
            raise ValueError("model.kl.placement: reward needs model.kl.coef above 0")
        if self.kl.refresh_every_rollouts and not self.needs_reference:
            raise ValueError(
                f"model.kl.refresh_every_rollouts = {self.kl.refresh_every_rollouts}, but nothing compares with the "
                "reference: model.kl.coef is 0"
            )

    def at(self, rollout: int, low_since: int | None = None) -> "AlgorithmConfig":
        """The settings of one rollout: those in which `selection.rho` is a number.

        Args:
            rollout: its number.
            low_since: the first rollout whose mean entropy was at most `selection.rho.until_entropy`; None if there was
                none, or need not be.
        """
        schedule = self.selection.schedule
        if schedule is None:
            return self
        return replace(self, selection=self.selection.at(schedule.at(rollout, low_since)))

    @property
    def kl_in_loss(self) -> bool:
        """True if the loss has a KL term."""
        return self.kl.coef > 0 and self.kl.placement == "loss"

    @property
    def kl_in_reward(self) -> bool:
        """True if the KL is subtracted from the rewards."""
        return self.kl.coef > 0 and self.kl.placement == "reward"

    @property
    def reference_in_loss(self) -> bool:
        """True if the loss compares with the reference model."""
        return self.kl_in_loss or self.objective.needs_reference

    @property
    def needs_reference(self) -> bool:
        """True if the loss or the reward compares with the reference model."""
        return self.kl.coef > 0 or self.objective.needs_reference

    @property
    def active(self) -> tuple[Term, ...]:
        """The terms of the loss."""
        beside: tuple[tuple[Term, bool], ...] = (("kl", self.kl_in_loss), ("entropy", self.entropy_coef > 0))
        return ("policy", *(name for name, used in beside if used))

    @property
    def needs_ranking(self) -> bool:
        """True if some tokens are ranked by the policy's entropies or log-probabilities."""
        return self.selection.needs_ranking or self.objective.covariance is not None

    @property
    def ranks_logp(self) -> bool:
        """True if some tokens are ranked by a score that uses log-probabilities."""
        return self.selection.needs_logp or self.objective.covariance is not None

    @property
    def extra_gradient(self) -> ExtraGradient:
        """The sequences to which terms other than the policy's advantages give a gradient."""
        active = set(self.active[1:])
        if active - set(self.selection.masked_terms):
            return "all"
        return "eligible" if active or self.objective.trains_zero_advantage else "none"

    def schedule(self, updates: int, micro_batches: int) -> PassSchedule:
        """The passes of a rollout of K updates of A micro-batches.

        Raises:
            ValueError: the selection contradicts K.
        """
        known = known_from_lengths(self.selection, self.objective.aggregate, updates=updates)
        means = self.objective.covariance is not None or self.selection.relative_to != "none"
        if means and self.selection.scope == "sequence":
            known = False  # sequences are ranked alone, but the means are those over the update
        return PassSchedule.of(
            self.selection,
            updates=updates,
            micro_batches=micro_batches,
            needs_ranking=self.needs_ranking,
            known_from_lengths=known,
            old_from_sampler=self.old_logp_from == "sampler",
        )
