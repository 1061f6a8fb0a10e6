"""The demo's claims: what a laptop CPU learns in minutes, what it costs, and the two controls beside it.

Runs `forklight fit --config configs/countdown/grpo.yaml` once per arm, each in a process of its own: forking tokens
with seeds 0, 1, 2, then all tokens and a random 20 % with seed 0. Every arm's result is appended to `--results` as it
ends.
The last line printed is one JSON object:

avg8_before      avg@8 of the base policy on the 256 held-out problems
avg8_after       median over the seeds after training
avg8_seeds       one per seed
avg8_all_tokens, avg8_random_20   the controls, same seed as the first
train_seconds    wall time of the training loop, evaluations in it included; the longest of the seeds
total_seconds    wall time of the whole command, start to final table; the longest of the seeds
peak_rss_mb      largest resident memory of a seed's process
overhead_share   1 - (sampling + verification + policy passes + optimiser) / wall time of the training loop
help_seconds     median of five `forklight --help`, warm

With `--beside` the controls are left out, and every seed runs a second time with another sampler:

avg8_beside_seeds, avg8_beside   one per seed, and their median
beside_points    how far the medians are apart, in percentage points
beside_seconds   wall time of the training loop, the longest of the seeds

    python benchmarks/demo.py            five runs, about half an hour
    python benchmarks/demo.py --seeds 1  one run
    python benchmarks/demo.py --quick    one run of a few updates, to see that it works
    python benchmarks/demo.py --beside forklight.sampling.VLLMSampler   six runs, over an hour
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIG = Path(__file__).parents[1] / "configs" / "countdown" / "grpo.yaml"
CONTROLS = {"all_tokens": ["--model.selection.keep", "all"], "random_20": ["--model.selection.keep", "random"]}
WORK = ("sync", "sample", "verify", "statistics", "forward", "backward", "optimizer")


def run(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of a command that must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def fit(folder: Path, seed: int, extra: list[str]) -> dict[str, Any]:
    """One arm, read back from its own curves."""
    command = [sys.executable, "-m", "forklight", "fit", "--config", str(CONFIG), "--run_dir", str(folder)]
    seconds, megabytes = run([*command, "--seed_everything", str(seed), *extra])
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()

    def total(tag: str) -> float:
        return sum(event.value for event in events.Scalars(tag))

    scores = [(event.step, event.value) for event in events.Scalars("val/countdown/avg@8")]
    wall = total("time/rollout")
    return {
        "seed": seed,
        "before": scores[0][1],
        "after": scores[-1][1],
        "curve": scores,
        "train_seconds": wall,
        "total_seconds": seconds,
        "peak_rss_mb": megabytes,
        "overhead_share": 1 - sum(total(f"time/{part}") for part in WORK) / wall,
    }


def help_seconds(runs: int) -> float:
    """Median wall time of the help text; one run before warms the file cache."""
    command = [sys.executable, "-m", "forklight", "--help"]
    return statistics.median([run(command)[0] for _ in range(runs + 1)][1:])


def beside(results: dict[str, dict[str, Any]], seeds: int) -> dict[str, Any]:
    """What the other sampler gives, and how far its median is from ours."""
    arms = [results[f"beside-{seed}"] for seed in range(seeds)]
    ours, theirs = (
        statistics.median(results[f"{arm}-{seed}"]["after"] for seed in range(seeds)) for arm in ("forking", "beside")
    )
    return {
        "avg8_beside_seeds": [arm["after"] for arm in arms],
        "avg8_beside": theirs,
        "beside_points": 100 * abs(ours - theirs),
        "beside_seconds": max(arm["train_seconds"] for arm in arms),
    }


def main() -> None:
    """Runs the arms and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; below 3 the controls are left out")
    parser.add_argument("--quick", action="store_true", help="one seed, a few updates")
    parser.add_argument("--updates", type=int, help="stop after so many; the learning rate's schedule stays")
    parser.add_argument("--beside", metavar="CLASS", help="another sampler, run with the same seeds")
    parser.add_argument("--results", type=Path, help="file to which each arm's result is appended as it ends")
    options = parser.parse_args()
    updates = 4 if options.quick else options.updates
    extra = ["--trainer.max_steps", str(updates)] if updates else []
    seeds = 1 if options.quick else options.seeds
    arms = [(f"forking-{seed}", seed, extra) for seed in range(seeds)]
    if options.beside:
        arms += [(f"beside-{seed}", seed, [*extra, "--model.sampler", options.beside]) for seed in range(seeds)]
    elif seeds >= 3:
        arms += [(name, 0, [*extra, *choice]) for name, choice in CONTROLS.items()]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seed, choice in arms:
            results[name] = fit(Path(folder) / name, seed, choice)
            line = json.dumps({"arm": name, **results[name]})
            print(line, file=sys.stderr, flush=True)
            if options.results:
                with options.results.open("a") as file:
                    file.write(line + "\n")
    forking = [results[f"forking-{seed}"] for seed in range(seeds)]
    report = {
        "avg8_before": forking[0]["before"],
        "avg8_after": statistics.median(arm["after"] for arm in forking),
        "avg8_seeds": [arm["after"] for arm in forking],
        **{f"avg8_{name}": results[name]["after"] for name in CONTROLS if name in results},
        "train_seconds": max(arm["train_seconds"] for arm in forking),
        "total_seconds": max(arm["total_seconds"] for arm in forking),
        "peak_rss_mb": max(arm["peak_rss_mb"] for arm in forking),
        "overhead_share": statistics.median(arm["overhead_share"] for arm in forking),
        **(beside(results, seeds) if options.beside else {}),
        "help_seconds": help_seconds(1 if options.quick else 5),
    }
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in report.items()}))


if __name__ == "__main__":
    main()
