"""The loss of one micro-batch: what `Policy.forward` calls with the LM head over the micro-batch's answer tokens."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forklight.algo.batch import Metrics, TokenBatch, TokenStats
from forklight.algo.config import AlgorithmConfig
from forklight.algo.denominators import micro_batch_factor
from forklight.algo.plan import eligible_rows
from forklight.algo.schedule import OldLogp, SelectAt
from forklight.algo.selection.spec import Term
from forklight.algo.terms import gradient_mask, loss_terms, term_weights, token_terms
from forklight.models.heads import Head
from forklight.training.passes import StatisticsPasses, check_finite
from forklight.training.select_tokens import TokenSelector
from forklight.training.state import RolloutState


class MicroBatchLoss:
    """A loss function for `Policy.forward`.

    Args:
        state: the rollout; the forward pass writes its statistics into `tokens` if no earlier pass has.
        number: of the micro-batch.
        passes: says which statistics are recorded.
        selector: makes the selection, if the forward pass has to.
        dtype: of statistics.
        shares: A times the ranks, by which Lightning and data parallelism divide the loss.
    """

    def __init__(
        self,
        state: RolloutState,
        number: int,
        passes: StatisticsPasses,
        selector: TokenSelector,
        *,
        dtype: torch.dtype,
        shares: int,
    ) -> None:
        self.config, self.state, self.number = state.config, state, number
        self.passes, self.selector = passes, selector
        self.dtype, self.shares = dtype, shares
        self.update = number // state.plan.micro_batches
        self.micro_batch = state.batch.micro_batch(state.plan.train[number])
        old_logp, correction = state.schedule.old_logp, self.config.correction.method
        own_old = old_logp is OldLogp.FORWARD
        # the weight of a sequence is a product over all its tokens, whose old log-probabilities this pass computes
        self.needs_all = state.schedule.forward_observes or (own_old and correction.startswith("sequence"))
        self.separable = self.config.objective.separable and not (own_old and correction != "none")
        # before the first update the policy is still the old one
        self.ratio_is_1 = own_old or (old_logp is OldLogp.PASS and self.update == 0)
        self.selects = state.schedule.select_at is SelectAt.FORWARD
        self.selected = None if self.selects else self._selected()

    def rows(self) -> Tensor | None:
        """The only tokens that the forward pass has to compute, int64 `[M]`; None: all of them."""
        return None if self.needs_all or self.selected is None else self._gradient_rows(self.selected)

    def __call__(self, head: Head) -> tuple[Tensor, Metrics]:
        """The micro-batch's share of the loss, `[]`, connected to the policy, and its metrics."""
        known, tokens = None, self.selected
        if head.covers_all or tokens is None or (self.needs_all and not gradient_mask(tokens, self.config).all()):
            known = head.all_stats()
            self._observe(known)
        if tokens is None:
            self.state.tokens = self.selector.select_micro_batch(self.state, self.number)
            tokens = self._selected()
        rows, scales = self._gradient_rows(tokens), {term: self._scale(term) for term in self.config.active}
        loss = None
        if known is None and self.separable and head.fuses:
            loss, stats = head.fused_loss(rows, self._rows_loss(tokens, rows, scales))
            # connected to itself, so that a gradient of tokens outside the mask is detected
            stats = replace(stats, logp=stats.logp.requires_grad_())
        else:
            stats = head.stats(rows, known)
        if known is None:
            self._observe(stats.detached(), rows)
        tokens = replace(tokens, logp=stats.logp, old_logp=self._old_logp(stats.logp.detach()), entropy=stats.entropy)
        terms = loss_terms(tokens, self.config, self._sampler_logp(), self._trainer_logp(stats.logp.detach()))
        if loss is None:
            loss = sum((value * scales[term] for term, value in terms.sums.items()), torch.zeros_like(stats.logp.sum()))
        sums, factor = terms.metrics.sums, self._factor()
        scaled = {f"{term}_loss_sum": sums[f"{term}_loss_sum"] * factor for term in terms.sums if self._masked(term)}
        return loss, Metrics(sums | scaled, terms.metrics.maxima)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _observe(self, stats: TokenStats, rows: Tensor | None = None) -> None:
        """Checks the statistics of some tokens, all if None; records those of all if this forward pass has to."""
        all_tokens = rows is None or self.needs_all
        check_finite(
            stats, self.micro_batch, self.state.batch, self.passes.ranks, rollout=self.state.rollout,
            tokens=slice(None) if all_tokens or rows is None else rows,
        )  # fmt: skip
        if self.state.schedule.forward_observes:
            self.state.tokens = self.passes.observed(self.state.tokens, self.micro_batch, stats)

    def _selected(self) -> TokenBatch:
        """The tokens after selection; statistics that the head has not computed yet are NaN."""
        batch, tokens, micro_batch = self.state.batch, self.state.tokens, self.micro_batch
        config, row = self.config, micro_batch.row
        unknown = torch.full((len(row),), torch.nan, dtype=self.dtype, device=row.device)
        return TokenBatch(
            logp=unknown,
            old_logp=self._old_logp(unknown),
            advantages=batch.advantages[micro_batch.rows].to(self.dtype)[row],
            fork_mask=micro_batch.read(tokens.fork_mask),
            eligible=eligible_rows(batch, config.selection)[micro_batch.rows][row],
            row=row,
            rows=len(micro_batch.rows),
            entropy=unknown,
            ref_logp=micro_batch.read(tokens.ref_logp) if config.reference_in_loss else None,
            cov_mask=None if config.objective.covariance is None else micro_batch.read(tokens.cov_mask),
        )

    def _gradient_rows(self, tokens: TokenBatch) -> Tensor:
        return gradient_mask(tokens, self.config).nonzero().flatten()

    def _sampler_logp(self) -> Tensor | None:
        sampler_logp = self.state.batch.sampler_logp
        return None if sampler_logp is None else self.micro_batch.read(sampler_logp)

    def _old_logp(self, logp: Tensor) -> Tensor:
        """The old log-probabilities of the ratio, `[N]`."""
        sampler_logp = self._sampler_logp() if self.state.schedule.old_logp is OldLogp.SAMPLER else None
        return self._trainer_logp(logp) if sampler_logp is None else sampler_logp.to(logp.dtype)

    def _trainer_logp(self, logp: Tensor) -> Tensor:
        """The trainer's log-probabilities of the policy that sampled, `[N]`, NaN where they are not known.

        At the first update they are those of this forward pass, where it has computed them.
        """
        if self.state.schedule.old_logp is OldLogp.FORWARD:
            return logp
        old_logp = self.micro_batch.read(self.state.tokens.old_logp).to(logp.dtype)
        return torch.where(logp.isnan(), old_logp, logp) if self.update == 0 else old_logp

    # -- what the sums are divided by ----------------------------------------------------------------------------------

    def _rows_loss(self, tokens: TokenBatch, rows: Tensor, scales: dict[Term, float]) -> "RowsLoss":
        weights = term_weights(tokens, self.config, self._sampler_logp())
        of_rows = {term: None if weight is None else weight[rows] for term, weight in weights.items()}
        return RowsLoss(self.config, tokens.at(rows), of_rows, scales, self.ratio_is_1)

    def _masked(self, term: Term) -> bool:
        return term == "policy" or term in self.config.selection.masked_terms

    def _scale(self, term: Term) -> float:
        """The factor of a term's sum: its coefficient times shares / denominator."""
        tokens, config = self.state.tokens, self.config
        coef = {"policy": 1.0, "kl": config.kl.coef, "entropy": -config.entropy_coef}[term]
        if self._masked(term):
            return coef * self._factor() * _inverse(tokens.denominator[self.update], self.shares)
        return coef * _inverse(tokens.unmasked_denominator[self.update], self.shares)

    def _factor(self) -> float:
        """The factor of masked sums with `denominator: micro_batch`; otherwise 1."""
        selection = self.config.selection
        if selection.denominator != "micro_batch":
            return 1.0
        rows = self.state.plan.ranked_rows(self.number)
        sequences = int(eligible_rows(self.state.batch, selection)[rows].sum())
        return micro_batch_factor(sequences, int(self.state.tokens.fork_mask[rows].sum()))


@dataclass(frozen=True)
class RowsLoss:
    """The loss of the M tokens with a gradient, for a separable objective, one tile of them at a time."""

    config: AlgorithmConfig
    tokens: TokenBatch  # of the M tokens, without statistics
    weights: dict[Term, Tensor | None]  # [M] of each term's sum; None where all are 1
    scales: dict[Term, float]
    """The factor of each term's sum."""
    ratio_is_1: bool
    """Whether the log-probabilities, detached, are the old ones."""

    def __call__(self, stats: TokenStats, part: slice) -> Tensor:
        """The loss of some of the tokens, `[m]`, from their statistics and their slice of the M."""
        tokens = self.tokens.at(part)
        old_logp = stats.logp.detach() if self.ratio_is_1 else tokens.old_logp
        tokens = replace(tokens, logp=stats.logp, old_logp=old_logp, entropy=stats.entropy)
        total = torch.zeros_like(stats.logp)
        for term, values in token_terms(tokens, self.config)[1].items():
            weights, scaled = self.weights[term], values * self.scales[term]
            total = total + (scaled if weights is None else scaled * weights[part].to(scaled.dtype))
        return total


def _inverse(denominator: Tensor, shares: int) -> float:
    """Shares / denominator; 0 for an update without tokens, whose loss is 0 anyway."""
    return shares / float(denominator) if denominator > 0 else 0.0
