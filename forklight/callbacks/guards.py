"""Refuses, before the first step, settings that would train something else than the config says."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from forklight.algo.plan import update_and_rank
from forklight.callbacks.checkpoint import RunCheckpoint
from forklight.data.datamodule import MathDataModule
from forklight.data.sets import EvalSet
from forklight.metrics import AnswerScores
from forklight.metrics.scores import shown_k
from forklight.module import ForkGRPOModule

STRATEGIES = (SingleDeviceStrategy, DDPStrategy)
"""Under these, losses are scaled and gradients summed as the algorithm needs it. Others train something else, some of
them without a word: `ModelParallelStrategy` leaves it to the module to shard itself, and sums no gradients."""


class Guards(Callback):
    """Checks that the Trainer's flags mean what they say for rollouts, and fills in the evaluation interval."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Runs when everything is built and nothing is trained yet."""
        if stage == "fit":
            check_fit(trainer, pl_module, getattr(trainer, "datamodule", None))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the sampler's engine: after an error Lightning calls no `teardown` of the module."""
        if isinstance(pl_module, ForkGRPOModule):
            pl_module.sampler.close()


def check_fit(trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
    """Refuses settings that do not take effect; sets `trainer.val_check_interval` if it is left out.

    The command line calls it before it writes anything; the callback calls it in all other cases.

    Args:
        trainer: with its callbacks.
        module: what is trained.
        data: the datamodule, which the trainer may not know yet.

    Raises:
        ValueError: a setting has no meaning here, or would be ignored.
    """
    if isinstance(module, ForkGRPOModule) and data is None:
        raise ValueError("data: is required, the problems to train on and how many of them a rollout has")
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    check_strategy(trainer)
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
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise ValueError(
            "trainer.overfit_batches has no meaning on an endless stream of problems: give the problem file a `limit` "
            "of data.prompts_per_rollout problems"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        _check_callback(callback)
    if isinstance(data, MathDataModule):
        _check_monitors(trainer.callbacks, data)  # type: ignore[attr-defined]
        _check_micro_batches(trainer, data)
        if isinstance(module, ForkGRPOModule):
            module.config.schedule(data.updates_per_rollout, trainer.accumulate_grad_batches)


def check_strategy(trainer: Trainer) -> None:
    """Refuses strategies under which gradients or losses would be others; one's own may extend a supported one.

    Raises:
        ValueError: naming the strategy.
    """
    kinds = type(trainer.strategy).__mro__
    lightnings = next((kind for kind in kinds if kind.__module__.startswith("lightning.")), kinds[0])
    if lightnings not in STRATEGIES:
        raise ValueError(
            f"trainer.strategy = {lightnings.__name__} is not supported: it would train something else or fail later; "
            "supported are one device (auto) and ddp"
        )


def _check_micro_batches(trainer: Trainer, data: MathDataModule) -> None:
    """Refuses sizes of a rollout that do not fit together, and intervals that are no whole number of rollouts."""
    p, g, k, a = (
        data.prompts_per_rollout,
        data.answers_per_prompt,
        data.updates_per_rollout,
        trainer.accumulate_grad_batches,
    )
    update_and_rank(p, k, trainer.world_size)
    share = p * g // (k * trainer.world_size)
    if share < a:
        raise ValueError(
            f"trainer.accumulate_grad_batches = {a} asks for more micro-batches than the {share} sequences that one "
            "rank has per update"
        )
    micro_batches = k * a
    interval: Any = getattr(trainer, "val_check_interval", "a time")  # for a time Lightning has no such attribute
    if interval == 1.0:
        interval = trainer.val_check_interval = data.eval_every_rollouts * micro_batches
    if not isinstance(interval, int) or interval % micro_batches:
        raise ValueError(
            f"trainer.val_check_interval = {interval} must be a whole number of rollouts, a multiple of "
            f"data.updates_per_rollout * trainer.accumulate_grad_batches = {micro_batches} micro-batches; "
            "or leave it out and set data.eval_every_rollouts"
        )
    # Otherwise an interval of 1 micro-batch reads as 1.0, once per epoch, for whose end EarlyStopping and
    # ModelCheckpoint wait.
    trainer.check_val_every_n_epoch = None
    if trainer.limit_train_batches != 1.0 and int(trainer.limit_train_batches) % micro_batches:
        raise ValueError(
            f"trainer.limit_train_batches = {trainer.limit_train_batches} must be a multiple of {micro_batches} "
            "micro-batches"
        )


def _check_monitors(callbacks: Sequence[Callback], data: MathDataModule) -> None:
    """Refuses callbacks that wait for a score that no evaluation measures; a user's callback may log others."""
    known = [f"val/{name}/{score}" for name, spec in data.val_sets.items() for score in score_names(spec)]
    foreign = any(
        type(callback).__module__.partition(".")[0] not in ("forklight", "lightning") for callback in callbacks
    )
    for callback in callbacks:
        ours = isinstance(callback, RunCheckpoint)
        monitor = callback.best if isinstance(callback, RunCheckpoint) else getattr(callback, "monitor", None)
        if monitor is None or monitor in known or (foreign and not ours and not monitor.startswith("val/")):
            continue
        key = "checkpoint.best" if ours else f"{type(callback).__name__}.monitor"
        there = f"there are {', '.join(known)}" if known else "there is no evaluation set: give data.val one"
        raise ValueError(f"{key} = {monitor}: there is no such score; {there}")


def score_names(spec: EvalSet) -> list[str]:
    """The scores of an evaluation set that are logged as metrics: pass@k for k = 2, 4, 8 .. and n only."""
    n = spec.sampling.answers
    shown = {f"pass@{k}" for k in shown_k(n)}
    return [name for name in AnswerScores(n).scores if name in shown or not name.startswith("pass@")]


def _check_callback(callback: Callback) -> None:
    """Refuses callbacks that break accumulation or resume."""
    if isinstance(callback, GradientAccumulationScheduler) and callback.going_to_accumulate_grad_batches():
        raise ValueError(
            "GradientAccumulationScheduler changes the number of micro-batches during a run; "
            "set trainer.accumulate_grad_batches to one number"
        )
    if not isinstance(callback, ModelCheckpoint):
        return
    if callback._every_n_train_steps or callback._train_time_interval:
        which = "every_n_train_steps" if callback._every_n_train_steps else "train_time_interval"
        raise ValueError(
            f"ModelCheckpoint.{which} = {getattr(callback, '_' + which)}: a run resumed from such a "
            "checkpoint skips the evaluation that was due; use checkpoint.every_n_updates. "
            "A ModelCheckpoint with `monitor` and no interval is fine"
        )
    if callback.save_last:
        raise ValueError(
            f"ModelCheckpoint.save_last = {callback.save_last}: last.ckpt is always kept, by `checkpoint`; leave it out"
        )
