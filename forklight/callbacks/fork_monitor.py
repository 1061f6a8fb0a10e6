"""Curves of a training run: `train/`, `fork/`, `signal/` and `mismatch/` per update, `rollout/` per rollout.

The x axis counts updates: values of update n are at x = n, values of a rollout at its first update. So all points at or
before x = n are older than a checkpoint made after n updates.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from forklight.algo.batch import Metrics, RolloutBatch
from forklight.algo.selection.census import Bounds
from forklight.callbacks.records import append_lines, drop_lines_after, writable
from forklight.callbacks.samples import marked_answers
from forklight.data.stream import PromptBatch
from forklight.errors import NonFiniteError
from forklight.evaluation.boxes import box_ends
from forklight.evaluation.records import answer_lines
from forklight.module import ForkGRPOModule
from forklight.rollout.generate import Group
from forklight.training.report import update_report
from forklight.training.state import RolloutState

_HISTOGRAM_TOKENS = 100_000
_SIGNAL, _ROLLOUTS = "signal.jsonl", "rollouts.jsonl"


class ForkMonitor(Callback):
    """Logs what an update did, and stops a run whose mask took no effect.

    Its state is the bounds of the last update's selection, with which the next selection is compared. The learning
    signal of every update by entropy and part of the answers is a line of `signal.jsonl`, which has the sums of
    `forklight.training.signal.Signal`.

    Args:
        samples: answers shown in each text of samples, forking tokens in bold.
        samples_every_n_rollouts: rollouts between two such texts.
        rollouts_every_n: rollouts between two whose answers and verdicts are all kept, in `rollouts.jsonl`, with the
            keys of `samples.jsonl`; 0 keeps none.
    """

    def __init__(self, samples: int = 4, samples_every_n_rollouts: int = 10, rollouts_every_n: int = 0) -> None:
        if samples < 0 or samples_every_n_rollouts < 1:
            raise ValueError(
                f"monitor.samples = {samples} must not be negative and monitor.samples_every_n_rollouts = "
                f"{samples_every_n_rollouts} must be at least 1"
            )
        if rollouts_every_n < 0:
            raise ValueError(f"monitor.rollouts_every_n = {rollouts_every_n} must not be negative")
        self.samples = samples
        self.samples_every_n_rollouts = samples_every_n_rollouts
        self.rollouts_every_n = rollouts_every_n
        self.folder: Path | None = None
        """Where the files go; set by the command line to the run folder."""
        self._metrics = Metrics({}, {})
        self._previous: Bounds | None = None
        self._lr = math.nan

    def state_dict(self) -> dict[str, Any]:
        """The bounds of the last update's selection; a resumed run compares its first update with them."""
        return {"previous": None if self._previous is None else list(self._previous)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        previous = state_dict["previous"]
        self._previous = None if previous is None else (previous[0], previous[1])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops lines from after the checkpoint, which the resumed run writes again."""
        if folder := writable(trainer, self.folder):
            for name in (_SIGNAL, _ROLLOUTS):
                drop_lines_after(folder / name, trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Reads the learning rate of this update; behind it, the scheduler has set that of the next one."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs at the end of every update, before a checkpoint of it is written.

        Raises:
            NonFiniteError: the gradient was not finite, so that the weights no longer are.
            RuntimeError: the mask took no effect.
        """
        if not isinstance(pl_module, ForkGRPOModule):
            return
        self._metrics = self._metrics.and_also(outputs["metrics"])
        if not batch.ends_update:
            return
        metrics, self._metrics = self._metrics, Metrics({}, {})
        state, grad_norm = pl_module.current, float(pl_module.grad_norm)
        _check_gradient(trainer, batch, grad_norm)
        report = update_report(
            pl_module.learner,
            state,
            batch.update,
            metrics,
            vocabulary=pl_module.policy.head_weight.shape[0],
            previous=self._previous,
            box_end=_box_end(state.batch, batch.update, pl_module.tokenizer),
        )
        self._previous = report.bounds or self._previous
        scalars = report.scalars | {"train/grad_norm": grad_norm, "train/lr": self._lr}
        if batch.update == 0:
            pl_module.curves = {}
        if batch.update == 0 and pl_module.rollout is not None:
            scalars |= pl_module.rollout.metrics
            self._show(trainer, pl_module, state, batch)
            self._keep(trainer, pl_module.rollout.groups, batch.rollout)
        pl_module.curves |= scalars
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
        if report.signal is not None and (folder := writable(trainer, self.folder)):
            place = {"step": trainer.global_step, "rollout": batch.rollout}
            append_lines(folder / _SIGNAL, [place | report.signal.record()])

    def _keep(self, trainer: Trainer, groups: Sequence[Group], rollout: int) -> None:
        """Writes the answers of a rollout, of all ranks."""
        folder = writable(trainer, self.folder)
        if folder is None or not self.rollouts_every_n or rollout % self.rollouts_every_n:
            return
        lines = answer_lines(groups, "train", trainer.global_step).values()
        append_lines(folder / _ROLLOUTS, ({"rollout": rollout} | line for line in lines))

    def _show(self, trainer: Trainer, module: ForkGRPOModule, state: RolloutState, batch: PromptBatch) -> None:
        """Logs the entropy histogram and marked answers, if the logger supports them."""
        first_update = state.batch.answer_mask & (state.batch.update == 0)[:, None]
        entropies = state.tokens.entropy[first_update]
        entropies = entropies[~entropies.isnan()][:_HISTOGRAM_TOKENS]
        for logger in trainer.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_histogram") and len(entropies):
                writer.add_histogram("fork/entropy", entropies, global_step=trainer.global_step)
            if hasattr(writer, "add_text") and self.samples and batch.rollout % self.samples_every_n_rollouts == 0:
                text = marked_answers(state, module.tokenizer, self.samples)
                writer.add_text("rollout/answers", text, global_step=trainer.global_step)


def _box_end(batch: RolloutBatch, update: int, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The token of each answer that completes its first box, int64 `[S]`; -1 without a box and in other updates."""
    rows = ((batch.update == update) & (batch.advantages != 0)).nonzero().flatten()
    lengths = batch.answer_length[rows].tolist()
    answers = [ids[:length] for ids, length in zip(batch.answer_ids(rows).tolist(), lengths, strict=True)]
    ends = torch.tensor(box_ends(answers, tokenizer), dtype=torch.int64, device=rows.device)
    return torch.full_like(batch.update, -1).index_put((rows,), ends)


def _check_gradient(trainer: Trainer, batch: PromptBatch, norm: float) -> None:
    # with fp16's loss scaling infinite gradients are normal, and their steps are skipped
    if not math.isfinite(norm) and getattr(trainer.precision_plugin, "scaler", None) is None:
        raise NonFiniteError(
            f"rollout {batch.rollout}: update {batch.update} of {batch.updates} has a gradient of norm {norm}; the "
            "last checkpoint is from before it"
        )
