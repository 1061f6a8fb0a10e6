"""What a run shows while it goes: a bar on a terminal, otherwise a line per rollout."""

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from forklight.module import ForkGRPOModule


class RunProgress(ProgressBar):
    """On a terminal a bar over `trainer.max_steps` updates, and one over the batches of every evaluation.

    Where the output is no terminal, a line per rollout: update, reward, last score, length of answers, tokens per
    second, time left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None
        self._updates: TaskID | None = None
        self._evaluation: TaskID | None = None
        self._start: tuple[float, int] | None = None  # clock and updates where the first update began

    def disable(self) -> None:
        """Called by Lightning on all ranks but 0."""
        self._enabled = False

    def enable(self) -> None:
        """Called by Lightning on rank 0."""
        self._enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Opens the bars, if the output is a terminal."""
        super().setup(trainer, pl_module, stage)
        if self._enabled and self._bar is None and Console().is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            self._bar = Progress(*columns)
            self._bar.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar of the updates."""
        if self._bar is not None:
            self._updates = self._bar.add_task("update", total=trainer.max_steps, completed=trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock, behind an evaluation at the start."""
        self._start = self._start or (time.perf_counter(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar after every update, or prints a line after every rollout."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if self._bar is not None and self._updates is not None:
            text = ", ".join(self._figures(trainer, pl_module))
            self._bar.update(self._updates, completed=trainer.global_step, description=text or "update")
        elif self._enabled and getattr(batch, "ends_rollout", False):
            figures = f"update {trainer.global_step}/{trainer.max_steps}", *self._figures(trainer, pl_module)
            print(", ".join(figures), flush=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar of an evaluation."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._evaluate(batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar of an evaluation."""
        self._evaluate(trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar of an evaluation."""
        self._evaluate(trainer.num_predict_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Moves the bar of an evaluation."""
        if self._bar is not None and self._evaluation is not None:
            self._bar.advance(self._evaluation)

    on_test_batch_end = on_validation_batch_end
    on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the bar of an evaluation."""
        if self._bar is not None and self._evaluation is not None:
            self._bar.remove_task(self._evaluation)
            self._evaluation = None

    on_test_end = on_predict_end = on_validation_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes the bars."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bars, so that the message is readable."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._updates = self._evaluation = None

    def _evaluate(self, batches: Any) -> None:
        if self._bar is not None:
            total = sum(batches) if isinstance(batches, list) else batches
            self._evaluation = self._bar.add_task("evaluation", total=total)

    def _figures(self, trainer: Trainer, module: LightningModule) -> list[str]:
        """What is known of the rollout and of the run, as `reward 0.51` and so on."""
        found = []
        if isinstance(module, ForkGRPOModule) and module.rollout is not None:
            found.append(f"reward {module.rollout.metrics['rollout/reward']:.3f}")
        for name, value in trainer.callback_metrics.items():
            stage, _, rest = name.partition("/")
            if stage == "val" and "/avg@" in rest and not rest.partition("avg@")[2].partition("_")[2]:
                found.append(f"{rest.replace('/', ' ')} {100 * float(value):.1f} %")
        if isinstance(module, ForkGRPOModule) and module.rollout is not None:
            found.append(f"length {module.rollout.metrics['rollout/answer_tokens']:.0f}")
        tokens = trainer.callback_metrics.get("time/tokens_per_second")
        if tokens is not None:
            found.append(f"{float(tokens):,.0f} tokens/s")
        if self._start is not None and (done := trainer.global_step - self._start[1]):
            left = (time.perf_counter() - self._start[0]) / done * (trainer.max_steps - trainer.global_step)
            found.append(f"{timedelta(seconds=round(left))} left")
        return found
