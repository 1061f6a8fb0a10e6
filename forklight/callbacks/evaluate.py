"""Evaluation: scores, their errors, a table, and every answer in `samples.jsonl`."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table
from torchmetrics import MetricCollection

from forklight.data.visits import EvalBatch
from forklight.metrics import NO_ANSWER, answer_metrics
from forklight.rollout.answers import Group
from forklight.rollout.ranks import Ranks


class MathEval(Callback):
    """Scores the evaluation sets during `fit`, in `validate` and in `test`; `predict` only writes the answers.

    Problems that a distributed loader shows twice count once. Scores stand in TensorBoard under `val/<set>/` or
    `test/<set>/` at x = updates done, and as metrics that a ModelCheckpoint can monitor.

    Args:
        at_start: score the policy before the first update of a run, too; a resumed run does not repeat it.
        table: print a table of the scores, beside those of the first evaluation.
    """

    def __init__(self, at_start: bool = True, table: bool = True) -> None:
        self.at_start = at_start
        self.table = table
        self.folder: Path | None = None
        """Where `samples.jsonl` and `predictions.jsonl` go; set by the command line to the run folder."""
        self._metrics: dict[str, MetricCollection] = {}
        self._lines: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._first: tuple[int, dict[str, dict[str, float]]] | None = None
        self._loaded = 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps how far the checkpoint is: only in `fit` Lightning restores that."""
        self._loaded = checkpoint["global_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run answers again what came after its checkpoint: those lines go."""
        if self.folder is not None and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _drop_lines_after(self.folder / "samples.jsonl", trainer.global_step)
        if self.at_start and trainer.global_step == 0 and trainer.enable_validation and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins an evaluation."""
        self._metrics, self._lines = {}, {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Takes in the answers of a batch."""
        self._add(trainer, pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores, logs, prints and writes."""
        self._finish(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_predict_epoch_start = on_validation_epoch_start
    on_predict_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores, logs, prints and writes."""
        self._finish(trainer, pl_module, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes `predictions.jsonl`."""
        self._write(trainer, "predictions.jsonl")

    def _add(self, trainer: Trainer, pl_module: LightningModule, groups: Sequence[Group], batch: EvalBatch) -> None:
        for group in groups:
            for line in _lines(group, batch.name, self._updates(trainer)):
                self._lines[batch.name, group.problem.uid, line["answer"]] = line
        if trainer.predicting:
            return
        if batch.name not in self._metrics:
            self._metrics[batch.name] = answer_metrics(batch.spec.answers).to(pl_module.device)
        device = pl_module.device
        self._metrics[batch.name].update(
            [group.problem.uid for group in groups],
            torch.tensor([[verdict.right for verdict in group.verdicts] for group in groups], device=device),
            torch.tensor([_votes(group) for group in groups], device=device),
            torch.tensor([[c.truncated for c in group.completions] for group in groups], device=device),
            torch.tensor([[len(c.token_ids) for c in group.completions] for group in groups], device=device),
        )

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._metrics:
            return
        scores = {name: _floats(metrics.compute()) for name, metrics in self._metrics.items()}
        flat = {f"{stage}/{name}/{key}": value for name, values in scores.items() for key, value in values.items()}
        pl_module.log_dict(flat, logger=False, rank_zero_only=False)
        for logger in trainer.loggers:
            logger.log_metrics(flat, step=self._updates(trainer))
        self._write(trainer, "samples.jsonl")
        now = (self._updates(trainer), scores)
        self._first = self._first or now
        if self.table and trainer.is_global_zero:
            Console().print(score_table([now] if self._first is now else [self._first, now]))

    def _updates(self, trainer: Trainer) -> int:
        return trainer.global_step if trainer.state.fn == TrainerFn.FITTING else self._loaded

    def _write(self, trainer: Trainer, name: str) -> None:
        """Appends the answers of all ranks, each problem once."""
        gathered = Ranks().gather(self._lines)
        lines = {key: line for part in gathered for key, line in part.items()}
        if self.folder is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("a") as file:
            for line in lines.values():
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def score_table(evaluations: Sequence[tuple[int, dict[str, dict[str, float]]]]) -> Table:
    """Scores by set and updates: shares in per cent, avg@n with its standard error; `cut` is the truncated share."""
    table = Table()
    for heading in ("set", "updates", "n", "avg@n", "maj@n", "pass@n", "cut", "length"):
        table.add_column(heading, justify="left" if heading == "set" else "right", no_wrap=True)
    for name in dict.fromkeys(name for _, scores in evaluations for name in scores):
        for step, scores in evaluations:
            if name in scores:
                table.add_row(name, str(step), *_cells(scores[name]))
    return table


def _cells(values: dict[str, float]) -> list[str]:
    n = max(int(key.removeprefix("avg@")) for key in values if key.startswith("avg@") and "_" not in key)
    error = values[f"avg@{n}_se"]
    return [
        str(n),
        f"{100 * values[f'avg@{n}']:.1f} ± {100 * error:.1f} %",
        f"{100 * values[f'maj@{n}']:.1f} %" if n > 1 else "",
        f"{100 * values[f'pass@{n}']:.1f} %" if f"pass@{n}" in values else "",
        f"{100 * values['truncated']:.1f} %",
        f"{values['length']:.1f}",
    ]


def _floats(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def _votes(group: Group) -> list[int]:
    """Classes of equal answers: all right ones are one, wrong ones go by their text without blanks."""
    classes: dict[str, int] = {}
    votes = []
    for verdict in group.verdicts:
        if verdict.right:
            votes.append(0)
        elif verdict.extracted is None:
            votes.append(NO_ANSWER)
        else:
            votes.append(classes.setdefault("".join(verdict.extracted.split()), len(classes) + 1))
    return votes


def _lines(group: Group, name: str, step: int) -> Iterator[dict[str, Any]]:
    """One line per answer."""
    for completion, verdict in zip(group.completions, group.verdicts, strict=True):
        yield {
            "step": step,
            "set": name,
            "uid": group.problem.uid,
            "answer": completion.index,
            "prompt": group.problem.prompt,
            "gold": group.problem.answer,
            "text": completion.text,
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "extracted": verdict.extracted,
            "truncated": completion.truncated,
            "tokens": len(completion.token_ids),
        }


def _drop_lines_after(path: Path, step: int) -> None:
    """Keeps the lines of steps up to `step`; a line that a kill cut short goes too."""
    if not path.is_file():
        return
    beside = path.with_suffix(".tmp")
    with path.open() as old, beside.open("w") as new:
        for line in old:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                new.write(line)
    beside.replace(path)
