"""What an update must be, computed the plain way: every sequence alone through the whole model, all logits kept.

No packing, no micro-batches, no ranks, no dropped sequences, one autograd graph. The learner must give the same masks,
the same loss and the same gradients in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import floor, fsum

import torch
from torch import Tensor, nn

from forklight.algo.batch import RolloutBatch
from forklight.algo.config import AlgorithmConfig
from forklight.algo.noise import hash_bits, hash_uniform
from forklight.algo.objectives import Archer, Cispo, ClipCov, EntropyShaped, Gspo, KlCov
from forklight.algo.objectives.base import Objective
from forklight.algo.ratios import ClipRange

Token = tuple[int, int]
"""Row and place in the answer."""


@dataclass(frozen=True)
class Expected:
    """One update."""

    loss: Tensor  # []
    mask: Tensor  # bool [S,T] of the whole rollout, False outside of the update
    gradients: tuple[Tensor, ...]  # one per parameter of the model


@dataclass
class Stats:
    """Of every answer token of some sequences, by row: log-probability, entropy at the selection's temperature."""

    logp: dict[int, Tensor] = field(default_factory=dict)
    entropy: dict[int, Tensor] = field(default_factory=dict)


def stats_of(model: nn.Module, x: RolloutBatch, rows: Sequence[int], temperature: float, entropy_at: float) -> Stats:
    """Each sequence alone through the whole model."""
    stats = Stats()
    for row in rows:
        start, end = int(x.prompt_length[row]), int(x.prompt_length[row] + x.answer_length[row])
        logits = model(input_ids=x.input_ids[row : row + 1, :end]).logits[0, start - 1 : end - 1]
        stats.logp[row] = (logits / temperature).log_softmax(-1)[range(end - start), x.input_ids[row, start:end]]
        log_p = (logits / entropy_at).log_softmax(-1)
        stats.entropy[row] = -(log_p.exp() * log_p).sum(-1)
    return stats


def expected_update(
    x: RolloutBatch,
    update: int,
    config: AlgorithmConfig,
    *,
    model: nn.Module,
    old_model: nn.Module,
    reference: nn.Module | None = None,
    temperature: float = 1.0,
    noise_seed: int = 0,
    length_limit: int = 8,
    sets: Sequence[Sequence[int]] = (),
    micro_batches: Sequence[Sequence[int]] = (),
) -> Expected:
    """Loss, mask and gradients of one update; tokens of a group with the same prefix have one entropy.

    `sets` are the rows ranked together for the scopes `micro_batch` and `micro_batch_rank`, `micro_batches` those of
    every micro-batch of every rank.
    """
    spec = config.selection
    rows = (x.update == update).nonzero().flatten().tolist()
    everything = range(len(x.update))
    at = temperature if spec.temperature == "sampling" else spec.temperature
    now = stats_of(model, x, rows, temperature, at)
    with torch.no_grad():
        old = stats_of(old_model, x, everything, temperature, at)
        ref = stats_of(reference, x, rows, temperature, at).logp if reference else {}
    before = old.logp if config.old_logp_from == "trainer" else sampler_logp_of(x)
    by = now if spec.entropy_of == "current" and spec.scope != "rollout" else old

    allowed = {r for r in everything if spec.eligible == "answers" or x.contributing[r]}
    allowed -= set() if spec.select_truncated else {r for r in everything if x.truncated[r]}
    kept: set[Token] = set()
    held: set[Token] = set()  # what a covariance objective acts on
    together = {"update": [rows], "rollout": [everything], "sequence": [[r] for r in rows]}.get(spec.scope, sets)
    for members in together:
        tokens = [(r, t) for r in members if r in allowed for t in range(int(x.answer_length[r]))]
        among = tokens
        if spec.scope == "sequence":
            among = [(r, t) for r in rows if r in allowed for t in range(int(x.answer_length[r]))]
        score = scores_of(x, tokens, by, config, noise_seed, among)
        right = [token for token in tokens if x.advantages[token[0]] > 0]
        wrong = [token for token in tokens if x.advantages[token[0]] <= 0]
        for part in (right, wrong) if spec.balance == "outcome" else (tokens,):
            kept |= chosen(x, part, score, config)
    for members in [rows] if spec.scope == "sequence" else together:
        tokens = [(r, t) for r in members if r in allowed for t in range(int(x.answer_length[r]))]
        if config.objective.covariance is not None:
            held |= held_tokens(x, tokens, kept, by, before, config.objective, int(hash_bits(noise_seed, 1)))
    kept = {token for token in kept if token[0] in rows}

    eligible = {(r, t) for r in rows if r in allowed for t in range(int(x.answer_length[r]))}
    mean = Mean(x, config, rows, allowed, kept, eligible, micro_batches, length_limit)
    zero = sum(now.logp[r].sum() * 0 for r in rows)
    policy = Surrogate(config.objective, x, now, before, ref, kept, held)
    trained = kept if config.objective.trains == "forks" else eligible
    loss = zero + mean({token: policy.value(*token) for token in trained}, masked=True)
    if config.kl_in_loss:
        masked = "kl" in spec.masked_terms
        over = kept if masked else everywhere(x, rows)
        gaps = {(r, t): ref[r][t] - now.logp[r][t] for r, t in over}
        loss = loss + config.kl.coef * mean({k: d.exp() - d - 1 for k, d in gaps.items()}, masked=masked)
    if config.entropy_coef:
        masked = "entropy" in spec.masked_terms
        over = kept if masked else everywhere(x, rows)
        loss = loss - config.entropy_coef * mean({(r, t): now.entropy[r][t] for r, t in over}, masked=masked)

    mask = torch.zeros_like(x.answer_mask)
    for token in kept:
        mask[token] = True
    return Expected(loss.detach(), mask, torch.autograd.grad(loss, list(model.parameters())))


def sampler_logp_of(x: RolloutBatch) -> dict[int, Tensor]:
    """The sampler's log-probabilities by row."""
    return {row: x.sampler_logp[row, :length].double() for row, length in enumerate(x.answer_length.tolist())}


def everywhere(x: RolloutBatch, rows: Sequence[int]) -> set[Token]:
    """All answer tokens of some rows."""
    return {(r, t) for r in rows for t in range(int(x.answer_length[r]))}


def scores_of(
    x: RolloutBatch,
    tokens: Sequence[Token],
    by: Stats,
    config: AlgorithmConfig,
    noise_seed: int,
    among: Sequence[Token],
) -> dict[Token, float]:
    """What the tokens are ranked by: the largest are kept. Relative entropies have the means over `among`."""
    spec = config.selection
    entropy = shared(x, tokens, lambda r, t: by.entropy[r][t].item(), inclusive=False)
    if spec.relative_to != "none":
        every = shared(x, among, lambda r, t: by.entropy[r][t].item(), inclusive=False)
        entropy = {token: relative(x, token, every, spec.relative_to) for token in tokens}
    size = {(r, t): abs(float(x.advantages[r])) for r, t in tokens}
    if spec.keep == "abs_advantage":
        return size
    if spec.keep == "entropy_times_advantage":
        return {token: entropy[token] * size[token] for token in tokens}
    logp = shared(x, tokens, lambda r, t: by.logp[r][t].item(), inclusive=True)
    if spec.keep in ("top", "band"):
        return entropy
    if spec.keep == "bottom":
        return {token: -value for token, value in entropy.items()}
    if spec.keep == "low_probability":
        return {token: -value for token, value in logp.items()}
    if spec.keep == "covariance":
        return covariances(x, tokens, logp)
    noise = hash_uniform if spec.rule == "threshold" else hash_bits
    return {(r, t): noise(noise_seed, int(x.sequence_id[r]), t).item() for r, t in tokens}


def relative(x: RolloutBatch, token: Token, entropy: dict[Token, float], to: str) -> float:
    """Entropy minus the mean of the same place or token id, in whole units of 2**-24 nats."""

    def kind(r: int, t: int) -> int:
        return t if to == "position" else int(x.input_ids[r, int(x.prompt_length[r]) + t])

    units = {one: round(value * 2**24) for one, value in entropy.items()}
    alike = [units[one] for one in units if kind(*one) == kind(*token)]
    return (units[token] * len(alike) - sum(alike)) / 2**24 / len(alike)


def covariances(x: RolloutBatch, tokens: Sequence[Token], logp: dict[Token, float]) -> dict[Token, float]:
    """Each token's part in the covariance of advantage and log-probability over the tokens."""
    advantage = {(r, t): float(x.advantages[r]) for r, t in tokens}
    means = [fsum(values[token] for token in tokens) / max(1, len(tokens)) for values in (advantage, logp)]
    alike = len(set(advantage.values())) < 2  # the mean of equal numbers may round away from them
    return {k: 0.0 if alike else (advantage[k] - means[0]) * (logp[k] - means[1]) for k in tokens}


def shared(x: RolloutBatch, tokens: Sequence[Token], value: Callable[[int, int], float], *, inclusive: bool) -> dict:
    """The value of each token: that of the first one behind the same tokens of the same group."""
    first: dict[tuple[int, ...], float] = {}
    found = {}
    for r, t in tokens:
        start = int(x.prompt_length[r])
        context = (int(x.problem_index[r]), *x.input_ids[r, start : start + t + inclusive].tolist())
        found[r, t] = first.setdefault(context, value(r, t))
    return found


def chosen(x: RolloutBatch, tokens: Sequence[Token], score: dict[Token, float], config: AlgorithmConfig) -> set[Token]:
    """The tokens of one set that are kept, by sorting all of them; ties go to the smallest (sequence_id, position)."""
    spec = config.selection
    if spec.keep == "all":
        return set(tokens)
    last = {(r, t) for r, t in tokens if t + 1 == x.answer_length[r] and not x.truncated[r]}
    anyway = last if spec.keep_eos else set()
    k = max(1, floor(spec.rho * len(tokens) + 0.9999)) - len(anyway)
    tokens = [token for token in tokens if token not in anyway]
    return anyway | best(x, tokens, score, config, max(0, min(k, len(tokens))))


def best(
    x: RolloutBatch, tokens: Sequence[Token], score: dict[Token, float], config: AlgorithmConfig, k: int
) -> set[Token]:
    """The k best of the tokens that are ranked, or those that the rule names."""
    spec, n = config.selection, len(tokens)
    if n == 0:
        return set()
    if spec.rule == "absolute":
        return {token for token in tokens if score[token] > spec.tau}
    order = sorted(tokens, key=lambda token: (-score[token], int(x.sequence_id[token[0]]), token[1]))
    if spec.rule == "count":
        skipped = (n - k) // 2 if spec.keep == "band" else 0
        return set(order[skipped : skipped + k])

    def quantile(q: float) -> float:
        ascending, place = [score[token] for token in reversed(order)], q * (n - 1)
        low = floor(place)
        high = min(low + 1, n - 1)
        below, above, weight = torch.tensor([ascending[low], ascending[high], place - low], dtype=torch.float64)
        return below.lerp(above, weight).item()

    if spec.keep == "band":
        low, high = quantile((1 - spec.rho) / 2), quantile((1 + spec.rho) / 2)
        return {token for token in tokens if low <= score[token] <= high}
    return {token for token in tokens if score[token] >= quantile(1 - spec.rho)}


def held_tokens(
    x: RolloutBatch,
    tokens: Sequence[Token],
    kept: set[Token],
    by: Stats,
    before: dict[int, Tensor],
    objective: Objective,
    noise_seed: int,
) -> set[Token]:
    """The tokens of one set that a covariance objective treats apart, by sorting the kept ones."""
    logp = shared(x, tokens, lambda r, t: by.logp[r][t].item(), inclusive=True)
    tokens = [token for token in tokens if token in kept]
    share = objective.covariance
    k, low, high = max(1, floor(share.share * len(tokens))), share.low, share.high
    covariance = covariances(x, tokens, logp)
    if low is None:
        return set(sorted(tokens, key=lambda k: (-covariance[k], int(x.sequence_id[k[0]]), k[1]))[:k])

    def clipped(r: int, t: int) -> bool:
        ratio = (by.logp[r][t] - before[r][t]).exp().item()
        advantage = x.advantages[r]
        return bool(advantage > 0 and ratio > 1 + objective.clip.high) or bool(
            advantage < 0 and ratio < 1 - objective.clip.low
        )

    between = [token for token in tokens if low < covariance[token] < high and not clipped(*token)]
    return set(sorted(between, key=lambda k: -int(hash_bits(noise_seed, int(x.sequence_id[k[0]]), k[1])))[:k])


@dataclass
class Surrogate:
    """The policy loss of a token, as the papers write it."""

    objective: Objective
    x: RolloutBatch
    now: Stats
    before: dict[int, Tensor]
    ref: dict[int, Tensor]
    kept: set[Token]
    held: set[Token]

    def value(self, r: int, t: int) -> Tensor:
        o, advantage = self.objective, self.x.advantages[r]
        log_ratio = self.now.logp[r][t] - self.before[r][t]
        match o:
            case Cispo():
                weight = log_ratio.exp().detach().clamp(1 - o.weight_clip.low, 1 + o.weight_clip.high)
                return -weight * advantage * self.now.logp[r][t]
            case Gspo():
                places = [place for row, place in self.kept if row == r]
                mean = (self.now.logp[r][places] - self.before[r][places]).mean()
                return clipped(mean, advantage, o.sequence_clip)
            case ClipCov():
                return clipped(log_ratio, advantage, o.clip) * ((r, t) not in self.held)
            case KlCov():
                return -advantage * log_ratio.exp() + o.coef * log_ratio.abs() * ((r, t) in self.held)
            case EntropyShaped():
                bonus = min(o.alpha * self.now.entropy[r][t].item(), advantage.abs().item() / o.kappa)
                return clipped(log_ratio, advantage + bonus, o.clip)
            case Archer():
                fork = (r, t) in self.kept
                gap = self.ref[r][t] - self.now.logp[r][t]
                kl = (o.fork_kl if fork else o.other_kl) * (gap.exp() - gap - 1)
                return clipped(log_ratio, advantage, o.fork_clip if fork else o.other_clip) + kl
            case _:
                return clipped(log_ratio, advantage, o.clip)


def clipped(log_ratio: Tensor, advantage: Tensor, clip: ClipRange) -> Tensor:
    """The clipped surrogate of one token."""
    ratio = log_ratio.exp()
    bounded = ratio.clamp(max=1 + clip.high) if advantage > 0 else ratio.clamp(min=1 - clip.low)
    if clip.dual is not None and advantage < 0:
        bounded = bounded.clamp(max=clip.dual)
    return -advantage * bounded


@dataclass
class Mean:
    """How token values become one number: the objective's mean over tokens, over sequences, or by a constant."""

    x: RolloutBatch
    config: AlgorithmConfig
    rows: Sequence[int]
    allowed: set[int]
    kept: set[Token]
    eligible: set[Token]
    micro_batches: Sequence[Sequence[int]]
    length_limit: int

    def __call__(self, values: dict[Token, Tensor], *, masked: bool) -> Tensor:
        kind, divisor = self.config.objective.aggregate, self.config.selection.denominator
        counted = everywhere(self.x, self.rows)
        if masked:
            counted = self.kept if divisor != "answer" else self.eligible
        sequences = [r for r in self.rows if r in self.allowed or not masked]
        if kind == "constant":
            return sum(values.values()) / max(1, len(sequences) * self.length_limit)
        if kind == "sequence":
            of_row = [r for r, _ in counted]
            return sum(value / of_row.count(r) for (r, _), value in values.items()) / max(1, len(sequences))
        if masked and divisor == "micro_batch":
            total = 0.0
            for rows in self.micro_batches:
                share = sum(r in self.allowed for r in rows) / max(1, len(sequences))
                inside = [value for (r, _), value in values.items() if r in rows]
                total = total + share * sum(inside) / max(1, sum(r in rows for r, _ in self.kept))
            return total
        return sum(values.values()) / max(1, len(counted))
