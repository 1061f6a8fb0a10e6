"""Writes the trained policy in transformers' own format, so that any engine can serve it."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class PolicyExport(Callback):
    """At the end of training, `<run_dir>/policy/` holds weights (safetensors), config and tokenizer.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "policy"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs after the last step and the last checkpoint, not after an interrupted run."""
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        module: Any = pl_module
        module.policy.model.save_pretrained(self.folder)
        module.tokenizer.save_pretrained(self.folder)
