"""An update as TRL and as the authors of arXiv 2506.01939 compute it, worked in plain Python from what they publish.

Random cases go through the real learner and through loops over single tokens: softmax, entropy, threshold or count,
clipped loss, its weight, and the gradient by hand. No autograd, and nothing of the package.

| | TRL, its dapo loss | the authors' code |
| --- | --- | --- |
| ranked together | a micro-batch, gathered over all ranks | a micro-batch of one rank |
| kept | entropy >= quantile 1 - rho, interpolated linearly | exactly k = max(1, int(N * rho + 0.9999)) of N |
| weight of a token | 1 / answer tokens of the update, all ranks | 1 / k * the micro-batch's share of the sequences |
| clipping | 0.2, 0.28 | 0.2, 0.28, dual 10 |

Both rank by the policy that the update starts from, over all answers. The authors add 1e-8 to k against a division by
zero, which is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, floor, fsum, log

import torch
from published_cases import HEAD, HIDDEN, UPDATES, VOCABULARY, Case, State, TablePolicy
from tiny import on_ranks, rows_of
from torch import Tensor

from forklight.algo.config import AlgorithmConfig
from forklight.algo.objectives import Dapo
from forklight.algo.ratios import ClipRange
from forklight.algo.selection import ForkSelection
from forklight.distributed import Ranks
from forklight.training.update import Learner

LOW, HIGH = 0.2, 0.28
DUAL = {"trl": None, "paper-code": 10.0}


@dataclass(frozen=True)
class Outcome:
    """An update, by rank where it has rows."""

    loss: float
    masks: list[Tensor]  # bool [S,T]
    table: list[Tensor]  # float64 [S,T,H] gradient
    head: Tensor  # float64 [V,H] gradient


Cut = list[list[list[int]]]
"""By rank and micro-batch, the rows of the whole rollout."""


def learned(case: Case, preset: str) -> list[tuple[Outcome, Cut]]:
    """What the learner makes of each update, and how it cut the update into micro-batches."""
    selection = replace(ForkSelection.preset(preset), rho=case.rho)
    config = AlgorithmConfig(selection, Dapo(ClipRange(LOW, HIGH, DUAL[preset])))

    def train(ranks: Ranks):
        rows = case.rows(ranks.rank)
        x = rows_of(case.x, rows)
        longest = x.answer_mask.shape[1]
        policy = TablePolicy(case.tables[0][rows, :longest])
        learner = Learner(config, temperature=case.temperature, ranks=ranks)
        state = learner.begin(x, rollout=0, updates=UPDATES, micro_batches=case.micro_batches)
        found = []
        for update in range(UPDATES):
            policy.table.data.copy_(case.tables[update][rows, :longest])
            policy.zero_grad()
            learner.prepare_update(state, update, policy, None)
            total, numbers = 0.0, state.plan.micro_batches_of(update)
            for number in numbers:
                loss = learner.loss(state, number, policy)[0] / case.micro_batches
                loss.backward()
                total += float(loss.detach())
            mask = state.tokens.fork_mask & (x.update == update)[:, None]
            cut = [rows[state.plan.ranked_rows(number)].tolist() for number in numbers]
            found.append((total, mask, policy.table.grad.clone(), policy.head_weight.grad.clone(), cut))
        return found

    shares = on_ranks(2, train) if case.ranks == 2 else [train(Ranks())]
    outcomes = []
    for of_ranks in zip(*shares, strict=True):
        losses, masks, tables, heads, cuts = zip(*of_ranks, strict=True)
        mean_table = [table / case.ranks for table in tables]
        outcomes.append(
            (Outcome(fsum(losses) / case.ranks, list(masks), mean_table, sum(heads) / case.ranks), list(cuts))
        )
    return outcomes


# -- by hand -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """An answer token as the update meets it."""

    row: int  # of the whole rollout
    place: int
    target: int
    advantage: float
    state: State
    log_p: list[float]  # of the vocabulary
    old_logp: float

    @property
    def entropy(self) -> float:
        return -fsum(exp(value) * value for value in self.log_p) + 0.0


def log_softmax(state: State, temperature: float) -> list[float]:
    """Log-probabilities of the vocabulary."""
    logits = [fsum(weight * value for weight, value in zip(row, state, strict=True)) / temperature for row in HEAD]
    above = [logit - max(logits) for logit in logits]
    normaliser = log(fsum(map(exp, above)))
    return [value - normaliser for value in above]


def tokens_of(case: Case, update: int, rows: Sequence[int]) -> list[Token]:
    """The answer tokens of some rows, by row and then place."""
    tokens = []
    for row in rows:
        start, length = int(case.x.prompt_length[row]), int(case.x.answer_length[row])
        targets = case.x.input_ids[row, start : start + length].tolist()
        before, now = (case.tables[u][row, :length].tolist() for u in (0, update))
        for place, target in enumerate(targets):
            old = log_softmax(tuple(before[place]), case.temperature)[target]
            state = tuple(now[place])
            log_p = log_softmax(state, case.temperature)
            tokens.append(Token(row, place, target, float(case.x.advantages[row]), state, log_p, old))
    return tokens


def quantile(values: list[float], q: float) -> float:
    """Linear interpolation, from the nearer neighbour."""
    ordered, position = sorted(values), q * (len(values) - 1)
    low = ordered[floor(position)]
    high = ordered[min(floor(position) + 1, len(ordered) - 1)]
    part = position - floor(position)
    return low + part * (high - low) if part < 0.5 else high - (high - low) * (1 - part)


def trl_weights(case: Case, update: int, cut: Cut) -> list[tuple[Token, float]]:
    """The kept tokens of an update, each with its weight in the loss."""
    gathered = [[row for of_rank in cut for row in of_rank[a]] for a in range(case.micro_batches)]
    micro_batches = [tokens_of(case, update, rows) for rows in gathered]
    answer_tokens = sum(map(len, micro_batches))
    kept = []
    for tokens in micro_batches:
        if tokens:
            threshold = quantile([token.entropy for token in tokens], 1 - case.rho)
            kept += [(token, 1 / answer_tokens) for token in tokens if token.entropy >= threshold]
    return kept


def authors_weights(case: Case, update: int, cut: Cut) -> list[tuple[Token, float]]:
    """The kept tokens of an update, each with its weight in the loss."""
    kept = []
    for of_rank in cut:
        sequences = sum(map(len, of_rank))
        for rows in of_rank:
            tokens = tokens_of(case, update, rows)
            k = max(1, int(len(tokens) * case.rho + 0.9999)) if tokens else 0
            best = sorted(tokens, key=lambda token: (-token.entropy, token.row, token.place))[:k]
            kept += [(token, len(rows) / sequences / case.ranks / k) for token in best]
    return kept


def clipped(token: Token, dual: float | None) -> tuple[float, float]:
    """Loss of a token, and its derivative by the log-probability."""
    advantage, ratio = token.advantage, exp(token.log_p[token.target] - token.old_logp)
    if advantage >= 0:
        return (-advantage * ratio, -advantage * ratio) if ratio <= 1 + HIGH else (-advantage * (1 + HIGH), 0.0)
    if ratio < 1 - LOW:
        return -advantage * (1 - LOW), 0.0
    if dual is not None and ratio > dual:
        return -advantage * dual, 0.0
    return -advantage * ratio, -advantage * ratio


def worked(case: Case, preset: str, update: int, cut: Cut) -> Outcome:
    """The update by hand, given the rows of its micro-batches."""
    kept = (trl_weights if preset == "trl" else authors_weights)(case, update, cut)
    mask = torch.zeros_like(case.x.answer_mask)
    table = torch.zeros_like(case.tables[0])
    head = [[0.0] * HIDDEN for _ in range(VOCABULARY)]
    losses = []
    for token, weight in kept:
        value, slope = clipped(token, DUAL[preset])
        losses.append(weight * value)
        mask[token.row, token.place] = True
        by_logit = [
            weight * slope * ((v == token.target) - exp(log_p)) / case.temperature
            for v, log_p in enumerate(token.log_p)
        ]
        by_state = [fsum(by_logit[v] * HEAD[v][h] for v in range(VOCABULARY)) for h in range(HIDDEN)]
        table[token.row, token.place] = torch.tensor(by_state, dtype=torch.float64)
        for v, h in ((v, h) for v in range(VOCABULARY) for h in range(HIDDEN)):
            head[v][h] += by_logit[v] * token.state[h]
    of_rank = [case.rows(rank) for rank in range(case.ranks)]
    widths = [int(case.x.answer_length[rows].max()) for rows in of_rank]
    cut = [(rows, slice(width)) for rows, width in zip(of_rank, widths, strict=True)]
    return Outcome(
        fsum(losses),
        [mask[part] for part in cut],
        [table[part] for part in cut],
        torch.tensor(head, dtype=torch.float64),
    )


# -- both --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far an update is from the one by hand; of numbers above 1 relative to them."""

    mask: int  # tokens
    loss: float
    gradient: float


def differences(case: Case, preset: str) -> list[Difference]:
    """Of every update of a case."""
    found = []
    for update, (actual, cut) in enumerate(learned(case, preset)):
        rows = sorted(row for of_rank in cut for part in of_rank for row in part)
        assert rows == (case.x.update == update).nonzero().flatten().tolist(), "micro-batches are a partition"
        expected = worked(case, preset, update, cut)
        flips = sum(int((a ^ b).sum()) for a, b in zip(actual.masks, expected.masks, strict=True))
        pairs = [*zip(actual.table, expected.table, strict=True), (actual.head, expected.head)]
        gradient = max(_apart(a, b) for a, b in pairs)
        loss = abs(actual.loss - expected.loss) / max(1.0, abs(expected.loss))
        found.append(Difference(flips, loss, gradient))
    return found


def _apart(actual: Tensor, expected: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))
