"""What an update did, in numbers: the values of `train/`, `fork/` and `mismatch/`.

All are made of sums and maxima over the update's micro-batches and all ranks. A share of no tokens is not logged: there
is no point at that update, rather than a 0 that nothing has measured.

- `train/`: the losses, each over its denominator; and over the tokens that were trained, their ratio, clipping and the
  k3 estimate of KL(old || new); `cov_share`, the share that a covariance objective treats apart.
- `fork/kept_share`: of all tokens that could be kept, of those of right and wrong answers, of the first and last thirds
  of answers, and the least and the most of an answer. Beside it entropies (means, in nats), the threshold (the mean
  over answers, each of which has that of the set it was ranked in), and `types`, how many different tokens were kept.
- `fork/ratio_`, `clip_` and `kl_`: of kept and of dropped tokens of trained answers.
- `fork/overlap_random`: the share of the kept tokens that a random mask of the same expected size keeps too. If the
  selection is as good as random, this is the kept share, on average.
- `fork/overlap_previous`: how stable the rule is, from the second update on: the Jaccard index of the mask and the one
  that the previous update's bounds give on the same tokens; with `keep: random` a mask by the previous rollout's noise
  at the same share. Not for `covariance` and a score of one's own: they rank a token within its set, and their bounds
  say nothing about another.
- `mismatch/`: where the sampler tells its log-probabilities, for kept and dropped tokens: the effective share
  `(sum w)^2 / sum w^2 / n` under the weights w = trainer / sampler, the k3 estimate of KL(sampler || trainer), the
  largest weight, and the mean and the largest absolute difference of log-probabilities, in nats. The trainer's are
  those of the policy that sampled: where neither a pass nor the first update's forward has found them, a token is not
  counted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forklight.algo.census import Bounds, Census, bounds_of, decided_by, extremes, overlap, within
from forklight.algo.noise import hash_bits, hash_uniform, string_key
from forklight.algo.plan import eligible_rows
from forklight.algo.spec import ForkSelection
from forklight.algo.types import Chunk, Reduce
from forklight.rollout.learn import Learner
from forklight.rollout.lesson import Lesson

Total = dict[str, float]


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What there is to say about an update."""

    scalars: dict[str, float]
    """Values by tag."""
    bounds: Bounds | None
    """What the selection kept, as a rule for the tokens of later updates; None if it had nothing to choose from."""


def update_report(
    learner: Learner,
    lesson: Lesson,
    update: int,
    sums: dict[str, Tensor],
    *,
    vocabulary: int,
    previous: Bounds | None = None,
) -> UpdateReport:
    """What an update did; every rank calls this, in four collectives.

    Args:
        learner: the settings, the seed and the ranks.
        lesson: the rollout.
        update: number of the update in the rollout.
        sums: what the metrics of this rank's visits combined to, and the gradient's norm.
        vocabulary: V.
        previous: the bounds that the update before reported; None at the first update of a run.

    Returns:
        Values, and what the next update's report is to be given.

    Raises:
        RuntimeError: the selection kept none of the tokens or not as many as it should, or the loss read others.
    """
    x = lesson.experience
    chunk = x.chunk((eligible_rows(x, learner.selection) & (x.update == update)).nonzero().flatten())
    census = _census(lesson, chunk)
    total = _sums(learner, lesson, update, census, chunk, sums)
    largest = _maxima(learner, lesson, census, chunk, sums)
    _check(learner.selection, lesson, total)
    scalars = _train_scalars(learner, lesson, update, total, largest)
    scalars["train/grad_norm"] = float(sums["grad_norm"])
    scalars["rollout/empty_updates"] = float(total["eligible"] == 0)
    scalars |= _fork_scalars(total, largest) | _mismatch_scalars(total, largest)
    scalars |= _types(learner, census, vocabulary)
    scalars |= _overlaps(learner, lesson, census, chunk, total, previous)
    if total["eligible"] == 0:
        return UpdateReport(scalars, None)
    entropies = -largest["minus_entropy"], largest["entropy"]
    return UpdateReport(scalars, bounds_of(learner.selection, scalars.get("fork/threshold", torch.nan), entropies))


# -- sums over the ranks -----------------------------------------------------------------------------------------------


def _census(lesson: Lesson, chunk: Chunk) -> Census:
    x = lesson.experience
    assert x.entropy is not None and x.fork_mask is not None
    return Census(
        kept=chunk.read(x.fork_mask),
        ids=chunk.answer_ids,
        row=chunk.row,
        column=chunk.column,
        entropy=chunk.read(x.entropy),
        length=x.answer_length[chunk.rows],
        right=x.right[chunk.rows],
    )


def _sums(
    learner: Learner, lesson: Lesson, update: int, census: Census, chunk: Chunk, sums: dict[str, Tensor]
) -> Total:
    """Everything that adds up over ranks, in one collective."""
    x, plan, spec = lesson.experience, lesson.plan, learner.selection
    assert x.fork_mask is not None and x.threshold is not None
    local = {name: value for name, value in sums.items() if not name.endswith("_max") and name != "grad_norm"}
    local |= census.counts()
    trained = torch.cat([plan.train[visit] for visit in plan.visits_of(update)])
    local["kept_trained"] = x.fork_mask[trained].sum()
    thresholds = x.threshold[chunk.rows]
    local["thresholds"] = (~thresholds.isnan()).sum()
    local["threshold"] = thresholds.double().nansum()
    tokens = eligible_rows(x, spec) * x.answer_length
    visits = [tokens[plan.looked_at(visit)].sum() for visit in plan.visits_of(update)]
    local |= {f"visit_{number}": count for number, count in enumerate(visits)}
    sets = census.length if spec.scope == "sequence" else torch.stack(visits)
    local["kept_by_rank"] = x.update.new_tensor(sum(spec.kept(n) for n in sets.tolist()))
    return _combined(learner.ranks.reduce, local)


def _maxima(learner: Learner, lesson: Lesson, census: Census, chunk: Chunk, sums: dict[str, Tensor]) -> Total:
    """Everything that combines by maximum, in one collective; a minimum as the maximum of negated values."""
    assert lesson.experience.threshold is not None
    local = {name: value for name, value in sums.items() if name.endswith("_max")}
    for name, values in (
        ("kept_share", census.row_shares()),
        ("threshold", lesson.experience.threshold[chunk.rows]),
        ("entropy", census.entropy[census.kept]),
    ):
        local[name], local[f"minus_{name}"] = extremes(values)
    return _combined(learner.ranks.maximum, local)


def _combined(combine: Reduce, local: dict[str, Tensor]) -> Total:
    """Scalars of all ranks, in one tensor whose order is the same on each."""
    names = sorted(local)
    values: list[float] = combine(torch.stack([local[name].double() for name in names])).tolist()
    return dict(zip(names, values, strict=True))


def _check(spec: ForkSelection, lesson: Lesson, total: Total) -> None:
    """Stops a run whose mask took no effect, or another one than the config asks for."""
    kept, eligible = int(total["kept"]), int(total["eligible"])
    keys = f"selection.keep = {spec.keep if not spec.own_score else type(spec.keep).__name__}, rho = {spec.rho}, "
    keys += f"scope = {spec.scope}, rule = {spec.rule}"
    # of a whole rollout's tokens an update may have none that is kept
    if eligible and not kept and (spec.scope != "rollout" or lesson.updates == 1):
        raise RuntimeError(f"the selection kept none of {eligible} tokens; {keys}")
    expected = _expected(spec, lesson, total)
    if expected is not None and kept != expected:
        raise RuntimeError(f"the selection kept {kept} of {eligible} tokens, it should have kept {expected}; {keys}")
    if total["leaked"]:
        raise RuntimeError(
            f"the objective gave {total['leaked']:.0f} tokens outside of the mask a loss or a gradient; {keys}"
        )
    if total["kept_tokens"] != total["kept_trained"]:
        raise RuntimeError(
            f"the selection kept {total['kept_trained']:.0f} tokens of trained answers, the loss read "
            f"{total['kept_tokens']:.0f}: the mask did not take effect; {keys}"
        )


def _expected(spec: ForkSelection, lesson: Lesson, total: Total) -> int | None:
    """The number of tokens that are kept over all ranks, where numbers of tokens alone decide it."""
    if spec.keep == "all":
        return int(total["eligible"])
    if spec.rule != "count" or (spec.scope == "rollout" and lesson.updates > 1):
        return None
    if spec.scope in ("update", "rollout"):
        return spec.kept(int(total["eligible"]))
    if spec.scope == "micro_batch":
        return sum(spec.kept(int(total[f"visit_{number}"])) for number in range(lesson.plan.micro_batches))
    return int(total["kept_by_rank"])


# -- values by tag -----------------------------------------------------------------------------------------------------


def _shares(parts: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Quotients by name, without those whose denominator is 0."""
    return {name: above / below for name, (above, below) in parts.items() if below > 0}


def _train_scalars(learner: Learner, lesson: Lesson, update: int, total: Total, largest: Total) -> dict[str, float]:
    x, settings = lesson.experience, learner.settings
    assert x.denominator is not None and x.whole is not None
    denominator, whole = float(x.denominator[update]), float(x.whole[update])
    parts = ("kept", "dropped") if settings.objective.trains == "eligible" else ("kept",)
    tokens = sum(total[f"{part}_tokens"] for part in parts)
    scalars = {"policy_loss": total["policy_loss_sum"] / max(denominator, 1.0), "tokens": tokens}
    divided_by = {term: denominator if term in learner.selection.terms else whole for term in ("kl", "entropy")}
    scalars |= _shares(
        {term: (total[f"{term}_loss_sum"], below) for term, below in divided_by.items() if f"{term}_loss_sum" in total}
    )
    means = {"ratio": "ratio_sum", "approx_kl": "approx_kl_sum"}
    means |= {name: name for name in ("clip_low", "clip_high", "clip_dual")}
    scalars |= _shares({name: (sum(total[f"{part}_{key}"] for part in parts), tokens) for name, key in means.items()})
    if "cov_tokens" in total:
        scalars |= _shares({"cov_share": (total["cov_tokens"], total["kept_tokens"])})
    if tokens:
        scalars["ratio_max"] = max(largest[f"{part}_ratio_max"] for part in parts)
    return {f"train/{name}": value for name, value in scalars.items()}


def _fork_scalars(total: Total, largest: Total) -> dict[str, float]:
    dropped = total["entropy"] - total["entropy_kept"]
    parts = {
        "entropy_mean": (total["entropy"], total["seen"]),
        "entropy_kept": (total["entropy_kept"], total["seen_kept"]),
        "entropy_dropped": (dropped, total["seen"] - total["seen_kept"]),
        "threshold": (total["threshold"], total["thresholds"]),
    }
    for of in ("", "_right", "_wrong", "_first_third", "_last_third"):
        parts[f"kept_share{of}"] = total[f"kept{of}"], total[f"eligible{of}"]
    for of in ("kept", "dropped"):
        tokens = total[f"{of}_tokens"]
        parts[f"ratio_{of}"] = total[f"{of}_ratio_sum"], tokens
        parts[f"clip_{of}"] = total[f"{of}_clip_low"] + total[f"{of}_clip_high"], tokens
        parts[f"kl_{of}"] = total[f"{of}_approx_kl_sum"], tokens
    scalars = _shares(parts)
    if "threshold" in scalars and largest["threshold"] == -largest["minus_threshold"]:
        scalars["threshold"] = largest["threshold"]  # the mean of equal numbers is off by rounding
    if total["eligible"]:
        scalars |= {"kept_share_min": -largest["minus_kept_share"], "kept_share_max": largest["kept_share"]}
    return {f"fork/{name}": value for name, value in scalars.items()}


def _mismatch_scalars(total: Total, largest: Total) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for of in ("kept", "dropped"):
        name = f"{of}_mismatch"
        if tokens := total.get(f"{name}_tokens", 0.0):
            square = total[f"{name}_weight_sum"] ** 2 / tokens
            scalars |= _shares({f"mismatch/ess_{of}": (square, total[f"{name}_weight_square_sum"])})
            scalars[f"mismatch/kl_{of}"] = total[f"{name}_kl_sum"] / tokens
            scalars[f"mismatch/ratio_max_{of}"] = largest[f"{name}_ratio_max"]
            scalars[f"mismatch/diff_mean_{of}"] = total[f"{name}_diff_sum"] / tokens
            scalars[f"mismatch/diff_max_{of}"] = largest[f"{name}_diff_max"]
    return scalars


def _types(learner: Learner, census: Census, vocabulary: int) -> dict[str, float]:
    """How many different tokens were kept; one collective."""
    kept, every = learner.ranks.maximum(census.types(vocabulary)).sum(1).tolist()
    return {"fork/types": float(kept), "fork/types_share": kept / every} if every else {}


def _overlaps(
    learner: Learner, lesson: Lesson, census: Census, chunk: Chunk, total: Total, previous: Bounds | None
) -> dict[str, float]:
    """How far the mask agrees with a random one, and with that of the previous rule; one collective."""
    x, spec, seed = lesson.experience, learner.selection, learner.chooser.seed
    share, row_key = total["kept"] / max(total["eligible"], 1.0), x.row_key[chunk.rows][chunk.row]

    def random(*keys: int) -> Tensor:
        return hash_uniform(hash_bits(seed, *keys), row_key, chunk.column) >= 1 - share

    decisive = decided_by(spec)
    before = torch.zeros_like(census.kept)
    if spec.keep in ("random", "all"):
        before = random(lesson.rollout - 1) if spec.keep == "random" else census.kept
    elif decisive is not None and previous is not None:
        scores = x.logp if decisive == "logp" else x.entropy
        assert scores is not None
        before = within(chunk.read(scores), previous)
    # under a key of its own: the noise of `keep: random` would agree with itself
    chance, by_rule = overlap(census.kept, random(lesson.rollout, string_key("overlap"))), overlap(census.kept, before)
    counts = torch.stack([chance["both"], by_rule["both"], by_rule["either"]])
    with_chance, both, either = learner.ranks.reduce(counts).tolist()
    scalars = _shares({"fork/overlap_random": (with_chance, total["kept"])})
    if previous is not None and (decisive is not None or spec.keep in ("random", "all")):
        scalars |= _shares({"fork/overlap_previous": (both, either)})
    return scalars
