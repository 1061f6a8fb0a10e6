"""The reference model of KL terms."""

from typing import Any

import torch

from forklight.algo.batch import MicroBatch, TokenStats
from forklight.models.checkpoints import load_weights, policy_weights
from forklight.models.heads import all_stats
from forklight.models.loading import PolicyConfig
from forklight.models.policy import Policy


def check_reference(config: PolicyConfig) -> None:
    """Refuses a policy that cannot be loaded a second time.

    Args:
        config: the policy's own settings.

    Raises:
        ValueError: its initial weights are random.
    """
    if config.random_init:
        raise ValueError(
            "model.policy.random_init = true leaves no weights that model.kl or model.objective could compare with: "
            "save the policy first and give its folder as model.policy.path"
        )


class Reference:
    """The policy as it was before training, or at the last refresh.

    It is no `nn.Module`, so its weights stay out of checkpoints: it is loaded again from `model.policy.path`. Only a
    refreshed one is saved, by `state_dict`.

    Args:
        config: the policy's own settings.

    Raises:
        ValueError: the policy's initial weights are random, so they cannot be loaded again.
    """

    def __init__(self, config: PolicyConfig) -> None:
        check_reference(config)
        self.policy = Policy(config).requires_grad_(False).eval()

    def to(self, like: torch.Tensor) -> None:
        """Moves to the device and type of a tensor of the policy."""
        self.policy.to(device=like.device, dtype=like.dtype)

    @torch.no_grad()
    def copy_from(self, policy: Policy) -> None:
        """Copies the policy's present weights."""
        for mine, theirs in zip(self.policy.parameters(), policy.parameters(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights, on the CPU, for a checkpoint."""
        return {name: value.cpu() for name, value in self.policy.state_dict().items()}

    def load_state_dict(self, weights: dict[str, Any]) -> None:
        """Restores the weights of a checkpoint."""
        self.policy.load_state_dict(weights)

    @torch.no_grad()
    def stats(self, micro_batch: MicroBatch, temperature: float) -> TokenStats:
        """Statistics of the answer tokens of some sequences under the reference."""
        stats: TokenStats = self.policy(micro_batch, all_stats, temperature=temperature)
        return stats


def build(config: PolicyConfig, init_from: str | None, *, reference: bool) -> tuple[Policy, Reference | None]:
    """The policy, and its reference if there is one, with the weights that a run starts from.

    Args:
        config: which model.
        init_from: a checkpoint whose weights replace the model's.
        reference: whether there is one.

    Raises:
        ValueError: the checkpoint cannot be read, or is of another model.
    """
    weights = None if init_from is None else policy_weights(init_from, "model.init_from")
    policy, other = Policy(config), Reference(config) if reference else None
    if weights is not None:
        load_weights(policy, weights, f"model.init_from {init_from}")
        if other is not None:
            other.copy_from(policy)
    return policy, other
