"""From problems to experience: sample, verify, filter, shape, group advantages."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from forklight.algo.advantages import Advantage, AdvantageName, estimate_advantages
from forklight.algo.plan import update_and_rank
from forklight.algo.types import Experience
from forklight.data.visits import PromptBatch
from forklight.rollout.answers import Answerer, Group
from forklight.rollout.lesson import NonFiniteError
from forklight.rollout.ranks import Ranks
from forklight.rollout.sampler import EngineError
from forklight.rollout.spec import RolloutSpec
from forklight.rollout.verdicts import reward_by_length, verdict_counts
from forklight.types import Completion, Problem, Verdict
from forklight.verify.shaping import soft_overlong

__all__ = ["Collector", "Penalty", "Rollout", "RolloutSpec"]

log = logging.getLogger(__name__)

Penalty = Callable[[Experience], Tensor]
"""What to subtract from the rewards of this rank's sequences, `[S]`. Called on all ranks: it may use collectives."""


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
        advantage: how rewards become advantages, by name or by an object of one's own.
        ranks: the data-parallel group.
    """

    def __init__(
        self, answerer: Answerer, spec: RolloutSpec, advantage: AdvantageName | Advantage, ranks: Ranks
    ) -> None:
        self.answerer = answerer
        self.spec = spec
        self.advantage = advantage
        self.ranks = ranks
        self.uids: dict[int, str] = {}
        """The problems' uids by draw number, of the last rollout."""
        self._warned = not spec.truncates

    def collect(self, batch: PromptBatch, penalty: Penalty | None = None) -> Rollout:
        """One rollout: P groups of G answers, with advantages.

        Global draw order decides everything: which groups are kept, the update each belongs to and the rank that
        trains on it. So neither the number of ranks nor the speed of one changes what is learnt.

        Args:
            batch: the problems, and the stream to draw more from.
            penalty: sees this rank's experience with advantages of the unpunished rewards, and returns what to subtract
                from the rewards; the advantages are then computed again.

        Raises:
            ValueError: the problems cannot be shared by updates and ranks, a prompt is too long, or the penalty is not
                one finite number per sequence.
            NonFiniteError: an answer was drawn with a log-probability that is NaN or infinite, on this rank or another.
        """
        self._warn_of_truncation()
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
        self.uids = {group.draw: group.problem.uid for group in groups}
        masked = {group.draw for group in filler[:missing]}
        trained = torch.tensor([group.draw not in masked for group in groups])
        rewards = torch.tensor([self._rewards(group) for group in groups])
        advantages = self._advantages(rewards, trained)
        experience = self._experience(groups, rewards, advantages, batch)
        metrics = {
            "rollout/problems_drawn": float(drawn),
            "rollout/surplus_groups": float(len(kept) - wanted + missing),
            "rollout/masked_groups": float(missing),
            "rollout/epoch": batch.stream.epoch,
        }
        if penalty is not None:
            lost = self._penalties(experience, penalty).view_as(rewards)
            metrics["rollout/penalty"] = float(lost.double().mean())
            rewards = rewards - lost.to(rewards)
            advantages = self._advantages(rewards, trained)
            experience = self._experience(groups, rewards, advantages, batch)
        metrics |= _metrics(groups, rewards, advantages) | _verify_metrics(kept + filler, self.spec.max_new_tokens)
        return Rollout(experience, groups, metrics)

    def _warn_of_truncation(self) -> None:
        if not self._warned:
            log.warning(
                "rollout.top_p = %g, rollout.top_k = %d: answers are drawn from a part of the vocabulary, ratios and "
                "entropies are of the full one (rollout.allow_truncated_sampling)",
                self.spec.top_p, self.spec.top_k,
            )  # fmt: skip
            self._warned = True

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
        failure: ValueError | OSError | EngineError | None = None
        try:
            groups = self.answerer.answer(
                problems[mine],
                range(first, first + len(problems))[mine],
                batch.rollout,
                answers=batch.answers,
                max_new_tokens=self.spec.max_new_tokens,
                temperature=self.spec.temperature,
                template=batch.template,
                verifier=batch.verifier,
                top_p=self.spec.top_p,
                top_k=self.spec.top_k,
            )
        except (ValueError, OSError, EngineError) as error:
            groups, failure = [], error
        if self.ranks.any(failure is not None):  # all ranks stop: none is left waiting for this one's answers
            stories = self.ranks.gather(failure and (isinstance(failure, NonFiniteError), str(failure)))
            not_finite, story = next(filter(None, stories))
            message = f"rollout {batch.rollout}: {failure or 'another rank, ' + story}"
            if not_finite:
                raise NonFiniteError(message, getattr(failure, "batch", None)) from failure
            raise ValueError(message) from failure
        return sorted(chain.from_iterable(self.ranks.gather(groups)), key=lambda group: group.draw)

    def _rewards(self, group: Group) -> list[float]:
        """What the verifier gives, and DAPO's punishment for an answer that comes close to the length limit."""

        def reward(completion: Completion, verdict: Verdict) -> float:
            length, spec = len(completion.token_ids), self.spec
            return verdict.reward + soft_overlong(
                length, spec.max_new_tokens, spec.overlong_buffer, spec.overlong_penalty
            )

        return [reward(*pair) for pair in zip(group.completions, group.verdicts, strict=True)]

    def _advantages(self, rewards: Tensor, trained: Tensor) -> Tensor:
        """`[P,G]`; groups that only fill up get 0, and have no part in what others are compared with."""
        advantages = torch.zeros_like(rewards)
        if trained.any():
            advantages[trained] = estimate_advantages(self.advantage, rewards[trained])
        return advantages

    def _penalties(self, mine: Experience, penalty: Penalty) -> Tensor:
        """What every answer of all ranks loses, in draw order, `[P*G]`."""
        try:
            values = penalty(mine)
        except NonFiniteError as error:
            error.batch = {"uids": self.uids, "experience": mine.state_dict()}
            raise
        if values.shape != mine.row_key.shape:
            raise ValueError(f"the penalty has shape {tuple(values.shape)} for {len(mine.row_key)} sequences")
        shares = self.ranks.gather((mine.row_key.cpu(), values.detach().cpu()))
        keys, lost = (torch.cat(tensors) for tensors in zip(*shares, strict=True))
        if not lost.isfinite().all():
            raise ValueError(f"the penalty of sequence {keys[~lost.isfinite()][0]} (row_key) is not finite")
        return lost[keys.argsort()]

    def _experience(self, groups: list[Group], rewards: Tensor, advantages: Tensor, batch: PromptBatch) -> Experience:
        """The tensors of this rank's groups."""
        places = update_and_rank(len(groups), batch.updates, self.ranks.size)
        mine = [i for i, (_, rank) in enumerate(places) if rank == self.ranks.rank]
        rows = [(i, completion) for i in mine for completion in groups[i].completions]
        prompt_length = torch.tensor([len(groups[i].prompt_ids) for i, _ in rows])
        answer_length = torch.tensor([len(completion.token_ids) for _, completion in rows])
        parts = (part for i, completion in rows for part in (groups[i].prompt_ids, completion.token_ids))
        tokens = torch.from_numpy(np.fromiter(chain.from_iterable(parts), np.int64))
        contributing = (advantages != 0).any(1, keepdim=True).expand_as(advantages)
        return Experience(
            input_ids=_padded(tokens, prompt_length + answer_length, 0),
            prompt_length=prompt_length,
            answer_length=answer_length,
            rewards=rewards[mine].flatten(),
            advantages=advantages[mine].flatten(),
            contributing=contributing[mine].flatten(),
            right=torch.tensor([verdict.right for i in mine for verdict in groups[i].verdicts]),
            truncated=torch.tensor([completion.truncated for _, completion in rows]),
            update=torch.tensor([places[i][0] for i, _ in rows]),
            group=torch.tensor([groups[i].draw for i, _ in rows]),
            row_key=torch.tensor([groups[i].draw * batch.answers + completion.index for i, completion in rows]),
            sampler_logp=_sampler_logp(groups, [completion for _, completion in rows], answer_length),
        )


def _verify_metrics(groups: list[Group], limit: int) -> dict[str, float]:
    """What the verifier said of every answer that was drawn, discarded ones included."""
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
    found = verdict_counts(verdicts) | reward_by_length(zip(verdicts, lengths, strict=True), limit)
    return {f"verify/{name}": value for name, value in found.items()}


def _sampler_logp(groups: list[Group], mine: list[Completion], length: Tensor) -> Tensor | None:
    """float32 `[S,T]`, NaN behind an answer's end; None on all ranks if the sampler was silent on one of them."""
    if any(completion.logp is None for group in groups for completion in group.completions):
        return None
    logp = bytearray().join(completion.logp for completion in mine if completion.logp is not None)
    return _padded(torch.frombuffer(logp, dtype=torch.float32), length, torch.nan)


def _padded(values: Tensor, length: Tensor, fill: float) -> Tensor:
    """Rows of these lengths, made of all their values one after the other; `fill` behind a row's end."""
    longest = int(length.max())
    padded = torch.full((len(length), longest), fill, dtype=values.dtype)
    return padded.masked_scatter_(torch.arange(longest) < length[:, None], values)


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
