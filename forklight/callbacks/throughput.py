"""Where a rollout's time went, and how much work was saved: the values of `time/`, once per rollout.

Shares are of this rank's wall time or of its model's floating-point operations; rates are over all ranks.

- `sync`, `sample`, `verify`, `statistics`, `forward`, `backward`, `optimizer`: seconds of the phases. `sync` hands the
  weights to the sampler and checks that they arrive; `statistics` are the passes without gradient and the selections
  before an update; `optimizer` is gradient clipping and the optimiser's step. `rollout`: from one rollout to the next,
  evaluations and checkpoints included. `share_<phase>` and `share_other`: of `rollout`.
- `tokens_per_second`: answer tokens of the rollout, by the time of the rollout; `sample_tokens_per_second`: the same,
  by the time of sampling; `update_tokens_per_second`: prompt and answer tokens of the rollout, trained or not, by the
  time of statistics, forward, backward and optimizer.
- `head_share`: of the operations of all passes, those of the LM head. `head_products`: products with the head's weight
  per answer token of the rollout, all passes together; plain autograd over every token has three, and one more for a
  pass without gradient.
- `kept_share`: answer tokens that the selection kept, of all of the rollout.
- `packing_ratio`: tokens of the passes in padded batches, by those of their sequences; `prefix_ratio`: by those that
  went through the layers, each prompt once per group.
- `skipped_share`: sequences of the rollout that were in no pass.
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
from forklight.training.state import RolloutState

PEAK_TFLOPS = {"B200": 2250.0, "H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0}
"""Dense bfloat16, by a part of the device's name."""

PHASES = ("sync", "sample", "verify", "statistics", "forward", "backward", "optimizer")
UPDATE = PHASES[3:]


class Throughput(Callback):
    """Logs rates, shares of time, and how much work selection, packing and shared prompts have saved.

    Args:
        peak_tflops: what the device can do, in 10^12 floating-point operations per second; null: looked up by its name.
        passes_every_n_rollouts: rollouts between two texts that say which passes ran and why.
    """

    def __init__(self, peak_tflops: float | None = None, passes_every_n_rollouts: int = 100) -> None:
        if peak_tflops is not None and not peak_tflops > 0:
            raise ValueError(f"throughput.peak_tflops = {peak_tflops} must be positive, or null")
        if passes_every_n_rollouts < 1:
            raise ValueError(f"throughput.passes_every_n_rollouts = {passes_every_n_rollouts} must be at least 1")
        self.peak_tflops = peak_tflops
        self.passes_every_n_rollouts = passes_every_n_rollouts
        self._started: dict[str, float] = {}
        self._clock = 0.0
        self._seconds: dict[str, float] = {}
        self._work: dict[str, Work] = {}
        self._complete = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, after an evaluation at the start."""
        self._complete = False
        if isinstance(pl_module, ForkGRPOModule):
            self._clock = time.perf_counter()
            self._seconds, self._work = dict(pl_module.stopwatch.seconds), _work(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes the start of a rollout; a run resumed inside a rollout logs nothing of that one."""
        self._complete = self._complete or getattr(batch, "micro_batch", None) == 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Starts the time of backward."""
        self._started["backward"] = time.perf_counter()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the time of backward."""
        self._end("backward", pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Starts the time of clipping and of the optimiser's step."""
        self._started["optimizer"] = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the time of the optimiser's step; logs at the end of every rollout that was timed from its beginning."""
        self._end("optimizer", pl_module)
        if not isinstance(pl_module, ForkGRPOModule) or not batch.ends_rollout:
            return
        state = pl_module.current
        now, seconds, work = time.perf_counter(), dict(pl_module.stopwatch.seconds), _work(pl_module)
        wall = now - self._clock
        spent = {name: seconds.get(name, 0.0) - self._seconds.get(name, 0.0) for name in PHASES}
        done = {name: work[name] - self._work.get(name, Work()) for name in work}
        self._clock, self._seconds, self._work = now, seconds, work
        if not self._complete:
            return
        scalars = spent | _rates(pl_module, state, spent, wall) | _spared(state, done)
        scalars |= self._speed(pl_module.policy, done, sum(spent[name] for name in UPDATE))
        pl_module.log("time/tokens_per_second", scalars["tokens_per_second"], logger=False)
        for logger in trainer.loggers:
            logger.log_metrics({f"time/{name}": value for name, value in scalars.items()}, step=trainer.global_step)
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_text") and batch.rollout % self.passes_every_n_rollouts == 0:
                writer.add_text("rollout/passes", passes_text(pl_module, state, done), trainer.global_step)

    def _end(self, phase: str, module: LightningModule) -> None:
        """Adds up a phase that Lightning runs."""
        started = self._started.pop(phase, None)
        if started is not None and isinstance(module, ForkGRPOModule):
            module.stopwatch.seconds[phase] += time.perf_counter() - started

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


def passes_text(module: ForkGRPOModule, state: RolloutState, done: dict[str, Work]) -> str:
    """Which passes a rollout had on this rank, and why, as Markdown."""
    plan, every = state.plan, len(state.batch.update)
    trained, forward_only = (sum(map(len, rows)) for rows in (plan.train, plan.forward_only))
    lines = [f"- {what}: {why}" for what, why in state.schedule.reasons(state.updates).items()]
    why = {
        "none": "answers of zero advantage have no gradient: no pass trains on them",
        "eligible": "a term besides the policy's has a gradient on tokens of zero advantage",
        "all": "a term besides the policy's reads every answer token",
    }[module.config.extra_gradient]
    lines.append(f"- training: {trained} of {every} sequences; {why}")
    lines.append(
        f"- forward only: {forward_only} sequences without a gradient, whose tokens the selection ranks with the others"
    )
    lines.append(f"- left out: {every - trained - forward_only} sequences")
    lines += [
        f"- {name}: {work.passes} passes, {work.tokens:,} tokens as {work.row_tokens:,} in rows, "
        f"{work.padded_tokens:,} with padding"
        for name, work in done.items()
        if work.passes
    ]
    return "\n".join(lines)


def _work(module: ForkGRPOModule) -> dict[str, Work]:
    work = dict(module.policy.work)
    if module.reference is not None:
        work["reference"] = module.reference.policy.work["statistics"]
    return work


def _rates(module: ForkGRPOModule, state: RolloutState, spent: dict[str, float], wall: float) -> dict[str, float]:
    batch = state.batch
    answers, every = module.ranks.reduce(
        torch.stack([batch.answer_length.sum(), (batch.prompt_length + batch.answer_length).sum()])
    ).tolist()
    scalars = {"rollout": wall, "tokens_per_second": answers / wall}
    scalars |= {f"share_{name}": seconds / wall for name, seconds in spent.items()}
    scalars["share_other"] = 1 - sum(spent.values()) / wall
    update = sum(spent[name] for name in UPDATE)
    rates = {"sample_tokens_per_second": (answers, spent["sample"]), "update_tokens_per_second": (every, update)}
    return scalars | {name: tokens / seconds for name, (tokens, seconds) in rates.items() if seconds > 0}


def _spared(state: RolloutState, done: dict[str, Work]) -> dict[str, float]:
    batch, plan = state.batch, state.plan
    total, answer_tokens = sum(done.values(), Work()), float(batch.answer_length.sum())
    seen = sum(len(rows) for rows in (*plan.train, *plan.forward_only))
    scalars = {f"passes_{name}": float(work.passes) for name, work in done.items()}
    scalars["skipped_share"] = 1 - seen / len(batch.update)
    scalars["head_products"] = total.head_products / answer_tokens
    scalars["kept_share"] = float(state.tokens.fork_mask.sum()) / answer_tokens
    if total.row_tokens:
        scalars["packing_ratio"] = total.padded_tokens / total.tokens
        scalars["prefix_ratio"] = total.tokens / total.row_tokens
    return scalars
