"""How fast the in-process sampler is, beside a loop over transformers' growing cache and `model.generate`.

    OMP_NUM_THREADS=1 python benchmarks/bench_sampling.py --quick

The JSON line holds, for each setting, `seconds` and `tokens_per_second` of `sampler` (`HFSampler`), `growing_cache` (a
plain loop: transformers' DynamicCache, a float64 CDF of the whole batch, rows leave once they are half of it) and
`generate` (the faster of its dynamic and its static cache, which is named), and `ratio`: how many tokens a second the
sampler makes for one of each other. Settings: `countdown` (the demo's policy and lengths), `long` (256 tokens, answers
end at very different times) and `vocabulary` (a random policy of 151936 words). `finished` is the time of a batch half
of which ends after a tenth of the tokens over that of one that goes to the end; without any overhead it is 0.55.
Seconds are medians over interleaved repeats.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3Config

from forklight.algo.noise import hash_uniform
from forklight.data.countdown_sets import CountdownProblems
from forklight.models.loading import PolicyConfig, eos_ids, load_tokenizer
from forklight.models.policy import Policy
from forklight.sampling.base import SamplingParams
from forklight.sampling.hf import HFSampler
from forklight.sampling.inverse_cdf import draw


@dataclass(frozen=True)
class Setting:
    """What is sampled."""

    policy: Policy
    prompts: list[list[int]]
    answers: int
    decoding: SamplingParams

    @property
    def keys(self) -> list[int]:
        """One key per prompt."""
        return [random.Random(prompt).getrandbits(63) for prompt in range(len(self.prompts))]


def settings(quick: bool) -> dict[str, Setting]:
    """The three settings."""
    tiny = PolicyConfig(path="tiny")
    policy, tokenizer = Policy(tiny), load_tokenizer(tiny)
    prompts = [tokenizer(f"{problem.prompt}:").input_ids for problem in CountdownProblems(64).read()]
    with tempfile.TemporaryDirectory() as folder:
        Qwen3Config(
            vocab_size=151936,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            tie_word_embeddings=True,
        ).save_pretrained(folder)
        wide = Policy(PolicyConfig(path=folder, random_init=True))
    rng = random.Random(0)
    texts = [[rng.randrange(151936) for _ in range(rng.randint(20, 120))] for _ in range(8)]
    return {
        "countdown": Setting(policy, prompts, 8, SamplingParams(16, 1.25, eos_ids(tiny, tokenizer))),
        "long": Setting(policy, prompts, 8, SamplingParams(64 if quick else 256, 3.0, tuple(range(10)))),
        "vocabulary": Setting(wide, texts, 8, SamplingParams(6 if quick else 64, 1.0, tuple(range(600)))),
    }


def sampler(setting: Setting) -> int:
    """Samples all answers; returns how many tokens they have."""
    engine = HFSampler()
    engine.sync(setting.policy)
    groups = engine.sample(setting.prompts, setting.keys, setting.answers, setting.decoding)
    return sum(len(answer.token_ids) for group in groups for answer in group)


def left_pad(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    return ids, torch.tensor([[i >= longest - len(prompt) for i in range(longest)] for prompt in prompts])


def plain_draw(hidden: Tensor, weight: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A token per row and its log-probability."""
    probability = (torch.nn.functional.linear(hidden, weight).double() / temperature).softmax(-1)
    cdf = probability.cumsum(-1)
    token = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).clamp(max=len(weight) - 1)
    return token.squeeze(1), probability.gather(1, token).log().squeeze(1)


@torch.no_grad()
def growing_cache(setting: Setting, draw: Callable[..., tuple[Tensor, Tensor]] = plain_draw) -> int:
    """As `sampler`, in one batch."""
    policy, decoding = setting.policy, setting.decoding
    policy.eval()
    ids, mask = left_pad(setting.prompts)
    cache, position, count = DynamicCache(), (mask.cumsum(1) - 1).clamp(min=0), 0
    eos = torch.tensor(decoding.eos_ids)
    noise_key = torch.tensor(setting.keys).repeat_interleave(setting.answers)
    answer = torch.arange(setting.answers).repeat(len(setting.prompts))
    live = torch.ones(len(answer), dtype=torch.bool)
    for step in range(decoding.max_new_tokens):
        hidden = policy.body(
            input_ids=ids,
            attention_mask=None if mask.all() else mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        if step == 0:
            cache.batch_repeat_interleave(setting.answers)
            hidden, mask = (x.repeat_interleave(setting.answers, 0) for x in (hidden, mask))
        token, logp = draw(hidden, policy.head_weight, hash_uniform(noise_key, answer, step), decoding.temperature)
        count += int(live.sum())
        live = live & ~torch.isin(token, eos) & logp.isfinite()
        if not live.any():
            break
        if live.sum() <= len(live) // 2:
            cache.batch_select_indices(live.nonzero().flatten())
            token, mask, noise_key, answer = (x[live] for x in (token, mask, noise_key, answer))
            live = live[live]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        ids, position = token[:, None], mask.sum(1, keepdim=True) - 1
    return count


def generate(setting: Setting, cache: str) -> int:
    """As `sampler`, by transformers' own loop."""
    ids, mask = left_pad(setting.prompts)
    eos = list(setting.decoding.eos_ids)
    model: Any = setting.policy.eval().model
    out = model.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        do_sample=True,
        temperature=setting.decoding.temperature,
        top_k=0,
        top_p=1.0,
        num_return_sequences=setting.answers,
        max_new_tokens=setting.decoding.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=eos[0],
        cache_implementation=cache,
        disable_compile=True,
    )[:, ids.shape[1] :]
    ends = torch.isin(out, torch.tensor(eos))
    return int(((ends.cumsum(1) - ends.long()) == 0).sum())


def timed(run: Callable[[], int]) -> tuple[float, int]:
    """Seconds, and how many tokens were sampled."""
    started = time.perf_counter()
    tokens = run()
    return time.perf_counter() - started, tokens


def interleaved(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, float]]:
    """Medians of seconds and of tokens a second of several functions that are called in turn."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(timed(run))
    return {
        name: {
            "seconds": round(statistics.median(seconds for seconds, _ in pairs), 3),
            "tokens_per_second": round(statistics.median(tokens / seconds for seconds, tokens in pairs), 1),
        }
        for name, pairs in found.items()
    }


def compared(setting: Setting, repeats: int) -> dict[str, Any]:
    """The three loops side by side. Each has run once before."""
    for run in (sampler, growing_cache):
        run(replace(setting, prompts=setting.prompts[:2]))
    best = min(("dynamic", "static"), key=lambda cache: timed(lambda: generate(setting, cache))[0])
    figures: dict[str, Any] = interleaved(
        {
            "sampler": lambda: sampler(setting),
            "growing_cache": lambda: growing_cache(setting),
            "generate": lambda: generate(setting, best),
        },
        repeats,
    )
    speed = figures["sampler"]["tokens_per_second"]
    others = ("growing_cache", "generate")
    figures["ratio"] = {name: round(speed / figures[name]["tokens_per_second"], 3) for name in others}
    figures["generate"]["cache"] = best
    return figures


def finished(setting: Setting, repeats: int) -> dict[str, float]:
    """Time with answers half of which end after a tenth of the tokens, over that where all go to the end."""

    def ending(draw: Callable[..., Any]) -> Callable[..., Any]:
        calls = iter(range(setting.decoding.max_new_tokens))

        def early(*args: Any, **more: Any) -> tuple[Tensor, Tensor]:
            token, logp = draw(*args, **more)
            if next(calls) + 1 == setting.decoding.max_new_tokens // 10:
                token[: len(token) // 2] = setting.decoding.eos_ids[0]
            return token, logp

        return early

    def early() -> int:
        with mock.patch("forklight.sampling.hf.draw", ending(draw)):
            return sampler(setting)

    runs = {
        "early": early,
        "late": lambda: sampler(setting),
        "plain_early": lambda: growing_cache(setting, ending(plain_draw)),
        "plain_late": lambda: growing_cache(setting),
    }
    seconds = {name: figures["seconds"] for name, figures in interleaved(runs, repeats).items()}
    return {
        "sampler": round(seconds["early"] / seconds["late"], 3),
        "growing_cache": round(seconds["plain_early"] / seconds["plain_late"], 3),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter answers, two repeats")
    options = parser.parse_args()
    found = settings(options.quick)
    figures: dict[str, Any] = {"threads": torch.get_num_threads()}
    for name, setting in found.items():
        figures[name] = compared(setting, 2 if options.quick else 3)
    endless = replace(found["long"].decoding, eos_ids=(len(found["long"].policy.head_weight),))
    figures["finished"] = finished(replace(found["long"], decoding=endless), 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
