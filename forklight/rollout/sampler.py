"""What an engine that samples answers must do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from forklight.models.policy import Policy


class EngineError(RuntimeError):
    """A sampler cannot be built, cannot do what it is asked for, or has failed."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are sampled. The vocabulary is cut only where `top_k` or `top_p` say so: by top-k first."""

    max_new_tokens: int
    temperature: float
    eos_ids: tuple[int, ...]
    top_p: float = 1.0
    """Draw from the smallest set of most probable tokens whose probability reaches this; 1 is the whole vocabulary."""
    top_k: int = 0
    """Draw from so many most probable tokens; 0 is the whole vocabulary."""

    def __post_init__(self) -> None:
        """Refuses cuts that leave nothing to draw from."""
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"top_p = {self.top_p} must lie in (0, 1] and top_k = {self.top_k} must be at least 0")


class Sampled(NamedTuple):
    """The tokens of one answer and how probable they were."""

    token_ids: list[int]
    """EOS included, where one was sampled."""
    logp: Sequence[float] | None
    """Natural log of the probability each token was drawn with: at the decoding's temperature, renormalised after
    top-k and top-p; 0 for greedy answers. NaN where the policy's logits were not finite; the answer ends there. None if
    the engine cannot tell."""


@runtime_checkable
class Sampler(Protocol):
    """Samples answers from the policy's present weights.

    All ranks call `sync`, `pause` and `close` together. `sample` and `logprobs` are each rank's own and come after a
    `sync`; after a `pause` another `sync` comes first.
    """

    @property
    def half_precision(self) -> bool:
        """Whether it computes in half precision, and rounds accordingly; after a `sync`."""

    def sync(self, policy: Policy) -> None:
        """Takes over the policy's weights; called before every rollout and every evaluation.

        Raises:
            EngineError: the engine cannot be built, or cannot take the weights.
        """

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: Decoding
    ) -> list[list[Sampled]]:
        """Samples some answers to each prompt.

        Args:
            prompts: token ids of each prompt.
            keys: one 64-bit key per prompt; the noise of a token depends on the key, the answer's number and the
                token's position alone, so neither batch nor rank nor resume changes it.
            answers: answers per prompt.
            decoding: length, temperature, the part of the vocabulary to draw from and the tokens that end an answer.

        Returns:
            The answers by prompt and number.

        Raises:
            EngineError: the engine failed; no answer is there, and the next `sync` starts it anew.
        """

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """Natural log-probabilities, at temperature 1, of every token but the first of each sequence.

        They are computed as the sampler computes them, so that they tell whether it has the policy's weights. None if
        the engine cannot tell.
        """

    def pause(self) -> None:
        """No answers are wanted before the next `sync`: memory may be given back."""

    def close(self) -> None:
        """Ends the engine. May be called at any time and more than once; a later `sync` starts it anew."""


@runtime_checkable
class TakesWeights(Protocol):
    """A sampler with weights of its own, which it is given by name: `sync` pushes the `weights` of a policy."""

    def weights(self, policy: Policy) -> Iterable[tuple[str, Tensor]]:
        """All weights of a policy by the names that the sampler knows them by."""

    def push(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes over such weights."""
