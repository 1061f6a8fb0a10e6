"""Evaluation: scores with their errors, tables, every answer in `samples.jsonl`, and curves of the rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from forklight.callbacks.records import append_lines, drop_lines_after, writable
from forklight.callbacks.tables import Scores, score_line, score_markdown, score_table, suspicious_markdown
from forklight.data.stream import EvalBatch
from forklight.distributed import Ranks
from forklight.evaluation.records import Evaluated, Key, Line, answer_lines, judged_of, suspicious_lines, votes_of
from forklight.evaluation.suspicious import suspicious_answers
from forklight.metrics import AnswerScores
from forklight.module import ForkGRPOModule
from forklight.rollout.generate import Group


class MathEval(Callback):
    """Scores the evaluation sets during `fit`, in `validate` and in `test`; `predict` only writes the answers.

    Problems that a distributed loader serves twice count once. Scores are in TensorBoard under `val/<set>/` or
    `test/<set>/` at x = updates done, and are metrics that `checkpoint.best` or a ModelCheckpoint can monitor. Files:
    `samples.jsonl`, every answer with its verdict; `scores.jsonl`, every score with the protocol it was measured by;
    `suspicious.jsonl`, rewarded answers of suspicious form.

    Args:
        at_start: score the policy before the first update of a run, too; a resumed run does not repeat it.
        table: print a table of the scores: after `validate` and `test`, and at the end of `fit`, where it has the first
            and the last evaluation. During `fit` every evaluation is one line.
        suspicious: rewarded answers of suspicious form that are written out per set and evaluation.
    """

    def __init__(self, at_start: bool = True, table: bool = True, suspicious: int = 4) -> None:
        if suspicious < 0:
            raise ValueError(f"evaluation.suspicious = {suspicious} must not be negative")
        self.at_start = at_start
        self.table = table
        self.suspicious = suspicious
        self.folder: Path | None = None
        """Where the files go; set by the command line to the run folder."""
        self._metrics: dict[str, AnswerScores] = {}
        self._batches: dict[str, EvalBatch] = {}
        self._lines: dict[Key, Line] = {}
        self._shown: list[tuple[int, Scores]] = []  # the first evaluation and the last one
        self._loaded = 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the number of updates of the checkpoint: Lightning restores it in `fit` only."""
        self._loaded = checkpoint["global_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops lines from after the checkpoint, which the resumed run writes again."""
        if folder := writable(trainer, self.folder):
            for name in ("samples", "scores", "suspicious"):
                drop_lines_after(folder / f"{name}.jsonl", trainer.global_step)
        if self.at_start and trainer.global_step == 0 and trainer.enable_validation and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins an evaluation."""
        self._metrics, self._batches, self._lines = {}, {}, {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Collects the answers of a batch."""
        self._add(trainer, pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores, logs, prints and writes; not in Lightning's check before the first update."""
        if not trainer.sanity_checking:
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
        self._write(trainer, {"predictions": self._gathered()})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table of `fit`."""
        if self.table and trainer.is_global_zero and self._shown:
            Console().print(score_table(self._shown))

    def _add(self, trainer: Trainer, pl_module: LightningModule, groups: Sequence[Group], batch: EvalBatch) -> None:
        self._lines |= answer_lines(groups, batch.name, self._updates(trainer))
        if trainer.predicting:
            return
        if batch.name not in self._metrics:
            self._batches[batch.name] = batch
            self._metrics[batch.name] = AnswerScores(batch.spec.sampling.answers).to(pl_module.device)
        device, verdicts = pl_module.device, [group.verdicts for group in groups]
        self._metrics[batch.name].update(
            [group.problem.uid for group in groups],
            torch.tensor([[verdict.right for verdict in row] for row in verdicts], device=device),
            torch.tensor(votes_of(groups, batch.verifier), device=device),
            torch.tensor([[c.truncated for c in group.completions] for group in groups], device=device),
            torch.tensor([[len(c.token_ids) for c in group.completions] for group in groups], device=device),
            torch.tensor([[verdict.outcome == "unjudged" for verdict in row] for row in verdicts], device=device),
        )

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._metrics:
            return
        assert isinstance(pl_module, ForkGRPOModule)
        step, lines = self._updates(trainer), self._gathered()
        sets = [
            Evaluated(
                batch,
                {key: float(value) for key, value in self._metrics[name].compute().items()},
                [judged_of(line) for line in lines if line["set"] == name],
                limit=batch.spec.max_new_tokens or pl_module.rollout_config.max_new_tokens,
                seed=pl_module.generator.seed if batch.spec.seed is None else batch.spec.seed,
                stop=pl_module.rollout_config.stop,
            )
            for name, batch in self._batches.items()
        ]
        suspicious = {done.name: suspicious_answers(done.answers, self.suspicious) for done in sets}
        now = (step, {done.name: done.scores for done in sets})
        self._shown = [*self._shown[:1], now]
        self._log(trainer, pl_module, stage, sets)
        self._draw(trainer, stage, step, score_markdown(self._shown), suspicious_markdown(suspicious))
        if trainer.is_global_zero:
            records = [done.record(step) for done in sets]
            self._write(
                trainer, {"samples": lines, "scores": records, "suspicious": suspicious_lines(step, suspicious)}
            )
            if trainer.state.fn == TrainerFn.FITTING:
                print(score_line(*now), flush=True)
            elif self.table:
                Console().print(score_table(self._shown))

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str, sets: Sequence[Evaluated]) -> None:
        """Logs scores as metrics that can be monitored, and as curves, together with the reward curves."""
        scores = {f"{stage}/{done.name}/{key}": value for done in sets for key, value in done.shown_scores().items()}
        curves = {f"{stage}/{done.name}/{key}": value for done in sets for key, value in done.reward_curves().items()}
        pl_module.log_dict(scores, logger=False, rank_zero_only=False)
        for logger in trainer.loggers:
            logger.log_metrics(scores | curves, step=self._updates(trainer))

    def _draw(self, trainer: Trainer, stage: str, step: int, scores: str, suspicious: str) -> None:
        """Logs texts, if the logger supports them."""
        for logger in trainer.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_text"):
                writer.add_text(f"{stage}/scores", scores, global_step=step)
                if suspicious:
                    writer.add_text(f"{stage}/suspicious", suspicious, global_step=step)

    def _updates(self, trainer: Trainer) -> int:
        return trainer.global_step if trainer.state.fn == TrainerFn.FITTING else self._loaded

    def _gathered(self) -> list[Line]:
        """The lines of all ranks, each answer once."""
        return list({key: line for part in Ranks().gather(self._lines) for key, line in part.items()}.values())

    def _write(self, trainer: Trainer, files: dict[str, list[Line]]) -> None:
        folder = writable(trainer, self.folder)
        if folder is None:
            return
        for name, lines in files.items():
            if lines:
                append_lines(folder / f"{name}.jsonl", lines)
