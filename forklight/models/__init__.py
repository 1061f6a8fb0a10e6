"""The policy, the reference model, and the tiny base policy that ships with the package."""

from forklight.models.loading import PolicyConfig
from forklight.models.policy import Policy
from forklight.models.reference import Reference

__all__ = ["Policy", "PolicyConfig", "Reference"]
