"""The body alone, forward and backward, on one batch laid out in five ways; and how evenly micro-batches are filled.

A Qwen3 with random weights (4 layers, width 256, a vocabulary of 2,048) and random tokens, 8 answers per prompt:
`short` has 8 prompts of about 32 tokens and answers of 64 in the mean, `long` 4 prompts of about 128 and answers of
170; lengths of answers are lognormal (sigma 0.7), as those of policies are. The loss is made of the hidden states that
predict answer tokens, without a head. Layouts:

padded_8      8 sequences at a time, prompts padded on the left and answers on the right to the longest of the whole
    batch, with an attention mask: TRL's GRPOTrainer with micro-batches of 8
padded        all sequences at once in that layout
buckets       sequences of about one length at a time: `policy.packing: false`
packed        one row without padding, every sequence with its own prompt
shared        the same, the prompt of a group once: the default

Before anything is timed, the gradients of all layouts are compared.

The last line printed is one JSON object:

gradient_error_f64, gradient_error_f32   largest difference of a parameter's gradient from that of `padded_8` / its
    largest value, over layouts and workloads; of 2 prompts each
shared_prompt_speedup_short, shared_prompt_speedup_long   seconds of `padded_8` / `shared`
ratios   seconds of `padded_8` / those of each layout, by workload
seconds, wall_seconds   medians over rounds in which every layout has its turn: `clock`, and wall time
tokens   by workload: of all sequences with their prompts, unique (prompts once per group), padded
balance   by cost and by count: cost of the dearest of 4 micro-batches / their mean, in the mean over 20 rollouts of 16
    groups with lognormal lengths of answers (sigma 0.8; the cost is the layers' work, prompts once per group); by cost
    is `make_plan`, by count are 4 groups each as they come
clock, rounds, threads, device, versions, load   clock: cpu (one thread: what others do on the machine disturbs less),
    else wall; load: the machine's, of the last minute, at the start

    python benchmarks/bench_planner.py            three to six minutes on one thread; 2 GB of memory
    python benchmarks/bench_planner.py --quick    one round, a smaller model, fewer prompts: shows that it works
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peers import short, versions
from torch import Tensor
from updates import Side, Size, distance, policy_of, results, rollout_of, rounds_of

from forklight.algo.batch import RolloutBatch
from forklight.algo.packing import pack
from forklight.algo.plan import Cost, make_plan
from forklight.algo.selection.spec import ForkSelection
from forklight.models.policy import Policy


def padded(x: RolloutBatch) -> tuple[Tensor, Tensor, Tensor]:
    """TRL's layout: tokens, which of them are no padding, and which are an answer's, `[S,W]` each."""
    begin = int(x.prompt_length.max())
    width = begin + int(x.answer_length.max())
    place = torch.arange(width, device=x.problem_index.device) - (begin - x.prompt_length)[:, None]
    held = (place >= 0) & (place < (x.prompt_length + x.answer_length)[:, None])
    ids = x.input_ids.gather(1, place.clamp(0, x.input_ids.shape[1] - 1)) * held
    return ids, held, held & (place >= x.prompt_length[:, None])


def some_loss(hidden: Tensor) -> Tensor:
    """A loss that costs nothing. Of the plain squares a norm has made a constant: they would have no gradient."""
    return (hidden[:, ::2].sum(1) - hidden[:, 1::2].sum(1)).square().sum()


def padded_loss(policy: Policy, x: RolloutBatch, rows: int) -> Tensor:
    """So many padded sequences at a time; backward included."""
    (ids, held, answer), total = padded(x), torch.zeros((), dtype=torch.float64, device=x.problem_index.device)
    for part in torch.arange(len(ids), device=ids.device).split(rows):
        body = policy.body(input_ids=ids[part], attention_mask=held[part].long(), use_cache=False)
        loss = some_loss(body.last_hidden_state[:, :-1][answer[part, 1:]])
        loss.backward()
        total += loss.detach()
    return total


def planned_loss(policy: Policy, x: RolloutBatch) -> Tensor:
    """As the policy lays sequences out; backward included."""
    micro_batch = x.micro_batch(torch.arange(len(x.problem_index), device=x.problem_index.device))
    loss = some_loss(policy._answer_hidden(micro_batch, None)[0])
    loss.backward()
    return loss.detach()


def layouts_of(size: Size, device: str, **settings: Any) -> dict[str, Side]:
    """Five ways through one model."""
    plain, packing = (policy_of(size, device, packing=packing, **settings) for packing in (False, True))
    x = rollout_of(size, device)
    apart = replace(x, problem_index=x.sequence_id)
    return {
        "padded_8": (plain, partial(padded_loss, plain, x, 8)),
        "padded": (plain, partial(padded_loss, plain, x, len(x.problem_index))),
        "buckets": (plain, partial(planned_loss, plain, x)),
        "packed": (packing, partial(planned_loss, packing, apart)),
        "shared": (packing, partial(planned_loss, packing, x)),
    }


def exact_angles(rotary: Any, like: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embeddings in float64: models round them to float32, where the shift by padding on the left remains."""
    angles = position_ids[..., None].double() * rotary.inv_freq.double()
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def gradient_error(size: Size, device: str, dtype: str) -> float:
    """All layouts compute the same.

    Raises:
        AssertionError: one does not, so that its time would mean nothing.
    """
    layouts = layouts_of(size, device, dtype=dtype)
    if dtype == "float64":
        for policy, _ in layouts.values():
            policy.body.rotary_emb.forward = partial(exact_angles, policy.body.rotary_emb)
    reference = results(layouts["padded_8"])
    errors = {name: distance(results(side), reference) for name, side in layouts.items()}
    print(json.dumps({dtype: short(errors)}), file=sys.stderr, flush=True)
    assert max(errors.values()) < {"float64": 1e-10, "float32": 1e-4}[dtype], errors
    return max(errors.values())


def tokens_of(size: Size) -> dict[str, int]:
    """How many tokens a layout has."""
    x = rollout_of(size, "cpu")
    micro_batch = x.micro_batch(torch.arange(len(x.problem_index)))
    whole = int((x.prompt_length + x.answer_length).sum())
    return {"all": whole, "unique": len(pack(micro_batch).input_ids), "padded": padded(x)[0].numel()}


def balance(size: Size, rollouts: int) -> dict[str, float]:
    """The dearest micro-batch over the mean, by how they are filled."""
    policy, found = policy_of(size, "cpu"), {"by_cost": [], "by_count": []}
    cost, groups = Cost(policy.shape.pair_cost, shared_prompts=True), 16
    x = rollout_of(replace(size, groups=groups), "cpu")
    for number in range(rollouts):
        noise = torch.randn(len(x.problem_index), generator=torch.Generator().manual_seed(number))
        x = replace(x, answer_length=(size.answer * (0.8 * noise).exp()).round().long().clamp(min=1))
        plan = make_plan(x, ForkSelection(), updates=1, micro_batches=4, cost=cost)
        for name, micro_batches in (("by_cost", plan.train), ("by_count", torch.arange(len(x.problem_index)).chunk(4))):
            costs = [
                sum(
                    cost.of(x.prompt_length[rows[own]].tolist(), x.answer_length[rows[own]].tolist())
                    for own in (x.problem_index[rows] == group for group in x.problem_index[rows].unique())
                )
                for rows in micro_batches
            ]
            found[name].append(max(costs) / statistics.fmean(costs))
    return {name: statistics.fmean(values) for name, values in found.items()}


def report(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """All figures."""
    load, rounds, quick = os.getloadavg()[0], 1 if options.quick else 5, options.quick
    clock = "cpu" if options.threads == 1 and device == "cpu" else "wall"
    shape = Size(vocabulary=2048, layers=1, width=128, tail=0.7) if quick else Size(vocabulary=2048, tail=0.7)
    sizes = {
        "short": replace(shape, groups=2 if quick else 8, prompt=32, answer=64),
        "long": replace(shape, groups=2 if quick else 4, prompt=128, answer=170),
    }
    errors = {
        f"gradient_error_f{bits}": max(
            gradient_error(replace(size, groups=2), device, f"float{bits}") for size in sizes.values()
        )
        for bits in (64, 32)
    }
    found = {name: rounds_of(layouts_of(size, device), rounds) for name, size in sizes.items()}
    seconds = {name: times[clock] for name, times in found.items()}
    ratios = {name: {key: times["padded_8"] / value for key, value in times.items()} for name, times in seconds.items()}
    return {
        **errors,
        **{f"shared_prompt_speedup_{name}": values["shared"] for name, values in ratios.items()},
        "ratios": ratios,
        "seconds": seconds,
        "wall_seconds": {name: times["wall"] for name, times in found.items()},
        "tokens": {name: tokens_of(size) for name, size in sizes.items()},
        "balance": balance(sizes["long"], 20),
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
    parser.add_argument("--quick", action="store_true", help="one round, less work")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(short(report(options, "cuda" if torch.cuda.is_available() else "cpu"))))


if __name__ == "__main__":
    main()
