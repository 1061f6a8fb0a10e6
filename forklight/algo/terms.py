"""The loss terms of one visit, as sums over its tokens, and the sums that its curves are made of."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from forklight.algo.correction import Correction, correction_weights, mismatch_metrics
from forklight.algo.denominators import counted, row_weights
from forklight.algo.kl import KLTerm, kl_estimate
from forklight.algo.losses import ratio_metrics
from forklight.algo.objective import Objective
from forklight.algo.objectives import Dapo, Gspo
from forklight.algo.plan import Others, Passes
from forklight.algo.spec import ForkSelection, Term
from forklight.algo.types import LossOutput, TokenBatch, TokenLoss

OldLogpFrom = Literal["trainer", "sampler"]


@dataclass(frozen=True)
class Loss:
    """Everything that the loss of a visit is made of."""

    selection: ForkSelection = field(default_factory=ForkSelection)
    """Which tokens carry gradient."""
    objective: Objective = field(default_factory=Dapo)
    """The policy term."""
    kl: KLTerm = field(default_factory=KLTerm)
    """The KL term, in the loss if its coefficient is above 0 and it is not taken from the reward."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus: what is added to the objective per nat of mean entropy."""
    correction: Correction = field(default_factory=Correction)
    """Weights against a mismatch of sampler and trainer."""
    old_logp_from: OldLogpFrom = "trainer"
    """The old log-probabilities of the ratio: the trainer's, of the policy that starts the rollout's updates, or those
    that the sampler drew the tokens with. With the latter no pass has to find them, the first ratio is
    trainer / sampler, and the range acts on the product of that and what updates have changed."""

    def __post_init__(self) -> None:
        if self.old_logp_from not in get_args(OldLogpFrom):
            raise ValueError(f"model.old_logp_from must be one of {get_args(OldLogpFrom)}, got {self.old_logp_from!r}")
        if self.old_logp_from == "sampler" and self.correction.method != "none":
            raise ValueError(
                f"model.correction.method: {self.correction.method} weighs by trainer / sampler, which "
                "model.old_logp_from: sampler has in the ratio already: leave one of them out"
            )
        if not 0 <= self.entropy_coef < float("inf"):
            raise ValueError(f"model.entropy_coef must be a finite number >= 0, got {self.entropy_coef}")
        s, o = self.selection, self.objective
        if s.denominator == "micro_batch" and o.aggregate != "token":
            raise ValueError(
                f"selection.denominator: micro_batch divides by tokens, {type(o).__name__} by sequences: use selected"
            )
        if o.trains == "eligible" and s.denominator != "answer":
            raise ValueError(
                f"{type(o).__name__} trains forking and other tokens; selection.denominator must be answer, not "
                f"{s.denominator}"
            )
        if s.keep == "covariance" and s.scope == "sequence":
            raise ValueError(
                "selection.keep: covariance needs a scope of several answers: inside one all advantages are equal"
            )
        if isinstance(o, Gspo) and s.denominator == "answer":
            raise ValueError(
                f"{type(o).__name__} averages over a sequence's kept tokens: selection.denominator must be selected"
            )
        if "kl" in s.terms and not self.kl_in_loss:
            raise ValueError("selection.terms has kl, but model.kl puts no KL term into the loss")
        if self.kl.placement == "reward" and self.kl.coef == 0:
            raise ValueError("model.kl.placement: reward needs model.kl.coef above 0")
        if self.kl.refresh_every_rollouts and not self.needs_reference:
            raise ValueError(
                f"model.kl.refresh_every_rollouts = {self.kl.refresh_every_rollouts}, but nothing compares with the "
                "reference: model.kl.coef is 0"
            )

    @property
    def kl_in_loss(self) -> bool:
        """True if the loss has a KL term of its own."""
        return self.kl.coef > 0 and self.kl.placement == "loss"

    @property
    def kl_in_reward(self) -> bool:
        """True if the KL is taken from the rewards."""
        return self.kl.coef > 0 and self.kl.placement == "reward"

    @property
    def reference_in_loss(self) -> bool:
        """True if the loss compares with the reference model."""
        return self.kl_in_loss or self.objective.needs_reference

    @property
    def needs_reference(self) -> bool:
        """True if the loss or the reward compares with the reference model."""
        return self.kl.coef > 0 or self.objective.needs_reference

    @property
    def active(self) -> tuple[Term, ...]:
        """The terms that the loss has."""
        others: tuple[tuple[Term, bool], ...] = (("kl", self.kl_in_loss), ("entropy", self.entropy_coef > 0))
        return ("policy", *(name for name, used in others if used))

    @property
    def ranked(self) -> bool:
        """True if some tokens are chosen by what only the policy knows."""
        return self.selection.ranked or self.objective.covariance is not None

    @property
    def others(self) -> Others:
        """The sequences to which terms other than the policy's advantages give a gradient."""
        active = set(self.active[1:])
        if active - set(self.selection.terms):
            return "all"
        return "eligible" if active or self.objective.trains_zero_advantage else "none"

    def passes(self, updates: int, micro_batches: int) -> Passes:
        """The passes of a rollout of K updates of A micro-batches.

        Raises:
            ValueError: the selection contradicts K.
        """
        known = counted(self.selection, self.objective.aggregate, updates=updates)
        if self.objective.covariance is not None and self.selection.scope == "sequence":
            known = False  # sequences are ranked alone, but covariances are about the mean of the whole update
        return Passes.of(
            self.selection,
            updates=updates,
            micro_batches=micro_batches,
            ranked=self.ranked,
            counted=known,
            old_from_sampler=self.old_logp_from == "sampler",
        )


def loss_terms(tokens: TokenBatch, loss: Loss, sampler_logp: Tensor | None, trainer_logp: Tensor) -> LossOutput:
    """Policy, KL and entropy terms of a visit, as weighted sums over its tokens.

    A term that `selection.terms` names is summed over the kept tokens; others over all answer tokens.

    Args:
        tokens: of the visit; `entropy` is connected where there is an entropy bonus.
        loss: what the terms are.
        sampler_logp: [N], that the sampler drew the tokens with, if it told; needed by a correction.
        trainer_logp: [N], the trainer's of the same policy, NaN where it is not known: what the sampler's is compared
            with.

    Returns:
        The sums, scalars connected to the log-probabilities also when no token counts, and detached float64 metrics.
        Those whose names end in `_max` combine by maximum, the others add up over micro-batches and ranks; each is
        given for `kept_` tokens and for `dropped_` ones, which could have been kept.

    Raises:
        ValueError: a correction without the sampler's log-probabilities.
    """
    policy, values = token_terms(tokens, loss)
    weights = term_weights(tokens, loss, sampler_logp)
    sums = {term: _weighted_sum(found, weights[term]) for term, found in values.items()}
    metrics = {f"{term}_loss_sum": value.detach().double() for term, value in sums.items()}
    metrics["leaked"] = _leaked(policy.loss, tokens, loss.objective)
    if tokens.cov_mask is not None:
        metrics["cov_tokens"] = (tokens.cov_mask & tokens.fork_mask).sum(dtype=torch.float64)
    # the log-probability of a token that nobody looked at is NaN
    for name, mask in (("kept", tokens.fork_mask), ("dropped", tokens.eligible & ~tokens.fork_mask)):
        metrics |= {
            f"{name}_{key}": value for key, value in ratio_metrics(tokens, policy, seen(mask, tokens.logp)).items()
        }
        if sampler_logp is not None:
            found = mismatch_metrics(trainer_logp, sampler_logp, seen(mask, trainer_logp))
            metrics |= {f"{name}_mismatch_{key}": value for key, value in found.items()}
    return LossOutput(sums["policy"], sums.get("kl"), sums.get("entropy"), metrics)


def token_terms(tokens: TokenBatch, loss: Loss) -> tuple[TokenLoss, dict[Term, Tensor]]:
    """The policy loss of every token, and the values of all terms `[N]`, 0 where they do not count."""
    policy = loss.objective.token_loss(tokens)
    return policy, {"policy": policy.loss, **dict(_other_terms(tokens, loss))}


def term_weights(tokens: TokenBatch, loss: Loss, sampler_logp: Tensor | None = None) -> dict[Term, Tensor | None]:
    """The weight of every token in the sum of each term, `[N]`; None where all are 1.

    The log-probabilities of the policy being trained are not read, but as old ones.

    Args:
        tokens: all of the visit.
        loss: what the terms are.
        sampler_logp: [N], that the sampler drew the tokens with; needed by a correction.

    Raises:
        ValueError: a correction without the sampler's log-probabilities.
    """
    weights = {
        term: row_weights(_counted(term, tokens, loss), tokens.row, tokens.rows, loss.objective.aggregate)
        for term in loss.active
    }
    if loss.correction.method != "none":
        if sampler_logp is None:
            raise ValueError(
                f"model.correction.method: {loss.correction.method} needs the log-probabilities of the sampler, which "
                "this one does not tell"
            )
        corrections = correction_weights(tokens.old_logp, sampler_logp, tokens.row, tokens.rows, loss.correction)
        corrections = torch.where(loss.objective.trained(tokens), corrections, 0)  # NaN where nobody looked
        by_row = weights["policy"]
        weights["policy"] = corrections if by_row is None else by_row * corrections
    return weights


def read_mask(tokens: TokenBatch, loss: Loss) -> Tensor:
    """The tokens whose log-probability or entropy some term gives a gradient, bool `[N]`."""
    mask = loss.objective.trained(tokens)
    for term in loss.active:
        if term != "policy":
            mask = mask | (tokens.fork_mask if term in loss.selection.terms else torch.ones_like(mask))
    return mask


def _leaked(values: Tensor, tokens: TokenBatch, objective: Objective) -> Tensor:
    """Number of tokens outside of the mask that have a loss or a gradient all the same."""
    found = values.detach() != 0
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), tokens.logp, retain_graph=True, allow_unused=True)
        found = found if gradient is None else found | (gradient != 0)
    return (found & ~objective.trained(tokens)).sum(dtype=torch.float64)


def _other_terms(tokens: TokenBatch, loss: Loss) -> Iterator[tuple[Term, Tensor]]:
    """Token values of the KL and the entropy, 0 where they do not count."""
    everything = torch.ones_like(tokens.fork_mask)
    if "kl" in loss.active:
        assert tokens.ref_logp is not None
        mask = tokens.fork_mask if "kl" in loss.selection.terms else everything
        yield "kl", kl_estimate(tokens.logp, tokens.ref_logp, mask, loss.kl.estimator)
    if "entropy" in loss.active:
        assert tokens.entropy is not None
        mask = tokens.fork_mask if "entropy" in loss.selection.terms else everything
        yield "entropy", torch.where(mask, tokens.entropy, 0.0)


def _counted(term: Term, tokens: TokenBatch, loss: Loss) -> Tensor:
    """The tokens that a sequence's mean is divided by."""
    if term not in loss.selection.terms:
        return torch.ones_like(tokens.fork_mask)
    return tokens.fork_mask if loss.selection.denominator == "selected" else tokens.eligible


def _weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.sum() if weights is None else (values * weights.to(values.dtype)).sum()


def seen(mask: Tensor, logp: Tensor) -> Tensor:
    """The tokens of a mask that were looked at: the log-probability of others is NaN."""
    return mask & ~logp.isnan()
