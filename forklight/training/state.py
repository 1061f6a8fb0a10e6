"""A rollout in training: the sampled batch, the plan of its micro-batches, and the state of its tokens."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from forklight.algo.batch import RolloutBatch
from forklight.algo.config import AlgorithmConfig
from forklight.algo.denominators import Denominators
from forklight.algo.plan import Plan
from forklight.algo.schedule import PassSchedule


@dataclass(frozen=True, slots=True)
class TokenState:
    """The results of passes and selections for the tokens of a `RolloutBatch` so far.

    Each of them returns a new state. Values that are not computed yet are NaN, and no token is kept before a selection.
    """

    entropy: Tensor  # float [S,T] of the policy that `selection.entropy_of` names
    grad_square: Tensor  # float [S,T] of the same policy, as in `TokenStats`
    logp: Tensor  # float [S,T] of the same policy, if a score uses it
    old_logp: Tensor  # float [S,T] of the trainer, before the first update of the rollout
    ref_logp: Tensor  # float [S,T]
    fork_mask: Tensor  # bool [S,T]
    cov_mask: Tensor  # bool [S,T] tokens that a covariance objective acts on
    threshold: Tensor  # float [S] lowest score kept in the set that the sequence was ranked in
    denominator: Tensor  # float64 [K] of the masked terms, over all ranks
    unmasked_denominator: Tensor  # float64 [K] of terms without a mask, over all ranks

    @classmethod
    def unknown(cls, batch: RolloutBatch, denominators: Denominators) -> "TokenState":
        """The state before any pass: each tensor is one expanded element, which takes no memory.

        Args:
            batch: the sequences.
            denominators: as far as lengths give them.
        """
        shape, device = (len(batch.update), batch.width), batch.update.device
        nan, no = torch.tensor(torch.nan, device=device), torch.tensor(False, device=device)
        values, mask = nan.expand(shape), no.expand(shape)
        return cls(values, values, values, values, values, mask, mask, nan.expand(shape[0]), *denominators)

    def to(self, device: torch.device) -> "TokenState":
        """The same state on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU, for a checkpoint: `TokenState(**state)` is the same state."""
        return {f.name: getattr(self, f.name).cpu() for f in fields(self)}


@dataclass
class RolloutState:
    """A rollout that is being trained on. Only `tokens` changes."""

    config: AlgorithmConfig
    """The settings, in which `selection.rho` is the share of this rollout."""
    batch: RolloutBatch
    """The sequences of this rank."""
    plan: Plan
    """The sequences of each micro-batch."""
    schedule: PassSchedule
    """The passes that run."""
    rollout: int
    """Number of the rollout: the noise of `keep: random` depends on it."""
    runs_forward_only: tuple[bool, ...]
    """Per micro-batch: whether any rank has forward-only rows in it, so that all ranks run that pass."""
    tokens: TokenState
    """The state of the tokens."""

    @property
    def updates(self) -> int:
        """K."""
        return len(self.plan.train) // self.plan.micro_batches
