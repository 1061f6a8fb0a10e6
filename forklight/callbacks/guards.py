"""Refuses, before the first step, what would train something else than the config says."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from forklight.algo.plan import update_and_rank
from forklight.data.datamodule import MathDataModule


class Guards(Callback):
    """Checks that the Trainer's flags mean what they say for rollouts, and fills in the evaluation interval."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Runs when everything is built and nothing has been trained."""
        if stage != "fit":
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.max_steps is None or trainer.max_steps < 0:
            raise ValueError("trainer.max_steps is required: the number of optimiser updates to train for")
        if trainer.max_epochs not in (None, -1):
            raise ValueError(
                f"trainer.max_epochs = {trainer.max_epochs} has no meaning here: set trainer.max_steps, the number of "
                "updates; passes over the data are logged as rollout/epoch"
            )
        if isinstance(trainer.limit_train_batches, float) and trainer.limit_train_batches != 1.0:
            raise ValueError(
                f"trainer.limit_train_batches = {trainer.limit_train_batches} has no meaning on an endless stream of "
                "problems: set trainer.max_steps"
            )
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, MathDataModule):
            self._check_visits(trainer, data)

    def _check_visits(self, trainer: Trainer, data: MathDataModule) -> None:
        update_and_rank(data.prompts_per_rollout, data.updates_per_rollout, trainer.world_size)
        visits = data.visits
        if trainer.val_check_interval == 1.0:
            trainer.val_check_interval = data.eval_every_rollouts * visits
        interval = trainer.val_check_interval
        if not isinstance(interval, int) or interval % visits:
            raise ValueError(
                f"trainer.val_check_interval = {interval} must be a whole number of rollouts, a multiple of "
                f"data.updates_per_rollout * trainer.accumulate_grad_batches = {visits} visits; "
                "or leave it out and set data.eval_every_rollouts"
            )
        if trainer.limit_train_batches != 1.0 and int(trainer.limit_train_batches) % visits:
            raise ValueError(
                f"trainer.limit_train_batches = {trainer.limit_train_batches} must be a multiple of {visits} visits"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler) and callback.going_to_accumulate_grad_batches():
                raise ValueError(
                    "GradientAccumulationScheduler changes the number of micro-batches during a run; "
                    "set trainer.accumulate_grad_batches to one number"
                )
            if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps:
                raise ValueError(
                    f"ModelCheckpoint.every_n_train_steps = {callback._every_n_train_steps}: a run resumed from such a "
                    "checkpoint skips the evaluation that was due; use checkpoint.every_n_updates. "
                    "A ModelCheckpoint with `monitor` and no interval is fine"
                )
