"""Which answer tokens carry gradient.

The selection is exact and belongs to a *set* of tokens, not to a tensor: the k best of all eligible tokens over all
ranks, ties broken by (row_key, position). So it does not change with the order of the rows, the padding, or the number
of ranks the set is spread over. No token is ever gathered: ranks add up histograms of 256 bins, in a number of
collectives that is the same on every rank, also on one without tokens.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from forklight.algo.noise import hash_bits
from forklight.algo.types import ForkMask, Reduce

Keep = Literal["top", "bottom", "random", "all"]
Scope = Literal["update", "micro_batch_rank"]
EntropyOf = Literal["old", "current"]
Over = Literal["contributing", "answers"]
Denominator = Literal["selected", "answer"]

_LOWEST = -(2**63)


@dataclass(frozen=True)
class ForkSelection:
    """Which answer tokens carry gradient: the defaults are the forking tokens of arXiv 2506.01939, Eq. 6."""

    rho: float = 0.2
    """Share of tokens to keep, above 0 and at most 1; k = max(1, floor(rho * n + 0.9999)) of n tokens."""
    keep: Keep = "top"
    """`top`: the highest entropies; controls: `bottom`, the lowest; `random`, any share rho; `all`, every token."""
    scope: Scope = "update"
    """Tokens ranked together: those of the `update` over all ranks, or of one micro-batch on one rank."""
    entropy_of: EntropyOf = "old"
    """Entropy of the policy that starts the rollout's updates (`old`), or of the one each update starts from."""
    over: Over = "contributing"
    """Tokens that can be kept and are counted: of groups with an advantage that is not zero, or of all answers."""
    denominator: Denominator = "selected"
    """The policy loss is divided by the number of kept tokens, or by that of the tokens which could be kept."""

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ValueError(f"selection.rho must be above 0 and at most 1, got {self.rho}")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"selection.{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")

    @property
    def needs_entropy(self) -> bool:
        """True if tokens are ranked by entropy."""
        return self.keep in ("top", "bottom")

    def kept(self, n: int) -> int:
        """Number of tokens kept out of n: the rule of the authors' code, n if everything is kept."""
        return n if self.keep == "all" else min(n, max(1, int(self.rho * n + 0.9999)))


_CHOICES = {"keep": Keep, "scope": Scope, "entropy_of": EntropyOf, "over": Over, "denominator": Denominator}


def select(
    entropy: Tensor | None,
    answer_mask: Tensor,
    spec: ForkSelection,
    *,
    logp: Tensor | None = None,
    advantages: Tensor | None = None,
    row_key: Tensor | None = None,
    seed: int = 0,
    reduce: Reduce | None = None,
) -> ForkMask:
    """Keeps exactly `spec.kept(n)` of the n eligible tokens: arXiv 2506.01939, Eq. 6, as an exact count.

    One call ranks one set of tokens: the caller applies `spec.scope` (which rows, which ranks), `spec.over` (which
    tokens are eligible) and `spec.entropy_of`. With `reduce`, every rank calls this with its own rows.

    Args:
        entropy: [S,T] in nats, any floating point; not read, and may be None, for `random` and `all`.
        answer_mask: bool [S,T], the eligible tokens. A token's position is its column, so answers start in column 0.
        spec: the selection.
        logp: [S,T], reserved for scores that need it.
        advantages: [S], reserved for scores that need it.
        row_key: int64 [S], unique over all ranks: ties go to the smallest (row_key, position), and the noise of
            `random` hangs on it. By default the row number, on a single rank only.
        seed: of the noise of `random`.
        reduce: sums an int64 tensor over the ranks; None on a single rank.

    Returns:
        The mask of this rank's rows; the entropy of the last token kept (NaN for `random`, `all` and n = 0); and the
        number of tokens kept *over all ranks*. Without eligible tokens the mask is empty.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes do not agree, an eligible entropy is NaN, the entropy is missing, or row keys are not unique.
    """
    _check(entropy, answer_mask, spec, row_key, reduce)
    add = reduce or _alone
    no_score = answer_mask.new_full((), torch.nan, dtype=torch.float32 if entropy is None else entropy.dtype)
    if spec.keep == "all":
        return ForkMask(answer_mask.clone(), no_score, add(answer_mask.sum()))
    if row_key is None:
        row_key = torch.arange(len(answer_mask), device=answer_mask.device)
    tokens = _Tokens(answer_mask.flatten().nonzero().squeeze(1), row_key, max(1, answer_mask.shape[1]))
    key, nans = _keys(entropy, tokens, spec, seed)
    # NaN is counted over all ranks: one rank that raised alone would leave the others waiting
    n, bad = add(torch.stack([nans.new_tensor(len(key)), nans])).tolist()
    if bad:
        raise ValueError(f"{bad} of {n} eligible entropies are NaN")
    if n == 0:
        return ForkMask(answer_mask.clone(), no_score, nans)

    k = spec.kept(n)
    kept, last = _top_k(key, tokens, k, add)
    mask = torch.zeros(answer_mask.numel(), dtype=torch.bool, device=answer_mask.device)
    mask[tokens.place[kept]] = True
    count = add(mask.sum())
    if int(count) != k:
        raise ValueError(f"row_key must be unique over all ranks: {int(count)} tokens are kept instead of {k}")
    threshold = no_score if entropy is None or spec.keep == "random" else _score(last, spec, entropy)
    return ForkMask(mask.view(answer_mask.shape), threshold, count)


def kth(keys: Tensor, k: int, reduce: Reduce) -> tuple[int, int]:
    """The k-th largest of int64 keys spread over ranks, by radix selection in 8 rounds of 8 bits.

    Args:
        keys: [n], int64, those of this rank; n may be 0.
        k: 1 for the largest, at most the number of keys over all ranks.
        reduce: sums an int64 tensor over the ranks; called exactly 8 times.

    Returns:
        The k-th largest key, and the number of keys over all ranks that are strictly larger.

    Raises:
        ValueError: k is not between 1 and the number of keys over all ranks.
    """
    candidates = keys ^ _LOWEST  # unsigned digits now have the order of the signed keys
    value, above = 0, 0
    for shift in range(56, -1, -8):
        digits = (candidates >> shift) & 0xFF
        histogram = reduce(torch.bincount(digits, minlength=256)).tolist()
        if not above < k <= above + sum(histogram):
            raise ValueError(f"k must be between 1 and the number of keys, got {k} of {above + sum(histogram)}")
        digit = 255
        while above + histogram[digit] < k:
            above += histogram[digit]
            digit -= 1
        candidates = candidates[digits == digit]
        value = value << 8 | digit
    return value + _LOWEST, above


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The eligible tokens of this rank."""

    place: Tensor  # int64 [n] row * width + column
    row_key: Tensor  # int64 [S]
    width: int

    def names(self, which: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """(row_key, position) of some tokens: unique over ranks."""
        place = self.place[which]
        return self.row_key[place // self.width], place % self.width


def _keys(entropy: Tensor | None, tokens: _Tokens, spec: ForkSelection, seed: int) -> tuple[Tensor, Tensor]:
    """An int64 key per token, the largest are kept, and the number of NaN scores."""
    if spec.keep == "random":
        return hash_bits(seed, *tokens.names()), tokens.place.new_zeros(())
    if entropy is None:
        raise ValueError(f"selection.keep={spec.keep} needs entropies")
    score = entropy.detach().reshape(-1)[tokens.place].to(torch.float64)
    bits = (score + 0.0).view(torch.int64)  # + 0.0 turns -0.0 into 0.0
    key = _flip_negative(bits)
    return (key if spec.keep == "top" else ~key), score.isnan().sum()


def _score(key: int, spec: ForkSelection, entropy: Tensor) -> Tensor:
    """The entropy that `_keys` turned into the key."""
    bits = torch.tensor(key if spec.keep == "top" else ~key, device=entropy.device)
    return _flip_negative(bits).view(torch.float64).to(entropy.dtype)


def _flip_negative(bits: Tensor) -> Tensor:
    """Maps the bits of a float64 to an integer of the same order, and back."""
    return bits ^ ((bits >> 63) & ~_LOWEST)


def _top_k(key: Tensor, tokens: _Tokens, k: int, reduce: Reduce) -> tuple[Tensor, int]:
    """Bool [n], the k largest keys over all ranks, ties by smallest (row_key, position); and the k-th key."""
    last, above = kth(key, k, reduce)
    kept = key > last
    tied = (key == last).nonzero().squeeze(1)
    row, position = (~name for name in tokens.names(tied))  # ~ reverses the order: smallest first
    last_row, rows_above = kth(row, k - above, reduce)
    here = row == last_row
    last_position, _ = kth(position[here], k - above - rows_above, reduce)
    kept[tied] = (row > last_row) | (here & (position >= last_position))
    return kept, last


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def _check(
    entropy: Tensor | None, answer_mask: Tensor, spec: ForkSelection, row_key: Tensor | None, reduce: Reduce | None
) -> None:
    if answer_mask.dtype != torch.bool:
        raise TypeError(f"answer_mask must be bool, not {answer_mask.dtype}")
    if answer_mask.ndim != 2:
        raise ValueError(f"answer_mask must be [S,T], got shape {tuple(answer_mask.shape)}")
    if spec.needs_entropy and entropy is not None:
        if not entropy.is_floating_point():
            raise TypeError(f"entropies must be floating point, not {entropy.dtype}")
        if entropy.shape != answer_mask.shape:
            raise ValueError(f"entropy {tuple(entropy.shape)} and answer_mask {tuple(answer_mask.shape)} do not agree")
    if row_key is None:
        if reduce is not None:
            raise ValueError("row_key is required with reduce: row numbers are not unique over ranks")
    elif row_key.dtype != torch.int64:
        raise TypeError(f"row_key must be int64, not {row_key.dtype}")
    elif row_key.shape != answer_mask.shape[:1]:
        raise ValueError(f"row_key {tuple(row_key.shape)} must be [{len(answer_mask)}], one per row of answer_mask")
