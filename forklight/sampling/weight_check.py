"""Checks that sampler and trainer have the same weights: both must agree on the log-probabilities of fixed tokens."""

import logging
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from forklight.algo.batch import MicroBatch
from forklight.algo.noise import hash_bits
from forklight.distributed import Ranks
from forklight.errors import EngineError, WeightSyncError
from forklight.models.forward_check import HALF_TOLERANCE, TOLERANCE, half_precision, policy_logp
from forklight.models.policy import Policy
from forklight.models.weights import checksums
from forklight.sampling.base import Sampler, TakesWeights

log = logging.getLogger(__name__)

SEQUENCES, LENGTH = 2, 24
"""Size of the probe: long enough that every weight affects it, short enough to cost nothing compared with a rollout."""


class WeightSyncCheck:
    """Compares sampler and trainer after every sync.

    Answers sampled with other weights than the trained ones look like any other answers; only their ratios are wrong.
    For an engine that starts from random weights the first sync is the strictest test: a weight that does not arrive
    stays random.

    Args:
        tolerance: largest difference in log-probability that counts as rounding; None: `TOLERANCE`, or
            `HALF_TOLERANCE` where either side computes in half precision.
        ranks: the data-parallel group; all ranks stop together.
    """

    def __init__(self, tolerance: float | None, ranks: Ranks) -> None:
        self.tolerance = tolerance
        self.ranks = ranks
        self._warned = False

    @torch.no_grad()
    def sync(self, sampler: Sampler, policy: Policy) -> float | None:
        """Syncs the weights to the sampler and checks that they arrive; called in the Trainer's precision context.

        Args:
            sampler: receives the weights.
            policy: the trainer's.

        Returns:
            The largest difference in log-probability at temperature 1 on any rank, in nats; None if the sampler reports
            no log-probabilities.

        Raises:
            EngineError: on all ranks, if the sampler failed on one.
            WeightSyncError: on all ranks, if the difference is above the tolerance on one, or the ranks do not have
                the same weights.
        """
        self._check_replicas(policy)
        tokens = probe_tokens(len(policy.head_weight))
        sampler_logp, failure = None, None
        try:
            sampler.sync(policy)
            sampler_logp = sampler.logprobs(tokens.tolist())
        except EngineError as error:
            failure = error
        if self.ranks.any(failure is not None):
            raise failure or EngineError("the sampler of another rank could not take the policy's weights")
        if sampler_logp is None:
            self._warn(sampler)
            return None
        found = _Difference.of(torch.tensor(sampler_logp, dtype=torch.float64), _trainer_logp(policy, tokens))
        largest = float(self.ranks.maximum(torch.tensor(found.largest, dtype=torch.float64)))
        tolerance = self.tolerance or (
            HALF_TOLERANCE if sampler.half_precision or half_precision(policy) else TOLERANCE
        )
        if largest <= tolerance:
            return largest
        if found.largest <= tolerance:
            where = f"on another rank; here the largest difference is {found.largest:.2g}"
        else:
            where = found.describe(type(sampler).__name__)
        raise WeightSyncError(
            f"the sampler does not have the trainer's weights: {where}; "
            f"model.rollout.weight_sync_tolerance = {tolerance:g}. "
            + _diagnosis(sampler, policy, tokens, found.sampler, tolerance)
        )

    def _check_replicas(self, policy: Policy) -> None:
        """Refuses ranks whose copies of the policy have drifted apart; in shards there is one copy."""
        weights = dict(policy.model.named_parameters())
        if self.ranks.size == 1 or any(isinstance(weight, DTensor) for weight in weights.values()):
            return
        mine = checksums(policy.model)
        apart = self.ranks.maximum(mine) != ~self.ranks.maximum(~mine)  # ~ turns the order of whole numbers round
        if not apart.any():
            return
        first = next(name for name, differs in zip(weights, apart.tolist(), strict=True) if differs)
        raise WeightSyncError(
            f"the {self.ranks.size} ranks do not have the same weights: {int(apart.sum())} of {len(weights)} differ, "
            f"the first is {first}. Gradients are not summed over the ranks (trainer.strategy), or something changes "
            "weights on one rank"
        )

    def _warn(self, sampler: Sampler) -> None:
        if not self._warned:
            log.warning(
                "%s gives no log-probabilities: whether it has the policy's weights is not checked",
                type(sampler).__name__,
            )
        self._warned = True


class _Difference(NamedTuple):
    """Log-probabilities of sampler and trainer and their absolute differences, `[SEQUENCES, LENGTH - 1]` each."""

    sampler: Tensor
    trainer: Tensor
    size: Tensor

    @classmethod
    def of(cls, sampler: Tensor, trainer: Tensor) -> "_Difference":
        size = (sampler - trainer).abs().nan_to_num(torch.inf)
        # if the policy's own numbers are not finite, the rollout stops the run and names the place
        return cls(sampler, trainer, size.where(trainer.isfinite(), 0.0))

    @property
    def largest(self) -> float:
        return float(self.size.max())

    def describe(self, name: str) -> str:
        """The worst token's log-probabilities, the largest and the mean difference, for a message."""
        worst = int(self.size.argmax())
        return (
            f"{name} gives token {worst} of the probe log-probability {float(self.sampler.flatten()[worst]):.4f}, the "
            f"trainer {float(self.trainer.flatten()[worst]):.4f}; of {self.size.numel()} differences the largest is "
            f"{self.largest:.4g}, the mean {float(self.size.mean()):.4g}"
        )


def probe_tokens(vocabulary: int) -> Tensor:
    """The probe: int64 `[SEQUENCES, LENGTH]`, spread over the vocabulary, always the same.

    Args:
        vocabulary: V.
    """
    return hash_bits(torch.arange(SEQUENCES)[:, None], torch.arange(LENGTH)).remainder(vocabulary)


def _trainer_logp(policy: Policy, tokens: Tensor) -> Tensor:
    """The trainer's log-probabilities, computed by the same path as statistics and losses."""
    rows = torch.arange(SEQUENCES, device=policy.head_weight.device)
    micro_batch = MicroBatch(
        input_ids=tokens.to(rows.device),
        prompt_length=torch.ones_like(rows),
        answer_mask=torch.ones(SEQUENCES, LENGTH - 1, dtype=torch.bool, device=rows.device),
        rows=rows,
        problem_index=rows,
    )
    return policy_logp(policy, micro_batch).view(SEQUENCES, LENGTH - 1)


# -- which weights are missing -----------------------------------------------------------------------------------------


def _diagnosis(sampler: Sampler, policy: Policy, tokens: Tensor, sampler_logp: Tensor, tolerance: float) -> str:
    """One sentence on which weights are wrong, or what else is."""
    if policy.packing:
        policy.packing = False
        unpacked = _Difference.of(sampler_logp, _trainer_logp(policy, tokens)).largest
        policy.packing = True
        if unpacked <= tolerance:
            return (
                f"Without packed rows they agree to {unpacked:.2g}: it is the trainer that is wrong, set "
                "model.policy.packing = false"
            )
    if not isinstance(sampler, TakesWeights):
        return (
            "The sampler shares the trainer's weights: adapters with dropout, or layers that depend on training mode, "
            "cause this"
        )
    missing = list(_ignored_kinds(sampler, policy, tokens.tolist()))
    if missing:
        return f"These weights do not arrive, pushing other values for them changes nothing: {', '.join(missing)}"
    return "Every kind of weight arrives: the sampler computes another function of them, or in another precision"


def _ignored_kinds(sampler: TakesWeights, policy: Policy, tokens: Sequence[Sequence[int]]) -> Iterator[str]:
    """Weights, by name without the layer's number, whose change does not change the sampler's log-probabilities."""
    assert isinstance(sampler, Sampler)
    names = [name for name, _ in sampler.weights(policy)]
    sampler.push(sampler.weights(policy))
    before = sampler.logprobs(tokens)
    for kind in dict.fromkeys(map(_kind, names)):
        changed = (
            (name, weight * 1.5 + 0.05 if _kind(name) == kind else weight) for name, weight in sampler.weights(policy)
        )
        sampler.push(changed)
        if sampler.logprobs(tokens) == before:
            yield kind


def _kind(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)
