"""The frozen policy that the KL term compares with."""

import torch

from forklight.algo.types import Chunk, TokenStats
from forklight.models.policy import Policy, PolicyConfig


class Reference:
    """The policy as it was before training.

    It is no `nn.Module`, so none of its weights enter a checkpoint; it is loaded again from `model.policy.path`.

    Args:
        config: the policy's own settings.

    Raises:
        ValueError: the policy's weights are drawn at random, so they cannot be loaded again.
    """

    def __init__(self, config: PolicyConfig) -> None:
        if config.random_init:
            raise ValueError(
                "model.policy.random_init = true leaves no weights that model.kl_coef > 0 could compare with: "
                "save the policy first and give its folder as model.policy.path, or set model.kl_coef to 0"
            )
        self.policy = Policy(config).requires_grad_(False).eval()

    def to(self, like: torch.Tensor) -> None:
        """Moves to the device and type of a tensor of the policy."""
        self.policy.to(device=like.device, dtype=like.dtype)

    @torch.no_grad()
    def stats(self, chunk: Chunk, temperature: float) -> TokenStats:
        """Statistics of the chunk's answer tokens under the reference."""
        stats = self.policy(chunk, temperature)
        assert isinstance(stats, TokenStats)
        return stats
