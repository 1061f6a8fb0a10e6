"""Random rollouts for a table policy: ragged, with ties, certain tokens, and parts without any token.

The policy is a table of hidden states under a small head. Its weights are small integers and its states multiples of
1/64, so that logits are exact: equal distributions tie exactly, and a peak high enough has an entropy of exactly 0.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forklight.algo.batch import RolloutBatch
from forklight.algo.plan import update_and_rank
from forklight.models.heads import FullHead

UPDATES = 2
HEAD = (
    (3, -1, 0, 2),
    (-2, 3, 1, -1),
    (1, 0, -3, 1),
    (0, 2, 2, -3),
    (-1, -2, 3, 0),
    (2, 1, -1, 3),
    (1, -3, 1, 2),
    (-3, 0, -2, -2),
)
"""One largest number in each column; 8 tokens fill the vector registers, so that no row is computed in another way."""
VOCABULARY, HIDDEN = len(HEAD), len(HEAD[0])

State = tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """A rollout on one or two ranks, and the table before and after its first update."""

    x: RolloutBatch  # all ranks'
    tables: tuple[Tensor, ...]  # K times float64 [S,T,H]
    ranks: int
    micro_batches: int
    rho: float
    temperature: float

    def rows(self, rank: int) -> Tensor:
        """The sequences of a rank."""
        places = update_and_rank(int(self.x.problem_index.max()) + 1, UPDATES, self.ranks)
        return torch.tensor(
            [row for row, group in enumerate(self.x.problem_index.tolist()) if places[group][1] == rank]
        )


class TablePolicy(nn.Module):
    """Hidden states looked up by row and place of the token; what a learner needs of a policy."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.head_weight = nn.Parameter(torch.tensor(HEAD, dtype=torch.float64))

    def forward(self, micro_batch, loss_fn, rows=None, *, temperature, entropy_temperature, entropy_grad=False):
        hidden = self.table[micro_batch.rows[micro_batch.row], micro_batch.column]
        head = FullHead(
            hidden, self.head_weight, micro_batch.answer_ids, temperature, entropy_temperature, entropy_grad
        )
        return loss_fn(head)


def random_case(seed: int) -> Case:
    """Ragged answers with groups and answers without advantage, ties, and peaks; one in eight each by its number.

    0: all entropies are 0; 1: few different distributions; 2: one rank has no token; 3: most micro-batches have none;
    4: no token at all in an update.
    """
    rng, kind = random.Random(seed), seed % 8
    ranks = 2 if kind == 2 else rng.choice([1, 2])
    per_update, answers = rng.choice([1, 2]), rng.choice([2, 3, 4])
    problems = UPDATES * ranks * per_update
    micro_batches = rng.choice([a for a in (1, 2, 4) if a <= per_update * answers])
    places = update_and_rank(problems, UPDATES, ranks)
    tied = {0: 1.0, 1: 0.9}.get(kind, rng.choice([0.0, 0.3]))
    draw = _states(rng, tied, peaks_only=kind == 0)
    prompts, texts, advantages = [], [], []
    for update, rank in places:
        empty = (kind == 2 and rank == 1) or (kind == 4 and update == 1) or (kind == 3 and rng.random() < 0.7)
        prompts.append([rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 3))])
        group = [[rng.randrange(VOCABULARY) for _ in range(0 if empty else rng.randint(0, 6))] for _ in range(answers)]
        if rng.random() < 0.3:
            group[-1] = group[0]
        texts.append(group)
        values = [rng.choice([-1.5, -0.5, 0.7, 1.1, 0.0]) for _ in group]
        advantages.append([0.0] * answers if rng.random() < 0.25 else values)
    x = experience_of(prompts, texts, advantages, [update for update, _ in places])
    return Case(
        x,
        tables_of(texts, draw),
        ranks,
        micro_batches,
        rng.choice([0.1, 0.2, 0.2, 0.25, 0.5, 1.0]),
        rng.choice([1.0, 0.7]),
    )


def _states(rng: random.Random, tied: float, *, peaks_only: bool) -> Iterator[tuple[State, State]]:
    """Endless hidden states before and after the first update, a share of them out of four."""

    def draw(peak: bool) -> tuple[State, State]:
        if peak:  # one token has all the probability: 1024 nats apart
            top = rng.randrange(HIDDEN)
            state = tuple(1024.0 * (i == top) for i in range(HIDDEN))
            return state, state
        before = tuple(rng.randint(-64, 64) / 64 for _ in range(HIDDEN))
        step = rng.choice([4, 16, 64])
        return before, tuple(value + rng.randint(-step, step) / 64 for value in before)

    few = [draw(peaks_only or i == 0) for i in range(4)]
    while True:
        yield rng.choice(few) if rng.random() < tied else draw(False)


def tables_of(texts: list[list[list[int]]], draw: Iterator[tuple[State, State]]) -> tuple[Tensor, ...]:
    """A hidden state for every token, the same where answers of a group follow the same tokens."""
    flat = [(group, tokens) for group, answers in enumerate(texts) for tokens in answers]
    longest = max(len(tokens) for _, tokens in flat)
    tables = torch.zeros(UPDATES, len(flat), longest, HIDDEN, dtype=torch.float64)
    known: dict[tuple[int, ...], tuple[State, State]] = {}
    for row, (group, tokens) in enumerate(flat):
        for place in range(len(tokens)):
            context = (group, *tokens[:place])
            if context not in known:
                known[context] = next(draw)
            tables[:, row, place] = torch.tensor(known[context], dtype=torch.float64)
    return tuple(tables)


def experience_of(
    prompts: list[list[int]], texts: list[list[list[int]]], advantages: list[list[float]], updates: list[int]
) -> RolloutBatch:
    answers = len(texts[0])
    rows = [prompt + tokens for prompt, group in zip(prompts, texts, strict=True) for tokens in group]
    longest = max(map(len, rows))
    per_group = torch.tensor(advantages, dtype=torch.float64)
    group = torch.arange(len(texts)).repeat_interleave(answers)
    return RolloutBatch(
        input_ids=torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        prompt_length=torch.tensor([len(prompt) for prompt in prompts]).repeat_interleave(answers),
        answer_length=torch.tensor([len(tokens) for group in texts for tokens in group]),
        rewards=per_group.flatten(),
        advantages=per_group.flatten(),
        contributing=(per_group != 0).any(1).repeat_interleave(answers),
        right=per_group.flatten() > 0,
        truncated=torch.zeros(len(rows), dtype=torch.bool),
        update=torch.tensor(updates)[group],
        problem_index=group,
        sequence_id=torch.arange(len(rows)),
    )
