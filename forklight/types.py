"""The values that all parts of forklight share. Free of torch: the verifier's worker processes import it too."""

import hashlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["right", "wrong", "unjudged"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with a verifiable answer.

    Example:
        >>> Problem.make("What is 2 + 3?", "5", source="example").answer
        '5'
    """

    uid: str
    """Stable name: a hash of source and prompt. Noise, de-duplication and tables are keyed by it."""
    prompt: str
    """The problem's text, before any template; of a chat its turns, one after the other."""
    answer: str
    """What the verifier compares with (the *gold*)."""
    source: str
    """The data set it came from."""
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """All that its row in the data set says, by the names there, for reward functions that want more than the gold."""
    chat: tuple[tuple[str, str], ...] = ()
    """(role, text) turns of a problem that is a chat, which templates leave as it is; empty for a text."""

    @classmethod
    def make(cls, prompt: str, answer: str, source: str, fields: Mapping[str, Any] | None = None) -> "Problem":
        """Builds a problem and its uid, which depends on source and prompt alone."""
        digest = hashlib.sha256(f"{source}\0{prompt}".encode()).hexdigest()
        return cls(uid=digest[:16], prompt=prompt, answer=answer, source=source, fields=fields or {})


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer."""

    uid: str
    """The problem's uid."""
    index: int
    """Number of the answer within its group, 0 .. G-1."""
    token_ids: tuple[int, ...]
    """The sampled tokens, EOS or the token of a stop included."""
    text: str
    """What the verifier sees: what the prompt has begun of the answer (an opened thought, the prefill), then the
    decoded answer up to its stop, without special tokens but for those of `rollout.keep_special_tokens`."""
    truncated: bool
    """True if the length limit came before an EOS or a stop."""
    logp: "array[float] | None" = field(default=None, repr=False, compare=False)
    """The sampler's log-probability of each token; None if it reports none. Its last digits depend on the sampler's
    batch, so comparisons of answers ignore it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's judgement of one answer."""

    outcome: Outcome
    """`unjudged`: the verifier could not decide (time or memory limit); the answer gets no reward and is counted."""
    reason: str
    """One short phrase for logs and `samples.jsonl`."""
    extracted: str | None = None
    """The part of the answer that was judged."""
    seconds: float = 0.0
    """Wall time of the judgement."""
    score: float | None = None
    """The reward, if right and wrong do not determine it; None: 1 if right, else 0."""
    parts: tuple[tuple[str, float], ...] = ()
    """The reward from each part of a composed verifier, by name."""

    @property
    def right(self) -> bool:
        """True if the answer was judged right."""
        return self.outcome == "right"

    @property
    def reward(self) -> float:
        """The reward before shaping; 0 if the answer could not be judged."""
        if self.outcome == "unjudged":
            return 0.0
        return float(self.right) if self.score is None else self.score
