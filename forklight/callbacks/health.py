"""Says, or stops, when a run does not learn."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from forklight.callbacks.records import append_lines, drop_lines_after, writable
from forklight.module import ForkGRPOModule
from forklight.training.health import Curves, Guard, findings

log = logging.getLogger(__name__)


class HealthGuards(Callback):
    """Checks a few rules after every rollout, most of them from the eighth on, and says once what a rule sees.

    It never changes what is trained. Findings are printed, shown in TensorBoard (`health`), and kept in `guards.jsonl`
    in the run folder.

    Args:
        still_reward: the mean reward of the last 4 rollouts is not a standard error above that of the first 4, while a
            quarter of the groups contribute; threshold: after so many rollouts.
        rising_cuts: answers cut by the length limit rose, and the reward did not; threshold: rise of their share.
        low_signal: over 8 rollouts the mask kept less of the squared gradient than a random mask would, before the box,
            of answers that ended, or of right answers; threshold: as a multiple of the kept share.
        unjudged: the verifier could not judge more than a share of a rollout's answers; threshold: the share.
    """

    def __init__(
        self,
        still_reward: Guard = Guard(8.0),  # noqa: B008  a frozen value
        rising_cuts: Guard = Guard(0.1),  # noqa: B008
        low_signal: Guard = Guard(0.5),  # noqa: B008
        unjudged: Guard = Guard(0.1),  # noqa: B008
    ) -> None:
        self.guards = {
            "still_reward": still_reward,
            "rising_cuts": rising_cuts,
            "low_signal": low_signal,
            "unjudged": unjudged,
        }
        self.folder: Path | None = None
        """Where `guards.jsonl` goes; set by the command line to the run folder."""
        self._curves, self._told = Curves(), set[str]()

    def state_dict(self) -> dict[str, Any]:
        """The curves so far, and the rules that have been told."""
        return {"curves": self._curves.values, "told": sorted(self._told)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self._curves, self._told = Curves(state_dict["curves"]), set(state_dict["told"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops findings that a resumed run will make again."""
        if folder := writable(trainer, self.folder):
            drop_lines_after(folder / "guards.jsonl", trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a rollout."""
        if not isinstance(pl_module, ForkGRPOModule) or not batch.ends_rollout:
            return
        reasons = pl_module.rollout.unjudged if pl_module.rollout is not None else ()
        self._curves.add(pl_module.curves, reasons)
        for finding in findings(self._curves, self.guards, self._told):
            self._told.add(finding.rule)
            if finding.action == "stop":
                trainer.should_stop = True
            if not trainer.is_global_zero:
                continue
            message = finding.message + ("; the run stops" if finding.action == "stop" else "")
            log.warning(message)
            if folder := writable(trainer, self.folder):
                line = {"step": trainer.global_step, "rule": finding.rule, "message": message}
                append_lines(folder / "guards.jsonl", [line])
            for logger in trainer.loggers:
                writer: Any = getattr(logger, "experiment", None)
                if hasattr(writer, "add_text"):
                    writer.add_text("health", message, global_step=trainer.global_step)
