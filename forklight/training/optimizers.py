"""The optimiser and its learning rate, in the form that Lightning wants."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau


def optimizers(
    make: Callable[[Iterable[nn.Parameter]], Optimizer],
    schedule: Callable[[Optimizer], Any] | None,
    parameters: Iterable[nn.Parameter],
) -> Any:
    """What `configure_optimizers` returns: the optimiser, and a scheduler that steps with every update, if given.

    Args:
        make: makes the optimiser for some parameters.
        schedule: makes its scheduler.
        parameters: of the policy.

    Raises:
        ValueError: the scheduler waits for scores.
    """
    optimizer = make(parameters)
    if schedule is None:
        return optimizer
    scheduler = schedule(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "model.lr_scheduler = ReduceLROnPlateau waits for scores, but schedulers step with every update here; "
            "take forklight.schedules.WarmupCosine or another that counts updates"
        )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
