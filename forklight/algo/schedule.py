"""Which passes a rollout runs in addition to sampling and training.

Two questions decide: where are the tokens selected, and where do the old log-probabilities come from.

| case | statistics pass | tokens selected | old log-probability |
| --- | --- | --- | --- |
| K > 1, `entropy_of: old` | one, before the first update, for all updates | `rollout` | pass (of the first update: the training forward's own) |
| K > 1, `entropy_of: current`, tokens of several micro-batches ranked together | one before the first update, for old log-probabilities; one entropy pass before each later update | `update` | pass |
| K > 1, `entropy_of: current`, otherwise | one before the first update, for old log-probabilities | `forward` | pass |
| K = 1 and A = 1; or K = 1, scope `sequence` or `micro_batch*`, denominators known from lengths | none | `forward` | forward: its own value, detached |
| K = 1, `keep: all`, `random` or `abs_advantage` | none | `update`, from lengths, hashes or advantages | forward |
| K = 1, A > 1, otherwise | one | `update` | forward |
| `preset: paper-code` or `trl` (per micro-batch) | none at K = 1; one for old log-probabilities at K > 1 | `forward` | forward at K = 1; pass at K > 1 |
| `old_logp_from: sampler` | only for entropies that are ranked | as above | sampler |

With more than one update per rollout, a `statistics pass` before the first update also finds the statistics of the first
update's own policy, so no entropy pass comes before that update.
"""  # noqa: E501  rows of a table

from dataclasses import dataclass
from enum import StrEnum

from forklight.algo.selection.spec import ForkSelection


class SelectAt(StrEnum):
    """Where the tokens are selected."""

    ROLLOUT = "rollout"
    """Before the first update, for all updates of the rollout."""
    UPDATE = "update"
    """Before each update."""
    FORWARD = "forward"
    """In the training forward, from the entropies that it has just computed."""


class OldLogp(StrEnum):
    """Where the old log-probabilities of the ratio come from."""

    PASS = "pass"
    """A pass before the first update; the first update uses those of its own forward, where the policy is the old
    one."""
    FORWARD = "forward"
    """The training forward itself: with one update per rollout the policy is the old one."""
    SAMPLER = "sampler"
    """The sampler, at sampling time."""


@dataclass(frozen=True, slots=True)
class PassSchedule:
    """The passes of a rollout: one row of the table above."""

    select_at: SelectAt
    old_logp: OldLogp
    needs_ranking: bool
    """Whether tokens are ranked by the policy's entropies or log-probabilities, which a pass must compute first."""

    @classmethod
    def of(
        cls,
        spec: ForkSelection,
        *,
        updates: int,
        micro_batches: int,
        needs_ranking: bool | None = None,
        known_from_lengths: bool = True,
        old_from_sampler: bool = False,
    ) -> "PassSchedule":
        """The cheapest passes that give the specified result.

        Args:
            spec: the selection.
            updates: K.
            micro_batches: A.
            needs_ranking: whether tokens are ranked by the policy's entropies or log-probabilities; if None, that of
                `spec`.
            known_from_lengths: whether lengths alone give the denominators.
            old_from_sampler: whether the old log-probabilities are the sampler's.

        Raises:
            ValueError: all tokens of a rollout are to be ranked together by a policy that changes between its updates.
        """
        on_policy = updates == 1
        needs_ranking = spec.needs_ranking if needs_ranking is None else needs_ranking
        current = on_policy or spec.entropy_of == "current"
        if needs_ranking and current and not on_policy and spec.scope == "rollout":
            raise ValueError(
                "selection.scope: rollout ranks the tokens of all updates at once, before the first of them; with "
                f"data.updates_per_rollout = {updates} it needs selection.entropy_of: old, not current"
            )
        in_micro_batch = spec.scope in ("sequence", "micro_batch", "micro_batch_rank")
        forward_has_whole_set = micro_batches == 1 or (in_micro_batch and known_from_lengths)
        select_at = SelectAt.UPDATE if current and (needs_ranking or on_policy) else SelectAt.ROLLOUT
        if needs_ranking and current and forward_has_whole_set:
            select_at = SelectAt.FORWARD
        old_logp = OldLogp.FORWARD if on_policy else OldLogp.PASS
        return cls(select_at, OldLogp.SAMPLER if old_from_sampler else old_logp, needs_ranking)

    @property
    def pass_before_rollout(self) -> bool:
        """Whether a statistics pass over all updates runs before the first one."""
        return self.old_logp is OldLogp.PASS or (self.needs_ranking and self.select_at is SelectAt.ROLLOUT)

    def pass_before_update(self, update: int) -> bool:
        """Whether a statistics pass runs before an update, in addition to the pass before the first one.

        Args:
            update: 0 .. K-1.
        """
        covered = update == 0 and self.pass_before_rollout
        return self.needs_ranking and self.select_at is SelectAt.UPDATE and not covered

    @property
    def forward_observes(self) -> bool:
        """Whether the training forward records the entropies of all tokens, because no earlier pass has."""
        return self.select_at is SelectAt.FORWARD or not (self.pass_before_rollout or self.pass_before_update(1))

    def describe(self, updates: int) -> str:
        """The passes as one phrase, for the table at the start of a run.

        Args:
            updates: K.
        """
        parts = ["sampling" + (" (old log-probs)" if self.old_logp is OldLogp.SAMPLER else "")]
        if self.pass_before_rollout:
            parts.append(
                "one statistics pass" + (" (old log-probs)" if self.old_logp is OldLogp.PASS else " (entropies)")
            )
        elif self.pass_before_update(0) and updates == 1:
            parts.append("one statistics pass (entropies)")
        if self.pass_before_update(1) and updates > 1:
            parts.append("one entropy pass before each" + (" later" if self.pass_before_rollout else "") + " update")
        parts.append("training" + (" (selection inside)" if self.select_at is SelectAt.FORWARD else ""))
        return ", ".join(parts)

    def reasons(self, updates: int) -> dict[str, str]:
        """Why each pass runs, or why none is needed.

        Args:
            updates: K.
        """
        old = {
            OldLogp.SAMPLER: "no pass: the sampler reports them",
            OldLogp.FORWARD: "no pass: with one update per rollout they are those of the training forward itself",
            OldLogp.PASS: "statistics pass: later updates compare with the policy before the first update",
        }
        if self.select_at is SelectAt.FORWARD:
            entropies = "no pass: the training forward computes all tokens that are ranked together"
        elif self.old_logp is OldLogp.PASS:
            entropies = "statistics pass: the one that computes the old log-probabilities"
        elif not self.needs_ranking:
            entropies = "no pass: the selection does not use them"
        elif self.select_at is SelectAt.ROLLOUT or updates == 1:
            entropies = (
                "statistics pass: tokens of several micro-batches are ranked together, or those of later updates by "
                "the policy before the first update"
            )
        else:
            entropies = "a pass before each update: tokens of several micro-batches are ranked together"
        if self.pass_before_rollout and self.pass_before_update(1):
            entropies += ", and a pass before each later update for the entropies of the policy at that update"
        return {"old log-probabilities": old[self.old_logp], "entropies": entropies}
