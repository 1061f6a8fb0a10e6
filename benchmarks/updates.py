"""A random model, a rollout without sampling, our update of it, and how updates are timed: what benchmarks share."""

import ctypes
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import SEED, memory, short
from torch import Tensor
from transformers import Qwen3Config

from forklight.algo.batch import RolloutBatch
from forklight.algo.config import AlgorithmConfig
from forklight.algo.plan import make_plan
from forklight.models.loading import PolicyConfig
from forklight.models.policy import Policy
from forklight.training.update import Learner

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
    tail: float = 0.0
    """Or they are lognormal, of this sigma, as those of policies are; the mean is the same."""
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


def rollout_of(size: Size, device: str) -> RolloutBatch:
    """Random tokens; half of a group's answers were good."""
    draw = torch.Generator().manual_seed(SEED)

    def around(middle: int, spread: float, count: int) -> Tensor:
        return (middle * (1 + spread * (2 * torch.rand(count, generator=draw) - 1))).round().long()

    count = size.groups * size.answers
    group = torch.arange(size.groups).repeat_interleave(size.answers)
    prompt, answer = around(size.prompt, 0.25, size.groups)[group], around(size.answer, 0.5, count)
    if size.tail:
        spread = (size.tail * torch.randn(count, generator=draw) - size.tail**2 / 2).exp()
        answer = (size.answer * spread).round().long().clamp_(1, 8 * size.answer)
    longest = int((prompt + answer).max())
    ids = torch.randint(size.vocabulary, (count, longest), generator=draw)
    first = ids[:: size.answers][group]
    column = torch.arange(longest)
    ids = torch.where(column < prompt[:, None], first, ids).masked_fill(column >= (prompt + answer)[:, None], 0)
    signs = torch.tensor([1.0, -1.0]).repeat(count // 2) * (group >= size.zero)
    return RolloutBatch(
        input_ids=ids,
        prompt_length=prompt,
        answer_length=answer,
        rewards=signs,
        advantages=signs,
        contributing=signs != 0,
        right=signs > 0,
        truncated=torch.zeros(count, dtype=torch.bool),
        update=torch.zeros_like(group),
        problem_index=group,
        sequence_id=torch.arange(count),
    ).to(torch.device(device))


class Ours:
    """The package's update."""

    def __init__(self, size: Size, device: str) -> None:
        self.policy, self.x = policy_of(size, device), rollout_of(size, device)
        self.learner = Learner(AlgorithmConfig(), length_limit=2 * size.answer)
        self.mask = torch.tensor(())
        """Of the last update: the answer tokens that carry gradient, bool `[N]`."""

    def update(self, *, dropping: bool = True) -> Tensor:
        """The only one of a rollout."""
        state = self.learner.begin(self.x, rollout=0, updates=1, micro_batches=1)
        if not dropping:  # all sequences are trained; the selection ranks the same tokens as before
            selection = self.learner.config.selection
            state.plan = make_plan(self.x, selection, updates=1, micro_batches=1, extra_gradient="all")
        self.learner.prepare_update(state, 0, self.policy, None)
        loss = self.learner.loss(state, 0, self.policy)[0]
        loss.backward()
        self.mask = state.tokens.fork_mask[state.batch.answer_mask]
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


def rounds_of(sides: dict[str, Side], count: int) -> dict[str, dict[str, float]]:
    """Median seconds by clock and side; in every round each has its turn, in another order."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(count):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken[name].append(timed(sides[name]))
            print(json.dumps({name: short(dict(zip(("cpu", "wall"), taken[name][-1], strict=True)))}), file=sys.stderr)
    return {
        clock: {name: statistics.median(pair[index] for pair in pairs) for name, pairs in taken.items()}
        for index, clock in enumerate(("cpu", "wall"))
    }


def distance(found: list[Tensor], reference: list[Tensor]) -> float:
    """Largest difference over the reference's largest value, the worst of the tensors."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, reference, strict=True))


def results(side: Side) -> list[Tensor]:
    """The loss, and the gradients of all parameters."""
    policy, update = side
    policy.zero_grad()
    found = [update(), *(weight.grad.clone() for weight in policy.parameters())]
    policy.zero_grad()
    return found
