"""A random Qwen3 of two layers with a tokenizer of 50 words, random ragged rollouts for it, and ranks in threads."""

import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast, Qwen3Config

from forklight.algo.batch import Metrics, RolloutBatch
from forklight.distributed import Ranks
from forklight.models.loading import PolicyConfig
from forklight.models.policy import Policy

VOCABULARY = 50
EOS = 1
WORDS = ["<unk>", "<eos>", *(f"w{i}" for i in range(2, VOCABULARY))]


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
"""A shape that every architecture knows."""


def write_kind(folder: Path, config: PretrainedConfig) -> str:
    """Writes random weights of another architecture, without a tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def write_model(folder: Path, *, seed: int = 0, tokenizer_eos: bool = True, **settings: object) -> str:
    """Writes weights, config and tokenizer; the weights are large, so that entropies differ from token to token."""
    shape = {**SMALL, "head_dim": 8, "tie_word_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(Qwen3Config(**{**shape, **settings}))
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    eos = {"eos_token": "<eos>"} if tokenizer_eos else {}
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **eos).save_pretrained(folder)
    return str(folder)


def poison(folder: Path, **settings: object) -> None:
    """Replaces the folder's generation settings."""
    (folder / "generation_config.json").write_text(json.dumps(settings))


def load(path: str, dtype: str = "float64", **settings: object) -> Policy:
    """The policy in a folder, in evaluation mode like every model that transformers loads."""
    return Policy(PolicyConfig(path=path, dtype=dtype, **settings))


def rollout_batch(
    seed: int, *, problems: int = 6, answers: int = 3, updates: int = 1, shares: tuple[float, ...] = (0.3, 0.4, 0.3)
) -> RolloutBatch:
    """Ragged sequences: groups without advantage, single zero advantages, equal answers (with equal advantages).

    Args:
        seed: of everything random.
        problems: P.
        answers: G.
        updates: K.
        shares: how many groups have only zero advantages, one or more zeros, and no zero.
    """
    rng = random.Random(seed)
    rows, lengths, advantages = [], [], []
    for _ in range(problems):
        prompt = [rng.randrange(2, VOCABULARY) for _ in range(rng.randint(1, 5))]
        group = [[rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 8))] for _ in range(answers)]
        values = [rng.choice([-1.5, -0.5, 0.7, 1.1]) for _ in group]
        kind = rng.choices(["none", "some", "all"], shares)[0]
        if kind == "some":
            values[rng.randrange(answers)] = 0.0
        if rng.random() < 0.4:
            group[-1], values[-1] = group[0], values[0]
        rows += [prompt + answer for answer in group]
        lengths += [(len(prompt), len(answer)) for answer in group]
        advantages.append([0.0] * answers if kind == "none" else values)
    sequences, group = problems * answers, torch.arange(problems).repeat_interleave(answers)
    input_ids = torch.zeros(sequences, max(map(len, rows)), dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
    per_group = torch.tensor(advantages, dtype=torch.float64)
    return RolloutBatch(
        input_ids=input_ids,
        prompt_length=torch.tensor([prompt for prompt, _ in lengths]),
        answer_length=torch.tensor([answer for _, answer in lengths]),
        rewards=per_group.flatten(),
        advantages=per_group.flatten(),
        contributing=(per_group != 0).any(1).repeat_interleave(answers),
        right=per_group.flatten() > 0,
        truncated=torch.tensor([random.Random(f"{seed} {row}").random() < 0.2 for row in range(sequences)]),
        update=group * updates // problems,
        problem_index=group,
        sequence_id=torch.arange(sequences),
    )


def rows_of(x: RolloutBatch, rows: torch.Tensor) -> RolloutBatch:
    """The sequences that one rank would have."""
    per_row = ("input_ids", "prompt_length", "answer_length", "rewards", "advantages", "contributing")
    per_row += ("right", "truncated", "update", "problem_index", "sequence_id")
    share = RolloutBatch(**{name: getattr(x, name)[rows] for name in per_row})
    return share if x.sampler_logp is None else replace(share, sampler_logp=x.sampler_logp[rows, : share.width])


def flat(metrics: Metrics) -> dict[str, torch.Tensor]:
    """Sums by their names, and maxima by theirs with `_max` behind."""
    return metrics.sums | {f"{name}_max": value for name, value in metrics.maxima.items()}


class ThreadRanks(Ranks):
    """A rank in a thread of its own; the collectives meet at a barrier.

    Args:
        rank: number of this rank.
        size: number of ranks.
        meeting: what all ranks share; see `on_ranks`.
    """

    def __init__(self, rank: int, size: int, meeting: dict[str, Any]) -> None:
        self._rank, self._size, self._meeting = rank, size, meeting

    @property
    def size(self) -> int:
        return self._size

    @property
    def rank(self) -> int:
        return self._rank

    def gather(self, value: Any) -> list[Any]:
        self._meeting[self._rank] = value
        self._meeting["barrier"].wait(20)
        values = [self._meeting[rank] for rank in range(self._size)]
        self._meeting["barrier"].wait(20)
        return values

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.gather(tensor.clone())).sum(0)

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.gather(tensor.clone())).amax(0)


def on_ranks(size: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """Runs the work once per rank, each in a thread; the results in rank order."""
    meeting: dict[str, Any] = {"barrier": threading.Barrier(size)}

    def run(rank: int) -> Any:
        try:
            return work(ThreadRanks(rank, size, meeting))
        except BaseException:
            meeting["barrier"].abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    failed = [f.exception() for f in futures if f.exception()]
    failed.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if failed:
        raise failed[0]
    return [future.result() for future in futures]
