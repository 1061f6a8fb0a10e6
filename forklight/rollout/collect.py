"""From problems to experience: sample, verify, filter, shape, group advantages."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from forklight.algo.advantages import group_advantages
from forklight.algo.plan import update_and_rank
from forklight.algo.types import Experience
from forklight.data.visits import PromptBatch
from forklight.rollout.answers import Answerer, Group
from forklight.rollout.ranks import Ranks
from forklight.types import Completion, Problem, Verdict
from forklight.verify.shaping import soft_overlong

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutSpec:
    """How answers are sampled and filtered in training."""

    max_new_tokens: int = 1024
    """Longest answer, in tokens. An answer without EOS by then is cut (*truncated*)."""
    temperature: float = 1.0
    """Sampling temperature; entropies and ratios are those of logits divided by it."""
    dynamic_sampling: bool = False
    """Draw more problems until P groups have both right and wrong answers (DAPO, arXiv 2503.14476, section 3.2)."""
    max_rounds: int = 10
    """Rounds of dynamic sampling, after which groups without gradient fill up the rollout, with a warning."""
    overlong_buffer: int = 0
    """Soft punishment over the last so many tokens before `max_new_tokens` (DAPO Eq. 13); 0 means none."""
    overlong_penalty: float = 1.0
    """The punishment at `max_new_tokens`."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be trained with."""
        if self.max_new_tokens < 1 or self.max_rounds < 1:
            raise ValueError(
                f"rollout.max_new_tokens = {self.max_new_tokens} and rollout.max_rounds = {self.max_rounds} "
                "must be at least 1"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"rollout.temperature = {self.temperature}: training needs a temperature above 0, "
                "greedy answers have no probability ratio"
            )
        if not 0 <= self.overlong_buffer <= self.max_new_tokens:
            raise ValueError(
                f"rollout.overlong_buffer = {self.overlong_buffer} must lie between 0 and "
                f"rollout.max_new_tokens = {self.max_new_tokens}"
            )


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one collection brought."""

    experience: Experience
    """The sequences of this rank."""
    groups: list[Group]
    """The kept groups of all ranks, in draw order."""
    metrics: dict[str, float]
    """Over all ranks; keys as in TensorBoard."""


class Collector:
    """Makes experience of problems.

    Args:
        answerer: samples and verifies.
        spec: lengths, temperature, dynamic sampling, shaping.
        advantage_scale: what a group's centred rewards are divided by.
        ranks: the data-parallel group.
    """

    def __init__(
        self, answerer: Answerer, spec: RolloutSpec, advantage_scale: Literal["std", "none"], ranks: Ranks
    ) -> None:
        self.answerer = answerer
        self.spec = spec
        self.advantage_scale = advantage_scale
        self.ranks = ranks

    def collect(self, batch: PromptBatch) -> Rollout:
        """One rollout: P groups of G answers, with advantages.

        Global draw order decides everything: which groups are kept, the update each belongs to and the rank that
        trains on it. So neither the number of ranks nor the speed of one changes what is learnt.
        """
        wanted = len(batch.problems)
        kept, filler, drawn = self._draw_groups(batch)
        missing = max(0, wanted - len(kept))
        if missing:
            log.warning(
                "rollout %d: %d of %d groups have both right and wrong answers after rollout.max_rounds = %d; "
                "groups without gradient fill up the rest",
                batch.rollout, len(kept), wanted, self.spec.max_rounds,
            )  # fmt: skip
        groups = sorted(kept[:wanted] + filler[:missing], key=lambda group: group.draw)
        rewards = torch.tensor([self._rewards(group) for group in groups])
        advantages = group_advantages(rewards, scale=self.advantage_scale)
        masked = {group.draw for group in filler[:missing]}
        advantages[torch.tensor([group.draw in masked for group in groups])] = 0.0

        metrics = _metrics(groups, rewards, advantages) | {
            "rollout/problems_drawn": float(drawn),
            "rollout/surplus_groups": float(len(kept) - wanted + missing),
            "rollout/masked_groups": float(missing),
            "rollout/epoch": batch.stream.epoch,
        }
        return Rollout(self._experience(groups, rewards, advantages, batch), groups, metrics)

    def _draw_groups(self, batch: PromptBatch) -> tuple[list[Group], list[Group], int]:
        """Groups to keep, groups to fill up with, and the number drawn; without dynamic sampling all are kept."""
        wanted, problems, drawn = len(batch.problems), list(batch.problems), 0
        kept: list[Group] = []
        filler: list[Group] = []
        for _ in range(self.spec.max_rounds):
            if drawn:
                # As many as the share kept so far promises; the same number on all ranks.
                more = min(wanted, -(-(wanted - len(kept)) * drawn // max(len(kept), 1)))  # rounded up
                problems = batch.stream.draw(more)
            groups = self._answer_on_all_ranks(problems, drawn, batch)
            drawn += len(problems)
            if not self.spec.dynamic_sampling:
                return groups, [], drawn
            # The filter looks at the verifier's outcome: shaping would make a group of wrong answers look mixed.
            kept += [group for group in groups if group.mixed]
            filler += [group for group in groups if not group.mixed]
            if len(kept) >= wanted:
                break
        return kept, filler, drawn

    def _answer_on_all_ranks(self, problems: Sequence[Problem], first: int, batch: PromptBatch) -> list[Group]:
        """Every rank answers its share; every rank then knows all groups, in draw order."""
        mine = slice(self.ranks.rank, None, self.ranks.size)
        groups = self.answerer.answer(
            problems[mine],
            range(first, first + len(problems))[mine],
            batch.rollout,
            answers=batch.answers,
            max_new_tokens=self.spec.max_new_tokens,
            temperature=self.spec.temperature,
            template=batch.template,
            verifier=batch.verifier,
        )
        everywhere = [group for share in self.ranks.gather(groups) for group in share]
        return sorted(everywhere, key=lambda group: group.draw)

    def _rewards(self, group: Group) -> list[float]:
        """1 for a right answer, and DAPO's punishment for one that comes close to the length limit."""

        def reward(completion: Completion, verdict: Verdict) -> float:
            length, spec = len(completion.token_ids), self.spec
            return float(verdict.right) + soft_overlong(
                length, spec.max_new_tokens, spec.overlong_buffer, spec.overlong_penalty
            )

        return [reward(*pair) for pair in zip(group.completions, group.verdicts, strict=True)]

    def _experience(self, groups: list[Group], rewards: Tensor, advantages: Tensor, batch: PromptBatch) -> Experience:
        """The tensors of this rank's groups."""
        places = update_and_rank(len(groups), batch.updates, self.ranks.size)
        mine = [i for i, (_, rank) in enumerate(places) if rank == self.ranks.rank]
        rows = [(i, completion) for i in mine for completion in groups[i].completions]
        sequences = [groups[i].prompt_ids + completion.token_ids for i, completion in rows]
        longest = max(len(sequence) for sequence in sequences)
        input_ids = torch.tensor([sequence + (0,) * (longest - len(sequence)) for sequence in sequences])
        contributing = (advantages != 0).any(1, keepdim=True).expand_as(advantages)
        return Experience(
            input_ids=input_ids,
            prompt_length=torch.tensor([len(groups[i].prompt_ids) for i, _ in rows]),
            answer_length=torch.tensor([len(completion.token_ids) for _, completion in rows]),
            rewards=rewards[mine].flatten(),
            advantages=advantages[mine].flatten(),
            contributing=contributing[mine].flatten(),
            truncated=torch.tensor([completion.truncated for _, completion in rows]),
            update=torch.tensor([places[i][0] for i, _ in rows]),
            group=torch.tensor([groups[i].draw for i, _ in rows]),
            row_key=torch.tensor([groups[i].draw * batch.answers + completion.index for i, completion in rows]),
        )


def _metrics(groups: list[Group], rewards: Tensor, advantages: Tensor) -> dict[str, float]:
    """Shares and means over the kept groups of all ranks."""
    completions = [completion for group in groups for completion in group.completions]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    lengths = torch.tensor([len(completion.token_ids) for completion in completions], dtype=torch.float64)
    return {
        "rollout/reward": float(rewards.mean()),
        "rollout/right": sum(verdict.right for verdict in verdicts) / len(verdicts),
        "rollout/unjudged": sum(verdict.outcome == "unjudged" for verdict in verdicts) / len(verdicts),
        "rollout/truncated": sum(completion.truncated for completion in completions) / len(completions),
        "rollout/answer_tokens": float(lengths.mean()),
        "rollout/answer_tokens_max": float(lengths.max()),
        "rollout/solved_all": sum(group.right == len(group.verdicts) for group in groups) / len(groups),
        "rollout/solved_none": sum(group.right == 0 for group in groups) / len(groups),
        "rollout/contributing": float((advantages != 0).any(1).double().mean()),
    }
