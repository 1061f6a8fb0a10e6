"""The LM head in tiles: logits of some rows and part of the vocabulary, computed, used and dropped while in the cache.

The softmax of a row is accumulated over tiles, shifted by the largest logit so far (online softmax). Operands of the
products have the type that autocast or the tensors give them; sums are float32, or float64 for operands of float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from forklight.algo.logprobs.transform import PLAIN, LogitTransform

LOWEST = -1e30
"""Lower logits are raised to this: their probability is 0, and 0 * -inf would be NaN."""

ROWS_PER_TILE = {"cpu": 512, "cuda": 4096}
ELEMENTS_PER_TILE = {"cpu": 2**19, "cuda": 2**26}
"""Logits of a tile: on a CPU few enough for its cache, on a GPU enough for large products."""

ELEMENTS_PER_BLOCK = {"cpu": 2**24, "cuda": 2**27}
"""Logits of full rows that `one_pass` holds at a time."""


@dataclass(frozen=True, slots=True)
class Softmax:
    """Statistics of the softmax of M rows at one temperature."""

    logp: Tensor  # [M] of the targets
    normaliser: Tensor  # [M] log of the sum of exp(logits / temperature)
    entropy: Tensor  # [M] in nats
    grad_square: Tensor  # [M] sum of the squares of 1[target] - p


class Head:
    """M rows and the full head. Autocast must be off where it is used; `lower` is its type.

    Args:
        hidden: [M,H].
        weight: [V,H].
        targets: int64 [M].
        lower: the type that autocast gives operands; None without it.
        transform: what makes logits of the products.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        lower: torch.dtype | None = None,
        transform: LogitTransform = PLAIN,
    ) -> None:
        self.device = hidden.device.type
        self.rounded = lower or weight.dtype
        hidden = hidden.to(lower or hidden.dtype)
        operand = torch.promote_types(hidden.dtype, self.rounded)
        self.dtype = torch.promote_types(operand, torch.float32)
        # a CPU multiplies float32 no slower than bfloat16, and does not round the sums
        self.operand = operand if hidden.is_cuda else self.dtype
        self.hidden, self.weight, self.targets = hidden.to(self.operand), weight, targets
        self.transform = transform
        self.bias = None if transform.bias is None else transform.bias.to(self.rounded).to(self.dtype)
        self._memory: dict[str, Tensor] = {}

    def scratch(self, use: str, rows: int, columns: int) -> Tensor:
        """Memory for a tile, reused by every tile of one use: page faults cost more than the arithmetic."""
        size = rows * columns
        if use not in self._memory or self._memory[use].numel() < size:
            self._memory[use] = torch.empty(size, dtype=self.dtype, device=self.hidden.device)
        return self._memory[use][:size].view(rows, columns)

    def tiles(self, most: int) -> list[slice]:
        """Slices of at most `most` rows; one empty slice if there are none."""
        return [slice(start, start + most) for start in range(0, max(1, len(self.targets)), most)]

    def parts(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Parts of the vocabulary for tiles of `rows` rows: the first token, and the weights as an operand."""
        step = max(256, _of(ELEMENTS_PER_TILE, self.device) // max(1, min(rows, len(self.targets))))
        for start in range(0, len(self.weight), step):
            yield start, self.weight[start : start + step].to(self.rounded).to(self.operand)

    def logits(self, rows: slice, start: int, part: Tensor, use: str = "logits") -> Tensor:
        """One tile of logits, at least float32; the caller may overwrite it, and the next tile of the same use does."""
        hidden = self.hidden[rows]
        if hidden.dtype != self.dtype:
            tile = _product(hidden, part.T)
        else:
            tile = torch.mm(hidden, part.T, out=self.scratch(use, len(hidden), len(part)))
        if self.bias is not None:
            tile.add_(self.bias[start : start + len(part)])
        return self.transform.after_(tile)

    def row_products(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum over the columns of a * b for tiles `[m,v]`, `[m]`."""
        if a.is_cuda:
            return torch.bmm(a[:, None], b[:, :, None]).flatten()
        # a CPU takes six times as long for a batch of products of a row and a column
        return torch.mul(a, b, out=self.scratch("products", *a.shape)).sum(1)

    def place(self, rows: slice, start: int, part: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's target in a tile: its column, int64 `[m,1]`, and whether the tile has it, bool `[m]`."""
        column = self.targets[rows] - start
        return column.clamp(0, len(part) - 1)[:, None], (column >= 0) & (column < len(part))


class _Sums:
    """Running sums of the softmax of some rows."""

    def __init__(self, rows: int, head: Head) -> None:
        self.head = head
        self.chosen = torch.zeros(rows, dtype=head.dtype, device=head.hidden.device)
        self.peak = torch.full_like(self.chosen, LOWEST)
        self.total = torch.zeros_like(self.chosen)  # sum of exp(z - peak)
        self.moment = torch.zeros_like(self.chosen)  # sum of exp(z - peak) (z - peak)
        self.others = torch.zeros_like(self.chosen)  # sum of exp(z - peak)^2, the target's left out

    def add(self, rows: slice, tile: Tensor, column: Tensor, inside: Tensor) -> Tensor:
        """Adds a tile of scores, shifts it in place by the largest score so far, and returns that score, `[m]`."""
        self.chosen[rows] = torch.where(inside, tile.gather(1, column).squeeze(1), self.chosen[rows])
        peak = torch.maximum(self.peak[rows], tile.clamp_(min=LOWEST).amax(1))
        weight = torch.exp(tile.sub_(peak[:, None]), out=self.head.scratch("weights", *tile.shape))
        fall = self.peak[rows] - peak
        shrink = fall.exp()
        moment = shrink * (self.moment[rows] + fall * self.total[rows])
        self.moment[rows] = moment + self.head.row_products(weight, tile)
        self.total[rows] = shrink * self.total[rows] + weight.sum(1)
        # near certainty the squares of the others are tiny beside the target's: left out, not subtracted
        weight.scatter_(1, column, weight.gather(1, column).masked_fill_(inside[:, None], 0.0))
        weight.clamp_(min=least_square_root(weight.dtype))
        self.others[rows] = shrink.square() * self.others[rows] + torch.linalg.vector_norm(weight, dim=1).square_()
        self.peak[rows] = peak
        return peak

    def result(self) -> Softmax:
        log_total = self.total.log()
        normaliser = self.peak + log_total
        # near certainty the log-probability is a small difference: subtract the large parts first
        logp = self.chosen - self.peak - log_total
        grad_square = logp.expm1().square_() + self.others / self.total.square()
        return Softmax(logp, normaliser, log_total - self.moment / self.total, grad_square)


def softmax_pass(head: Head, *temperatures: float) -> list[Softmax]:
    """The softmax of all rows at each temperature, from logits that are computed once."""
    sums = [_Sums(len(head.targets), head) for _ in temperatures]
    most = _of(ROWS_PER_TILE, head.device)
    tiles = head.tiles(most)
    for start, part in head.parts(most):
        for rows in tiles:
            place, tile = head.place(rows, start, part), head.logits(rows, start, part)
            for later, temperature in zip(reversed(range(len(sums))), temperatures, strict=True):
                scores = tile / temperature if later else _divided(tile, temperature)
                sums[~later].add(rows, scores, *place)
    return [found.result() for found in sums]


@dataclass(frozen=True, slots=True)
class Slope:
    """The gradient of a loss with respect to the softmax statistics of M rows at one temperature."""

    temperature: float
    normaliser: Tensor  # [M]
    by_logp: Tensor | None = None  # [M]
    by_entropy: Tensor | None = None  # [M]
    entropy: Tensor | None = None  # [M] needed if by_entropy is given

    def of(self, rows: slice, shifted: Tensor, column: Tensor, inside: Tensor) -> Tensor:
        """The gradient with respect to a tile of logits, from `logits / temperature - normaliser`, which it overwrites.

        `d logp / d z = (1[target] - p) / T` and `d entropy / d z = -p (log p + entropy) / T`.
        """
        share = torch.zeros_like(self.normaliser[rows]) if self.by_logp is None else self.by_logp[rows]
        share = share / self.temperature
        if self.by_entropy is None or self.entropy is None:
            tile = shifted.exp_().mul_(-share[:, None])
        else:
            factor = shifted + self.entropy[rows, None]
            factor.mul_(-self.by_entropy[rows, None] / self.temperature).sub_(share[:, None])
            tile = shifted.exp_().mul_(factor)
        return tile.scatter_add_(1, column, torch.where(inside, share, 0.0)[:, None])


class Gradients:
    """Running gradients with respect to hidden states `[M,H]`, weight `[V,H]` and bias `[V]`, in at least float32.

    Args:
        head: the rows.
        of_weight: whether the weight's gradient is wanted.
    """

    def __init__(self, head: Head, of_weight: bool) -> None:
        self.head = head
        self.hidden = torch.zeros_like(head.hidden, dtype=head.dtype)
        self.weight = torch.empty_like(head.weight, dtype=head.dtype) if of_weight else None
        self.bias = None if head.bias is None else torch.zeros_like(head.bias)

    def add(self, rows: slice, start: int, part: Tensor, tile: Tensor, slope: Tensor | float) -> None:
        """Adds the gradient with respect to a tile of logits; tiles must come in the order of their rows.

        Args:
            rows: of the tile.
            start: its first token.
            part: its weights.
            tile: the gradient, which is overwritten.
            slope: of the logits by the products; see `LogitTransform.slope`.
        """
        if not self.head.transform.linear:
            tile.mul_(slope)
        if self.bias is not None:
            self.bias[start : start + len(part)].add_(tile.sum(0))
        tile = tile.to(self.head.operand)
        _add_product(self.hidden[rows], tile, part)
        if self.weight is not None:
            place = self.weight[start : start + len(part)]
            _add_product(place, tile.T, self.head.hidden[rows], fresh=rows.start == 0)


def gradient_pass(head: Head, slopes: list[Slope], *, of_weight: bool) -> Gradients:
    """The gradients of all rows, from recomputed logits."""
    found = Gradients(head, of_weight)
    most = _of(ROWS_PER_TILE, head.device)
    tiles = head.tiles(most)
    for start, part in head.parts(most):
        for rows in tiles:
            place, logits = head.place(rows, start, part), head.logits(rows, start, part).clamp_(min=LOWEST)
            by_products = head.transform.slope(logits)
            total: Tensor | None = None
            for later, slope in zip(reversed(range(len(slopes))), slopes, strict=True):
                scores = logits / slope.temperature if later else _divided(logits, slope.temperature)
                tile = slope.of(rows, scores.sub_(slope.normaliser[rows, None]), *place)
                total = tile if total is None else total.add_(tile)
            assert total is not None
            found.add(rows, start, part, total, by_products)
    return found


def one_pass(
    head: Head, temperature: float, slope_of: Callable[[Softmax, slice], Tensor], *, of_weight: bool
) -> tuple[Softmax, Gradients]:
    """Softmax and gradients of all rows from logits computed once; those of a few full rows are held at a time.

    Args:
        head: the rows.
        temperature: of the softmax.
        slope_of: derivative of the loss by each log-probability, `[m]`, from the softmax of some rows and their slice.
        of_weight: whether the weight's gradient is wanted.
    """
    found, softmaxes = Gradients(head, of_weight), []
    most = max(1, _of(ELEMENTS_PER_BLOCK, head.device) // len(head.weight))
    for rows in head.tiles(most):
        sums = _Sums(len(head.targets[rows]), head)
        every, block = slice(None), []
        for start, part in head.parts(most):
            use = f"block {start}"  # the tiles of a block are all in memory at once
            tile, place = _divided(head.logits(rows, start, part, use), temperature), head.place(rows, start, part)
            block.append((start, part, tile, sums.add(every, tile, *place), place))
        softmax = sums.result()
        softmaxes.append(softmax)
        slope = Slope(temperature, softmax.normaliser, slope_of(softmax, rows))
        for start, part, tile, peak, place in block:
            shifted = tile.add_((peak - softmax.normaliser)[:, None])
            by_products: Tensor | float = head.transform.scale
            if head.transform.softcap is not None:
                by_products = head.transform.slope((shifted + softmax.normaliser[:, None]) * temperature)
            found.add(rows, start, part, slope.of(every, shifted, *place), by_products)
    joined = (torch.cat([getattr(part, field.name) for part in softmaxes]) for field in fields(Softmax))
    return Softmax(*joined), found


def least_square_root(dtype: torch.dtype) -> float:
    """The square root of the least normal number: squares of smaller numbers are denormal, which a CPU is slow with."""
    return float(torch.finfo(dtype).tiny ** 0.5)


def _of(sizes: dict[str, int], device: str) -> int:
    """The size for a type of device; unknown types get that of a GPU."""
    return sizes[device if device in sizes else "cuda"]


def _divided(tile: Tensor, temperature: float) -> Tensor:
    return tile if temperature == 1 else tile.div_(temperature)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, summed and returned in at least float32."""
    wanted = torch.promote_types(a.dtype, torch.float32)
    return a @ b if a.dtype == wanted else torch.mm(a, b, out_dtype=wanted)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, fresh: bool = False) -> None:
    """Adds a product to a total; if `fresh`, overwrites the total."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=0 if fresh else 1)
    elif fresh:
        total.copy_(_product(a, b))
    else:
        total.add_(_product(a, b))
