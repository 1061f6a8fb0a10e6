"""The LM head alone, forward and backward: only the tokens that carry gradient, against heads that score all of them.

The task: a DAPO update of N tokens of which the fifth with the highest entropies carries gradient. `select` first asks
for the entropies and log-probabilities of all tokens (`token_stats`, no gradient), then works on the kept ones
(`selected_logprob`); `known` knows which tokens are kept (`selected_policy_loss`), as when a pass over the
rollout gave the entropies before. Peers: TRL's chunked head (its path without Triton on a CPU), Liger's fused GRPO loss
(no entropy: what it would cost to find the kept tokens is left out, in Liger's favour), autograd over all logits with
TRL's `entropy_from_logits`, and without it (`naive`). All are given the same mask; finding the k highest of N entropies
is left out for all. Before anything is timed, losses and both gradients of all heads are compared.

The last line printed is one JSON object:

grad_error_f64, grad_error_f32   both gradients of `select` and `known` against autograd over all logits in float64, for
    float64 and float32 inputs: largest difference / largest value, on a small shape
agreement   the same of every head against `naive` in float32, and of its loss, on the timed shapes; by shape
head_speedup_h256, head_speedup_h1024   TRL's seconds / those of `select`, V = 151,936
head_speedup_best_h256, head_speedup_best_h1024   the same against the fastest of `trl`, `liger`, `naive_entropy`
head_known_speedup_h256, head_known_speedup_h1024   TRL's seconds / those of `known`
head_memory_ratio   TRL's peak memory / that of `select`, beyond inputs and weight gradient: the smaller of h256, h1024
seconds, wall_seconds   by shape and head, medians over rounds in which every head has its turn: `clock`, and wall time
megabytes   by shape, of `select`, `known` and TRL: peak memory beyond inputs and weight gradient, of one call in a
    process of its own
clock   what `seconds` and ratios count: cpu (one thread: what others do on the machine disturbs less), else wall
tokens, kept, rounds, threads, device, versions, load   load: the machine's, of the last minute, at the start

On a GPU there are also `..._bf16` of the ratios and shapes.

    python benchmarks/bench_head.py            ten to twenty minutes on one thread; 6 GB of memory
    python benchmarks/bench_head.py --quick    a vocabulary of 16,384: shows that it works, the ratios mean little
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peers import (
    KEPT,
    PEERS,
    Head,
    Shape,
    Work,
    clip_loss,
    fresh,
    in_precision,
    make,
    memory,
    missing_peers,
    naive,
    short,
    versions,
)
from torch import Tensor

from forklight.algo.batch import TokenStats
from forklight.algo.logprobs.fused import selected_logprob, selected_policy_loss, token_stats

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def select(work: Work) -> Tensor:
    """Statistics of all tokens, then gradients of the kept ones."""
    with torch.no_grad():
        stats = token_stats(work.hidden, work.weight, work.targets)
    logp = selected_logprob(work.hidden, work.weight, work.targets, work.rows, known=stats)
    loss = clip_loss(logp, work.old_logp[work.rows], work.advantages[work.rows]).sum() / len(work.rows)
    loss.backward()
    return loss.detach()


def known(work: Work) -> Tensor:
    """One pass over the kept tokens, which are known."""
    old_logp, advantages = work.old_logp[work.rows], work.advantages[work.rows]

    def token_loss(stats: TokenStats, part: slice) -> Tensor:
        return clip_loss(stats.logp, old_logp[part], advantages[part]) / len(work.rows)

    loss = selected_policy_loss(work.hidden, work.weight, work.targets, work.rows, token_loss).loss
    loss.backward()
    return loss.detach()


HEADS: dict[str, Head] = {"select": select, "known": known, **PEERS}


def results(head: Head, work: Work) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients."""
    work.clear()
    loss = head(work)
    assert work.hidden.grad is not None and work.weight.grad is not None
    found = loss, work.hidden.grad, work.weight.grad
    work.clear()
    return found


def distance(found: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> float:
    """Largest difference over the reference's largest value, the worst of the tensors."""
    pairs = zip(found, reference, strict=True)
    return max(float((a.to(b.dtype) - b).abs().max() / b.abs().max()) for a, b in pairs)


def gradient_error(dtype: torch.dtype, device: str) -> float:
    """Ours against plain autograd in float64, gradients only."""
    work = make(Shape(5003, 192, 512, dtype), device)  # no multiple of any tile
    reference = results(naive, in_precision(work, torch.float64))[1:]
    return max(distance(results(head, work)[1:], reference) for head in (select, known))


def agreement(work: Work) -> float:
    """All heads compute the same.

    Raises:
        AssertionError: one does not, so that its time would mean nothing.
    """
    dtype = work.hidden.dtype
    reference = results(naive, in_precision(work, torch.promote_types(dtype, torch.float32)))
    errors = {name: distance(results(head, work), reference) for name, head in HEADS.items()}
    print(json.dumps({"errors": short(errors)}), file=sys.stderr, flush=True)
    assert max(errors.values()) < TOLERANCE[dtype], errors
    return max(errors.values())


def timed(head: Head, work: Work) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    work.clear()
    wait = torch.cuda.synchronize if work.hidden.is_cuda else lambda: None
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    head(work)
    wait()
    return time.process_time() - cpu, time.perf_counter() - wall


def rounds_of(work: Work, count: int) -> dict[str, dict[str, float]]:
    """Median seconds by clock and head; in every round each head has its turn, in another order."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in HEADS}
    names = list(HEADS)
    for number in range(count):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken[name].append(timed(HEADS[name], work))
    work.clear()
    return {
        clock: {name: statistics.median(pair[index] for pair in pairs) for name, pairs in taken.items()}
        for index, clock in enumerate(("cpu", "wall"))
    }


def peak(name: str, shape: Shape, device: str) -> float:
    """Megabytes that a head needs beyond inputs and weight gradient, in a process that has done nothing else."""
    head = HEADS[name]
    head(make(Shape(1000, 64, 64, shape.dtype), device))  # what libraries keep for themselves is not counted
    work = make(shape, device)
    if work.hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        head(work)
        most = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory("VmRSS")
        head(work)
        most = memory("VmHWM")
    gradient = work.weight.numel() * work.weight.element_size()
    return (most - before - gradient) / 2**20


def ratios(seconds: dict[str, float], key: str) -> dict[str, float]:
    """The headlines of one shape."""
    best = min(seconds[name] for name in ("trl", "liger", "naive_entropy"))
    return {
        f"head_speedup_{key}": seconds["trl"] / seconds["select"],
        f"head_speedup_best_{key}": best / seconds["select"],
        f"head_known_speedup_{key}": seconds["trl"] / seconds["known"],
    }


def shapes_of(quick: bool, device: str) -> dict[str, Shape]:
    """What is measured: Qwen's vocabulary at two widths, and on a GPU more tokens and bf16."""
    vocabulary = 16_384 if quick else 151_936  # Qwen's
    tokens = 256 if quick else 8192 if device == "cuda" else 1024
    shapes = {f"h{width}": Shape(vocabulary, width, tokens, torch.float32) for width in (256, 1024)}
    if device == "cuda":
        shapes |= {f"{name}_bf16": replace(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    return shapes


def measure(key: str, shape: Shape, device: str, rounds: int) -> dict[str, Any]:
    """Agreement, then time, of one shape."""
    work = make(shape, device)
    found = {"agreement": agreement(work), **rounds_of(work, rounds)}
    print(json.dumps({key: short(found)}), file=sys.stderr, flush=True)
    return found


def report(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """All figures."""
    flags, shapes = ["--quick"] if options.quick else [], shapes_of(options.quick, device)
    load, rounds = os.getloadavg()[0], 1 if options.quick else options.rounds
    clock = "cpu" if options.threads == 1 and device == "cpu" else "wall"
    errors = {f"grad_error_f{bits}": gradient_error(getattr(torch, f"float{bits}"), device) for bits in (64, 32)}
    heads = ("select", "known", "trl")

    def memory_of(key: str, name: str) -> float:
        exact = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once, and counts for nothing
        return fresh(__file__, [*flags, "--alone", key, name], options.threads, exact)["megabytes"]

    megabytes = {key: {name: memory_of(key, name) for name in heads} for key in shapes}
    print(json.dumps({**short(errors), "megabytes": short(megabytes)}), file=sys.stderr, flush=True)
    measured = {key: measure(key, shape, device, rounds) for key, shape in shapes.items()}
    headlines: dict[str, float] = {}
    for key in shapes:
        headlines |= ratios(measured[key][clock], key)
    smaller = min(megabytes[key]["trl"] / megabytes[key]["select"] for key in ("h256", "h1024"))
    return {
        **errors,
        "agreement": {key: found["agreement"] for key, found in measured.items()},
        **headlines,
        "head_memory_ratio": smaller,
        "seconds": {key: found[clock] for key, found in measured.items()},
        "wall_seconds": {key: found["wall"] for key, found in measured.items()},
        "megabytes": megabytes,
        "clock": clock,
        "tokens": {key: shape.tokens for key, shape in shapes.items()},
        "kept": KEPT,
        "rounds": rounds,
        "threads": options.threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": versions(),
        "load": load,
    }


def main() -> None:
    """Prints the figures, or for `--alone` those of one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small vocabulary and one round")
    parser.add_argument("--rounds", type=int, default=3, help="in which every head has its turn")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--alone", nargs=2, metavar=("SHAPE", "HEAD"), help="one head's memory")
    options = parser.parse_args()
    if missing := missing_peers():
        parser.error(missing)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.alone:
        key, name = options.alone
        found = {"megabytes": peak(name, shapes_of(options.quick, device)[key], device)}
    else:
        found = report(options, device)
    print(json.dumps(short(found)))


if __name__ == "__main__":
    main()
