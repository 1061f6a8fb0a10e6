"""What a run leaves behind when a number is no longer finite."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from forklight.module import ForkGRPOModule
from forklight.rollout.lesson import NonFiniteError


class DiagnosticDump(Callback):
    """Writes the rollout in which a log-probability, an entropy or a gradient was not finite.

    Every rank writes its own part. `<run folder>/dump-rollout-N-rank-R.pt` is a plain dict, which
    `torch.load(path, weights_only=True)` reads: `error`, the message; `rollout`, its number; `uids`, the problems' uids
    by draw number; `experience`, the tensors of a `forklight.algo.types.Experience` as far as they were filled; and
    where the rollout was still being sampled, in place of these, `answers`, one dict of `uid`, `prompt_ids`,
    `token_ids` and `logp` each. A rank that stops because of another may have nothing to show. There are no weights in
    it, and it is no checkpoint: a run goes on from the last one.
    """

    def __init__(self) -> None:
        self._rollout = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes the rollout in progress."""
        self._rollout = getattr(batch, "rollout", 0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the dump; other errors leave none."""
        if not isinstance(exception, NonFiniteError) or not isinstance(pl_module, ForkGRPOModule):
            return
        lesson = pl_module.lesson
        current = lesson is not None and lesson.rollout == self._rollout
        dump: dict[str, Any] = {
            "error": str(exception),
            "rollout": self._rollout,
            "uids": dict(lesson.uids) if lesson is not None and current else {},
            "experience": lesson.experience.state_dict() if lesson is not None and current else {},
            "answers": [],
        }
        dump |= exception.batch
        path = Path(trainer.default_root_dir) / f"dump-rollout-{self._rollout}-rank-{trainer.global_rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dump, path)
        print(f"forklight: the rollout is in {path}", flush=True)
