"""What a selection does to a real pretrained model: the same runs with every selection, by one command.

SmolLM2-135M-Instruct learns one-step sums in words (`benchmarks/small_lm.yaml`; `benchmarks/smollm2.py` makes the
model). Problems are generated: 500 to train on, 128 others held out. Arms differ in their selection alone: with one
seed all see the same problems in the same order and sample with the same noise, so differences are paired by seed.

Every run ends as one row in `--results`; rows that are there are not run again, so the command can be interrupted.
A row has, by update, what the curves show; `scores`: avg@2 on 64 held-out problems every 5 updates; `before` and
`after`: avg@4 on all 128. The last line printed is one JSON object with, for every arm:

late             mean over seeds of the mean of the last five of `scores`, in %
before, after    mean over seeds, in %
behind           `late` of all tokens minus that of the arm: mean over the paired seeds, in points
behind_ci        half the width of its 95 % interval (Student's t); null for one seed
kept, kept_late  mean share of tokens kept in all updates; the largest in an update of the second half
seconds          mean wall time of an update without sampling, of the second half, in seconds
time_ratio       `seconds` of the arm / of all tokens
guards           for every seed: after how many rollouts, up to ten, each rule of `guards` applies

    python benchmarks/small_lm.py                              every arm, seeds 0 to 2: about 10 minutes a run
    python benchmarks/small_lm.py --arms all top-20 --seeds 0  two runs
    python benchmarks/small_lm.py --report                     no run: the table of the rows that are there
    python benchmarks/small_lm.py --report --signals FOLDER    the same, and files for benchmarks/plot_signal.py
    python benchmarks/small_lm.py --quick                      two updates of two arms, to see that it works
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from smollm2 import smollm2
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from forklight.algo.signal import EDGES
from forklight.callbacks.health import HealthGuards
from forklight.training.health import Curves, findings

HERE = Path(__file__).parent
S = "--model.selection."
TOP = [f"{S}preset", "top-20"]
STOP = ["--model.rollout.stop", '["\\n"]']
LINEAR = '{"from": 1.0, "to": 0.2, "over_rollouts": 20}'
ARMS = {
    "all": [f"{S}preset", "all-tokens"],
    "top-20": TOP,
    "bottom-80": [f"{S}preset", "bottom-80"],
    "random-20": [f"{S}preset", "random-20"],
    "schedule": [f"{S}preset", "forklight"],
    "schedule-step": [*TOP, f"{S}rho", '{"from": 1.0, "to": 0.2, "over_rollouts": 12, "shape": "step"}'],
    "schedule-entropy": [*TOP, f"{S}rho", '{"from": 1.0, "to": 0.2, "over_rollouts": 10, "until_entropy": 0.7}'],
    "schedule-entropy-at-once": [*TOP, f"{S}rho", '{"from": 1.0, "to": 0.2, "until_entropy": 0.7}'],
    "schedule-random": [*TOP, f"{S}rho", LINEAR, f"{S}keep", "random"],
    "sequence": [*TOP, f"{S}scope", "sequence"],
    "ended": [*TOP, f"{S}select_truncated", "false"],
    "balance": [*TOP, f"{S}balance", "outcome"],
    "keep-eos": [*TOP, f"{S}keep_eos", "true"],
    "abs-advantage": [*TOP, f"{S}keep", "abs_advantage"],
    "entropy-advantage": [*TOP, f"{S}keep", "entropy_times_advantage"],
    "covariance": [*TOP, f"{S}keep", "covariance"],
    "position": [*TOP, f"{S}relative_to", "position"],
    "type": [*TOP, f"{S}relative_to", "type"],
    "absolute": [*TOP, f"{S}rule", "absolute", f"{S}tau", "0.7"],
    "all-stop": [f"{S}preset", "all-tokens", *STOP],
    "top-20-stop": [*TOP, *STOP],
}
"""The arguments of every arm."""

TEMPLATES = (
    ("{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?", "+"),
    ("{name} had {c} {things} and gave away {b}. How many {things} are left?", "-"),
    ("There are {a} red {things} and {b} blue {things} in a box. How many {things} are in the box?", "+"),
    ("What is {a} + {b}?", "+"),
    ("What is {c} - {b}?", "-"),
)
NAMES = ("Tom", "Anna", "Li", "Omar", "Eva", "Sam")
THINGS = ("apples", "stickers", "balls", "pens", "coins")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Quantile 0.975 of Student's t by number of values."""


def problems(count: int, seed: int = 1) -> list[dict[str, str]]:
    """Different one-step problems with sums up to 21; the same ones on every machine."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        template, sign = rng.choice(TEMPLATES)
        a, b = rng.randint(2, 12), rng.randint(2, 9)
        c = b + rng.randint(1, 10)
        text = template.format(name=rng.choice(NAMES), things=rng.choice(THINGS), a=a, b=b, c=c)
        found[text] = str(a + b if sign == "+" else c - b)
    return [{"problem": text, "answer": answer} for text, answer in found.items()]


def write_problems(folder: Path) -> list[str]:
    """Writes training and held-out problems; returns the arguments that name them."""
    every = problems(628)
    for name, part in (("train", every[:500]), ("held_out", every[500:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))

    def file(name: str, limit: int | None = None) -> dict[str, Any]:
        path = str(folder / f"{name}.jsonl")
        return {"class_path": "forklight.data.problems.ProblemFile", "init_args": {"path": path, "limit": limit}}

    sets = {
        "train": [file("train")],
        "val": {"held_out": {"source": file("held_out", 64), "answers": 2}},
        "test": {"held_out": {"source": file("held_out"), "answers": 4}},
    }
    return [word for name, value in sets.items() for word in (f"--data.{name}", json.dumps(value))]


class Runs:
    """Runs arms and keeps their rows.

    Args:
        model: folder of the model.
        work: folder for runs.
        results: file of the rows.
        updates: of a run.
        extra: further arguments of every run.
    """

    def __init__(self, model: Path, work: Path, results: Path, updates: int, extra: list[str]) -> None:
        self.model, self.work, self.results, self.updates = model, work, results, updates
        self.extra = [*write_problems(work), *extra]

    def run(self, arm: str, seed: int) -> None:
        """Adds the row of an arm and a seed, if it is not there."""
        if any(row["arm"] == arm and row["seed"] == seed for row in _lines(self.results)):
            return
        folder = self.work / f"{arm}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        given = ["--model.policy.path", str(self.model), "--trainer.max_steps", str(self.updates)]
        self._forklight("fit", folder, seed, [*given, *ARMS[arm]])
        row = {"arm": arm, "seed": seed, "updates": self.updates, **self._read(folder)}
        row["after"] = self._score(folder / "policy", folder, seed)
        with self.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{arm} {seed}: {100 * row['scores'][0][1]:.1f} -> {100 * row['after']:.1f} %", file=sys.stderr)
        shutil.rmtree(folder)

    def _forklight(self, verb: str, folder: Path, seed: int, extra: list[str]) -> None:
        """A process of its own, with one thread."""
        command = [sys.executable, "-m", "forklight", verb, "--config", str(HERE / "small_lm.yaml")]
        command += ["--run_dir", str(folder), "--seed_everything", str(seed), *self.extra, *extra]
        with (self.work / f"{folder.name}.log").open("a") as log:
            subprocess.run(
                command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT
            )

    def _score(self, policy: Path, folder: Path, seed: int) -> float:
        """avg@4 of a policy on all held-out problems."""
        before = set(folder.glob("test-*"))
        self._forklight("test", folder, seed, ["--model.policy.path", str(policy)])
        (made,) = set(folder.glob("test-*")) - before
        return float(_lines(made / "scores.jsonl")[-1]["scores"]["avg@4"])

    def _read(self, folder: Path) -> dict[str, Any]:
        """What the curves of a run show."""
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        there = set(events.Tags()["scalars"])

        def values(tag: str) -> list[float]:
            return [float(f"{event.value:.4g}") for event in events.Scalars(tag)] if tag in there else []

        def by_update(tag: str) -> list[float | None]:
            found = {event.step: float(f"{event.value:.4g}") for event in events.Scalars(tag)}
            return [found.get(update + 1) for update in range(self.updates)]

        phases = [values(f"time/{phase}") for phase in ("statistics", "forward", "backward", "optimizer")]
        return {
            "scores": [[event.step, round(event.value, 4)] for event in events.Scalars("val/held_out/avg@2")],
            "cut": values("val/held_out/truncated"),
            "seconds": [round(sum(update), 3) for update in zip(*phases, strict=True)],
            "curves": {
                tag: by_update(tag) for tag in sorted(there) if tag.startswith(("rollout/", "fork/", "signal/"))
            },
            "signal": {
                "start": _summed(folder / "signal.jsonl", 0, 5),
                "end": _summed(folder / "signal.jsonl", self.updates // 2, self.updates),
            },
            "guards": [[line["step"], line["rule"]] for line in _lines(folder / "guards.jsonl")],
        }


def _lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file, one per line; none if there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _summed(file: Path, start: int, end: int) -> dict[str, dict[str, list[float]]]:
    """The tables of the learning signal of some rollouts, added up: by part and column, a sum per entropy bin."""
    total: dict[str, dict[str, list[float]]] = {}
    for line in _lines(file):
        if start <= line["rollout"] < end:
            for part, columns in line["sums"].items():
                found = total.setdefault(part, {})
                for name, bins in columns.items():
                    found[name] = [
                        float(f"{a + b:.5g}") for a, b in zip(found.get(name, [0.0] * len(bins)), bins, strict=True)
                    ]
    return total


def first_findings(row: dict[str, Any]) -> dict[str, int]:
    """After how many rollouts each rule of `guards` applies for the first time in the first ten; none: empty."""
    curves, guards, told = Curves(), HealthGuards().guards, dict[str, int]()
    for update in range(min(10, row["updates"])):
        known = {tag: values[update] for tag, values in row["curves"].items() if update < len(values)}
        curves.add({tag: value for tag, value in known.items() if value is not None})
        for finding in findings(curves, guards, set(told)):
            told[finding.rule] = update + 1
    return told


def report(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The table: a line per arm."""
    late = {(row["arm"], row["seed"]): statistics.mean(score for _, score in row["scores"][-5:]) for row in rows}
    table: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        behind = [
            100 * (late["all", seed] - value)
            for (of, seed), value in late.items()
            if of == arm and ("all", seed) in late
        ]
        kept = [[share for share in row["curves"]["fork/kept_share"] if share is not None] for row in mine]
        table[arm] = {
            "seeds": len(mine),
            "guards": [first_findings(row) for row in mine],
            "late": 100 * statistics.mean(late[arm, row["seed"]] for row in mine),
            "before": 100 * statistics.mean(row["scores"][0][1] for row in mine),
            "after": 100 * statistics.mean(row["after"] for row in mine),
            "behind": statistics.mean(behind) if behind else None,
            "behind_ci": STUDENT[len(behind)] * statistics.stdev(behind) / math.sqrt(len(behind))
            if len(behind) > 1
            else None,
            "kept": statistics.mean(map(statistics.mean, kept)),
            "kept_late": max(max(share[len(share) // 2 :]) for share in kept),
            "seconds": statistics.mean(statistics.mean(row["seconds"][len(row["seconds"]) // 2 :]) for row in mine),
        }
    if "all" in table:
        for line in table.values():
            line["time_ratio"] = line["seconds"] / table["all"]["seconds"]
    return {
        arm: {k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()} for arm, line in table.items()
    }


def write_signals(rows: list[dict[str, Any]], folder: Path) -> None:
    """The learning signal of the first seed as `plot_signal.py` reads it.

    `<arm>.jsonl` has the first five updates, `<arm>-end.jsonl` those of the second half.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for row in sorted(rows, key=lambda row: -row["seed"]):
        for when, name in (("start", row["arm"]), ("end", f"{row['arm']}-end")):
            line = {"step": 1, "rollout": 0, "edges": EDGES, "sums": row["signal"][when]}
            (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n")


def main() -> None:
    """Runs the arms and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each of one thread")
    parser.add_argument("--results", type=Path, default=HERE / "baselines" / "small-lm.jsonl", help="file of the rows")
    parser.add_argument("--work", type=Path, help="folder for model and runs; by default a temporary one")
    parser.add_argument("--report", action="store_true", help="only print the table of the rows that are there")
    parser.add_argument("--signals", type=Path, help="with --report: folder for the learning signal of every arm")
    parser.add_argument("--quick", action="store_true", help="two updates of two arms; no row is kept")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="further arguments of every run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        results = Path(temporary) / "rows.jsonl" if options.quick else options.results
        updates = 2 if options.quick else options.updates
        arms, seeds = (["all", "top-20"], [0]) if options.quick else (options.arms, options.seeds)
        if not options.report:
            runs = Runs(smollm2(work / "smollm2"), work, results, updates, options.extra)
            with ThreadPoolExecutor(options.jobs) as pool:
                list(pool.map(lambda job: runs.run(*job), [(arm, seed) for seed in seeds for arm in arms]))
        rows = _lines(results)
        if options.signals:
            write_signals(rows, options.signals)
        print(json.dumps(report(rows)))


if __name__ == "__main__":
    main()
