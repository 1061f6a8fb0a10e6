"""Curves of a training run: `train/` and `fork/` once per update, `rollout/` and `time/` once per rollout.

The x axis counts updates: what belongs to update number n stands at x = n, a rollout at the first update it feeds. So
everything drawn at or before x = n is in the past of a checkpoint made after n updates.
"""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from forklight.callbacks.samples import marked_answers
from forklight.data.visits import PromptBatch
from forklight.module import ForkGRPOModule
from forklight.rollout.learn import Lesson

_HISTOGRAM_TOKENS = 100_000


class ForkMonitor(Callback):
    """Logs what an update did, and stops a run whose mask no loss has read.

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, after an evaluation at the start."""
        self._clock = time.perf_counter()
        if isinstance(pl_module, ForkGRPOModule):
            self._seconds = {**pl_module.seconds, **pl_module.answerer.seconds}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs at the end of every update."""
        if not isinstance(pl_module, ForkGRPOModule) or not batch.ends_update:
            return
        lesson = pl_module.lesson
        assert lesson is not None
        scalars = update_scalars(pl_module, lesson, batch.update)
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


def update_scalars(module: ForkGRPOModule, lesson: Lesson, update: int) -> dict[str, float]:
    """What an update did: sums over its micro-batches and all ranks, over the true denominators.

    Raises:
        RuntimeError: there were tokens to train on, and the loss read another number of forking tokens than the
            selection kept among them.
    """
    x, plan, ranks = lesson.experience, lesson.plan, module.ranks
    assert x.entropy is not None and x.fork_mask is not None and x.threshold is not None
    assert x.denominator is not None and x.answer_tokens is not None
    local = dict(module.sums)
    largest = ranks.maximum(local.pop("ratio_max"))
    grad_norm = float(local.pop("grad_norm"))
    trained = torch.cat([plan.train[visit] for visit in plan.visits_of(update)])
    local["kept_trained"] = x.fork_mask[trained].sum()
    local |= _selection_sums(module, lesson, update)
    names = sorted(local)
    values = ranks.reduce(torch.stack([local[name].double() for name in names])).tolist()
    total = dict(zip(names, values, strict=True))
    if total["tokens"] != total["kept_trained"]:
        raise RuntimeError(
            f"the selection kept {total['kept_trained']:.0f} tokens of trained answers, the loss read "
            f"{total['tokens']:.0f}: the mask did not take effect"
        )
    denominator, tokens = float(x.denominator[update]), max(total["tokens"], 1.0)
    scalars = {
        "train/policy_loss": total["policy_loss_sum"] / max(denominator, 1.0),
        "train/ratio": total["ratio_sum"] / tokens,
        "train/ratio_max": float(largest),
        "train/clip_low": total["clip_low"] / tokens,
        "train/clip_high": total["clip_high"] / tokens,
        "train/clip_dual": total["clip_dual"] / tokens,
        "train/approx_kl": total["approx_kl_sum"] / tokens,
        "train/grad_norm": grad_norm,
        "train/tokens": total["tokens"],
        "rollout/empty_updates": float(total["eligible"] == 0),
        "fork/kept_share": total["kept"] / max(total["eligible"], 1.0),
        "fork/entropy_mean": total["entropy"] / max(total["seen"], 1.0),
        "fork/entropy_kept": total["entropy_kept"] / max(total["seen_kept"], 1.0),
        "fork/entropy_dropped": (total["entropy"] - total["entropy_kept"])
        / max(total["seen"] - total["seen_kept"], 1.0),
    }
    if "kl_sum" in total:
        scalars["train/kl"] = total["kl_sum"] / max(float(x.answer_tokens[update]), 1.0)
    threshold = float(x.threshold[update])
    return scalars if threshold != threshold else scalars | {"fork/threshold": threshold}


def _selection_sums(module: ForkGRPOModule, lesson: Lesson, update: int) -> dict[str, Tensor]:
    """Counts and entropies over the tokens that could be kept; entropies only where a pass has seen them."""
    x = lesson.experience
    assert x.entropy is not None and x.fork_mask is not None
    eligible = module.learner.eligible(x) & (x.update == update)[:, None]
    seen = eligible & ~x.entropy.isnan()
    return {
        "eligible": eligible.sum(),
        "kept": (x.fork_mask & eligible).sum(),
        "seen": seen.sum(),
        "seen_kept": (seen & x.fork_mask).sum(),
        "entropy": x.entropy[seen].double().sum(),
        "entropy_kept": x.entropy[seen & x.fork_mask].double().sum(),
    }
