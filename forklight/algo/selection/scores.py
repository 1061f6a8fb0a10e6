"""The scores by which tokens are ranked; the largest are kept."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from forklight.algo.batch import Reduce
from forklight.algo.noise import hash_bits, hash_uniform
from forklight.algo.selection.spec import ForkSelection, TokenScore
from forklight.algo.selection.topk import Tile, tiles

_UNIT = 2.0**24  # fixed point: sums of integers do not depend on their order


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the tokens of a selection."""

    tile: Tile
    name: str  # what the scores are, for error messages
    sign: int = 1  # threshold = sign * score; 0 if the score is noise


def token_scores(
    spec: ForkSelection,
    eligible: Tensor,
    entropy: Tensor | None,
    logp: Tensor | None,
    advantages: Tensor | None,
    sequence_id: Tensor,
    seed: int,
    reduce: Reduce,
) -> Scores:
    """The score that `spec.keep` names (any but `all`), in float32 or float64; `random` by count in int64.

    `top` and `band`: the entropy; `bottom`: minus it. `low_probability`: -logp. `covariance`: see `covariance_scores`.
    `abs_advantage`, `entropy_times_advantage`: |A|, entropy * |A|. `random`: a hash of (seed, sequence_id, position). A
    `TokenScore`: what it returns.

    Raises:
        TypeError: a `TokenScore` does not return a floating point tensor.
        ValueError: a tensor that the score needs is missing, or a `TokenScore` does not return [S,T].
    """
    for value, name in ((entropy, "entropies"), (logp, "log-probabilities"), (advantages, "advantages")):
        if value is None and name in _needed(spec):
            keep = type(spec.keep).__name__ if spec.own_score else spec.keep
            raise ValueError(f"selection.keep={keep} needs {name}")
    if spec.keep == "random":
        noise = hash_bits if spec.rule == "count" else hash_uniform
        position = torch.arange(eligible.shape[1], device=sequence_id.device)
        return Scores(lambda rows: noise(seed, sequence_id[rows, None], position), "hashes", sign=0)
    if spec.keep == "covariance":
        logp, advantages = cast(Tensor, logp), cast(Tensor, advantages)
        moments = covariance_moments(logp, advantages, eligible, reduce, by_row=spec.scope == "sequence")
        return Scores(covariance_scores(logp, advantages, moments), "covariances")
    if spec.keep == "abs_advantage":
        return Scores(_abs_advantages(cast(Tensor, advantages), eligible), "advantages")
    if spec.keep == "entropy_times_advantage":
        return Scores(_weighted_entropies(cast(Tensor, entropy), cast(Tensor, advantages)), "entropies or advantages")
    if spec.keep == "low_probability":
        return Scores(_plain(cast(Tensor, logp), -1), "log-probabilities")
    if isinstance(spec.keep, str):
        sign = -1 if spec.keep == "bottom" else 1
        return Scores(_plain(cast(Tensor, entropy), sign), "entropies", sign)
    own = _own_scores(spec.keep, cast(Tensor, entropy), cast(Tensor, logp), cast(Tensor, advantages), eligible)
    return Scores(_plain(own, 1), f"scores of {type(spec.keep).__name__}")


@dataclass(frozen=True, slots=True)
class Moments:
    """Means over the eligible tokens of a set: [] for one set over all ranks, or [S,1] for one set per row."""

    logp: Tensor  # float64
    advantage: Tensor  # float64
    tokens: Tensor  # int64


def covariance_moments(
    logp: Tensor, advantages: Tensor, eligible: Tensor, reduce: Reduce, *, by_row: bool = False
) -> Moments:
    """The means in a token's covariance, bitwise the same for every order and split of the tokens.

    Numbers are rounded to multiples of 2**-24 and summed as integers: exact while the sum of their magnitudes stays
    below 2**39, which is 500 for each of a billion tokens.

    Args:
        logp: [S,T], log-probabilities of the sampled tokens.
        advantages: [S], one per answer; every token counts with that of its answer.
        eligible: bool [S,T].
        reduce: sums an int64 tensor over the ranks, called once.
        by_row: means of each row.

    Raises:
        ValueError: an eligible token has a log-probability or advantage that is NaN or infinite.
    """
    sums = torch.zeros(4, len(eligible), dtype=torch.int64, device=eligible.device)
    known = advantages.detach().isfinite()[:, None]
    for rows in tiles(eligible):
        counted, values = eligible[rows], logp[rows].detach()
        sums[0, rows] = (fixed_point(values) * counted).sum(1)
        sums[2, rows] = counted.sum(1)
        sums[3, rows] = (~(values.isfinite() & known[rows]) & counted).sum(1)
    sums[1] = fixed_point(advantages.detach()) * sums[2]
    total = reduce(sums.sum(1))
    if total[3]:
        raise ValueError(
            f"{int(total[3])} of {int(total[2])} eligible log-probabilities or advantages are NaN or infinite"
        )
    logp_sum, advantage_sum, tokens, _ = sums[..., None] if by_row else total
    units = tokens.clamp(min=1).double() * _UNIT
    return Moments(logp_sum / units, advantage_sum / units, tokens)


def covariance_scores(logp: Tensor, advantages: Tensor, moments: Moments) -> Tile:
    """A token's share in the covariance of advantage and log-probability, arXiv 2505.22617, Eq. 9.

    (A - mean A)(logp - mean logp), in float64, rounded to the dtype of logp (float32 at least).
    """
    dtype = torch.promote_types(logp.dtype, torch.float32)
    # rounded like their mean: where all advantages are equal the covariance is exactly 0
    about = from_fixed_point(fixed_point(advantages.detach()))[:, None] - moments.advantage  # [S,1]

    def tile(rows: slice) -> Tensor:
        mean = moments.logp if moments.logp.ndim == 0 else moments.logp[rows]
        return (about[rows] * (logp[rows].detach().double() - mean)).to(dtype)

    return tile


def fixed_point(values: Tensor) -> Tensor:
    """Values as integers, in units of 2**-24: sums of them do not depend on their order."""
    return (values.double() * _UNIT).round().long()


def from_fixed_point(values: Tensor) -> Tensor:
    """The float64 values of such integers."""
    return values.double() / _UNIT


def _needed(spec: ForkSelection) -> set[str]:
    if spec.own_score:
        return {"entropies", "log-probabilities", "advantages"}
    others = {
        "low_probability": {"log-probabilities"},
        "covariance": {"log-probabilities", "advantages"},
        "abs_advantage": {"advantages"},
        "entropy_times_advantage": {"entropies", "advantages"},
    }
    return others.get(cast(str, spec.keep), {"entropies"} if spec.needs_entropy else set())


def _plain(values: Tensor, sign: int) -> Tile:
    values = values.detach()
    dtype = torch.promote_types(values.dtype, torch.float32)
    return lambda rows: values[rows].to(dtype) if sign > 0 else -values[rows].to(dtype)


def _abs_advantages(advantages: Tensor, eligible: Tensor) -> Tile:
    size = advantages.detach().abs().to(torch.promote_types(advantages.dtype, torch.float32))[:, None]
    return lambda rows: size[rows].expand_as(eligible[rows])


def _weighted_entropies(entropy: Tensor, advantages: Tensor) -> Tile:
    dtype = torch.promote_types(entropy.dtype, torch.float32)
    size = advantages.detach().abs().to(dtype)[:, None]
    return lambda rows: entropy[rows].detach().to(dtype) * size[rows]


def _own_scores(own: TokenScore, entropy: Tensor, logp: Tensor, advantages: Tensor, eligible: Tensor) -> Tensor:
    scores, name = own.scores(entropy, logp, advantages, eligible), type(own).__name__
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"selection.keep: {name}.scores must return a floating point tensor, not {kind}")
    if scores.shape != eligible.shape:
        raise ValueError(
            f"selection.keep: {name}.scores must return {tuple(eligible.shape)}, got {tuple(scores.shape)}"
        )
    return scores
