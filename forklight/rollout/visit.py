"""The loss of one visit, as the head asks for it: rows, then token by token or in sum."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from forklight.algo.denominators import visit_factor
from forklight.algo.plan import eligible_rows
from forklight.algo.spec import Term
from forklight.algo.terms import Loss, loss_terms, read_mask, term_weights, token_terms
from forklight.algo.types import Chunk, TokenBatch, TokenStats
from forklight.models.heads import VisitOutput
from forklight.rollout.lesson import Lesson
from forklight.rollout.statistics import Statistics, keep


class Visit:
    """A visit's tokens and what they contribute: a `forklight.models.heads.VisitLoss`.

    Args:
        lesson: the rollout.
        number: the visit's.
        settings: what the loss is made of.
        statistics: checks numbers, and stops all ranks at one that is not finite.
        choose: makes the selection, where the visit makes it itself.
        shares: A times the ranks, by which Lightning and data parallelism divide the loss.
    """

    def __init__(
        self,
        lesson: Lesson,
        number: int,
        settings: Loss,
        statistics: Statistics,
        choose: Callable[[], None],
        shares: int,
    ) -> None:
        self.lesson = lesson
        self.number = number
        self.settings = settings
        self.statistics = statistics
        self.choose = choose
        self.shares = shares
        self.chunk: Chunk = lesson.experience.chunk(lesson.plan.train[number])
        passes, correction = lesson.passes, settings.correction.method
        by_sequence = passes.fold_old and correction.startswith("sequence")
        self.wants_all = passes.forward_sees or by_sequence
        self.separable = settings.objective.separable and not (passes.fold_old and correction != "none")
        self.first = number < lesson.plan.micro_batches
        """Before the first update the policy is still the old one."""
        self._checked = False

    # -- what the head calls -------------------------------------------------------------------------------------------

    def rows(self) -> Tensor | None:
        """The tokens that some term gives a gradient; None before a selection that the visit makes itself."""
        if self.lesson.passes.select_in_forward and not self._checked:
            return None
        return self._read

    def see(self, stats: TokenStats) -> None:
        """Checks and keeps the statistics of all tokens, and makes the selection if it is made here."""
        self._check(stats, slice(None))
        if self.lesson.passes.forward_sees:
            keep(self.lesson.experience, self.chunk, stats)
        if self.lesson.passes.select_in_forward:
            with torch.no_grad():
                self.choose()

    def token_loss(self, stats: TokenStats, rows: Tensor) -> Tensor:
        """What some tokens contribute, in a loss that is separable."""
        passes = self.lesson.passes
        own = passes.fold_old or (self.first and not passes.old_from_sampler)
        some = self._tokens.part(rows, stats, fold_old=own)
        total = torch.zeros_like(stats.logp)
        for term, values in token_terms(some, self.settings)[1].items():
            weights = self._weights[term]
            scaled = values * self._scale(term)
            total = total + (scaled if weights is None else scaled * weights[rows].to(scaled.dtype))
        return total

    def total(self, stats: TokenStats) -> VisitOutput:
        """The visit's loss, such that accumulation and data parallelism give the update's, and its metrics."""
        if not self._checked:
            rows = self.rows()
            assert rows is not None
            self._check(stats, rows)
        tokens = self._with(stats)
        out = loss_terms(tokens, self.settings, self._sampler_logp, self._trainer_logp(stats.logp.detach()))
        sums: dict[Term, Tensor | None] = {"policy": out.policy_sum, "kl": out.kl_sum, "entropy": out.entropy_sum}
        total = torch.zeros_like(out.policy_sum)
        for term, value in sums.items():
            if value is not None:
                total = total + value * self._scale(term)
                out.metrics[f"{term}_loss_sum"] *= self._factor if self._masked(term) else 1.0
        return VisitOutput(total, out.metrics)

    # -- what it is made of --------------------------------------------------------------------------------------------

    def _check(self, stats: TokenStats, tokens: Tensor | slice) -> None:
        self._checked = True
        self.statistics.check(self.lesson, self.chunk, stats, tokens)

    @property
    def _sampler_logp(self) -> Tensor | None:
        sampler_logp = self.lesson.experience.sampler_logp
        return None if sampler_logp is None else self.chunk.read(sampler_logp)

    @cached_property
    def _read(self) -> Tensor:
        return read_mask(self._tokens, self.settings).nonzero().flatten()

    @cached_property
    def _weights(self) -> dict[Term, Tensor | None]:
        return term_weights(self._tokens, self.settings, self._sampler_logp)

    @cached_property
    def _tokens(self) -> TokenBatch:
        """The tokens, once the selection is made, before the loss looks at them: statistics are NaN."""
        nan = torch.full((len(self.chunk.row),), torch.nan, device=self.chunk.rows.device)
        nan = nan.to(there(self.lesson.experience.entropy).dtype)
        return self._with(TokenStats(nan, nan))

    def _with(self, stats: TokenStats) -> TokenBatch:
        x, chunk = self.lesson.experience, self.chunk
        per_row = x.advantages[chunk.rows].to(stats.logp.dtype)
        return TokenBatch(
            logp=stats.logp,
            old_logp=self._old_logp(stats.logp.detach()),
            advantages=per_row[chunk.row],
            fork_mask=chunk.read(there(x.fork_mask)),
            eligible=eligible_rows(x, self.settings.selection)[chunk.rows][chunk.row],
            row=chunk.row,
            rows=len(chunk.rows),
            entropy=stats.entropy,
            ref_logp=None if x.ref_logp is None else chunk.read(x.ref_logp),
            cov_mask=None if x.cov_mask is None else chunk.read(x.cov_mask),
        )

    def _old_logp(self, logp: Tensor) -> Tensor:
        """What the ratio compares with."""
        if self.lesson.passes.old_from_sampler:
            return there(self._sampler_logp).to(logp.dtype)
        return self._trainer_logp(logp)

    def _trainer_logp(self, logp: Tensor) -> Tensor:
        """Of the policy that sampled, NaN where it is not known.

        At the first update the log-probabilities of the pass before are these, but for products of other rows.
        """
        if self.lesson.passes.fold_old:
            return logp
        old_logp = self.chunk.read(there(self.lesson.experience.old_logp))
        return torch.where(logp.isnan(), old_logp, logp) if self.first else old_logp

    def _masked(self, term: Term) -> bool:
        return term == "policy" or term in self.settings.selection.terms

    def _scale(self, term: Term) -> float:
        """What the sum of a term is multiplied by: its coefficient and shares / denominator."""
        x, update = self.lesson.experience, self.number // self.lesson.plan.micro_batches
        coef = {"policy": 1.0, "kl": self.settings.kl.coef, "entropy": -self.settings.entropy_coef}[term]
        if self._masked(term):
            return coef * self._factor * _inverse(there(x.denominator)[update], self.shares)
        return coef * _inverse(there(x.whole)[update], self.shares)

    @property
    def _factor(self) -> float:
        """What `denominator: micro_batch` makes of masked sums."""
        selection = self.settings.selection
        if selection.denominator != "micro_batch":
            return 1.0
        x, rows = self.lesson.experience, self.lesson.plan.looked_at(self.number)
        sequences = int(eligible_rows(x, selection)[rows].sum())
        return visit_factor(sequences, int(there(x.fork_mask)[rows].sum()))


def there(values: Tensor | None) -> Tensor:
    """A tensor that an earlier part of the step has put there."""
    assert values is not None
    return values


def _inverse(denominator: Tensor, shares: int) -> float:
    """Shares / denominator; 0 for an update without a single token, whose loss is 0 already."""
    return shares / float(denominator) if denominator > 0 else 0.0
