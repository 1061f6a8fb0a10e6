"""Which sequence is trained on which visit, and which passes a rollout needs.

Problem i of a rollout belongs to update floor(i*K/P), and the ranks share each update's block; here the sequences of
one rank and one update are spread over its A micro-batches. The plan is made from lengths and advantages alone, before
any statistics pass, so that those passes see the same micro-batch rows as the training forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from forklight.algo.spec import ForkSelection
from forklight.algo.types import Experience

Others = Literal["none", "eligible", "all"]


def update_and_rank(problems: int, updates: int, ranks: int) -> list[tuple[int, int]]:
    """Update and rank of each of the P problems of a rollout, in draw order.

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
    """The rows of every visit, `visit = update * A + micro-batch`."""

    train: tuple[Tensor, ...]  # K*A times int64 [rows]: sequences with a gradient
    watch: tuple[Tensor, ...]  # K*A times int64 [rows]: sequences without one that the selection looks at
    micro_batches: int  # A

    def visits_of(self, update: int) -> range:
        """The visits of one update."""
        return range(update * self.micro_batches, (update + 1) * self.micro_batches)

    def looked_at(self, visit: int) -> Tensor:
        """All rows of a visit, trained and watched, in draw order."""
        return torch.cat([self.train[visit], self.watch[visit]]).sort().values


@dataclass(frozen=True, slots=True)
class Cost:
    """What a sequence costs in a pass, in tokens."""

    per_pair: float = 0.0
    """Of a query and a key in attention."""
    shared_prompts: bool = False
    """Whether the prompt of a group is computed once for its answers."""

    def of(self, prompts: list[int], answers: list[int]) -> float:
        """Some answers to one prompt, from the prompt's length, once for each of them, and their own."""
        pairs = sum((p + a) ** 2 for p, a in zip(prompts, answers, strict=True)) / 2
        return (prompts[0] if self.shared_prompts else sum(prompts)) + sum(answers) + self.per_pair * pairs


def eligible_rows(experience: Experience, spec: ForkSelection) -> Tensor:
    """The sequences whose tokens can be kept, bool `[S]`: those that `over` and `truncated` admit."""
    admitted = experience.contributing if spec.over == "contributing" else torch.ones_like(experience.contributing)
    return admitted if spec.truncated else admitted & ~experience.truncated


def make_plan(
    experience: Experience,
    spec: ForkSelection,
    *,
    updates: int,
    micro_batches: int,
    others: Others = "none",
    ranked: bool | None = None,
    cost: Cost = Cost(),
) -> Plan:
    """Spreads the sequences of one rank over K*A visits.

    A sequence of zero advantage has no policy gradient. Where no other term gives it one and the selection does not
    look at its tokens, it is left out of every pass; if the selection does, it is only watched.

    Args:
        experience: lengths, advantages, groups and updates are read.
        spec: tells which tokens the selection looks at.
        updates: K.
        micro_batches: A.
        others: the sequences to which terms other than the policy's give a gradient.
        ranked: whether some tokens are chosen by what only the policy knows; if None, as the selection says.
        cost: of sequences, by which micro-batches are balanced.

    Raises:
        ValueError: an update has fewer sequences than micro-batches.
    """
    in_set = eligible_rows(experience, spec)
    trained = (experience.advantages != 0) & in_set
    if others != "none":
        trained = torch.ones_like(in_set) if others == "all" else in_set
    # Ranked over more than a micro-batch, `random` and `all` need no pass over them.
    cut = spec.scope in ("micro_batch", "micro_batch_rank") or spec.denominator == "micro_batch"
    looked_at = trained | in_set if cut or (spec.ranked if ranked is None else ranked) else trained
    prompt, answer = experience.prompt_length.tolist(), experience.answer_length.tolist()
    visits: list[list[int]] = []
    for update in range(updates):
        in_update = experience.update == update
        if int(in_update.sum()) < micro_batches:
            raise ValueError(
                f"trainer.accumulate_grad_batches = {micro_batches} asks for more micro-batches than the "
                f"{int(in_update.sum())} sequences that one rank has per update"
            )
        rows = (in_update & looked_at).nonzero().flatten().tolist()
        visits += _balance(
            rows,
            experience.group.tolist(),
            lambda members: cost.of([prompt[row] for row in members], [answer[row] for row in members]),
            micro_batches,
        )
    device = experience.update.device
    rows_of = [torch.tensor(rows, dtype=torch.int64, device=device) for rows in visits]
    return Plan(
        train=tuple(rows[trained[rows]] for rows in rows_of),
        watch=tuple(rows[~trained[rows]] for rows in rows_of),
        micro_batches=micro_batches,
    )


def _balance(rows: list[int], group: list[int], cost: Callable[[list[int]], float], bins: int) -> list[list[int]]:
    """Puts rows into bins of nearly equal cost, the dearest item first; groups stay whole while there are enough."""
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


@dataclass(frozen=True, slots=True)
class Passes:
    """Which passes a rollout runs beside sampling and training: the table of cases."""

    statistics: bool
    """One pass at the first update, over all updates of the rollout."""
    entropy_each_update: bool
    """An entropy pass before each update, but for a first one that the statistics pass covers."""
    select_in_forward: bool
    """The training forward itself yields the entropies, and the selection runs inside it."""
    fold_old: bool
    """The old log-probability is the training forward's own, detached: one update per rollout."""
    old_from_sampler: bool = False
    """The old log-probability is the one that the sampler drew the token with."""

    @property
    def forward_sees(self) -> bool:
        """The training forward itself finds the entropies: the selection wants them there, or no pass before has."""
        return self.select_in_forward or not (self.statistics or self.entropy_each_update)

    @property
    def finds_old(self) -> bool:
        """The statistics pass runs for the old log-probabilities: neither forward nor sampler yields them."""
        return self.statistics and not (self.fold_old or self.old_from_sampler)

    @classmethod
    def of(
        cls,
        spec: ForkSelection,
        *,
        updates: int,
        micro_batches: int,
        ranked: bool | None = None,
        counted: bool = True,
        old_from_sampler: bool = False,
    ) -> "Passes":
        """The cheapest passes that give the specified result.

        Args:
            spec: the selection.
            updates: K.
            micro_batches: A.
            ranked: whether some tokens are chosen by what only the policy knows; if None, as the selection says.
            counted: whether lengths alone give the denominators.
            old_from_sampler: whether the sampler tells the old log-probabilities, so that no pass has to find them.

        Raises:
            ValueError: the tokens of a whole rollout are to be ranked by a policy that changes within it.
        """
        on_policy = updates == 1
        ranked = spec.ranked if ranked is None else ranked
        current = on_policy or spec.entropy_of == "current"
        if ranked and current and not on_policy and spec.scope == "rollout":
            raise ValueError(
                "selection.scope: rollout ranks the tokens of all updates at once, before the first of them; with "
                f"data.updates_per_rollout = {updates} it needs selection.entropy_of: old, not current"
            )
        in_micro_batch = spec.scope in ("sequence", "micro_batch", "micro_batch_rank")
        sees_whole_set = micro_batches == 1 or (in_micro_batch and counted)
        in_forward = ranked and current and sees_whole_set
        each_update = not on_policy and ranked and current and not in_forward
        old_pass = not on_policy and not old_from_sampler
        return cls(
            statistics=old_pass or (ranked and not in_forward and not each_update),
            entropy_each_update=each_update,
            select_in_forward=in_forward,
            fold_old=on_policy and not old_from_sampler,
            old_from_sampler=old_from_sampler,
        )

    def describe(self) -> str:
        """One phrase for the table at the start of a run."""
        parts = ["sampling" + (" (old log-probs)" if self.old_from_sampler else "")]
        if self.statistics:
            parts.append("one statistics pass" + (" (old log-probs)" if self.finds_old else " (entropies)"))
        if self.entropy_each_update:
            parts.append("one entropy pass before each" + (" later" if self.statistics else "") + " update")
        parts.append("training" + (" (selection inside)" if self.select_in_forward else ""))
        return ", ".join(parts)

    def reasons(self) -> dict[str, str]:
        """Why each pass runs, or why it does not have to."""
        if self.old_from_sampler:
            old = "no pass: those that the sampler drew the tokens with"
        elif self.fold_old:
            old = "no pass: with one update per rollout the training forward's own log-probabilities are the old ones"
        else:
            old = "statistics pass: later updates compare with the policy before the first"
        if self.select_in_forward:
            entropies = "no pass: the training forward sees every token that is ranked with its own"
        elif self.finds_old:
            entropies = "statistics pass: the one that finds the old log-probabilities"
        elif self.statistics:
            entropies = (
                "statistics pass: tokens of several micro-batches are ranked together, or those of later updates "
                "by the policy before the first"
            )
        elif self.entropy_each_update:
            entropies = "a pass before each update: tokens of several micro-batches are ranked together"
        else:
            entropies = "no pass: the selection does not read them"
        if self.statistics and self.entropy_each_update:
            entropies += ", and a pass before each later update for the entropies of the policy of the day"
        return {"old log-probabilities": old, "entropies": entropies}
