"""Says when weights in half precision do not move: steps smaller than the rounding of a weight are lost."""

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

log = logging.getLogger(__name__)

UPDATES = 5
"""Updates with a gradient after which the weights are compared with those before."""

SAMPLE = 1000
"""Numbers that are looked at in every weight."""

STUCK = 0.5
"""It is said if at least this share of the weights has not moved."""


class SmallSteps(Callback):
    """Compares a sample of bfloat16 weights after the first updates with what they were, and warns with the numbers."""

    def __init__(self) -> None:
        self._before: list[tuple[Tensor, Tensor]] = []  # weight, and the sample of it
        self._updates, self._lr = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the sample, if the weights are in half precision."""
        policy: Any = getattr(pl_module, "policy", None)
        if policy is None or policy.head_weight.dtype.itemsize >= 4:
            return
        head, looked_up = policy.head_weight, policy.model.get_input_embeddings().weight
        self._before = [
            (weight, _sample(weight))
            for weight in policy.parameters()
            # rows of an embedding that is not the head get no gradient unless their token occurs
            if weight.requires_grad and weight.ndim > 1 and (weight is head or weight is not looked_up)
        ]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Counts updates with a gradient, and keeps the largest learning rate."""
        if self._before and any(weight.grad is not None and bool(weight.grad.any()) for weight, _ in self._before):
            self._updates += 1
            self._lr = max(self._lr, *(float(group["lr"]) for group in optimizer.param_groups), 0.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last of these updates."""
        if self._updates < UPDATES or not self._before:
            return
        stuck = sum(
            float((_sample(weight) == before).float().mean()) * weight.numel() for weight, before in self._before
        )
        share = stuck / sum(weight.numel() for weight, _ in self._before)
        dtype = str(self._before[0][0].dtype).removeprefix("torch.")
        self._before = []
        if share >= STUCK and trainer.is_global_zero:
            log.warning(
                f"model.policy.dtype = {dtype}: after {UPDATES} updates at a learning rate of {self._lr:.2g}, "
                f"{100 * share:.0f} % of the weights are what they were, as a step is smaller than their rounding. Use "
                "model.policy.dtype = float32 with trainer.precision = bf16-mixed, or a larger learning rate"
            )


def _sample(weight: Tensor) -> Tensor:
    """Up to `SAMPLE` numbers of a weight, evenly spread; a copy."""
    return weight.detach().flatten()[:: max(1, weight.numel() // SAMPLE)][:SAMPLE].clone()
