"""Where a rollout's time went, and how much of the work was spared: the values of `throughput/`, once per rollout.

Shares are of this rank's wall time or of its model's floating-point operations; rates are over all ranks.

- `sample_tokens_per_second`: answer tokens of the rollout, by the time of sampling; `update_tokens_per_second`: prompt
  and answer tokens of the rollout, trained or not, by the time of statistics, forward, backward and optimiser.
- `share_sync`, `share_sample`, `share_verify`, `share_statistics`, `share_forward`, `share_backward`,
  `share_optimizer`, `share_other`: of the wall time from rollout to rollout, evaluations included in the last; `sync`
  hands the weights to the sampler and sees that they arrive.
- `head_share`: of the operations of all passes, those of the LM head. `head_products`: products with the head's weight
  per answer token of the rollout, all passes together; plain autograd over every token has three, and one more for a
  pass without gradient.
- `kept_share`: answer tokens that the selection kept, of all of the rollout.
- `packing_ratio`: tokens of the passes in padded batches, by those of their sequences; `prefix_ratio`: by those that
  went through the layers, each prompt once per group.
- `skipped_share`: sequences of the rollout that no pass has seen.
- `passes_train`, `passes_statistics`, `passes_reference`: passes over a micro-batch.
- `tflops`: operations of the passes per second of their time; `mfu`: of what the device can do in bfloat16, if known.
- `peak_memory_gb`: the device's, since the start; of a CPU, the process's.
"""

import resource
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from forklight.models.policy import Policy
from forklight.models.work import Work
from forklight.module import ForkGRPOModule
from forklight.rollout.lesson import Lesson

PEAK_TFLOPS = {"B200": 2250.0, "H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0}
"""Dense bfloat16, by a part of the device's name."""

PHASES = ("sync", "sample", "verify", "statistics", "forward", "backward", "optimizer")
UPDATE = PHASES[3:]


class Throughput(Callback):
    """Logs rates, shares of time, and what selection, packing and shared prompts have spared.

    Args:
        peak_tflops: what the device can do, in 10^12 floating-point operations per second; null: looked up by its name.
        passes_every_n_rollouts: rollouts between two texts on which passes ran and why.
    """

    def __init__(self, peak_tflops: float | None = None, passes_every_n_rollouts: int = 100) -> None:
        if peak_tflops is not None and not peak_tflops > 0:
            raise ValueError(f"throughput.peak_tflops = {peak_tflops} must be positive, or null")
        if passes_every_n_rollouts < 1:
            raise ValueError(f"throughput.passes_every_n_rollouts = {passes_every_n_rollouts} must be at least 1")
        self.peak_tflops = peak_tflops
        self.passes_every_n_rollouts = passes_every_n_rollouts
        self._clock = 0.0
        self._seconds: dict[str, float] = {}
        self._work: dict[str, Work] = {}
        self._whole = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, after an evaluation at the start."""
        self._whole = False
        if isinstance(pl_module, ForkGRPOModule):
            self._clock = time.perf_counter()
            self._seconds, self._work = _seconds(pl_module), _work(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A resumed run may go on inside a rollout, of which nothing is said."""
        self._whole = self._whole or getattr(batch, "visit", None) == 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs at the end of every rollout that was seen from its beginning."""
        if not isinstance(pl_module, ForkGRPOModule) or not batch.ends_rollout:
            return
        lesson = pl_module.lesson
        assert lesson is not None
        now, seconds, work = time.perf_counter(), _seconds(pl_module), _work(pl_module)
        wall = now - self._clock
        spent = {name: seconds[name] - self._seconds.get(name, 0.0) for name in PHASES}
        done = {name: work[name] - self._work.get(name, Work()) for name in work}
        self._clock, self._seconds, self._work = now, seconds, work
        if not self._whole:
            return
        scalars = _rates(pl_module, lesson, spent, wall) | _spared(lesson, done)
        scalars |= self._speed(pl_module.policy, done, sum(spent[name] for name in UPDATE))
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"throughput/{name}": value for name, value in scalars.items()}, step=trainer.global_step
            )
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_text") and batch.rollout % self.passes_every_n_rollouts == 0:
                writer.add_text("rollout/passes", passes_text(pl_module, lesson, done), trainer.global_step)

    def _speed(self, policy: Policy, done: dict[str, Work], seconds: float) -> dict[str, float]:
        layers = head = 0.0
        for name, work in done.items():
            of_layers, of_head = policy.shape.flops(work, backward=name == "train")
            layers, head = layers + of_layers, head + of_head
        device = policy.head_weight.device
        scalars = {"tflops": (layers + head) / seconds / 1e12}
        scalars["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if layers + head:
            scalars["head_share"] = head / (layers + head)
        peak = self.peak_tflops
        if device.type == "cuda":
            scalars["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
            name = torch.cuda.get_device_name(device)
            peak = peak or next((value for part, value in PEAK_TFLOPS.items() if part in name), None)
        if peak:
            scalars["mfu"] = scalars["tflops"] / peak
        return scalars


def passes_text(module: ForkGRPOModule, lesson: Lesson, done: dict[str, Work]) -> str:
    """Which passes a rollout had on this rank, and why, as Markdown."""
    x, plan = lesson.experience, lesson.plan
    trained, watched = (sum(len(rows) for rows in visits) for visits in (plan.train, plan.watch))
    every = len(x.update)
    lines = [f"- {what}: {why}" for what, why in lesson.passes.reasons().items()]
    why = {
        "none": "answers without advantage have no gradient: they are trained on by no pass",
        "eligible": "a term beside the policy's has a gradient on tokens without advantage",
        "all": "a term beside the policy's reads every answer token",
    }[module.loss.others]
    lines.append(f"- training: {trained} of {every} sequences; {why}")
    lines.append(f"- watched: {watched} sequences without a gradient, whose tokens the selection ranks with the others")
    lines.append(f"- left out: {every - trained - watched} sequences")
    lines += [
        f"- {name}: {work.passes} passes, {work.tokens:,} tokens as {work.row_tokens:,} in rows, "
        f"{work.padded_tokens:,} with padding"
        for name, work in done.items()
        if work.passes
    ]
    return "\n".join(lines)


def _seconds(module: ForkGRPOModule) -> dict[str, float]:
    both = {**module.seconds, **module.answerer.seconds}
    return {name: both.get(name, 0.0) for name in PHASES}


def _work(module: ForkGRPOModule) -> dict[str, Work]:
    work = dict(module.policy.work)
    if module.reference is not None:
        work["reference"] = module.reference.policy.work["statistics"]
    return work


def _rates(module: ForkGRPOModule, lesson: Lesson, spent: dict[str, float], wall: float) -> dict[str, float]:
    x = lesson.experience
    answers, every = module.ranks.reduce(
        torch.stack([x.answer_length.sum(), (x.prompt_length + x.answer_length).sum()])
    ).tolist()
    scalars = {f"share_{name}": seconds / wall for name, seconds in spent.items()}
    scalars["share_other"] = 1 - sum(spent.values()) / wall
    update = sum(spent[name] for name in UPDATE)
    rates = {"sample_tokens_per_second": (answers, spent["sample"]), "update_tokens_per_second": (every, update)}
    return scalars | {name: tokens / seconds for name, (tokens, seconds) in rates.items() if seconds > 0}


def _spared(lesson: Lesson, done: dict[str, Work]) -> dict[str, float]:
    x, plan = lesson.experience, lesson.plan
    total = sum(done.values(), Work())
    seen = sum(len(rows) for visits in (plan.train, plan.watch) for rows in visits)
    scalars = {f"passes_{name}": float(work.passes) for name, work in done.items()}
    scalars["skipped_share"] = 1 - seen / len(x.update)
    scalars["head_products"] = total.head_products / float(x.answer_length.sum())
    if x.fork_mask is not None:
        scalars["kept_share"] = float(x.fork_mask.sum()) / float(x.answer_length.sum())
    if total.row_tokens:
        scalars["packing_ratio"] = total.padded_tokens / total.tokens
        scalars["prefix_ratio"] = total.tokens / total.row_tokens
    return scalars
