"""The loss terms of one micro-batch, as sums over its tokens, and the metrics for its curves."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from forklight.algo.batch import Metrics, TokenBatch, TokenLoss
from forklight.algo.config import AlgorithmConfig
from forklight.algo.correction import correction_weights, mismatch_metrics
from forklight.algo.denominators import row_weights
from forklight.algo.kl import kl_estimate
from forklight.algo.objectives.base import Objective
from forklight.algo.ratios import ratio_metrics
from forklight.algo.selection.spec import Term


class LossTerms(NamedTuple):
    """The terms of a micro-batch: sums, never means; the caller divides each by one explicit denominator."""

    sums: dict[Term, Tensor]
    """[] each, connected to the log-probabilities even if no token counts."""
    metrics: Metrics
    """Of the loss terms, of the kept tokens (`kept_`), and of the eligible tokens that were not kept (`dropped_`)."""


def loss_terms(
    tokens: TokenBatch, config: AlgorithmConfig, sampler_logp: Tensor | None, trainer_logp: Tensor
) -> LossTerms:
    """Policy, KL and entropy terms of a micro-batch, as weighted sums over its tokens.

    A term that `selection.masked_terms` names is summed over the kept tokens; others over all answer tokens.

    Args:
        tokens: of the micro-batch; `entropy` is connected where there is an entropy bonus.
        config: which terms there are.
        sampler_logp: [N], the sampler's log-probabilities; None if it reports none. A correction needs them.
        trainer_logp: [N], the trainer's log-probabilities under the policy that sampled, with which the sampler's are
            compared; NaN where they are not known.

    Raises:
        ValueError: a correction without the sampler's log-probabilities.
    """
    policy, values = token_terms(tokens, config)
    weights = term_weights(tokens, config, sampler_logp)
    sums = {term: _weighted_sum(found, weights[term]) for term, found in values.items()}
    counts = {f"{term}_loss_sum": value.detach().double() for term, value in sums.items()}
    counts["leaked"] = _leaked(policy.loss, tokens, config.objective)
    if tokens.cov_mask is not None:
        counts["cov_tokens"] = (tokens.cov_mask & tokens.fork_mask).sum(dtype=torch.float64)
    metrics = Metrics(counts, {})
    for name, mask in (("kept", tokens.fork_mask), ("dropped", tokens.eligible & ~tokens.fork_mask)):
        # the log-probability of a token that did not go through the head is NaN
        found = ratio_metrics(tokens, policy, mask & ~tokens.logp.isnan())
        metrics = metrics.and_also(found.named(f"{name}_"))
        if sampler_logp is not None:
            found = mismatch_metrics(trainer_logp, sampler_logp, mask & ~trainer_logp.isnan())
            metrics = metrics.and_also(found.named(f"{name}_mismatch_"))
    return LossTerms(sums, metrics)


def token_terms(tokens: TokenBatch, config: AlgorithmConfig) -> tuple[TokenLoss, dict[Term, Tensor]]:
    """The policy loss of every token, and the values of all terms `[N]`, 0 where they do not count."""
    policy = config.objective.token_loss(tokens)
    return policy, {"policy": policy.loss, **dict(_terms_beside(tokens, config))}


def term_weights(
    tokens: TokenBatch, config: AlgorithmConfig, sampler_logp: Tensor | None = None
) -> dict[Term, Tensor | None]:
    """The weight of every token in the sum of each term, `[N]`; None where all are 1.

    The log-probabilities of the policy being trained are not read, except as old ones.

    Args:
        tokens: all of the micro-batch.
        config: which terms there are.
        sampler_logp: [N], the sampler's log-probabilities; needed by a correction.

    Raises:
        ValueError: a correction without the sampler's log-probabilities.
    """
    weights = {
        term: row_weights(_counted(term, tokens, config), tokens.row, tokens.rows, config.objective.aggregate)
        for term in config.active
    }
    if config.correction.method != "none":
        if sampler_logp is None:
            raise ValueError(
                f"model.correction.method: {config.correction.method} needs the log-probabilities of the sampler, "
                "which does not give any"
            )
        corrections = correction_weights(tokens.old_logp, sampler_logp, tokens.row, tokens.rows, config.correction)
        # NaN where the old log-probability is not known
        corrections = torch.where(config.objective.trained(tokens), corrections, 0)
        by_row = weights["policy"]
        weights["policy"] = corrections if by_row is None else by_row * corrections
    return weights


def gradient_mask(tokens: TokenBatch, config: AlgorithmConfig) -> Tensor:
    """The tokens whose log-probability or entropy some term gives a gradient, bool `[N]`."""
    mask = config.objective.trained(tokens)
    for term in config.active:
        if term != "policy":
            mask = mask | (tokens.fork_mask if term in config.selection.masked_terms else torch.ones_like(mask))
    return mask


def _leaked(values: Tensor, tokens: TokenBatch, objective: Objective) -> Tensor:
    """Number of tokens outside the mask that have a loss or a gradient nevertheless."""
    found = values.detach() != 0
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), tokens.logp, retain_graph=True, allow_unused=True)
        found = found if gradient is None else found | (gradient != 0)
    return (found & ~objective.trained(tokens)).sum(dtype=torch.float64)


def _terms_beside(tokens: TokenBatch, config: AlgorithmConfig) -> Iterator[tuple[Term, Tensor]]:
    """Token values of the KL term and the entropy bonus, 0 where they do not count."""
    everything = torch.ones_like(tokens.fork_mask)
    if "kl" in config.active:
        mask = tokens.fork_mask if "kl" in config.selection.masked_terms else everything
        yield "kl", kl_estimate(tokens.logp, _needed(tokens.ref_logp, "ref_logp"), mask, config.kl.estimator)
    if "entropy" in config.active:
        mask = tokens.fork_mask if "entropy" in config.selection.masked_terms else everything
        yield "entropy", torch.where(mask, _needed(tokens.entropy, "entropy"), 0.0)


def _needed(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise ValueError(f"a term of the loss needs the {name} of the tokens")
    return values


def _counted(term: Term, tokens: TokenBatch, config: AlgorithmConfig) -> Tensor:
    """The tokens counted in the denominator of a sequence's mean."""
    if term not in config.selection.masked_terms:
        return torch.ones_like(tokens.fork_mask)
    return tokens.fork_mask if config.selection.denominator == "selected" else tokens.eligible


def _weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.sum() if weights is None else (values * weights.to(values.dtype)).sum()
