"""From problems to experience, and from experience to the loss of a visit."""

from forklight.rollout.hf import HFSampler
from forklight.rollout.vllm import VLLMSampler

__all__ = ["HFSampler", "VLLMSampler"]
