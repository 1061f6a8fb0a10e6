"""Have the trainer's weights arrived at the sampler? Fixed tokens whose log-probabilities both must agree on."""

import logging
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from forklight.algo.noise import hash_bits
from forklight.algo.types import Chunk, TokenStats
from forklight.models.policy import Policy
from forklight.rollout.ranks import Ranks
from forklight.rollout.sampler import EngineError, Sampler, TakesWeights

log = logging.getLogger(__name__)

SEQUENCES, LENGTH = 2, 24
"""Of the probe: long enough that every weight has a part in it, short enough to cost nothing beside a rollout."""

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.5
"""In nats: rounding of other kernels stays below 1e-4 in single precision, and below a tenth or two in half."""


class ArrivalError(RuntimeError):
    """The sampler does not compute with the trainer's weights."""


class ArrivalProbe:
    """Compares sampler and trainer after every sync.

    Answers that were drawn with other weights than those that are trained look like any other answers; only their
    ratios are wrong. An engine that starts from random weights is tested by its first sync most of all: whatever does
    not arrive stays random.

    Args:
        tolerance: largest difference in log-probability that is taken for rounding; None: `TOLERANCE`, or
            `HALF_TOLERANCE` where either side computes in half precision.
        ranks: the data-parallel group; all ranks stop together.
    """

    def __init__(self, tolerance: float | None, ranks: Ranks) -> None:
        self.tolerance = tolerance
        self.ranks = ranks
        self._warned = False

    @torch.no_grad()
    def sync(self, sampler: Sampler, policy: Policy) -> float | None:
        """Hands the weights to the sampler, and sees that they arrive; in the Trainer's precision context.

        Args:
            sampler: takes them over.
            policy: the trainer's.

        Returns:
            The largest difference in log-probability at temperature 1 on any rank, in nats; None if the sampler cannot
            tell log-probabilities.

        Raises:
            EngineError: on all ranks, if the sampler failed on one.
            ArrivalError: on all ranks, if the difference is above the tolerance on one.
        """
        tokens = probe_tokens(len(policy.head_weight))
        told, failure = None, None
        try:
            sampler.sync(policy)
            told = sampler.logprobs(tokens.tolist())
        except EngineError as error:
            failure = error
        if self.ranks.any(failure is not None):
            raise failure or EngineError("the sampler of another rank could not take the policy's weights")
        if told is None:
            self._warn(sampler)
            return None
        found = _Difference.of(torch.tensor(told, dtype=torch.float64), _trainer_logp(policy, tokens))
        largest = float(self.ranks.maximum(torch.tensor(found.largest, dtype=torch.float64)))
        tolerance = self.tolerance or (HALF_TOLERANCE if sampler.half_precision or _half(policy) else TOLERANCE)
        if largest <= tolerance:
            return largest
        if found.largest <= tolerance:
            story = f"on another rank; here the largest difference is {found.largest:.2g}"
        else:
            story = found.story(type(sampler).__name__)
        raise ArrivalError(
            f"the sampler does not have the trainer's weights: {story}; model.rollout.probe_tolerance = {tolerance:g}. "
            + _diagnosis(sampler, policy, tokens)
        )

    def _warn(self, sampler: Sampler) -> None:
        if not self._warned:
            log.warning("%s tells no log-probabilities: nobody sees whether weights arrive", type(sampler).__name__)
        self._warned = True


class _Difference(NamedTuple):
    """Between sampler and trainer, `[SEQUENCES, LENGTH - 1]` values."""

    sampler: Tensor
    trainer: Tensor
    size: Tensor

    @classmethod
    def of(cls, sampler: Tensor, trainer: Tensor) -> "_Difference":
        size = (sampler - trainer).abs().nan_to_num(torch.inf)
        # a policy whose numbers are not finite is stopped by the rollout, which can show where
        return cls(sampler, trainer, size.where(trainer.isfinite(), 0.0))

    @property
    def largest(self) -> float:
        return float(self.size.max())

    def story(self, name: str) -> str:
        """Numbers of the worst token and of all."""
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
    """What the trainer's own forward says, by the path that statistics and losses take."""
    rows = torch.arange(SEQUENCES, device=policy.head_weight.device)
    chunk = Chunk(
        input_ids=tokens.to(rows.device),
        prompt_length=torch.ones_like(rows),
        answer_mask=torch.ones(SEQUENCES, LENGTH - 1, dtype=torch.bool, device=rows.device),
        rows=rows,
        group=rows,
    )
    counted = dict(policy.work)
    stats = policy(chunk, 1.0)
    policy.work = counted  # no part of a step's work
    assert isinstance(stats, TokenStats)
    return stats.logp.double().cpu().view(SEQUENCES, LENGTH - 1)


def _half(policy: Policy) -> bool:
    weight = policy.head_weight
    return weight.dtype.itemsize < 4 or torch.is_autocast_enabled(weight.device.type)


# -- what has not arrived ----------------------------------------------------------------------------------------------


def _diagnosis(sampler: Sampler, policy: Policy, tokens: Tensor) -> str:
    """One sentence on which weights are to blame."""
    if not isinstance(sampler, TakesWeights):
        return "The sampler shares the trainer's weights: adapters with dropout, or layers that act by mode, do this"
    missing = list(_ignored_kinds(sampler, policy, tokens.tolist()))
    if missing:
        return f"These weights do not arrive, what is pushed for them changes nothing: {', '.join(missing)}"
    return "Every kind of weight arrives: the sampler computes another function of them, or in another precision"


def _ignored_kinds(sampler: TakesWeights, policy: Policy, tokens: Sequence[Sequence[int]]) -> Iterator[str]:
    """Weights, by name without the layer's number, whose change the sampler does not notice."""
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
