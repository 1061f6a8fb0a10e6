"""What an engine that samples answers must do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from forklight.models.policy import Policy


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are sampled: from the full vocabulary, never cut by top-p or top-k."""

    max_new_tokens: int
    temperature: float
    eos_ids: tuple[int, ...]


@runtime_checkable
class Sampler(Protocol):
    """Samples answers from the policy's present weights."""

    def sync(self, policy: Policy) -> None:
        """Takes over the policy's weights; called before every rollout and every evaluation."""

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: Decoding
    ) -> list[list[list[int]]]:
        """Samples some answers to each prompt.

        Args:
            prompts: token ids of each prompt.
            keys: one 64-bit key per prompt; the noise of a token depends on the key, the answer's number and the
                token's position alone, so neither batch nor rank nor resume changes it.
            answers: answers per prompt.
            decoding: length, temperature and the tokens that end an answer.

        Returns:
            Token ids by prompt and answer, EOS included where one was sampled.
        """
