"""Curves of a training run: `train/`, `fork/` and `mismatch/` once per update, `rollout/` and `time/` once per rollout.

The x axis counts updates: what belongs to update number n stands at x = n, a rollout at the first update it feeds. So
everything drawn at or before x = n is in the past of a checkpoint made after n updates.
"""

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from forklight.algo.census import Bounds
from forklight.callbacks.samples import marked_answers
from forklight.data.visits import PromptBatch
from forklight.module import ForkGRPOModule
from forklight.rollout.lesson import Lesson, NonFiniteError
from forklight.rollout.report import update_report

_HISTOGRAM_TOKENS = 100_000


class ForkMonitor(Callback):
    """Logs what an update did, and stops a run whose mask took no effect.

    Its state is what the last update's selection kept, with which the next one is compared.

    Args:
        samples: answers shown as text per rollout that is shown, forking tokens in bold.
        samples_every_n_rollouts: rollouts between two such texts.
    """

    def __init__(self, samples: int = 4, samples_every_n_rollouts: int = 10) -> None:
        if samples < 0 or samples_every_n_rollouts < 1:
            raise ValueError(
                f"monitor.samples = {samples} must not be negative and monitor.samples_every_n_rollouts = "
                f"{samples_every_n_rollouts} must be at least 1"
            )
        self.samples = samples
        self.samples_every_n_rollouts = samples_every_n_rollouts
        self._clock = 0.0
        self._seconds: dict[str, float] = {}
        self._previous: Bounds | None = None

    def state_dict(self) -> dict[str, Any]:
        """The bounds of the last update's selection; a resumed run compares its first update with them."""
        return {"previous": None if self._previous is None else list(self._previous)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them back."""
        previous = state_dict["previous"]
        self._previous = None if previous is None else (previous[0], previous[1])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, after an evaluation at the start."""
        self._clock = time.perf_counter()
        if isinstance(pl_module, ForkGRPOModule):
            self._seconds = {**pl_module.seconds, **pl_module.answerer.seconds}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs at the end of every update, before a checkpoint of it is written.

        Raises:
            NonFiniteError: the gradient was not finite, so that the weights no longer are.
            RuntimeError: the mask took no effect.
        """
        if not isinstance(pl_module, ForkGRPOModule) or not batch.ends_update:
            return
        lesson = pl_module.lesson
        assert lesson is not None
        _check_gradient(trainer, batch, float(pl_module.sums["grad_norm"]))
        report = update_report(
            pl_module.learner,
            lesson,
            batch.update,
            pl_module.sums,
            vocabulary=pl_module.policy.head_weight.shape[0],
            previous=self._previous,
        )
        self._previous = report.bounds or self._previous
        scalars = dict(report.scalars)
        scalars["train/lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        if batch.update == 0 and pl_module.rollout is not None:
            scalars |= pl_module.rollout.metrics
            self._show(trainer, pl_module, lesson, batch)
        if batch.ends_rollout:
            scalars |= self._times(pl_module, lesson)
            pl_module.log("time/tokens_per_second", scalars["time/tokens_per_second"], logger=False)
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)

    def _show(self, trainer: Trainer, module: ForkGRPOModule, lesson: Lesson, batch: PromptBatch) -> None:
        """Entropy histogram and marked answers, where the logger can draw them."""
        x = lesson.experience
        assert x.entropy is not None
        entropies = x.entropy[lesson.experience.answer_mask & (x.update == 0)[:, None]]
        entropies = entropies[~entropies.isnan()][:_HISTOGRAM_TOKENS]
        for logger in trainer.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_histogram") and len(entropies):
                writer.add_histogram("fork/entropy", entropies, global_step=trainer.global_step)
            if hasattr(writer, "add_text") and self.samples and batch.rollout % self.samples_every_n_rollouts == 0:
                text = marked_answers(x, module.tokenizer, self.samples)
                writer.add_text("rollout/answers", text, global_step=trainer.global_step)

    def _times(self, module: ForkGRPOModule, lesson: Lesson) -> dict[str, float]:
        """Wall time of the rollout by part, evaluation and checkpoints in between included in the whole."""
        now = time.perf_counter()
        whole, self._clock = now - self._clock, now
        total = {**module.seconds, **module.answerer.seconds}
        parts = {name: seconds - self._seconds.get(name, 0.0) for name, seconds in total.items()}
        self._seconds = total
        tokens = module.ranks.reduce(lesson.experience.answer_length.sum())
        return {f"time/{name}": seconds for name, seconds in parts.items()} | {
            "time/rollout": whole,
            "time/tokens_per_second": float(tokens) / whole,
        }


def _check_gradient(trainer: Trainer, batch: PromptBatch, norm: float) -> None:
    # fp16's loss scaling meets infinite gradients on its way, and leaves the weights alone
    if not math.isfinite(norm) and getattr(trainer.precision_plugin, "scaler", None) is None:
        raise NonFiniteError(
            f"rollout {batch.rollout}: update {batch.update} of {batch.updates} has a gradient of norm {norm}; the "
            "last checkpoint is from before it"
        )
