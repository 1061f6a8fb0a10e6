"""The values of `train/`, `fork/` and `mismatch/` of one update, from its totals over micro-batches and ranks.

A share of zero tokens is not logged: the curve has no point at that update, instead of a 0 that was not measured.

- `train/`: the losses, each over its denominator; and over the tokens that were trained, their ratio, clipping and the
  k3 estimate of KL(old || new); `cov_share`, the share that a covariance objective treats differently.
- `fork/kept_share`: of all eligible tokens, of those of right and wrong answers, of the first and last thirds of
  answers, and the smallest and largest share in an answer. Besides, entropies (means, in nats), the threshold (the mean
  over answers, each with that of the set it was ranked in), and `types`, the number of different tokens kept.
- `fork/ratio_`, `clip_` and `kl_`: of kept and of dropped tokens of trained answers.
- `fork/overlap_random`: the share of the kept tokens that a random mask of the same expected size keeps too. If the
  selection is as good as random, this is the kept share, on average.
- `fork/overlap_previous`: how stable the rule is, from the second update on: the Jaccard index of the mask and the one
  that the previous update's bounds give on the same tokens; with `keep: random` a mask by the previous rollout's noise
  at the same share. Not for `covariance` and user-defined scores: they rank a token within its set, and their bounds
  do not apply to other sets.
- `mismatch/`: if the sampler reports log-probabilities, for kept and dropped tokens: the effective share
  `(sum w)^2 / sum w^2 / n` under the weights w = trainer / sampler, the k3 estimate of KL(sampler || trainer), the
  largest weight, and the mean and the largest absolute difference of log-probabilities, in nats. The trainer's are
  those of the policy that sampled: a token is not counted if neither a pass nor the first update's forward has
  computed them.
"""

from typing import NamedTuple

from forklight.algo.config import AlgorithmConfig
from forklight.algo.selection.spec import Term


class Totals(NamedTuple):
    """The metrics of an update, combined over its micro-batches and all ranks."""

    sums: dict[str, float]
    maxima: dict[str, float]


def shares(parts: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Quotients by name, without those whose denominator is 0."""
    return {name: above / below for name, (above, below) in parts.items() if below > 0}


def train_scalars(totals: Totals, config: AlgorithmConfig, denominator: float, unmasked: float) -> dict[str, float]:
    """Losses, and the ratios of the tokens that were trained.

    Args:
        totals: of the update.
        config: which tokens the objective trains, and which terms the mask acts on.
        denominator: of masked terms.
        unmasked: that of the other terms.
    """
    total = totals.sums
    parts = ("kept", "dropped") if config.objective.trains == "eligible" else ("kept",)
    tokens = sum(total[f"{part}_tokens"] for part in parts)
    scalars = {"policy_loss": total["policy_loss_sum"] / max(denominator, 1.0), "tokens": tokens}
    beside: tuple[Term, ...] = ("kl", "entropy")
    divided_by = {term: denominator if term in config.selection.masked_terms else unmasked for term in beside}
    scalars |= shares(
        {term: (total[f"{term}_loss_sum"], below) for term, below in divided_by.items() if f"{term}_loss_sum" in total}
    )
    means = {"ratio": "ratio_sum", "approx_kl": "approx_kl_sum"}
    means |= {name: name for name in ("clip_low", "clip_high", "clip_dual")}
    scalars |= shares({name: (sum(total[f"{part}_{key}"] for part in parts), tokens) for name, key in means.items()})
    if "cov_tokens" in total:
        scalars |= shares({"cov_share": (total["cov_tokens"], total["kept_tokens"])})
    if tokens:
        scalars["ratio_max"] = max(totals.maxima[f"{part}_ratio"] for part in parts)
    return {f"train/{name}": value for name, value in scalars.items()}


def fork_scalars(totals: Totals) -> dict[str, float]:
    """What the selection kept, and the ratios of kept and dropped tokens."""
    total, largest = totals
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
    scalars = shares(parts)
    if "threshold" in scalars and largest["threshold"] == -largest["minus_threshold"]:
        scalars["threshold"] = largest["threshold"]  # exact: the mean of equal numbers may be rounded
    if total["eligible"]:
        scalars |= {"kept_share_min": -largest["minus_kept_share"], "kept_share_max": largest["kept_share"]}
    return {f"fork/{name}": value for name, value in scalars.items()}


def mismatch_scalars(totals: Totals) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the trainer's."""
    total, largest = totals
    scalars: dict[str, float] = {}
    for of in ("kept", "dropped"):
        name = f"{of}_mismatch"
        if tokens := total.get(f"{name}_tokens", 0.0):
            square = total[f"{name}_weight_sum"] ** 2 / tokens
            scalars |= shares({f"mismatch/ess_{of}": (square, total[f"{name}_weight_square_sum"])})
            scalars[f"mismatch/kl_{of}"] = total[f"{name}_kl_sum"] / tokens
            scalars[f"mismatch/ratio_max_{of}"] = largest[f"{name}_ratio"]
            scalars[f"mismatch/diff_mean_{of}"] = total[f"{name}_diff_sum"] / tokens
            scalars[f"mismatch/diff_max_{of}"] = largest[f"{name}_diff"]
    return scalars
