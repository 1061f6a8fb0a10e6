"""The specification of a selection: eligible tokens, scores, scope and rule of the ranking, and the denominator."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

from torch import Tensor

from forklight.algo.selection.rho import RhoKeys, RhoSchedule


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


Keep = Literal[
    "top",
    "bottom",
    "random",
    "all",
    "band",
    "low_probability",
    "covariance",
    "abs_advantage",
    "entropy_times_advantage",
]
Scope = Literal["update", "rollout", "sequence", "micro_batch", "micro_batch_rank"]
EntropyOf = Literal["old", "current"]
Rule = Literal["count", "threshold", "absolute"]
Balance = Literal["none", "outcome"]
RelativeTo = Literal["none", "position", "type"]
Eligible = Literal["contributing", "answers"]
Denominator = Literal["selected", "answer", "micro_batch"]
Term = Literal["policy", "kl", "entropy"]


@dataclass(frozen=True)
class ForkSelection:
    """Which answer tokens carry gradient: the defaults are the forking tokens of arXiv 2506.01939, Eq. 6.

    In a config the key `preset` (forklight, top-20, paper, paper-code, trl, all-tokens, random-20 or bottom-80) fills
    in all keys; keys next to or after it override it. A run without a selection has the preset forklight.
    """

    rho: float | RhoKeys = 0.2
    """Share of tokens to keep, above 0 and at most 1; k = max(1, floor(rho * n + 0.9999)) of n tokens. Or a schedule
    over rollouts, `{from, to, over_rollouts, shape, until_entropy}`."""
    keep: Keep | TokenScore = "top"
    """`top`: highest entropies; `bottom`: lowest; `band`: those in the middle; `low_probability`: the least likely
    sampled tokens; `covariance`: the largest (A - mean A)(logp - mean logp), arXiv 2505.22617; `abs_advantage`: the
    largest |A|; `entropy_times_advantage`: the largest entropy * |A|, arXiv 2608.30632; `random`: a random share rho;
    `all`: every token; or a `class_path` of your own score."""
    scope: Scope = "update"
    """Tokens ranked together: those of an `update` or of a `rollout`, over all ranks; of each `sequence`; of one
    `micro_batch` over all ranks; or of one on one rank, `micro_batch_rank`. The last two change with the batch
    split."""
    entropy_of: EntropyOf = "old"
    """Entropy (and log-probability) of the policy that starts the rollout's updates (`old`), or of the one that each
    update starts from (`current`)."""
    rule: Rule = "count"
    """`count`: exactly k tokens, ties by (problem, answer, position); `threshold`: all tokens whose score reaches the
    linearly interpolated quantile 1 - rho, so that ties may exceed rho; `absolute`: all tokens with an entropy above
    `tau`, whatever rho."""
    tau: float | None = None
    """Entropy in nats of `rule: absolute`, at least 0."""
    balance: Balance = "none"
    """`outcome`: tokens of answers with a positive advantage are ranked apart from all others, with the same rho in
    each of the two sets."""
    keep_eos: bool = False
    """Always keep the last token of an answer that ended, whatever its score; these tokens are part of the k."""
    relative_to: RelativeTo = "none"
    """Rank entropies minus the mean entropy of the tokens at the same `position` in their answers, or of the same
    `type` (token id), over the tokens that are ranked together."""
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
        if isinstance(self.rho, Mapping):
            object.__setattr__(self, "rho", dict(self.rho))
            RhoSchedule.of(self.rho)
        elif not 0 < self.rho <= 1:
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
        _check_combination(self)

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
    def schedule(self) -> RhoSchedule | None:
        """The schedule of `rho`; None if it is a number."""
        return RhoSchedule.of(self.rho) if isinstance(self.rho, Mapping) else None

    @property
    def share(self) -> float:
        """`rho` as a number.

        Raises:
            TypeError: it is a schedule; `at` gives the selection of one rollout.
        """
        if isinstance(self.rho, Mapping):
            raise TypeError("selection.rho is a schedule: its share depends on the rollout")
        return float(self.rho)

    def at(self, share: float) -> "ForkSelection":
        """The selection with a number as `rho`; at 1 every token is kept, so that nothing has to be ranked."""
        if share < 1:
            return replace(self, rho=share)
        return replace(self, rho=share, keep="all", balance="none", keep_eos=False, relative_to="none")

    @property
    def own_score(self) -> bool:
        """True if `keep` is the user's own score."""
        return not isinstance(self.keep, str)

    @property
    def needs_entropy(self) -> bool:
        """True if the score uses entropies."""
        return self.own_score or self.keep in ("top", "bottom", "band", "entropy_times_advantage")

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
        return n if self.keep == "all" else min(n, max(1, int(self.share * n + 0.9999)))

    def entropy_temperature(self, sampling: float) -> float:
        """Temperature of the entropies, given the sampling temperature."""
        return sampling if self.temperature == "sampling" else float(self.temperature)


_CHOICES = {
    "scope": Scope,
    "entropy_of": EntropyOf,
    "rule": Rule,
    "balance": Balance,
    "relative_to": RelativeTo,
    "eligible": Eligible,
    "denominator": Denominator,
}


def _check_combination(spec: ForkSelection) -> None:
    """Refuses keys that contradict each other or would have no effect.

    Raises:
        ValueError: with the keys.
    """
    keep = type(spec.keep).__name__ if spec.own_score else str(spec.keep)
    if (spec.rule == "absolute") != (spec.tau is not None):
        raise ValueError(f"selection.tau is the threshold of rule: absolute; got rule: {spec.rule}, tau: {spec.tau}")
    if spec.tau is not None and not 0 <= spec.tau < float("inf"):
        raise ValueError(f"selection.tau must be a finite number >= 0, in nats, got {spec.tau}")
    if spec.rule == "absolute" and (keep != "top" or spec.relative_to != "none"):
        raise ValueError(
            f"selection.rule: absolute keeps entropies above tau: it needs keep: top and relative_to: none, got {keep} "
            f"and {spec.relative_to}"
        )
    if spec.schedule is not None and spec.rule == "absolute":
        raise ValueError("selection.rho is a schedule, which rule: absolute does not use: set rho to a number")
    if spec.relative_to != "none" and keep not in ("top", "bottom", "band"):
        raise ValueError(f"selection.relative_to: {spec.relative_to} needs keep: top, bottom or band, got {keep}")
    if spec.balance != "none":
        unused = keep in ("random", "all", "covariance") or spec.rule == "absolute" or spec.scope == "sequence"
        if unused:
            raise ValueError(
                f"selection.balance: {spec.balance} ranks right and wrong answers apart; it has no meaning with keep: "
                f"{keep}, rule: {spec.rule}, scope: {spec.scope}"
            )
    if spec.scope == "sequence" and keep == "abs_advantage":
        raise ValueError("selection.keep: abs_advantage needs a scope of several answers: an answer has one advantage")
    if spec.keep_eos and keep == "all":
        raise ValueError("selection.keep_eos: keep: all keeps every token anyway")


PRESETS = {
    "forklight": ForkSelection(rho={"from": 1.0, "to": 0.2, "over_rollouts": 20}),
    "top-20": ForkSelection(),
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
"""Named specifications: this package's, with and without all tokens at first, the paper's formula (v2), its authors'
code, TRL's, and the controls."""
