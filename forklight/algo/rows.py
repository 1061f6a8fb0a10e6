"""Sums over the tokens of each sequence, where tokens are a flat list."""

import torch
from torch import Tensor


def row_sums(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """The sum of each sequence's token values, in float64 and in one order on every device.

    `index_add` would add in any order on a GPU, and a resumed run would differ from one that was never stopped.

    Args:
        values: [N], floating point; gradients pass through.
        row: int64 [N], each token's sequence, 0 .. rows-1, in any order.
        rows: number of sequences.

    Returns:
        float64 [rows]; 0 for a sequence without tokens.
    """
    order = row.argsort(stable=True)
    count = torch.bincount(row, minlength=rows)
    first = count.cumsum(0) - count
    place = torch.arange(len(row), device=row.device) - first[row[order]]
    width = int(count.max()) if len(row) else 0
    table = values.new_zeros(rows, width, dtype=torch.float64)
    return table.index_put((row[order], place), values.double()[order]).sum(1)
