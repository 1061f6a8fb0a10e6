"""The diagnostic dump of a run that stops because a number is not finite."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from forklight.errors import NonFiniteError
from forklight.module import ForkGRPOModule


class DiagnosticDump(Callback):
    """Writes the rollout in which a log-probability, an entropy or a gradient was not finite.

    Every rank writes its own part. `<run folder>/dump-rollout-N-rank-R.pt` is a plain dict, which
    `torch.load(path, weights_only=True)` reads: `error`, the message; `rollout`, its number; `batch`, the fields of its
    `forklight.algo.batch.RolloutBatch`; `tokens`, those of its `forklight.training.state.TokenState`; and where the
    rollout was still being sampled, in place of these, `answers`, one dict of `uid`, `prompt_ids`, `token_ids` and
    `logp` each. A rank that stops because of another may have nothing to show. The dump holds no weights and is no
    checkpoint: resume from the last checkpoint.
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
        state = pl_module.state
        dump: dict[str, Any] = {
            "error": str(exception),
            "rollout": self._rollout,
            "batch": {},
            "tokens": {},
            "answers": [],
        }
        if state is not None and state.rollout == self._rollout:
            dump |= {"batch": state.batch.state_dict(), "tokens": state.tokens.state_dict()}
        dump |= exception.dump
        path = Path(trainer.default_root_dir) / f"dump-rollout-{self._rollout}-rank-{trainer.global_rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dump, path)
        print(f"forklight: the rollout is in {path}", flush=True)
