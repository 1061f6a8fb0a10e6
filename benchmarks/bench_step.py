"""A whole step of GRPO on the Countdown policy, sample, verify, update, beside TRL's GRPOTrainer.

Both start from the base policy that ships: 64 problems, 8 answers each of at most 16 tokens at T = 1.25, one update per
rollout, no KL, gradients of the fifth of tokens with the highest entropies, AdamW, float32, on the CPU. forklight runs
`configs/countdown/grpo.yaml` without evaluations and checkpoints, and writes its curves. TRL logs nothing, recomputes
no activations, and gets its rewards from the same verifier; of `TRL_SETTINGS` the fastest counts. Its fused head, which
has no switch, is part of it. With micro-batches TRL takes the fifth of each. A step goes from the end of one update to
the end of the next. Every run is a process of its own, and the sides take turns.

The last line printed is one JSON object:

step_speedup   TRL's seconds per step / forklight's, one thread; CPU seconds, as others on the machine disturb them less
step_speedup_wall, step_speedup_2_threads   the same of wall times, with one thread and with two
seconds, wall_seconds, wall_seconds_2_threads   per step, by side; medians over the steps of all runs
phases   wall seconds per step, by side, one thread, medians: sampling; verify; update, which is forward and backward
    passes (forklight's optimiser, too); other is what is left of the step
answer_tokens, right   mean length of answers and share of right ones, by side: from the same policy, nearly the same
peak_rss_mb   largest resident memory of a process, by side, one thread
trl_setting, trl_seconds   the fastest with one thread, used with two, too; CPU seconds per step of every setting
steps, runs, device, versions, load   steps per run after warm-up; runs per side; load: the machine's, at the start

    python benchmarks/bench_step.py            a quarter of an hour on two cores
    python benchmarks/bench_step.py --quick    one short run per side and number of threads, two minutes
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peers import fresh, missing_peers, short, versions

from forklight.cli import main as forklight
from forklight.data.countdown_sets import CountdownProblems
from forklight.models.loading import TINY
from forklight.verify import CountdownVerifier

CONFIG = Path(__file__).parents[1] / "configs" / "countdown" / "grpo.yaml"
ANSWERS = 512
WARM_UP = 2
NEVER = str(10**9)

TRL = {
    "num_generations": 8, "max_completion_length": 16, "temperature": 1.25, "beta": 0.0, "num_iterations": 1,
    "loss_type": "dapo", "top_entropy_quantile": 0.2, "max_grad_norm": 1.0,
    "learning_rate": 1e-3, "adam_beta2": 0.95, "lr_scheduler_type": "constant",
    "bf16": False, "use_cpu": True, "model_init_kwargs": {"dtype": "float32"}, "gradient_checkpointing": False,
    "report_to": [], "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip
TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {"per_device_train_batch_size": ANSWERS},
    "micro-batches of 64": {"per_device_train_batch_size": 64, "gradient_accumulation_steps": ANSWERS // 64},
    "whole, static cache": {"per_device_train_batch_size": ANSWERS, "cache_implementation": "static"},
}
"""Also tried: micro-batches of 128 and 32, eager attention and the optimiser that is not fused take as long; with
`torch_compile`, and with the continuous batching of transformers, a few steps were not done after minutes."""


class Ticks:
    """When each update ended, and how much time each phase had taken until then."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = defaultdict(float)
        self.facts: dict[str, float] = {}
        self._ends: list[dict[str, float]] = []

    def end(self) -> None:
        """An update has ended."""
        clocks = {"cpu": time.process_time(), "wall": time.perf_counter()}
        self._ends.append({**clocks, **self.phases, **{f"fact:{name}": value for name, value in self.facts.items()}})

    def timed(self, phase: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls, and adds the time to a phase."""
        started = time.perf_counter()
        found = call(*args, **kwargs)
        self.phases[phase] += time.perf_counter() - started
        return found

    def steps(self) -> list[dict[str, float]]:
        """What each step after warm-up took, and its facts."""
        pairs = list(zip(self._ends, self._ends[1:], strict=False))[WARM_UP - 1 :]
        return [
            {name.removeprefix("fact:"): now[name] - (0 if "fact:" in name else was.get(name, 0.0)) for name in now}
            for was, now in pairs
        ]


TICKS = Ticks()


class StepClock(Callback):
    """Notes the ends of forklight's updates."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One update has one micro-batch here."""
        seconds = pl_module.stopwatch.seconds
        update = sum(value for phase, value in seconds.items() if phase not in ("sample", "verify"))
        TICKS.phases |= {"sampling": seconds["sample"], "verify": seconds["verify"], "update": update}
        rollout = pl_module.rollout.metrics
        TICKS.facts = {"answer_tokens": rollout["rollout/answer_tokens"], "right": rollout["rollout/right"]}
        TICKS.end()


def forklight_steps(count: int, seed: int) -> None:
    """A run of the demo's config."""
    with tempfile.TemporaryDirectory() as folder:
        keys = {
            "config": CONFIG, "run_dir": Path(folder) / "run", "seed_everything": seed, "trainer.max_steps": count,
            "trainer.callbacks+": "__main__.StepClock", "evaluation.at_start": "false",
            "data.eval_every_rollouts": NEVER, "checkpoint.every_n_rollouts": NEVER,
        }  # fmt: skip
        forklight(["fit", *(f"--{name}={value}" for name, value in keys.items())])


def trl_steps(count: int, seed: int, setting: str) -> None:
    """The same with TRL."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    verifier = CountdownVerifier()

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            TICKS.phases["update"] = TICKS.phases["training_step"] - TICKS.phases["prepare"]
            TICKS.end()

    class TimedTrainer(GRPOTrainer):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            return TICKS.timed("sampling", super()._generate, *args, **kwargs)

        def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
            return TICKS.timed("prepare", super()._prepare_inputs, *args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            return TICKS.timed("training_step", super().training_step, *args, **kwargs)

    def reward(completions: list[str], completion_ids: list[list[int]], gold: list[str], **_: Any) -> list[float]:
        pairs = list(zip(completions, gold, strict=True))
        right = [verdict.right for verdict in TICKS.timed("verify", verifier.verify_many, pairs)]
        tokens = statistics.fmean(map(len, completion_ids))
        TICKS.facts = {"answer_tokens": tokens, "right": statistics.fmean(right)}
        return [float(one) for one in right]

    problems = CountdownProblems(size=12_000).read()
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(output_dir=folder, max_steps=count, seed=seed, **TRL, **TRL_SETTINGS[setting])
        data = {"prompt": [f"{one.prompt}:" for one in problems], "gold": [one.answer for one in problems]}
        trainer = TimedTrainer(
            str(TINY), reward, args=settings, train_dataset=Dataset.from_dict(data), callbacks=[Clock()]
        )
        trainer.train()


def alone(side: str, count: int, seed: int) -> dict[str, Any]:
    """The steps of one side in this process."""
    if side == "forklight":
        forklight_steps(WARM_UP + count, seed)
    else:
        trl_steps(WARM_UP + count, seed, side)
    return {"steps": TICKS.steps(), "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def turns(sides: list[str], options: argparse.Namespace, threads: int) -> dict[str, dict[str, Any]]:
    """Every side's medians over all its steps; the sides take turns."""
    steps, peaks = defaultdict(list), defaultdict(list)
    for run in range(options.runs):
        for side in sides:
            flags = ["--alone", side, "--steps", str(options.steps), "--seed", str(run)]
            found = fresh(__file__, flags, threads, {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})
            steps[side] += found["steps"]
            peaks[side].append(found["peak_rss_mb"])
            shown = {name: statistics.median(step[name] for step in found["steps"]) for name in ("cpu", "wall")}
            print(json.dumps({"side": side, "threads": threads, **short(shown)}), file=sys.stderr, flush=True)
    return {
        side: {
            **{name: statistics.median(step[name] for step in steps[side]) for name in steps[side][0]},
            "peak_rss_mb": max(peaks[side]),
        }
        for side in sides
    }


def report(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    load, settings = os.getloadavg()[0], list(TRL_SETTINGS)[: 1 if options.quick else None]
    one = turns(["forklight", *settings], options, 1)
    fastest = min(settings, key=lambda name: one[name]["cpu"])
    two = turns(["forklight", fastest], options, 2)
    for found in (one, two):
        found["trl"] = found[fastest]
    sides = ("forklight", "trl")

    def by_side(found: dict[str, dict[str, Any]], name: str) -> dict[str, float]:
        return {side: found[side][name] for side in sides}

    phases = {side: {name: one[side][name] for name in ("sampling", "verify", "update")} for side in sides}
    for side in sides:
        phases[side]["other"] = one[side]["wall"] - sum(phases[side].values())
    return {
        "step_speedup": one["trl"]["cpu"] / one["forklight"]["cpu"],
        "step_speedup_wall": one["trl"]["wall"] / one["forklight"]["wall"],
        "step_speedup_2_threads": two["trl"]["wall"] / two["forklight"]["wall"],
        "seconds": by_side(one, "cpu"),
        "wall_seconds": by_side(one, "wall"),
        "wall_seconds_2_threads": by_side(two, "wall"),
        "phases": phases,
        **{name: by_side(one, name) for name in ("answer_tokens", "right", "peak_rss_mb")},
        "trl_setting": fastest,
        "trl_seconds": {name: one[name]["cpu"] for name in settings},
        "steps": options.steps,
        "runs": options.runs,
        "device": "cpu",
        "versions": versions(("torch", "transformers", "lightning", "trl", "accelerate")),
        "load": load,
    }


def main() -> None:
    """Prints the figures, or for `--alone` those of one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short run per side, TRL's first settings only")
    parser.add_argument("--steps", type=int, default=12, help="steps per run after warm-up")
    parser.add_argument("--runs", type=int, default=2, help="runs per side and number of threads")
    parser.add_argument("--alone", help="a side: forklight, or one of TRL's settings")
    parser.add_argument("--threads", type=int, default=1, help="of --alone")
    parser.add_argument("--seed", type=int, default=0, help="of --alone")
    options = parser.parse_args()
    if missing := missing_peers():
        parser.error(missing)
    if options.alone:
        torch.set_num_threads(options.threads)
        print(json.dumps(alone(options.alone, options.steps, options.seed)))
        return
    if options.quick:
        options.steps, options.runs = 3, 1
    print(json.dumps(short(report(options))))


if __name__ == "__main__":
    main()
