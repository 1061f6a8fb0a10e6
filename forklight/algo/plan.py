"""Which sequence is trained in which micro-batch.

Problem i of a rollout belongs to update floor(i*K/P), and the ranks share each update's block; here the sequences of
one rank and one update are spread over its A micro-batches. The plan is made from lengths and advantages alone, before
any statistics pass, so that those passes run on the same micro-batch rows as the training forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from forklight.algo.batch import RolloutBatch
from forklight.algo.selection.spec import ForkSelection

ExtraGradient = Literal["none", "eligible", "all"]
"""The sequences to which terms other than the policy's advantages give a gradient."""


def update_and_rank(problems: int, updates: int, ranks: int) -> list[tuple[int, int]]:
    """Update and rank of each of the P problems of a rollout, in the order of the rollout.

    Args:
        problems: P.
        updates: K.
        ranks: data-parallel size.

    Raises:
        ValueError: P is not divisible by K * ranks.
    """
    if problems % (updates * ranks):
        raise ValueError(
            f"data.prompts_per_rollout = {problems} must be divisible by data.updates_per_rollout * ranks = "
            f"{updates} * {ranks} = {updates * ranks}"
        )
    share = problems // (updates * ranks)
    return [(i // (share * ranks), i // share % ranks) for i in range(problems)]


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of every micro-batch of a rollout on one rank; update u has micro-batches u*A .. u*A + A-1."""

    train: tuple[Tensor, ...]  # K*A times int64 [rows]: sequences with a gradient
    forward_only: tuple[Tensor, ...]  # K*A times int64 [rows]: ranked sequences without a gradient
    micro_batches: int  # A

    def micro_batches_of(self, update: int) -> range:
        """The numbers of one update's micro-batches."""
        return range(update * self.micro_batches, (update + 1) * self.micro_batches)

    def ranked_rows(self, number: int) -> Tensor:
        """All rows of a micro-batch, with and without a gradient, in the order of the rollout."""
        return torch.cat([self.train[number], self.forward_only[number]]).sort().values


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of sequences in a pass, in units of one token."""

    per_pair: float = 0.0
    """Cost of a query and a key in attention."""
    shared_prompts: bool = False
    """Whether the prompt of a group is computed once for its answers."""

    def of(self, prompts: list[int], answers: list[int]) -> float:
        """The cost of some answers to one prompt: `prompts` has the prompt's length once per answer."""
        pairs = sum((p + a) ** 2 for p, a in zip(prompts, answers, strict=True)) / 2
        return (prompts[0] if self.shared_prompts else sum(prompts)) + sum(answers) + self.per_pair * pairs


def eligible_rows(batch: RolloutBatch, spec: ForkSelection) -> Tensor:
    """The sequences whose tokens can be kept, bool `[S]`: those that `eligible` and `select_truncated` admit."""
    admitted = batch.contributing if spec.eligible == "contributing" else torch.ones_like(batch.contributing)
    return admitted if spec.select_truncated else admitted & ~batch.truncated


def make_plan(
    batch: RolloutBatch,
    spec: ForkSelection,
    *,
    updates: int,
    micro_batches: int,
    extra_gradient: ExtraGradient = "none",
    needs_ranking: bool | None = None,
    cost: Cost = Cost(),
) -> Plan:
    """Spreads the sequences of one rank over K*A micro-batches.

    A sequence of zero advantage has no policy gradient. If no other term gives it a gradient, it goes through forward
    passes only, and through no pass at all if its tokens are not ranked.

    Args:
        batch: lengths, advantages, problems and updates are read.
        spec: the selection, which says which tokens are ranked.
        updates: K.
        micro_batches: A.
        extra_gradient: the sequences to which terms other than the policy's give a gradient.
        needs_ranking: whether tokens are ranked by the policy's entropies or log-probabilities; if None, as in `spec`.
        cost: the cost of sequences, by which micro-batches are balanced.

    Raises:
        ValueError: an update has fewer sequences than micro-batches.
    """
    in_set = eligible_rows(batch, spec)
    trained = (batch.advantages != 0) & in_set
    if extra_gradient != "none":
        trained = torch.ones_like(in_set) if extra_gradient == "all" else in_set
    # `random` and `all` need no pass over sequences without a gradient, unless each micro-batch is ranked alone
    own_set = spec.scope in ("micro_batch", "micro_batch_rank") or spec.denominator == "micro_batch"
    ranked = (
        trained | in_set if own_set or (spec.needs_ranking if needs_ranking is None else needs_ranking) else trained
    )
    prompt, answer = batch.prompt_length.tolist(), batch.answer_length.tolist()
    spread: list[list[int]] = []
    for update in range(updates):
        in_update = batch.update == update
        if int(in_update.sum()) < micro_batches:
            raise ValueError(
                f"trainer.accumulate_grad_batches = {micro_batches} asks for more micro-batches than the "
                f"{int(in_update.sum())} sequences that one rank has per update"
            )
        rows = (in_update & ranked).nonzero().flatten().tolist()
        spread += _balance(
            rows,
            batch.problem_index.tolist(),
            lambda members: cost.of([prompt[row] for row in members], [answer[row] for row in members]),
            micro_batches,
        )
    device = batch.update.device
    rows_of = [torch.tensor(rows, dtype=torch.int64, device=device) for rows in spread]
    return Plan(
        train=tuple(rows[trained[rows]] for rows in rows_of),
        forward_only=tuple(rows[~trained[rows]] for rows in rows_of),
        micro_batches=micro_batches,
    )


def _balance(rows: list[int], group: list[int], cost: Callable[[list[int]], float], bins: int) -> list[list[int]]:
    """Puts rows into bins of nearly equal cost, most expensive first; splits groups if there are fewer than bins."""
    items: dict[int, list[int]] = {}
    whole = len({group[row] for row in rows}) >= bins
    for row in rows:
        items.setdefault(group[row] if whole else row, []).append(row)
    weight = {key: cost(members) for key, members in items.items()}
    filled: list[list[int]] = [[] for _ in range(bins)]
    load = [0.0] * bins
    for key in sorted(items, key=lambda key: (-weight[key], key)):
        lightest = load.index(min(load))
        filled[lightest] += items[key]
        load[lightest] += weight[key]
    return [sorted(members) for members in filled]
