"""Checkpoints for bit-exact resume: when and how they are written, and the state that Lightning leaves out."""

import os
import random
import signal
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from forklight.data.datamodule import MathDataModule
from forklight.distributed import Ranks


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the target, syncs to disk, then renames: a kill at any moment leaves the old or the new file.

    Lightning writes to the temporary folder and moves; across file systems that is a copy, which a kill cuts short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves a checkpoint; see the class."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with beside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
        _sync_folder(target.parent)


class RunCheckpoint(Checkpoint):
    """Saves `checkpoints/update-N.ckpt` and the link `last.ckpt`, always between two updates.

    Where an evaluation is due, the checkpoint is written after it, so that a resumed run does not skip it. On SIGTERM
    the update in progress is finished and saved before the process ends. Curves are flushed before every save, so a
    checkpoint is never ahead of them.

    Args:
        every_n_rollouts: rollouts between two checkpoints.
        every_n_updates: updates between two checkpoints, instead of `every_n_rollouts`; inside a rollout the checkpoint
            carries the rollout's tensors.
        keep: checkpoints kept, the newest ones; -1 keeps all.
        best: name of a score, such as `val/aime24/avg@16`. Whenever an evaluation raises it above all earlier ones, the
            one before the first update included, a checkpoint is written and kept, and `best.ckpt` links to it.
    """

    def __init__(
        self,
        every_n_rollouts: int = 10,
        every_n_updates: int | None = None,
        keep: int = 2,
        best: str | None = None,
    ) -> None:
        if every_n_rollouts < 1 or (every_n_updates is not None and every_n_updates < 1):
            raise ValueError(
                f"checkpoint.every_n_rollouts = {every_n_rollouts} and checkpoint.every_n_updates = {every_n_updates} "
                "must be at least 1"
            )
        if keep == 0 or keep < -1:
            raise ValueError(f"checkpoint.keep = {keep} must be at least 1, or -1 for all")
        self.every_n_rollouts = every_n_rollouts
        self.every_n_updates = every_n_updates
        self.keep = keep
        self.best = best
        self.folder: Path | None = None
        """Set by the command line to `<run_dir>/checkpoints`."""
        self.config: dict[str, Any] | None = None
        """The run's config, kept in every checkpoint; set by the command line."""
        self._pending = False
        self._saved_at = -1
        self._signal: int | None = None
        self._highest: tuple[float, int] | None = None  # the best score so far, and the update that reached it

    def state_dict(self) -> dict[str, Any]:
        """The config, the best score so far, and the update that reached it."""
        highest = None if self._highest is None else list(self._highest)
        return {"config": self.config, "best": self.best, "highest": highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it, unless `best` names another score now."""
        if state_dict["best"] == self.best and state_dict["highest"] is not None:
            score, update = state_dict["highest"]
            self._highest = float(score), int(update)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes atomically, unless the Trainer was given another way to write checkpoints."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handles SIGTERM, to which Lightning would react inside an accumulation; removes files of a killed save."""
        self._saved_at = trainer.global_step
        if self.folder is not None and trainer.is_global_zero:
            for half_written in self.folder.glob(".*.tmp"):
                half_written.unlink()
            self._link_best()

        def note(number: int, frame: types.FrameType | None) -> None:
            self._signal = number

        signal.signal(signal.SIGTERM, note)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Rewrites Lightning's batch counters if the number of micro-batches has changed.

        They count micro-batches, and decide whether an optimiser step or an evaluation is due: unchanged, Lightning
        would step in the middle of an update.

        Raises:
            ValueError: it has changed, and the data is no `MathDataModule`, whose rollouts do not depend on it.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        data, done = getattr(trainer, "datamodule", None), progress["current"]["ready"]
        if isinstance(data, MathDataModule):  # its state has been loaded before
            for counters in (progress["current"], progress["total"]):
                counters.update({name: count + data.position - done for name, count in counters.items()})
        elif done != checkpoint["global_step"] * trainer.accumulate_grad_batches:
            raise ValueError(
                f"trainer.accumulate_grad_batches = {trainer.accumulate_grad_batches}, but the checkpoint has "
                f"{done} micro-batches in {checkpoint['global_step']} updates; here it cannot change on resume"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves after an update if a checkpoint is due, or defers it to the end of the evaluation that comes first."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stopping = Ranks().any(self._signal is not None)
        if not stopping and trainer.global_step % self._interval(trainer):
            return
        interval = trainer.val_check_batch
        evaluated = trainer.enable_validation and sum(trainer.num_val_batches) > 0
        if evaluated and isinstance(interval, int) and (batch_idx + 1) % interval == 0:
            self._pending = True
        else:
            self._save(trainer)
            self._leave_if_stopping(stopping)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the checkpoint that was deferred until after the evaluation, and a new best one."""
        raised = self.best is not None and trainer.state.fn == TrainerFn.FITTING and self._is_raised(trainer, self.best)
        if self._pending or raised:
            self._save(trainer)
        if self._pending:
            self._pending = False
            self._leave_if_stopping(Ranks().any(self._signal is not None))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final state."""
        if trainer.global_step != self._saved_at:
            self._save(trainer)

    def _is_raised(self, trainer: Trainer, best: str) -> bool:
        """Whether the evaluation that ends here raised the score; the one before the first update only sets it."""
        score = float(trainer.callback_metrics[best])
        if self._highest is not None and score <= self._highest[0]:
            return False
        self._highest = score, trainer.global_step
        return trainer.global_step > 0

    def _interval(self, trainer: Trainer) -> int:
        """Updates between two checkpoints."""
        per_rollout = getattr(getattr(trainer, "datamodule", None), "updates_per_rollout", 1)
        return self.every_n_updates or self.every_n_rollouts * int(per_rollout)

    def _save(self, trainer: Trainer) -> None:
        if self.folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "flush"):
                experiment.flush()
        path = self.folder / f"update-{trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self._saved_at = trainer.global_step
        if trainer.is_global_zero:
            _link(self.folder / "last.ckpt", path.name)
            self._link_best()
            self._remove_old()

    def _link_best(self) -> None:
        """Points `best.ckpt` to the best checkpoint; a run resumed from an earlier one may have none."""
        assert self.folder is not None
        if self.best is None:
            return
        link = self.folder / "best.ckpt"
        best = None if self._highest is None else self.folder / f"update-{self._highest[1]:08d}.ckpt"
        if best is not None and best.is_file():
            _link(link, best.name)
        elif link.is_symlink():
            link.unlink()

    def _remove_old(self) -> None:
        assert self.folder is not None
        # By age, not by number: a run resumed from an earlier checkpoint writes smaller numbers than exist already.
        files = sorted(self.folder.glob("update-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        best = (self.folder / "best.ckpt").resolve()
        for path in files[: -self.keep] if self.keep > 0 else ():
            if path.resolve() != best:
                path.unlink()

    def _leave_if_stopping(self, stopping: bool) -> None:
        if stopping:
            raise SystemExit(128 + (self._signal or signal.SIGTERM))


class RngState(Callback):
    """Saves and restores the random number generators of every rank, which Lightning does not."""

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states as numbers and tensors, which `weights_only` loading accepts."""
        kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  the global one is what is saved
        version, internal, gauss_next = random.getstate()
        mine = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": [version, list(internal), gauss_next],
            "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        }
        return {"ranks": Ranks().gather(mine)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training starts: code that runs before may use the generators."""
        self._loaded = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores this rank's states."""
        if self._loaded is None:
            return
        mine, self._loaded = self._loaded[Ranks().rank % len(self._loaded)], None
        torch.set_rng_state(mine["torch"].cpu())
        if mine["cuda"]:
            torch.cuda.set_rng_state_all([state.cpu() for state in mine["cuda"]])
        version, internal, gauss_next = mine["python"]
        random.setstate((version, tuple(internal), gauss_next))
        kind, keys, position, has_gauss, gauss = mine["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002


def _link(link: Path, target: str) -> None:
    """Points a relative link to a file, without a moment in which there is none."""
    beside = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)
    _sync_folder(link.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable, where folders can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
