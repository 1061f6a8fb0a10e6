"""Where problems come from, and how an evaluation set is answered."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from forklight.data.benchmarks import Benchmark
from forklight.data.prompts import PromptTemplate
from forklight.data.source import ProblemSource
from forklight.verify import Verifier


class Sampling(NamedTuple):
    """How often each problem of a set is answered, and how tokens are sampled."""

    answers: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0


ProtocolName = Literal["paper", "common"]


def protocol(name: ProtocolName | None, small: bool) -> Sampling:
    """The sampling settings of a protocol.

    Args:
        name: `paper`: 16 answers at temperature 1, arXiv 2506.01939; `common`: temperature 0.6 and top-p 0.95, as most
            reports on reasoning models since DeepSeek-R1, with 32 answers on a small benchmark and 4 on others; none: 8
            answers at temperature 1.
        small: whether the set is one of the AIME or AMC benchmarks.
    """
    if name == "paper":
        return Sampling(16, 1.0)
    if name == "common":
        return Sampling(32 if small else 4, 0.6, 0.95)
    return Sampling(8, 1.0)


@dataclass(frozen=True)
class EvalSet:
    """An evaluation set and the protocol of its scores."""

    source: ProblemSource
    """The problems: `Benchmark` for one by name."""
    protocol: ProtocolName | None = None
    """How it is answered, by name: `paper` is 16 answers at temperature 1; `common` is temperature 0.6, top-p 0.95 and
    32 answers on AIME and AMC, 4 on others. Keys next to it override it."""
    answers: int | None = None
    """Answers per problem, n of avg@n; 8 if neither this nor a protocol is given."""
    temperature: float | None = None
    """Sampling temperature, 0 is greedy; 1 if neither this nor a protocol is given."""
    top_p: float | None = None
    """Sample from the most probable tokens that together reach this probability; 1, all, if not given."""
    top_k: int | None = None
    """Sample from this number of most probable tokens; 0, all, if not given."""
    max_new_tokens: int | None = None
    """Longest answer; that of the training rollouts if not given."""
    seed: int | None = None
    """Seed of the sampling noise, so that runs of different seeds have the same noise; the run's seed if not given."""
    template: PromptTemplate | None = None
    """How a problem becomes a prompt; that of the benchmark, or `data.template`, if not given."""
    verifier: Verifier | None = None
    """Judges the answers; that of the benchmark, or `data.verifier`, if not given."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        answers, temperature, top_p, top_k = self.sampling
        if answers < 1:
            raise ValueError(f"answers = {answers} per problem of an evaluation set must be at least 1")
        if temperature < 0:
            raise ValueError(f"temperature = {temperature} of an evaluation set must not be negative")
        if temperature == 0 and answers > 1:
            raise ValueError(f"temperature = 0 gives {answers} times the same answer: set answers to 1")
        if not 0 < top_p <= 1 or top_k < 0:
            raise ValueError(f"top_p = {top_p} of an evaluation set must lie in (0, 1], top_k = {top_k} must be >= 0")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} of an evaluation set must be at least 1")

    @property
    def sampling(self) -> Sampling:
        """The protocol, with the keys that override it."""
        small = isinstance(self.source, Benchmark) and self.source.facts.small
        given = {name: getattr(self, name) for name in Sampling._fields}
        return protocol(self.protocol, small)._replace(**{k: v for k, v in given.items() if v is not None})
