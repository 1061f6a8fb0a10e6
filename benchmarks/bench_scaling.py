"""How time and memory of an update grow with tokens, vocabulary, answers per prompt and width of the model.

The update is that of `bench_update.py`, body and head, forward and backward, on a random Qwen3 of 2 layers: width 128
and a vocabulary of 16,384 unless they are what grows. Every point is measured in processes of their own; an exponent is
the slope of a least-squares line through the logarithms, `_last` that between the two largest points alone, where what
does not grow weighs least. Memory is the peak beyond weights, rollout and gradients.

Axes, and what the exponents are by:

length       4 answers of 256 to 4,096 tokens to one prompt of 32: by answer tokens, about 1k to 16k
sequences    2 to 32 prompts of 32 tokens with 8 answers of 64 each: by answer tokens, the same range
vocabulary   8,192 to 151,936, Qwen's, about 1k answer tokens: by tokens of the vocabulary
answers      2 to 16 answers of 64 tokens to each of 4 prompts of 256: by answers per prompt
width        128 to 512, about 1k answer tokens: by width

The last line printed is one JSON object:

time_exponent, memory_exponent   of axis `length`
exponents   by axis: time, time_last, memory, memory_last
points   by axis: [what grows, seconds, megabytes] each; seconds are medians over rounds in which every point has its
    turn
clock, rounds, threads, device, versions, load   clock: cpu (one thread: what others do on the machine disturbs less),
    else wall; load: the machine's, of the last minute, at the start

    python benchmarks/bench_scaling.py            five to ten minutes on one thread; 2 GB of memory
    python benchmarks/bench_scaling.py --quick    two axes, three small points each, one round
"""

import argparse
import json
import math
import os
import statistics
import sys
from dataclasses import replace
from typing import Any

import torch
from peers import short, versions
from updates import Ours, Size, apart, exact_memory, peak, rollout_of, timed


def warm(size: Size, device: str) -> Ours:
    """The update, after a small one: what libraries do once is not counted."""
    Ours(replace(size, vocabulary=1000, groups=1, answer=8), device).update()
    return Ours(size, device)


def seconds_of(size: Size, device: str, clock: str) -> float:
    """Seconds of one update."""
    ours = warm(size, device)
    return timed((ours.policy, ours.update))[clock == "wall"]


def megabytes_of(size: Size, device: str) -> float:
    """Peak memory of one update, gradients left out."""
    if device == "cpu":
        exact_memory()
    ours = warm(size, device)
    return peak((ours.policy, ours.update)) - sum(weight.nbytes for weight in ours.policy.parameters()) / 2**20


def axes_of(quick: bool) -> dict[str, dict[int, Size]]:
    """What grows, and the size that goes with it."""
    small = Size(vocabulary=16_384, layers=2, width=128)

    def answer_tokens(size: Size) -> int:
        return int(rollout_of(size, "cpu").answer_length.sum())

    lengths = [replace(small, groups=1, answers=4, answer=256 << step) for step in range(3 if quick else 5)]
    axes = {"length": {answer_tokens(size): size for size in lengths}}
    vocabularies = (8192, 16_384, 32_768) if quick else (8192, 16_384, 32_768, 65_536, 151_936)
    axes["vocabulary"] = {count: replace(small, vocabulary=count) for count in vocabularies}
    if not quick:
        many = [replace(small, groups=2 << step, answer=64) for step in range(5)]
        axes["sequences"] = {answer_tokens(size): size for size in many}
        axes["answers"] = {count: replace(small, answers=count, prompt=256, answer=64) for count in (2, 4, 8, 16)}
        axes["width"] = {width: replace(small, width=width) for width in (128, 256, 512)}
    return axes


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line through the logarithms."""
    x, y = ([math.log(point[index]) for point in points] for index in range(2))
    return statistics.linear_regression(x, y).slope


def report(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """All figures."""
    load, rounds = os.getloadavg()[0], 1 if options.quick else 3
    clock = "cpu" if options.threads == 1 and device == "cpu" else "wall"
    axes = axes_of(options.quick)
    every = [(axis, number) for axis, sizes in axes.items() for number in sizes]
    taken = {place: [] for place in every}
    for _ in range(rounds):
        for axis, number in every:
            taken[axis, number].append(apart(device, seconds_of, axes[axis][number], device, clock))
            print(json.dumps([axis, number, short(taken[axis, number][-1])]), file=sys.stderr, flush=True)
    points, exponents = {}, {}
    for axis, sizes in axes.items():
        seconds = [statistics.median(taken[axis, number]) for number in sizes]
        megabytes = [apart(device, megabytes_of, size, device) for size in sizes.values()]
        points[axis] = [[*point] for point in zip(sizes, map(short, seconds), map(short, megabytes), strict=True)]
        for name, values in (("time", seconds), ("memory", megabytes)):
            pairs = list(zip(sizes, values, strict=True))
            exponents.setdefault(axis, {}).update({name: slope(pairs), f"{name}_last": slope(pairs[-2:])})
    return {
        "time_exponent": exponents["length"]["time"],
        "memory_exponent": exponents["length"]["memory"],
        "exponents": exponents,
        "points": points,
        "clock": clock,
        "rounds": rounds,
        "threads": options.threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": versions(("torch", "transformers")),
        "load": load,
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two axes, three small points each, one round")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(short(report(options, "cuda" if torch.cuda.is_available() else "cpu"))))


if __name__ == "__main__":
    main()
