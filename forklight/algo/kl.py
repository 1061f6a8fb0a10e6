"""Estimates of the KL divergence to a reference model, and how a run uses them."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from forklight.algo.ratios import MAX_LOG_RATIO, check_tokens, k3

Estimator = Literal["k1", "k2", "k3"]
Placement = Literal["loss", "reward"]


@dataclass(frozen=True)
class KLConfig:
    """The KL term, which keeps the policy near a reference model: coef * KL(policy || reference)."""

    coef: float = 0.0
    """Weight of the KL term; 0 switches it off, and no reference model is loaded for it."""
    estimator: Estimator = "k3"
    """Estimate of a token's KL, with d = log reference - log policy: `k1` -d, `k2` d^2 / 2, `k3` exp(d) - d - 1. In the
    loss the mean gradient of k1 is 0, that of k2 is the gradient of KL(policy || reference), that of k3 is the gradient
    of KL(reference || policy)."""
    placement: Placement = "loss"
    """`loss`: a term of the loss; `reward`: coef * the sum of the estimate over an answer's tokens, under the policy
    that sampled it, is subtracted from the answer's reward before advantages."""
    refresh_every_rollouts: int = 0
    """0: the reference is the policy before training; n: it becomes the current policy every n rollouts."""

    def __post_init__(self) -> None:
        if not (self.coef >= 0 and isfinite(self.coef)):
            raise ValueError(f"model.kl.coef must be a finite number >= 0, got {self.coef}")
        if self.estimator not in get_args(Estimator):
            raise ValueError(f"model.kl.estimator must be one of {get_args(Estimator)}, got {self.estimator!r}")
        if self.placement not in get_args(Placement):
            raise ValueError(f"model.kl.placement must be one of {get_args(Placement)}, got {self.placement!r}")
        if self.refresh_every_rollouts < 0:
            raise ValueError(f"model.kl.refresh_every_rollouts must be >= 0, got {self.refresh_every_rollouts}")


def kl_estimate(logp: Tensor, ref_logp: Tensor, mask: Tensor, estimator: Estimator) -> Tensor:
    """Estimates KL(policy || reference) at every token.

    With `d = ref_logp - logp`, after Schulman, "Approximating KL divergence" (2020): `k1 = -d`, `k2 = d^2 / 2`, and
    `k3 = exp(d) - d - 1`, which is arXiv 2402.03300, Eq. 4. For tokens sampled from the policy k1 and k3 are unbiased;
    k2 and k3 are never negative.

    As terms of a loss, for tokens sampled from the policy, they differ: the gradient of k1 is that of logp, whose mean
    is 0, so it only adds noise; the gradient of k2 is `-d` times that of logp, whose mean is the gradient of
    KL(policy || reference), the right one on-policy; the gradient of k3 is `1 - exp(d)` times that of logp, whose mean
    is the gradient of the other direction, KL(reference || policy).

    Args:
        logp: [N], log-probabilities under the policy being trained.
        ref_logp: [N], under the reference model; never differentiated.
        mask: bool [N], the tokens that count.
        estimator: which estimate.

    Returns:
        [N] in nats, connected to `logp`; 0 and without gradient outside the mask.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not agree, or there is no such estimator.
    """
    check_tokens(mask, logp, ref_logp)
    difference = torch.where(mask, ref_logp.detach() - logp, 0.0)
    match estimator:
        case "k1":
            return -difference
        case "k2":
            return difference.square() / 2
        case "k3":
            return k3(difference.clamp(max=MAX_LOG_RATIO))
    raise ValueError(f"the estimator must be one of {get_args(Estimator)}, got {estimator!r}")
