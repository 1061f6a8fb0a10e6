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

    python benchmarks/bench_scaling.py            about five minutes on one thread; 2 GB of memory
    python benchmarks/bench_scaling.py --quick    two axes, three small points each, one round
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peers import SEED, memory, short, versions
from torch import Tensor
from transformers import Qwen3Config

from forklight.algo.plan import make_plan
from forklight.algo.terms import Loss
from forklight.algo.types import Experience
from forklight.models.loading import PolicyConfig
from forklight.models.policy import Policy
from forklight.rollout.learn import Learner

Update = Callable[[], Tensor]
"""Leaves gradients in its policy, and returns the loss."""
Side = tuple[Policy, Update]


@dataclass(frozen=True)
class Size:
    """A model's shape and a rollout's."""

    vocabulary: int = 151_936  # Qwen's
    layers: int = 4
    width: int = 256
    groups: int = 4
    answers: int = 8
    prompt: int = 32
    """Tokens of a prompt; lengths vary by a quarter."""
    answer: int = 32
    """Tokens of an answer; lengths vary by a half."""
    zero: int = 0
    """Groups without an advantage."""


def policy_of(size: Size, device: str, **settings: Any) -> Policy:
    """A random Qwen3, the same weights every time."""
    shape = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64,
        num_key_value_heads=size.width // 128,
        head_dim=64,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        initializer_range=0.06,  # entropies differ from token to token
    )
    with tempfile.TemporaryDirectory() as folder:
        shape.save_pretrained(folder)
        torch.manual_seed(SEED)
        return Policy(PolicyConfig(path=folder, random_init=True, **settings)).to(device)


def rollout_of(size: Size, device: str) -> Experience:
    """Random tokens; half of a group's answers were good."""
    draw = torch.Generator().manual_seed(SEED)

    def around(middle: int, spread: float, count: int) -> Tensor:
        return (middle * (1 + spread * (2 * torch.rand(count, generator=draw) - 1))).round().long()

    count = size.groups * size.answers
    group = torch.arange(size.groups).repeat_interleave(size.answers)
    prompt, answer = around(size.prompt, 0.25, size.groups)[group], around(size.answer, 0.5, count)
    longest = int((prompt + answer).max())
    ids = torch.randint(size.vocabulary, (count, longest), generator=draw)
    first = ids[:: size.answers][group]
    column = torch.arange(longest)
    ids = torch.where(column < prompt[:, None], first, ids).masked_fill(column >= (prompt + answer)[:, None], 0)
    signs = torch.tensor([1.0, -1.0]).repeat(count // 2) * (group >= size.zero)
    return Experience(
        input_ids=ids,
        prompt_length=prompt,
        answer_length=answer,
        rewards=signs,
        advantages=signs,
        contributing=signs != 0,
        right=signs > 0,
        truncated=torch.zeros(count, dtype=torch.bool),
        update=torch.zeros_like(group),
        group=group,
        row_key=torch.arange(count),
    ).to(torch.device(device))


class Ours:
    """The package's update."""

    def __init__(self, size: Size, device: str) -> None:
        self.policy, self.x = policy_of(size, device), rollout_of(size, device)
        self.learner = Learner(Loss(), length_limit=2 * size.answer)
        self.mask = torch.tensor(())
        """Of the last update: the answer tokens that carry gradient, bool `[N]`."""

    def update(self, *, dropping: bool = True) -> Tensor:
        """The only one of a rollout."""
        lesson = self.learner.begin(self.x, rollout=0, updates=1, micro_batches=1)
        if not dropping:  # all sequences are trained; the selection ranks the same tokens as before
            lesson.plan = make_plan(self.x, self.learner.selection, updates=1, micro_batches=1, others="all")
        self.learner.prepare_update(lesson, 0, self.policy, None)
        loss = self.learner.loss(lesson, 0, self.policy)[0]
        loss.backward()
        self.mask = lesson.experience.fork_mask[lesson.experience.answer_mask]
        return loss.detach()


def timed(side: Side) -> tuple[float, float]:
    """CPU and wall seconds of one update that finds no gradients."""
    policy, update = side
    policy.zero_grad()
    wait = torch.cuda.synchronize if policy.head_weight.is_cuda else lambda: None
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    update()
    wait()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak(side: Side) -> float:
    """Megabytes that an update needs, in a process that has done nothing else."""
    policy, update = side
    policy.zero_grad()
    if policy.head_weight.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        update()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    update()
    return (memory("VmHWM") - before) / 2**20


def apart(device: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, forked, so that libraries are there; in this one on a GPU."""
    if device == "cuda":
        return function(*arguments)
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def exact_memory() -> None:
    """From here on freed memory goes back at once, and counts for nothing."""
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD


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
