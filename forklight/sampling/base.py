"""The interface of an engine that samples answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from forklight.models.policy import Policy
from forklight.sampling.stops import StopCheck


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How answers are sampled: from the full vocabulary, or what `top_k` and then `top_p` leave of it."""

    max_new_tokens: int
    temperature: float
    eos_ids: tuple[int, ...]
    top_p: float = 1.0
    """Sample from the smallest set of most probable tokens whose probability reaches this; 1 is the full vocabulary."""
    top_k: int = 0
    """Sample from this number of most probable tokens; 0 is the full vocabulary."""
    stops: StopCheck | None = None
    """What ends an answer besides EOS: it has the token that completes a stop string, or is one, as its last."""

    def __post_init__(self) -> None:
        """Refuses values that leave no token to sample."""
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"top_p = {self.top_p} must lie in (0, 1] and top_k = {self.top_k} must be at least 0")


class Sampled(NamedTuple):
    """The tokens of one answer and their log-probabilities."""

    token_ids: list[int]
    """EOS included, if one was sampled, and the token of a stop."""
    logp: Sequence[float] | None
    """Natural log of the probability with which each token was sampled: at the sampling temperature, renormalised after
    top-k and top-p; 0 for greedy answers. NaN where the policy's logits were not finite; the answer ends there. None if
    the engine does not report it."""


@runtime_checkable
class Sampler(Protocol):
    """Samples answers from the policy's present weights.

    All ranks call `sync`, `sleep` and `close` together. Each rank calls `sample` and `logprobs` by itself, after a
    `sync`; after a `sleep` it needs another `sync`.
    """

    @property
    def half_precision(self) -> bool:
        """Whether it computes in half precision; valid after a `sync`."""

    def sync(self, policy: Policy) -> None:
        """Takes over the policy's weights; called before every rollout and every evaluation.

        Raises:
            EngineError: the engine cannot be built, or cannot take the weights.
        """

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: SamplingParams
    ) -> list[list[Sampled]]:
        """Samples some answers to each prompt.

        Args:
            prompts: token ids of each prompt.
            keys: one 64-bit key per prompt; the noise of a token depends on the key, the answer's number and the
                token's position alone, so neither batch nor rank nor resume changes it.
            answers: answers per prompt.
            decoding: length limit, temperature, top-p, top-k, the tokens and the text that end an answer.

        Returns:
            The answers by prompt and number.

        Raises:
            EngineError: the engine failed and returns no answers; the next `sync` restarts it.
        """

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """Natural log-probabilities, at temperature 1, of every token but the first of each sequence.

        They are the sampler's own computation, so they show whether it has the policy's weights. None if the engine
        does not report them.
        """

    def sleep(self) -> None:
        """Called when no answers are needed before the next `sync`: memory may be freed."""

    def close(self) -> None:
        """Ends the engine. May be called at any time and more than once; a later `sync` restarts it."""


@runtime_checkable
class TakesWeights(Protocol):
    """A sampler with its own copy of the weights: `sync` pushes the `weights` of a policy by name."""

    def weights(self, policy: Policy) -> Iterable[tuple[str, Tensor]]:
        """All weights of a policy, by the sampler's names for them."""

    def push(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes over weights by name."""
