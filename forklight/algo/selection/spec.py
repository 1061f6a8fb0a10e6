"""The specification of a selection: eligible tokens, scores, scope and rule of the ranking, and the denominator."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from torch import Tensor


@runtime_checkable
class TokenScore(Protocol):
    """A user-defined score: the tokens with the largest values are kept.

    Each rank calls it with its own rows of the set that is ranked together. To give the same mask for every number of
    micro-batches and ranks, a token's score must depend on that token's values alone.
    """

    def scores(self, entropy: Tensor, logp: Tensor, advantages: Tensor, eligible: Tensor) -> Tensor:
        """Scores of all tokens.

        Args:
            entropy: [S,T], in nats; like `logp` only meaningful under `eligible`.
            logp: [S,T], log-probabilities of the sampled tokens.
            advantages: [S], one per answer.
            eligible: bool [S,T], the tokens that can be kept.

        Returns:
            Floating point [S,T]; finite under `eligible`.
        """


Keep = Literal["top", "bottom", "random", "all", "band", "low_probability", "covariance"]
Scope = Literal["update", "rollout", "sequence", "micro_batch", "micro_batch_rank"]
EntropyOf = Literal["old", "current"]
Rule = Literal["count", "threshold"]
Eligible = Literal["contributing", "answers"]
Denominator = Literal["selected", "answer", "micro_batch"]
Term = Literal["policy", "kl", "entropy"]


@dataclass(frozen=True)
class ForkSelection:
    """Which answer tokens carry gradient: the defaults are the forking tokens of arXiv 2506.01939, Eq. 6.

    In a config the key `preset` (forklight, paper, paper-code, trl, all-tokens, random-20 or bottom-80) fills in all
    keys; keys next to or after it override it.
    """

    rho: float = 0.2
    """Share of tokens to keep, above 0 and at most 1; k = max(1, floor(rho * n + 0.9999)) of n tokens."""
    keep: Keep | TokenScore = "top"
    """`top`: highest entropies; `bottom`: lowest; `band`: those in the middle; `low_probability`: the least likely
    sampled tokens; `covariance`: the largest (A - mean A)(logp - mean logp), arXiv 2505.22617; `random`: a random
    share rho; `all`: every token; or a `class_path` of your own score."""
    scope: Scope = "update"
    """Tokens ranked together: those of an `update` or of a `rollout`, over all ranks; of each `sequence`; of one
    `micro_batch` over all ranks; or of one on one rank, `micro_batch_rank`. The last two change with the batch
    split."""
    entropy_of: EntropyOf = "old"
    """Entropy (and log-probability) of the policy that starts the rollout's updates (`old`), or of the one that each
    update starts from (`current`)."""
    rule: Rule = "count"
    """`count`: exactly k tokens, ties by (problem, answer, position); `threshold`: all tokens whose score reaches the
    linearly interpolated quantile 1 - rho, so that ties may exceed rho."""
    temperature: Literal["sampling"] | float = "sampling"
    """Temperature of the entropy, also in a bonus or an objective that uses it: that of sampling, or a number above 0.
    Ratios always use the sampling temperature."""
    eligible: Eligible = "contributing"
    """Tokens that can be kept and are counted: of groups with a non-zero advantage (`contributing`) or of all
    `answers`."""
    denominator: Denominator = "selected"
    """Masked terms are divided by the number of kept tokens of the update, or by that of the tokens that could be kept
    (`answer`), or, `micro_batch`, by the kept tokens of each micro-batch, weighted by its share of the sequences."""
    masked_terms: tuple[Term, ...] = ("policy",)
    """Loss terms that the mask acts on: `policy`, and optionally `kl` and `entropy`."""
    select_truncated: bool = True
    """Whether answers that were cut by the length limit can be kept."""

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ValueError(f"selection.rho must be above 0 and at most 1, got {self.rho}")
        object.__setattr__(self, "masked_terms", tuple(self.masked_terms))  # a list would be unequal to every preset
        numeric = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        if self.temperature != "sampling" and not (numeric and 0 < float(self.temperature) < float("inf")):
            raise ValueError(f"selection.temperature must be `sampling` or a number above 0, got {self.temperature!r}")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"selection.{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")
        if not (self.keep in get_args(Keep) if isinstance(self.keep, str) else isinstance(self.keep, TokenScore)):
            raise ValueError(f"selection.keep must be one of {get_args(Keep)} or a TokenScore, got {self.keep!r}")
        unknown = set(self.masked_terms) - set(get_args(Term))
        if unknown or "policy" not in self.masked_terms or len(set(self.masked_terms)) < len(self.masked_terms):
            raise ValueError(
                f"selection.masked_terms must be `policy` and any of `kl`, `entropy`, got {list(self.masked_terms)}"
            )

    @classmethod
    def preset(cls, name: str) -> "ForkSelection":
        """A named specification; docs/selection.md has a table of them.

        Raises:
            ValueError: there is no preset of that name.
        """
        if name not in PRESETS:
            raise ValueError(f"selection.preset must be one of {', '.join(PRESETS)}, got {name!r}")
        return PRESETS[name]

    @property
    def own_score(self) -> bool:
        """True if `keep` is the user's own score."""
        return not isinstance(self.keep, str)

    @property
    def needs_entropy(self) -> bool:
        """True if the score uses entropies."""
        return self.own_score or self.keep in ("top", "bottom", "band")

    @property
    def needs_logp(self) -> bool:
        """True if the score uses log-probabilities."""
        return self.own_score or self.keep in ("low_probability", "covariance")

    @property
    def needs_ranking(self) -> bool:
        """True if tokens are ranked by the policy's entropies or log-probabilities."""
        return self.needs_entropy or self.needs_logp

    def kept(self, n: int) -> int:
        """Number of tokens that `rule: count` keeps out of n: as in the authors' code; n with `keep: all`."""
        return n if self.keep == "all" else min(n, max(1, int(self.rho * n + 0.9999)))

    def entropy_temperature(self, sampling: float) -> float:
        """Temperature of the entropies, given the sampling temperature."""
        return sampling if self.temperature == "sampling" else float(self.temperature)


_CHOICES = {"scope": Scope, "entropy_of": EntropyOf, "rule": Rule, "eligible": Eligible, "denominator": Denominator}

PRESETS = {
    "forklight": ForkSelection(),
    "paper": ForkSelection(entropy_of="current", rule="threshold"),
    "paper-code": ForkSelection(
        scope="micro_batch_rank", entropy_of="current", eligible="answers", denominator="micro_batch"
    ),
    "trl": ForkSelection(
        scope="micro_batch",
        entropy_of="current",
        rule="threshold",
        eligible="answers",
        denominator="answer",
        masked_terms=("policy", "entropy"),
    ),
    "all-tokens": ForkSelection(rho=1.0, keep="all"),
    "random-20": ForkSelection(keep="random"),
    "bottom-80": ForkSelection(rho=0.8, keep="bottom"),
}
"""Named specifications: this package's, the paper's formula (v2), its authors' code, TRL's, and the controls."""
