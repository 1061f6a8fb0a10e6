"""Engines that sample answers from the policy's present weights."""

from forklight.sampling.hf import HFSampler
from forklight.sampling.vllm import VLLMSampler

__all__ = ["HFSampler", "VLLMSampler"]
