"""Statistics of a selection: counts over the tokens of one update, which add up over ranks.

Nothing here communicates between ranks; shares over all ranks are computed later, from the summed counts.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from forklight.algo.selection.spec import ForkSelection

Bounds = tuple[float, float]
"""Lowest and highest score that a selection keeps; infinite where there is no bound."""


@dataclass(frozen=True, slots=True)
class Census:
    """The N eligible tokens of an update on one rank, and the R answers that they belong to."""

    kept: Tensor  # bool [N]
    ids: Tensor  # int64 [N] token ids
    row: Tensor  # int64 [N] number of the token's answer, 0 .. R-1
    column: Tensor  # int64 [N] position of the token in its answer
    entropy: Tensor  # float [N] in nats; NaN where no pass has computed it
    length: Tensor  # int64 [R] tokens of each answer
    right: Tensor  # bool [R] the verifier judged the answer right

    def counts(self) -> dict[str, Tensor]:
        """Numbers of tokens, and sums of entropies, as scalars that add up over ranks.

        Returns:
            int64 `eligible` and `kept`, and both with the endings `_right` and `_wrong` (by the answer's outcome) and
            `_first_third` and `_last_third` (by the token's position in its answer: column/length < 1/3, or >= 2/3);
            `seen` and `seen_kept`, the tokens with an entropy, and float64 `entropy` and `entropy_kept`, their sums.
        """
        length, right = self.length[self.row], self.right[self.row]
        parts = {
            "": torch.ones_like(self.kept),
            "_right": right,
            "_wrong": ~right,
            "_first_third": self.column * 3 < length,
            "_last_third": self.column * 3 >= 2 * length,
        }
        counts = {f"eligible{part}": mask.sum() for part, mask in parts.items()}
        counts |= {f"kept{part}": (mask & self.kept).sum() for part, mask in parts.items()}
        seen = ~self.entropy.isnan()
        entropy = torch.where(seen, self.entropy, 0.0).double()
        return counts | {
            "seen": seen.sum(),
            "seen_kept": (seen & self.kept).sum(),
            "entropy": entropy.sum(),
            "entropy_kept": (entropy * self.kept).sum(),
        }

    def row_shares(self) -> Tensor:
        """The kept share of each answer's tokens, float64 `[R]`; NaN for an answer without a token."""
        ones = torch.ones_like(self.entropy, dtype=torch.float64)
        sums = ones.new_zeros(2, len(self.length))
        return sums[0].index_add(0, self.row, ones * self.kept) / sums[1].index_add(0, self.row, ones)

    def types(self, vocabulary: int) -> Tensor:
        """Which token ids occur among the kept tokens and among all: uint8 `[2,V]` of 0 and 1.

        Ranks combine it by maximum.

        Args:
            vocabulary: V.
        """
        found = torch.zeros(2, vocabulary, dtype=torch.uint8, device=self.ids.device)
        found[0, self.ids[self.kept]] = 1
        found[1, self.ids] = 1
        return found


def extremes(values: Tensor) -> Tensor:
    """The largest value and minus the smallest, float64 `[2]`: both combine by maximum.

    Args:
        values: any shape; NaN is ignored. Without values both numbers are -inf.
    """
    values = values[~values.isnan()].double()
    ends = torch.stack([values, -values]).flatten(1)
    return torch.cat([ends, ends.new_full((2, 1), -torch.inf)], 1).amax(1)


def overlap(mask: Tensor, other: Tensor) -> dict[str, Tensor]:
    """How far two masks agree: int64 scalars `both` and `either`, whose ratio is the Jaccard index.

    Args:
        mask: bool [N].
        other: bool [N].
    """
    return {"both": (mask & other).sum(), "either": (mask | other).sum()}


def decided_by(spec: ForkSelection) -> Literal["entropy", "logp"] | None:
    """The statistic that alone decides whether a token is kept, once the bounds are known; None if there is none.

    `covariance`, relative entropies and a user's score depend on the set of tokens; scores with an advantage depend on
    more than the statistic, `random` and `all` on none. With `balance` and `keep_eos` one bound does not decide.
    """
    if spec.own_score or spec.relative_to != "none" or spec.balance != "none" or spec.keep_eos:
        return None
    alone: dict[object, Literal["entropy", "logp"]] = {"low_probability": "logp"}
    return (alone | dict.fromkeys(("top", "bottom", "band"), "entropy")).get(spec.keep)


def bounds_of(spec: ForkSelection, threshold: float, kept: Bounds) -> Bounds:
    """The bounds of a selection, as a rule for other tokens.

    Args:
        spec: the selection.
        threshold: of its scores; where each answer has its own, their mean.
        kept: lowest and highest entropy among the kept tokens.

    Returns:
        `top`: from the threshold up; `bottom`: up to the threshold; `band`: the range of the kept entropies;
        `low_probability`: log-probabilities up to minus the threshold, which is one of -logp. Otherwise no bounds.
    """
    if decided_by(spec) is None:
        return -torch.inf, torch.inf
    if spec.keep == "band":
        return kept
    if spec.keep == "top":
        return threshold, torch.inf
    return -torch.inf, threshold if spec.keep == "bottom" else -threshold


def within(scores: Tensor, bounds: Bounds) -> Tensor:
    """The tokens whose score lies in the bounds, ends included: bool `[N]`; False for NaN.

    Args:
        scores: [N].
        bounds: lowest and highest score.
    """
    scores = scores.double()  # a bound is a float64: float32 scores must not be compared with its rounded value
    return (scores >= bounds[0]) & (scores <= bounds[1])
