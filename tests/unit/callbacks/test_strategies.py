"""Strategies under which gradients would be others are refused by name."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.deepspeed import DeepSpeedStrategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy

from forklight.callbacks.guards import check_strategy


class Own(DDPStrategy):
    """One's own extension of a supported strategy."""


def trainer(kind):
    return SimpleNamespace(strategy=object.__new__(kind))


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy, SingleDeviceXLAStrategy])
def test_refused(kind):
    with pytest.raises(ValueError, match=rf"trainer\.strategy = {kind.__name__} is not supported.*ddp"):
        check_strategy(trainer(kind))


@pytest.mark.parametrize("kind", [SingleDeviceStrategy, DDPStrategy, Own])
def test_supported(kind):
    check_strategy(trainer(kind))
