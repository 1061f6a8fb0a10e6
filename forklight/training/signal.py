"""The learning signal of one update over all ranks: its table, and the values of `signal/`.

It is a measure of the policy gradient of eligible tokens whose advantage is not zero (`forklight.algo.signal`); the
others have none. Entropies and `grad_square` are of the policy that `selection.entropy_of` names.

- `fork/signal_kept`: the share of the gradient mass that the mask keeps.
- `signal/share_<part>`: the share of the gradient mass that lies in a part; `signal/kept_<part>`: the share of the
  part's mass that the mask keeps. A part without a token has no point.
- `signal/gradient/<bin>`, `signal/tokens/<bin>`: the shares of gradient mass and tokens in an entropy bin.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from forklight.algo.plan import eligible_rows
from forklight.algo.selection.spec import ForkSelection
from forklight.algo.signal import EDGES, MEASURES, signal_sums
from forklight.distributed import Ranks
from forklight.training.curves import shares
from forklight.training.state import RolloutState

BINS = tuple(f"{low:g}_to_{high:g}" for low, high in pairwise((0.0, *EDGES, math.inf)))
"""Names of the entropy bins: `0_to_0.01` to `6_to_inf`."""

_COLUMNS = (*MEASURES, *(f"kept_{name}" for name in MEASURES))

Table = dict[str, dict[str, list[float]]]
"""By part and column, a sum per bin; the columns are the measures, and each with `kept_` of the tokens kept."""


@dataclass(frozen=True, slots=True)
class Signal:
    """The learning signal of an update, over all ranks."""

    sums: Table

    def record(self) -> dict[str, object]:
        """The complete table, for a line of `signal.jsonl`."""
        return {"edges": list(EDGES), "sums": self.sums}

    def scalars(self) -> dict[str, float]:
        """The values by tag."""
        total = {part: {name: math.fsum(bins) for name, bins in columns.items()} for part, columns in self.sums.items()}
        every = total.pop("all")
        scalars = shares({"fork/signal_kept": (every["kept_gradient"], every["gradient"])})
        for part, found in total.items():
            if found["tokens"]:
                scalars |= shares({f"signal/share_{part}": (found["gradient"], every["gradient"])})
                scalars |= shares({f"signal/kept_{part}": (found["kept_gradient"], found["gradient"])})
        for measure in ("gradient", "tokens"):
            by_bin = zip(BINS, self.sums["all"][measure], strict=True)
            scalars |= shares({f"signal/{measure}/{name}": (value, every[measure]) for name, value in by_bin})
        return scalars


def update_signal(
    state: RolloutState, update: int, spec: ForkSelection, ranks: Ranks, box_end: Tensor | None = None
) -> Signal | None:
    """Measures the signal of an update; every rank calls this, in one collective.

    Args:
        state: the rollout, after the update.
        update: number of the update in the rollout.
        spec: the selection.
        ranks: the data-parallel group.
        box_end: int64 [S], the token of each answer that completes its first box, -1 without a box; None on all ranks
            leaves out the parts before and behind it.

    Returns:
        None if no token has an advantage, or the statistics of one that has are not known.
    """
    batch, tokens = state.batch, state.tokens
    rows = eligible_rows(batch, spec) & (batch.update == update) & (batch.advantages != 0)
    micro_batch = batch.micro_batch(rows.nonzero().flatten())
    of_answer = micro_batch.rows[micro_batch.row]
    right, cut = batch.right[of_answer], batch.truncated[of_answer]
    parts = {"all": torch.ones_like(right), "right": right, "wrong": ~right, "cut": cut, "whole": ~cut}
    if box_end is not None:
        end = box_end[of_answer]
        parts["before_box"] = micro_batch.column <= end
        parts["behind_box"] = (end >= 0) & (micro_batch.column > end)
    entropy, grad_square = micro_batch.read(tokens.entropy), micro_batch.read(tokens.grad_square)
    unknown = entropy.isnan() | grad_square.isnan()
    found = signal_sums(entropy, grad_square, batch.advantages[of_answer], micro_batch.read(tokens.fork_mask), parts)
    sums = torch.stack(list(found.values()))
    missing, *flat = ranks.reduce(torch.cat([unknown.sum()[None].double(), sums.flatten()])).tolist()
    by_part = torch.tensor(flat, dtype=torch.float64).view(sums.shape).flatten(2).transpose(1, 2).tolist()
    table = {part: dict(zip(_COLUMNS, columns, strict=True)) for part, columns in zip(parts, by_part, strict=True)}
    return None if missing or not any(table["all"]["tokens"]) else Signal(table)
