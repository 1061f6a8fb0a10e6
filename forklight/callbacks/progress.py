"""The progress bar: rollout, update, reward, tokens per second."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from forklight.module import ForkGRPOModule


class RunProgress(ProgressBar):
    """A bar over `trainer.max_steps` updates; shown only if the output is a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._enabled = True
        self._clock = 0.0

    def disable(self) -> None:
        """Called by Lightning on all ranks but 0."""
        self._enabled = False

    def enable(self) -> None:
        """Called by Lightning on rank 0."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar."""
        if not self._enabled:
            return
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), transient=False,
        )  # fmt: skip
        if self._bar.console.is_terminal:
            self._bar.start()
        self._task = self._bar.add_task("update", total=trainer.max_steps, completed=trainer.global_step)
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar after every update."""
        if self._bar is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._bar.update(
            self._task, completed=trainer.global_step, description=self._describe(trainer, pl_module, batch)
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bar, so that the message is readable."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _describe(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> str:
        if not isinstance(pl_module, ForkGRPOModule):
            return f"update {trainer.global_step}"
        text = f"rollout {batch.rollout + 1} · update {batch.update + 1}/{batch.updates}"
        if pl_module.rollout is not None:
            reward = pl_module.rollout.metrics["rollout/reward"]
            tokens = trainer.callback_metrics.get("time/tokens_per_second")
            text += f" · reward {reward:.3f}" + (f" · {float(tokens):,.0f} tokens/s" if tokens is not None else "")
        return text
