"""The report of an update: totals over its micro-batches and all ranks, checked and made into values by tag."""

from dataclasses import dataclass

import torch
from torch import Tensor

from forklight.algo.batch import Metrics, MicroBatch, Reduce
from forklight.algo.noise import hash_bits, hash_uniform, string_key
from forklight.algo.plan import eligible_rows
from forklight.algo.selection.census import Bounds, Census, bounds_of, decided_by, extremes, overlap, within
from forklight.algo.selection.spec import ForkSelection
from forklight.training.curves import Totals, fork_scalars, mismatch_scalars, shares, train_scalars
from forklight.training.signal import Signal, update_signal
from forklight.training.state import RolloutState
from forklight.training.update import Learner


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """The values of an update."""

    scalars: dict[str, float]
    """Values by tag."""
    bounds: Bounds | None
    """The bounds of the selection, to which the next update is compared; None if no token was eligible."""
    signal: Signal | None
    """The learning signal by entropy; None if it is not known."""


def update_report(
    learner: Learner,
    state: RolloutState,
    update: int,
    metrics: Metrics,
    *,
    vocabulary: int,
    previous: Bounds | None = None,
    box_end: Tensor | None = None,
) -> UpdateReport:
    """Makes the report of an update; every rank calls this, in five collectives.

    Args:
        learner: the config, the seed and the ranks.
        state: the rollout.
        update: number of the update in the rollout.
        metrics: of this rank's micro-batches, combined.
        vocabulary: V.
        previous: the bounds that the update before reported; None at the first update of a run.
        box_end: where each answer completes its first box, as for `update_signal`.

    Returns:
        Values, the bounds to give to the next update's report, and the learning signal.

    Raises:
        RuntimeError: the selection kept no token or not as many as it should, or the loss read other tokens.
    """
    batch, tokens, config = state.batch, state.tokens, state.config
    spec = config.selection
    micro_batch = batch.micro_batch((eligible_rows(batch, spec) & (batch.update == update)).nonzero().flatten())
    census = Census(
        kept=micro_batch.read(tokens.fork_mask),
        ids=micro_batch.answer_ids,
        row=micro_batch.row,
        column=micro_batch.column,
        entropy=micro_batch.read(tokens.entropy),
        length=batch.answer_length[micro_batch.rows],
        right=batch.right[micro_batch.rows],
    )
    threshold = tokens.threshold[micro_batch.rows]
    local = metrics.and_also(Metrics(census.counts() | _counts(state, update, census, threshold, spec), {}))
    local = local.and_also(_extremes(census, threshold))
    totals = Totals(_over_ranks(learner.ranks.reduce, local.sums), _over_ranks(learner.ranks.maximum, local.maxima))
    _check(spec, state, totals.sums)
    denominator, unmasked = float(tokens.denominator[update]), float(tokens.unmasked_denominator[update])
    scalars = train_scalars(totals, config, denominator, unmasked) | fork_scalars(totals) | mismatch_scalars(totals)
    if learner.config.selection.schedule is not None:
        scalars["fork/rho"] = config.selection.share
    scalars["rollout/empty_updates"] = float(totals.sums["eligible"] == 0)
    scalars |= _types(learner, census, vocabulary)
    scalars |= _overlaps(learner, state, census, micro_batch, totals, previous)
    signal = update_signal(state, update, spec, learner.ranks, box_end)
    if signal is not None:
        scalars |= signal.scalars()
    if totals.sums["eligible"] == 0:
        return UpdateReport(scalars, None, signal)
    entropies = -totals.maxima["minus_entropy"], totals.maxima["entropy"]
    return UpdateReport(scalars, bounds_of(spec, scalars.get("fork/threshold", torch.nan), entropies), signal)


# -- totals over the ranks ---------------------------------------------------------------------------------------------


def _counts(
    state: RolloutState, update: int, census: Census, threshold: Tensor, spec: ForkSelection
) -> dict[str, Tensor]:
    """Counts that are summed over ranks, besides the metrics of the loss and the census."""
    batch, plan = state.batch, state.plan
    trained = torch.cat([plan.train[number] for number in plan.micro_batches_of(update)])
    lengths = eligible_rows(batch, spec) * batch.answer_length
    eligible = [lengths[plan.ranked_rows(number)].sum() for number in plan.micro_batches_of(update)]
    sets = census.length if spec.scope == "sequence" else torch.stack(eligible)
    return {
        "kept_trained": state.tokens.fork_mask[trained].sum(),
        "thresholds": (~threshold.isnan()).sum(),
        "threshold": threshold.double().nansum(),
        "kept_by_rank": batch.update.new_tensor(sum(spec.kept(n) for n in sets.tolist())),
        **{f"micro_batch_{number}": count for number, count in enumerate(eligible)},
    }


def _extremes(census: Census, threshold: Tensor) -> Metrics:
    """Values that are combined by maximum; a minimum as the maximum of negated values."""
    values = {"kept_share": census.row_shares(), "threshold": threshold, "entropy": census.entropy[census.kept]}
    found = {name: extremes(value) for name, value in values.items()}
    highest = {name: high for name, (high, _) in found.items()}
    return Metrics({}, highest | {f"minus_{name}": low for name, (_, low) in found.items()})


def _over_ranks(combine: Reduce, local: dict[str, Tensor]) -> dict[str, float]:
    """Scalars of all ranks, in one tensor whose order is the same on each."""
    names = sorted(local)
    values: list[float] = combine(torch.stack([local[name].double() for name in names])).tolist()
    return dict(zip(names, values, strict=True))


def _check(spec: ForkSelection, state: RolloutState, total: dict[str, float]) -> None:
    """Stops a run whose mask had no effect, or another effect than the config asks for."""
    kept, eligible = int(total["kept"]), int(total["eligible"])
    keys = f"selection.keep = {spec.keep if not spec.own_score else type(spec.keep).__name__}, rho = {spec.rho}, "
    keys += f"scope = {spec.scope}, rule = {spec.rule}"
    # if all updates are ranked together, one of them may have no kept token
    if eligible and not kept and spec.rule != "absolute" and (spec.scope != "rollout" or state.updates == 1):
        raise RuntimeError(f"the selection kept none of {eligible} tokens; {keys}")
    expected = _expected(spec, state, total)
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


def _expected(spec: ForkSelection, state: RolloutState, total: dict[str, float]) -> int | None:
    """The number of tokens that are kept over all ranks, if it depends on numbers of tokens alone."""
    if spec.keep == "all":
        return int(total["eligible"])
    if spec.rule != "count" or spec.balance != "none" or spec.keep_eos:
        return None
    if spec.scope == "rollout" and state.updates > 1:
        return None
    if spec.scope in ("update", "rollout"):
        return spec.kept(int(total["eligible"]))
    if spec.scope == "micro_batch":
        return sum(spec.kept(int(total[f"micro_batch_{number}"])) for number in range(state.plan.micro_batches))
    return int(total["kept_by_rank"])


def _types(learner: Learner, census: Census, vocabulary: int) -> dict[str, float]:
    """How many different tokens were kept; one collective."""
    kept, every = learner.ranks.maximum(census.types(vocabulary)).sum(1).tolist()
    return {"fork/types": float(kept), "fork/types_share": kept / every} if every else {}


def _overlaps(
    learner: Learner,
    state: RolloutState,
    census: Census,
    micro_batch: MicroBatch,
    totals: Totals,
    previous: Bounds | None,
) -> dict[str, float]:
    """The overlap of the mask with a random one, and with that of the previous update's bounds; one collective."""
    spec, seed, total = state.config.selection, learner.selector.seed, totals.sums
    share = total["kept"] / max(total["eligible"], 1.0)
    sequence_id = state.batch.sequence_id[micro_batch.rows][micro_batch.row]

    def random(*keys: int) -> Tensor:
        return hash_uniform(hash_bits(seed, *keys), sequence_id, micro_batch.column) >= 1 - share

    decisive = decided_by(spec)
    before = torch.zeros_like(census.kept)
    if spec.keep in ("random", "all"):
        before = random(state.rollout - 1) if spec.keep == "random" else census.kept
    elif decisive is not None and previous is not None:
        scores = state.tokens.logp if decisive == "logp" else state.tokens.entropy
        before = within(micro_batch.read(scores), previous)
    # with a separate key: with the noise of `keep: random` both masks would be the same
    chance, by_rule = overlap(census.kept, random(state.rollout, string_key("overlap"))), overlap(census.kept, before)
    counts = torch.stack([chance["both"], by_rule["both"], by_rule["either"]])
    with_chance, both, either = learner.ranks.reduce(counts).tolist()
    scalars = shares({"fork/overlap_random": (with_chance, total["kept"])})
    if previous is not None and (decisive is not None or spec.keep in ("random", "all")):
        scalars |= shares({"fork/overlap_previous": (both, either)})
    return scalars
