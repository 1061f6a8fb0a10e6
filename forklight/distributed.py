"""The data-parallel group and its collectives."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """All ranks of the run; a single process is a group of one."""

    @property
    def size(self) -> int:
        """Data-parallel size."""
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return dist.get_rank() if self.size > 1 else 0

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.size == 1:
            return tensor
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def maximum(self, tensor: Tensor) -> Tensor:
        """The largest value over all ranks."""
        if self.size == 1:
            return tensor
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def _all_reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        device = torch.device("cuda") if dist.get_backend() == "nccl" else tensor.device
        result = tensor.to(device, copy=True)
        dist.all_reduce(result, op=operation)
        return result.to(tensor.device)

    def gather(self, value: Any) -> list[Any]:
        """One picklable value of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """True on every rank if the flag is true on any."""
        return bool(self.reduce(torch.tensor(int(flag)))) if self.size > 1 else flag
