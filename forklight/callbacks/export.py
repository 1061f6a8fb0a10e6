"""Writes the trained policy at the end of a run."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from forklight.models.export import model_card, save_policy
from forklight.module import ForkGRPOModule


class PolicyExport(Callback):
    """At the end of training, `<run_dir>/policy/` holds weights, configs, tokenizer and a model card.

    Args:
        folder: the run folder.
        config: the run's, for the card.
    """

    def __init__(self, folder: Path, config: dict[str, Any] | None = None) -> None:
        self.folder = folder / "policy"
        self.config = config

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs after the last step and the last checkpoint, not after an interrupted run."""
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        if not isinstance(pl_module, ForkGRPOModule):
            return
        card = model_card(pl_module.policy_config.path, trainer.global_step, self.config)
        save_policy(pl_module.policy, pl_module.tokenizer, pl_module.generator.eos_ids, self.folder, card)
        print(f"policy saved to {self.folder}")
