"""The values that all parts of forklight share. Free of torch: the verifier's worker processes import it too."""

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import Literal

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
    """The problem's text, before any template."""
    answer: str
    """What the verifier compares with (the *gold*)."""
    source: str
    """The data set it came from."""

    @classmethod
    def make(cls, prompt: str, answer: str, source: str) -> "Problem":
        """Builds a problem and its uid."""
        digest = hashlib.sha256(f"{source}\0{prompt}".encode()).hexdigest()
        return cls(uid=digest[:16], prompt=prompt, answer=answer, source=source)


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
    """What the verifier sees: the decoded answer, without special tokens, up to its stop."""
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
