"""Exact order statistics of a set of tokens that is spread over ranks: no token is gathered, sorted or copied.

Scores become integers of the same order, and the k-th largest is found by its bits: histograms of 16 bits, counted
tile by tile and added up over the ranks in two rounds of 8 bits. So the result is exact, does not depend on the order
of the rows or on the ranks they are on, and needs one byte per token (the mask). The number of collectives depends on
the dtype of the scores alone, so it is the same on every rank, also on one without tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from forklight.algo.batch import Reduce

Tile = Callable[[slice], Tensor]
"""Scores [r,T] of some rows, the largest are kept: float32, float64 or int64; finite under the eligible tokens."""

_TILE = 2**17  # tokens: a handful of such tensors stays in a core's cache
_FEW = 2**16  # most keys that are copied out
_WIDTH = 16  # bits counted by one pass over the tokens
_BINS = 1 << _WIDTH
_LOWEST = -(2**63)
_NOT_FINITE = {torch.float32: 2**7, torch.float64: 2**4, torch.int64: 0}  # first bins at each end: exponents all ones


def tiles(eligible: Tensor) -> Iterator[slice]:
    """Cuts rows into slices of about 2**17 tokens, at least a row each; without rows there is one empty slice."""
    step = max(1, _TILE // max(1, eligible.shape[1]))
    for start in range(0, max(1, len(eligible)), step):
        yield slice(start, start + step)


class Order(ABC):
    """The order of eligible tokens: of all (`Ranking`), or of each row's alone (`RowRanking`).

    Values per set of tokens are [] for one set, or [S] for one set per row.
    """

    eligible: Tensor  # bool [S,T], this rank's tokens that are ordered
    tokens: int  # eligible tokens over all rows and ranks
    bad: int  # eligible tokens whose score is NaN or infinite: with any, no method may be called
    size: Tensor  # int64, eligible tokens of a set over all ranks

    def __init__(self, tile: Tile, eligible: Tensor) -> None:
        self._tile, self.eligible = tile, eligible
        self.dtype = tile(slice(0, 0)).dtype

    def top(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """The k largest of each set, ties by smallest (sequence_id, position).

        Args:
            k: int64, between 0 and `size`, the same on all ranks.

        Returns:
            bool [S,T], and the k-th largest score of each set (any number where k is 0).
        """
        last, above = self._kth(k)
        mask = torch.empty(self.eligible.shape, dtype=torch.bool, device=self.eligible.device)
        tied = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
        for rows in tiles(mask):
            scores, eligible, bound = self._tile(rows), self.eligible[rows], _of_rows(last, rows)
            mask[rows] = (scores > bound) & eligible
            tied[rows] = ((scores == bound) & eligible).sum(1)
        room = self._room(tied, k - above)
        for rows in tiles(mask):
            if room[rows].any():
                equal = (self._tile(rows) == _of_rows(last, rows)) & self.eligible[rows]
                mask[rows] |= equal & (equal.cumsum(1) <= room[rows, None])
        return mask, last

    def quantile(self, q: float) -> Tensor:
        """The linearly interpolated quantile 0 <= q <= 1 of each set, NaN where it is empty.

        Bitwise equal to `torch.quantile`, which refuses more than 2**24 tokens.
        """
        rank = _quantile_rank(q, self.size, self.dtype)
        low = rank.long()
        below, _ = self._kth(self.size - low)
        above, _ = self._kth(self.size - rank.ceil().long())
        quantile = below.lerp(above, (rank - low).to(below))
        return torch.where(self.size > 0, quantile, torch.nan)

    def between(self, low: Tensor, high: Tensor | None = None) -> Tensor:
        """The tokens with low <= score (<= high): bool [S,T]."""
        mask = torch.empty(self.eligible.shape, dtype=torch.bool, device=self.eligible.device)
        for rows in tiles(mask):
            scores = self._tile(rows)
            mask[rows] = (scores >= _of_rows(low, rows)) & self.eligible[rows]
            if high is not None:
                mask[rows] &= scores <= _of_rows(high, rows)
        return mask

    @abstractmethod
    def _kth(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """The k-th largest score of each set, and the number of larger ones."""

    @abstractmethod
    def _room(self, tied: Tensor, k: Tensor) -> Tensor:
        """How many of its `tied` [S] tokens each row keeps if each set keeps k of them: int64 [S]."""


class Ranking(Order):
    """The order of all eligible tokens over all ranks.

    Making one takes one collective, `top` 12 (float32; float64 and int64: 16), `quantile` 8 (or 16).

    Args:
        tile: the scores.
        eligible: bool [S,T], the tokens of this rank that are in the set.
        sequence_id: int64 [S], unique over all ranks.
        reduce: sums an int64 tensor over the ranks.
    """

    def __init__(self, tile: Tile, eligible: Tensor, sequence_id: Tensor, reduce: Reduce) -> None:
        super().__init__(tile, eligible)
        self._sequence_id, self._reduce = sequence_id, reduce
        self._bits = self.dtype.itemsize * 8
        self._first = _histogram(self._keys(), self._bits, 0, 0)
        edge = _NOT_FINITE[self.dtype]
        bad = self._first[:edge].sum() + self._first[_BINS - edge :].sum()
        self.size, bad = reduce(torch.stack([self._first.sum(), bad]))
        self.tokens, self.bad = int(self.size), int(bad)

    def _kth(self, k: Tensor) -> tuple[Tensor, Tensor]:
        local, here, key, above = self._first, self.tokens, 0, 0
        few: list[tuple[Tensor, Tensor]] = []
        for done in range(0, self._bits, _WIDTH):
            if done:
                if not few and here <= _FEW:  # each rank decides alone: no collective depends on it
                    few = self._candidates(key, done, here)
                local = _histogram(few or self._keys(), self._bits, key, done)
            local = local.view(256, 256)
            upper, above = _digit(self._reduce(local.sum(1)), int(k), above)
            lower, above = _digit(self._reduce(local[upper]), int(k), above)
            here = int(local[upper, lower])
            key = (key << _WIDTH) + upper * 256 + lower - (0 if done else _BINS // 2)
        bits = torch.tensor(key, dtype=_integer(self.dtype), device=k.device)
        return _flip(bits).view(self.dtype) if self.dtype.is_floating_point else bits, k.new_tensor(above)

    def _keys(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys of this rank's tokens, and which of these are eligible."""
        for rows in tiles(self.eligible):
            yield _keys(self._tile(rows)), self.eligible[rows]

    def _candidates(self, prefix: int, done: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """The keys of the `count` eligible tokens that start with the prefix, as one piece."""
        shift, filled = self._bits - done, 0
        found = torch.empty(count, dtype=_integer(self.dtype), device=self.eligible.device)
        for keys, counted in self._keys():
            matching = keys[(keys >> shift == prefix) & counted]
            found[filled : filled + len(matching)] = matching
            filled += len(matching)
        return [(found, torch.ones_like(found, dtype=torch.bool))]

    def _room(self, tied: Tensor, k: Tensor) -> Tensor:
        # the row that holds the k-th tied token is found like the k-th score, each row weighted by its number of ties
        key, last, above, weights = ~self._sequence_id, 0, 0, tied  # ~ reverses the order: the smallest comes first
        for shift in range(56, -1, -8):
            digits = ((key ^ _LOWEST) >> shift) & 0xFF  # unsigned, in the order of the signed keys
            local = torch.zeros(256, dtype=torch.int64, device=tied.device).index_add_(0, digits, weights)
            digit, above = _digit(self._reduce(local), int(k), above)
            weights = weights * (digits == digit)
            last = last << 8 | digit
        last += _LOWEST
        return torch.where(key > last, tied, (key == last) * tied.clamp(max=int(k) - above))


class RowRanking(Order):
    """The order of the eligible tokens of each row alone.

    Making one takes one collective, to count tokens over all ranks; there are no others.

    Args:
        tile: the scores.
        eligible: bool [S,T].
        reduce: sums an int64 tensor over the ranks.
    """

    def __init__(self, tile: Tile, eligible: Tensor, reduce: Reduce) -> None:
        super().__init__(tile, eligible)
        self.size = torch.zeros(len(eligible), dtype=torch.int64, device=eligible.device)
        bad = self.size.new_zeros(())
        for rows in tiles(eligible):
            self.size[rows] = eligible[rows].sum(1)
            bad += (~tile(rows).isfinite() & eligible[rows]).sum()
        self.tokens, self.bad = reduce(torch.stack([self.size.sum(), bad])).tolist()

    def _kth(self, k: Tensor) -> tuple[Tensor, Tensor]:
        floats = self.dtype.is_floating_point
        lowest, highest = (-torch.inf, torch.inf) if floats else (_LOWEST, ~_LOWEST)
        last = torch.full_like(k, highest, dtype=self.dtype)  # nothing is above it where k is 0
        above = torch.zeros_like(k)
        for rows in tiles(self.eligible):
            most = max(k[rows].tolist(), default=0)
            if most > 0:
                best = self._tile(rows).masked_fill(~self.eligible[rows], lowest).topk(most, dim=1).values
                kth = best.gather(1, (k[rows, None] - 1).clamp(min=0))
                last[rows] = kth.squeeze(1)
                above[rows] = (best > kth).sum(1)
        return last, above

    def _room(self, tied: Tensor, k: Tensor) -> Tensor:
        return k


def check_count(count: Tensor, k: int) -> None:
    """Refuses sequence ids that are not unique: more or fewer tokens than k are kept.

    Raises:
        ValueError: on all ranks, as the count is over all ranks.
    """
    if int(count) != k:
        raise ValueError(f"sequence_id must be unique over all ranks: {int(count)} tokens are kept instead of {k}")


def _of_rows(value: Tensor, rows: slice) -> Tensor:
    """The value that some rows are compared with: that of their set."""
    return value if value.ndim == 0 else value[rows, None]


def _quantile_rank(q: float, n: Tensor, dtype: torch.dtype) -> Tensor:
    """The rank 0 .. n-1, with its fraction, of quantile q: rounded as `torch.quantile` does, up to 2**24 tokens."""
    exact = bool((n > 2**24).any())  # float32 cannot tell ranks above 2**24 apart
    return torch.tensor(q, dtype=torch.float64 if exact else dtype, device=n.device) * (n - 1).clamp(min=0)


def _histogram(pieces: Iterable[tuple[Tensor, Tensor]], bits: int, prefix: int, done: int) -> Tensor:
    """Counts keys by their next 16 bits, of those whose first `done` bits are the prefix: int64 [2**16]."""
    counts, shift = torch.zeros((), dtype=torch.int64), bits - done - _WIDTH
    for keys, counted in pieces:
        if done:
            counted = (keys >> (shift + _WIDTH) == prefix) & counted
            digits = ((keys >> shift) & (_BINS - 1)) + 1
        else:
            digits = (keys >> shift) + (_BINS // 2 + 1)  # from signed to 1 .. 2**16
        # bin 0 takes the tokens that are not eligible: several times faster than picking out the others
        counts = counts + torch.bincount((digits * counted).flatten(), minlength=_BINS + 1)
    return counts[1:]


def _digit(histogram: Tensor, k: int, above: int) -> tuple[int, int]:
    """The bin of the k-th largest, given that `above` lie above all bins; and how many lie above that bin."""
    counts = histogram.tolist()
    for digit in range(255, 0, -1):
        if above + counts[digit] >= k:
            return digit, above
        above += counts[digit]
    return 0, above


def _integer(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype == torch.float32 else torch.int64


def _keys(scores: Tensor) -> Tensor:
    """Integers of the same order as the scores."""
    if not scores.is_floating_point():
        return scores
    return _flip((scores + 0.0).view(_integer(scores.dtype)))  # + 0.0 turns -0.0 into 0.0


def _flip(bits: Tensor) -> Tensor:
    """Maps the bits of a float to an integer of the same order, and back."""
    return bits ^ ((bits >> (bits.dtype.itemsize * 8 - 1)) & torch.iinfo(bits.dtype).max)
