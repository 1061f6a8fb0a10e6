"""From problems to a rollout: sample, verify, filter, shape, group advantages."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from forklight.algo.advantages import Advantage, AdvantageName, estimate_advantages
from forklight.algo.batch import RolloutBatch
from forklight.algo.plan import update_and_rank
from forklight.data.stream import PromptBatch
from forklight.distributed import Ranks
from forklight.errors import EngineError, NonFiniteError
from forklight.rollout.config import RolloutConfig
from forklight.rollout.generate import AnswerGenerator, Group
from forklight.rollout.overlong import soft_overlong
from forklight.rollout.reward_stats import reward_by_length, unjudged_reasons, verdict_counts
from forklight.rollout.tensors import batch_of_rank
from forklight.types import Completion, Problem, Verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rollout:
    """The result of one collection."""

    batch: RolloutBatch
    """The sequences of this rank."""
    groups: list[Group]
    """The kept groups of all ranks, in the order of the rollout."""
    metrics: dict[str, float]
    """Over all ranks; keys as in TensorBoard."""
    unjudged: tuple[tuple[str, int], ...] = ()
    """The most frequent reasons why sampled answers, discarded ones included, could not be judged; their numbers."""


@dataclass(frozen=True, slots=True)
class SampledRollout:
    """A rollout before its advantages."""

    batch: RolloutBatch
    """The sequences of this rank, with the rewards of the verifier after shaping, and no advantages yet: all 0."""
    groups: list[Group]
    """The kept groups of all ranks, in the order of the rollout."""
    rewards: Tensor  # float [P,G] of all ranks
    trained: Tensor  # bool [P] False for groups that only fill up the rollout
    ranks: tuple[int, ...]
    """The rank that trains on each of the P problems."""
    metrics: dict[str, float]
    """Over all ranks; keys as in TensorBoard."""
    unjudged: tuple[tuple[str, int], ...] = ()
    """As in `Rollout`."""


class Collector:
    """Makes rollouts of problems.

    Args:
        generator: samples and verifies.
        config: lengths, temperature, dynamic sampling, shaping.
        advantage: how rewards become advantages, by name or by a user-defined estimator.
        ranks: the data-parallel group.
    """

    def __init__(
        self,
        generator: AnswerGenerator,
        config: RolloutConfig,
        advantage: AdvantageName | Advantage,
        ranks: Ranks,
    ) -> None:
        self.generator = generator
        self.config = config
        self.advantage = advantage
        self.ranks = ranks
        self._warned = not config.truncates

    def sample(self, batch: PromptBatch) -> SampledRollout:
        """P groups of G answers, verified and rewarded.

        The order of the problems over all ranks decides which groups are kept, the update each belongs to and the rank
        that trains on it. So neither the number of ranks nor the speed of a rank changes what is learnt.

        Args:
            batch: the problems, and the stream to draw more from.

        Raises:
            ValueError: the problems cannot be shared by updates and ranks, or a prompt is too long.
            NonFiniteError: an answer has a log-probability that is NaN or infinite, on this rank or another.
        """
        self._warn_of_truncation()
        wanted = len(batch.problems)
        kept, filler, drawn = self._sample_groups(batch)
        missing = max(0, wanted - len(kept))
        if missing:
            log.warning(
                "rollout %d: %d of %d groups have both right and wrong answers after rollout.max_rounds = %d; "
                "groups without gradient fill up the rest",
                batch.rollout, len(kept), wanted, self.config.max_rounds,
            )  # fmt: skip
        groups = sorted(kept[:wanted] + filler[:missing], key=lambda group: group.problem_index)
        masked = {group.problem_index for group in filler[:missing]}
        rewards = torch.tensor([self._rewards(group) for group in groups])
        places = update_and_rank(len(groups), batch.updates, self.ranks.size)
        metrics = {
            "rollout/problems_drawn": float(drawn),
            "rollout/surplus_groups": float(len(kept) - wanted + missing),
            "rollout/masked_groups": float(missing),
            "rollout/epoch": batch.stream.epoch,
        }
        return SampledRollout(
            batch=batch_of_rank(groups, rewards, places, self.ranks.rank),
            groups=groups,
            rewards=rewards,
            trained=torch.tensor([group.problem_index not in masked for group in groups]),
            ranks=tuple(rank for _, rank in places),
            metrics=metrics | _verify_metrics(kept + filler, self.config.max_new_tokens),
            unjudged=tuple(unjudged_reasons(verdict for group in kept + filler for verdict in group.verdicts)),
        )

    def finish(self, sampled: SampledRollout, penalty: Tensor | None = None) -> Rollout:
        """Computes the advantages of a rollout.

        Args:
            sampled: the rollout.
            penalty: [S], subtracted from the rewards of this rank's sequences; all ranks give one, or none does.

        Raises:
            ValueError: the penalty is not one finite number per sequence.
        """
        rewards, metrics = sampled.rewards, dict(sampled.metrics)
        if penalty is not None:
            lost = self._of_all_ranks(sampled.batch, penalty).view_as(rewards)
            metrics["rollout/penalty"] = float(lost.double().mean())
            rewards = rewards - lost.to(rewards)
        advantages = torch.zeros_like(rewards)  # filler groups get 0 and do not enter the statistics of other groups
        if sampled.trained.any():
            advantages[sampled.trained] = estimate_advantages(self.advantage, rewards[sampled.trained])
        contributing = (advantages != 0).any(1, keepdim=True).expand_as(advantages)
        mine = [i for i, rank in enumerate(sampled.ranks) if rank == self.ranks.rank]
        batch = sampled.batch.with_advantages(
            *(values[mine].flatten() for values in (rewards, advantages, contributing))
        )
        found = metrics | _metrics(sampled.groups, rewards, advantages)
        return Rollout(batch, sampled.groups, found, sampled.unjudged)

    def _warn_of_truncation(self) -> None:
        if not self._warned:
            log.warning(
                "rollout.top_p = %g, rollout.top_k = %d: answers are sampled from a part of the vocabulary, ratios and "
                "entropies are of the full one (rollout.allow_truncated_sampling)",
                self.config.top_p, self.config.top_k,
            )  # fmt: skip
            self._warned = True

    def _sample_groups(self, batch: PromptBatch) -> tuple[list[Group], list[Group], int]:
        """Groups to keep, filler groups, and the number of problems drawn; without dynamic sampling all are kept."""
        wanted, problems, drawn = len(batch.problems), list(batch.problems), 0
        kept: list[Group] = []
        filler: list[Group] = []
        for _ in range(self.config.max_rounds):
            if drawn:
                # Extrapolated from the share kept so far; the same number on all ranks.
                more = min(wanted, -(-(wanted - len(kept)) * drawn // max(len(kept), 1)))  # rounded up
                problems = batch.stream.draw(more)
            groups = self._answer_on_all_ranks(problems, drawn, batch)
            drawn += len(problems)
            if not self.config.dynamic_sampling:
                return groups, [], drawn
            # The filter uses the verifier's outcome: shaping would make a group of wrong answers look mixed.
            kept += [group for group in groups if group.mixed]
            filler += [group for group in groups if not group.mixed]
            if len(kept) >= wanted:
                break
        return kept, filler, drawn

    def _answer_on_all_ranks(self, problems: Sequence[Problem], first: int, batch: PromptBatch) -> list[Group]:
        """Every rank answers its share; every rank gets all groups, in the order of the rollout."""
        mine = slice(self.ranks.rank, None, self.ranks.size)
        failure: ValueError | OSError | EngineError | None = None
        try:
            groups = self.generator.answer(
                problems[mine],
                range(first, first + len(problems))[mine],
                batch.rollout,
                answers=batch.answers,
                max_new_tokens=self.config.max_new_tokens,
                temperature=self.config.temperature,
                template=batch.template,
                verifier=batch.verifier,
                top_p=self.config.top_p,
                top_k=self.config.top_k,
            )
        except (ValueError, OSError, EngineError) as error:
            groups, failure = [], error
        if self.ranks.any(failure is not None):  # all ranks stop: none is left waiting for this one's answers
            failures = self.ranks.gather(failure and (isinstance(failure, NonFiniteError), str(failure)))
            not_finite, reason = next(filter(None, failures))
            message = f"rollout {batch.rollout}: {failure or 'another rank, ' + reason}"
            if not_finite:
                raise NonFiniteError(message, getattr(failure, "dump", None)) from failure
            raise ValueError(message) from failure
        return sorted(chain.from_iterable(self.ranks.gather(groups)), key=lambda group: group.problem_index)

    def _rewards(self, group: Group) -> list[float]:
        """The verifier's rewards, with DAPO's punishment of answers near the length limit."""

        def reward(completion: Completion, verdict: Verdict) -> float:
            length, config = len(completion.token_ids), self.config
            return verdict.reward + soft_overlong(
                length, config.max_new_tokens, config.overlong_buffer, config.overlong_penalty
            )

        return [reward(*pair) for pair in zip(group.completions, group.verdicts, strict=True)]

    def _of_all_ranks(self, mine: RolloutBatch, penalty: Tensor) -> Tensor:
        """The penalty of every answer of all ranks, in the order of the rollout, `[P*G]`."""
        if penalty.shape != mine.sequence_id.shape:
            raise ValueError(f"the penalty has shape {tuple(penalty.shape)} for {len(mine.sequence_id)} sequences")
        parts = self.ranks.gather((mine.sequence_id.cpu(), penalty.detach().cpu()))
        ids, lost = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        if not lost.isfinite().all():
            raise ValueError(f"the penalty of sequence {ids[~lost.isfinite()][0]} (sequence_id) is not finite")
        return lost[ids.argsort()]


def _verify_metrics(groups: list[Group], limit: int) -> dict[str, float]:
    """Metrics of the verdicts on all sampled answers, discarded ones included."""
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
    found = verdict_counts(verdicts) | reward_by_length(zip(verdicts, lengths, strict=True), limit)
    return {f"verify/{name}": value for name, value in found.items()}


def _metrics(groups: list[Group], rewards: Tensor, advantages: Tensor) -> dict[str, float]:
    """Shares and means over the kept groups of all ranks."""
    completions = [completion for group in groups for completion in group.completions]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    lengths = torch.tensor([len(completion.token_ids) for completion in completions], dtype=torch.float64)
    return {
        "rollout/reward": float(rewards.mean()),
        "rollout/reward_se": float(rewards.double().mean(1).std() / len(rewards) ** 0.5) if len(rewards) > 1 else 0.0,
        "rollout/right": sum(verdict.right for verdict in verdicts) / len(verdicts),
        "rollout/unjudged": sum(verdict.outcome == "unjudged" for verdict in verdicts) / len(verdicts),
        "rollout/truncated": sum(completion.truncated for completion in completions) / len(completions),
        "rollout/answer_tokens": float(lengths.mean()),
        "rollout/answer_tokens_max": float(lengths.max()),
        "rollout/solved_all": sum(group.right == len(group.verdicts) for group in groups) / len(groups),
        "rollout/solved_none": sum(group.right == 0 for group in groups) / len(groups),
        "rollout/contributing": float((advantages != 0).any(1).double().mean()),
    }
