"""Learning rates that change with the number of updates."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """The learning rate rises linearly in the first updates, then falls to a share of itself along half a cosine.

    The n-th update, n = 1, 2, ..., has the optimiser's `lr` times n / `warmup` up to n = `warmup`, so that none is 0;
    behind, it falls so that update number `updates` has `floor` times `lr`, and all later ones, too.

    Args:
        optimizer: whose rate it is.
        warmup: updates in which it rises; 0 for none.
        updates: of the run, `trainer.max_steps`.
        floor: the last rate / the highest one.
        last_epoch: updates that are done; -1 at the start.

    Raises:
        ValueError: the warm-up is not shorter than the run, or `floor` is no share.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: int, updates: int, floor: float = 0.0, last_epoch: int = -1
    ) -> None:
        if not 0 <= warmup < updates:
            raise ValueError(
                f"model.lr_scheduler.warmup = {warmup} must be at least 0, and below model.lr_scheduler.updates = "
                f"{updates}"
            )
        if not 0 <= floor <= 1:
            raise ValueError(f"model.lr_scheduler.floor = {floor} must be from 0 to 1")
        self.warmup, self.updates, self.floor = warmup, updates, floor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The rates of the next update, one per parameter group."""
        return [lr * self.factor(self.last_epoch + 1) for lr in self.base_lrs]

    def factor(self, update: int) -> float:
        """The rate of an update, counted from 1, over the highest one."""
        if update <= self.warmup:
            return update / self.warmup
        done = min(1.0, (update - self.warmup) / (self.updates - self.warmup))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
