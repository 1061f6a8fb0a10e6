r"""A benchmark beside the same benchmark of another checkout: is the change slower?

Both checkouts run the command in turn, each from its own folder and with its own package, in the environment of this
interpreter. Every round gives one ratio per figure, of speeds: above 1 this checkout is faster. The machine may change
from round to round, but hardly between the two halves of one.

The last line printed is one JSON object: rounds, command, and per figure

ratio     geometric mean over the rounds of before / after, or of after / before with --rates
interval  95 % interval of that mean, by Student's t on logarithms
before, after   medians of the figure

    git worktree add ../before HEAD~1
    python benchmarks/paired.py --before ../before --figure seconds.ours -- benchmarks/bench_update.py --quick
    python benchmarks/paired.py --before ../before --figure steps.*.cpu -- \
        benchmarks/bench_step.py --alone forklight --steps 6

A figure is the way to a number in the JSON line that the command prints last; `*` takes the median over a list or over
the values of an object. Without a figure it is the CPU time of the whole command.

With --code, Python that defines `call`, one process per checkout is started once, and `call()` is timed in both in turn
in CPU seconds, after two calls to warm up.

    python benchmarks/paired.py --before ../before --rounds 60 --code \
        "from updates import Ours, Size; ours = Ours(Size(), 'cpu'); call = ours.update"
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Quantiles of Student's t for 95 %, by degrees of freedom from 1 on."""

WHOLE = "cpu"

SERVE = """
import sys, time
answers, sys.stdout = sys.stdout, sys.stderr
exec(sys.argv[1])
for _ in sys.stdin:
    started = time.process_time()
    call()
    print(time.process_time() - started, file=answers, flush=True)
"""
"""What a process of --code runs: one call per line of input."""


def value_of(found: Any, path: list[str]) -> float:
    """The number at the end of a way through lists and objects; `*` takes the median."""
    if not path:
        return float(found)
    if path[0] == "*":
        inner = found.values() if isinstance(found, dict) else found
        return statistics.median(value_of(one, path[1:]) for one in inner)
    return value_of(found[path[0]], path[1:])


def environment_of(checkout: Path) -> dict[str, str]:
    """One thread, and the package of the checkout."""
    path = f"{checkout}{os.pathsep}{checkout / 'benchmarks'}"
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(checkout: Path, command: list[str], figures: list[str]) -> dict[str, float]:
    """The figures of one run of the command in a checkout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment_of(checkout), capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(command)} failed\n{done.stderr[-2000:]}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if figures == [WHOLE]:
        return {WHOLE: spent}
    last = json.loads(done.stdout.strip().splitlines()[-1])
    return {figure: value_of(last, figure.split(".")) for figure in figures}


class Calls:
    """A process that runs `call()` of some code in a checkout when asked to."""

    def __init__(self, checkout: Path, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, code],
            cwd=checkout, env=environment_of(checkout), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def seconds(self) -> float:
        """CPU seconds of one call."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the code failed with exit code {self.process.wait()}")
        return float(line)


def calls_of(code: str, checkouts: dict[str, Path], rounds: int) -> dict[str, list[dict[str, float]]]:
    """CPU seconds of `call()` in both checkouts, in turn."""
    processes = {side: Calls(checkout, code) for side, checkout in checkouts.items()}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in checkouts}
    for number in range(-2, rounds):
        for side in checkouts if number % 2 == 0 else reversed(checkouts):
            seconds = processes[side].seconds()
            if number >= 0:
                found[side].append({WHOLE: seconds})
    for each in processes.values():
        each.process.communicate()
    return found


def runs_of(
    command: list[str], figures: list[str], checkouts: dict[str, Path], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """The figures of the command in both checkouts, in turn."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in checkouts}
    for number in range(rounds):
        for side in checkouts if number % 2 == 0 else reversed(checkouts):
            found[side].append(run(checkouts[side], command, figures))
        print(json.dumps({side: values[-1] for side, values in found.items()}), file=sys.stderr, flush=True)
    return found


def summary(before: list[float], after: list[float], *, rates: bool) -> dict[str, Any]:
    """Mean and interval of the ratios of speeds."""
    pairs = zip(after, before, strict=True) if rates else zip(before, after, strict=True)
    logs = [math.log(above / below) for above, below in pairs]
    middle, spread = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    t = T_975[len(logs) - 2] if len(logs) - 2 < len(T_975) else 2.0
    return {
        "ratio": round(math.exp(middle), 4),
        "interval": [round(math.exp(middle - t * spread), 4), round(math.exp(middle + t * spread), 4)],
        "before": float(f"{statistics.median(before):.4g}"),
        "after": float(f"{statistics.median(after):.4g}"),
    }


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of runs, at least 2")
    parser.add_argument("--figure", action="append", default=[], help="may be given more than once")
    parser.add_argument("--rates", action="store_true", help="figures are rates, of which more is better")
    parser.add_argument("--code", help="in place of a command: Python that defines `call`")
    parser.add_argument("command", nargs="*", help="a script of both checkouts, and its arguments")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds = {options.rounds}: an interval needs at least 2")
    if bool(options.code) == bool(options.command):
        parser.error("give a command or --code")
    figures = options.figure or [WHOLE]
    checkouts = {"before": options.before.resolve(), "after": HERE}
    if options.code:
        found = calls_of(options.code, checkouts, options.rounds)
    else:
        found = runs_of(options.command, figures, checkouts, options.rounds)
    by_figure = {
        figure: summary(*([one[figure] for one in found[side]] for side in ("before", "after")), rates=options.rates)
        for figure in figures
    }
    print(json.dumps({"rounds": options.rounds, "command": options.code or " ".join(options.command), **by_figure}))


if __name__ == "__main__":
    main()
