"""A process that dies in the middle of a run, always at the same place."""

import os
import signal

from lightning.pytorch import Callback, LightningModule, Trainer


class KillAt(Callback):
    """Kills its own process, without warning, where the run goes on after so many updates."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_step == self.update:
            os.kill(os.getpid(), signal.SIGKILL)
