"""Sampling with the real vLLM, in this process: the policy's own answers, and nothing left behind."""

import importlib.util
import math
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, inject_adapter_in_model
from tiny import EOS, VOCABULARY, load, write_kind, write_model
from transformers import OpenAIGPTConfig

from forklight.data.countdown_sets import CountdownProblems
from forklight.distributed import Ranks
from forklight.errors import EngineError, WeightSyncError
from forklight.models.loading import PolicyConfig, eos_ids, load_tokenizer
from forklight.models.policy import Policy
from forklight.sampling import HFSampler, VLLMSampler
from forklight.sampling.base import SamplingParams
from forklight.sampling.stops import StopCheck
from forklight.sampling.weight_check import TOLERANCE, WeightSyncCheck

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make test-vllm)"),
]

PROMPTS = [[5, 9, 33], [7], [12, 3, 44, 8, 21, 30, 2], [9, 9], [40, 41, 42, 43]]
write_wide = partial(write_model, hidden_size=64, intermediate_size=96, head_dim=32)  # vLLM has no smaller heads
KEYS = [11, -(2**63), 2**63 - 1, 0, 123456789]


def sync(sampler, policy, tolerance=None):
    return WeightSyncCheck(tolerance, Ranks()).sync(sampler, policy)


def change(policy):
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.1).add_(0.01)


@pytest.fixture(scope="module")
def engine():
    """One engine for policies of one shape: each test hands it weights of its own."""
    sampler = VLLMSampler(kv_cache_gb=0.1)
    yield sampler
    sampler.close()


@pytest.fixture
def alone(engine):
    """For tests with an engine of their own: a process has one. The shared one is built again when it is used."""
    engine.close()


@pytest.fixture
def policy(tmp_path):
    """Sequences of the shared engine may have 512 tokens."""
    return load(write_wide(tmp_path, max_position_embeddings=512), "float32")


@pytest.fixture
def sampler(engine, policy):
    sync(engine, policy)
    return engine


def decoding(length=12, temperature=1.0, eos=(EOS,), **truncation):
    return SamplingParams(length, temperature, eos, **truncation)


def plain_logp(policy, prompt, answer, temperature):
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_greedy_answers_to_real_problems_are_those_of_our_own_sampler(alone):
    config = PolicyConfig(path="tiny")
    policy, tokenizer = Policy(config), load_tokenizer(config)
    prompts = [tokenizer(f"{problem.prompt}:").input_ids for problem in CountdownProblems(256, "eval").read()]
    settings = SamplingParams(16, 0.0, eos_ids(config, tokenizer))
    own, sampler = HFSampler(), VLLMSampler(kv_cache_gb=0.25)
    own.sync(policy)
    assert sync(sampler, policy) < 1e-4
    answers = sampler.sample(prompts, [0] * 256, 1, settings)
    assert answers == own.sample(prompts, [0] * 256, 1, settings)
    assert len({tuple(answer.token_ids) for [answer] in answers}) > 100
    sampler.close()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
def test_log_probabilities_are_those_of_the_distribution_that_is_sampled(sampler, policy, temperature):
    lowest = 0.0
    for prompt, group in zip(PROMPTS, sampler.sample(PROMPTS, KEYS, 4, decoding(temperature=temperature)), strict=True):
        for ids, logp in group:
            expected = plain_logp(policy, prompt, ids, temperature)[torch.arange(len(ids)), ids]
            torch.testing.assert_close(torch.tensor(logp, dtype=torch.float64), expected, rtol=1e-4, atol=1e-4)
            lowest = min(lowest, *logp)
    assert lowest < -2


@pytest.mark.parametrize("truncation", [{"top_k": 3}, {"top_p": 0.6}])
def test_truncated_answers_are_renormalised(sampler, policy, truncation):
    for prompt, group in zip(PROMPTS, sampler.sample(PROMPTS, KEYS, 4, decoding(**truncation)), strict=True):
        for ids, logp in group:
            for token, reported, row in zip(ids, logp, plain_logp(policy, prompt, ids, 1.0).exp(), strict=True):
                ranked = row.sort(descending=True)
                reached = ranked.values.cumsum(0) - ranked.values < truncation.get("top_p", 1.0)
                allowed = ranked.indices[reached][: truncation.get("top_k")]
                assert token in allowed
                assert reported == pytest.approx(float((row[token] / row[allowed].sum()).log()), abs=1e-4)


def test_an_answer_depends_on_its_key_and_number_alone(sampler):
    whole = sampler.sample(PROMPTS, KEYS, 4, decoding())
    for order in ([4, 2, 0], [1]):
        part = sampler.sample([PROMPTS[i] for i in order], [KEYS[i] for i in order], 4, decoding())
        assert part == [whole[i] for i in order]
    assert [group[:2] for group in whole] == sampler.sample(PROMPTS, KEYS, 2, decoding())
    assert whole != sampler.sample(PROMPTS, [key // 2 + 1 for key in KEYS], 4, decoding())


def test_neighbours_share_no_noise(sampler):
    """Of one prompt under many keys, and of one key under many numbers: as many different answers as independence."""
    prompt = [7, 8, 9]
    by_key = sampler.sample([prompt] * 200, list(range(200)), 1, decoding(6))
    by_number = sampler.sample([prompt], [0], 200, decoding(6))
    groups = [[answer.token_ids for [answer] in by_key], [answer.token_ids for answer in by_number[0]]]
    assert all(len({tuple(ids) for ids in group}) > 120 for group in groups)
    assert sum(a == b for a, b in zip(*groups, strict=True)) < 20


def test_answers_end_at_any_eos_and_keep_it(sampler):
    for group in sampler.sample(PROMPTS, KEYS, 8, decoding(30, eos=(EOS, 2, 3))):
        for ids, logp in group:
            assert len(ids) == len(logp)
            assert not set(ids[:-1]) & {EOS, 2, 3}
            assert ids[-1] in (EOS, 2, 3) or len(ids) == 30
    lengths = [
        len(answer.token_ids) for group in sampler.sample(PROMPTS, KEYS, 8, decoding(7, eos=())) for answer in group
    ]
    assert lengths == [7] * 40


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stops_only_cut_the_same_answers(sampler, tmp_path, temperature):
    """A string from the middle of the words that most answers have, and a token."""
    words = load_tokenizer(PolicyConfig(path=str(tmp_path)))
    free = [answer for group in sampler.sample(PROMPTS, KEYS, 4, decoding(30, temperature)) for answer in group]
    ids = max((answer.token_ids for answer in free), key=len)
    string, token = words.decode(ids[3:5])[1:-1], ids[8]
    check = StopCheck([string, token], words)
    groups = sampler.sample(PROMPTS, KEYS, 4, decoding(30, temperature, stops=check))
    ends = [check.length(answer.token_ids) for answer in free]
    assert any(ends)
    for whole, cut, end in zip(free, (answer for group in groups for answer in group), ends, strict=True):
        assert cut.token_ids == whole.token_ids[:end]
        assert list(cut.logp) == pytest.approx(list(whole.logp[:end]), abs=1e-5)
    again = sampler.sample(PROMPTS, KEYS, 4, decoding(30, temperature))
    assert [answer for group in again for answer in group] == free


def test_stops_end_greedy_answers_of_both_samplers_alike(sampler, policy, tmp_path):
    own, words = HFSampler(), load_tokenizer(PolicyConfig(path=str(tmp_path)))
    own.sync(policy)
    [[free], *_] = own.sample(PROMPTS, KEYS, 1, decoding(30, 0.0))
    settings = decoding(30, 0.0, stops=StopCheck([words.decode(free.token_ids[1:3])[1:]], words))
    answers = sampler.sample(PROMPTS, KEYS, 1, settings)
    assert answers == own.sample(PROMPTS, KEYS, 1, settings)
    assert len(answers[0][0].token_ids) <= 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_ends_where_its_logits_are_not_finite(policy, temperature, alone):
    """Others need not be as ever: vLLM multiplies what a lost answer has left in the cache by 0, which stays NaN."""
    sampler = VLLMSampler(kv_cache_gb=0.1)
    sampler.sync(policy)
    settings = decoding(temperature=temperature)
    healthy = sampler.sample(PROMPTS, KEYS, 4, settings)
    tokens = [token for group in healthy for ids, _ in group for token in ids[:-1]]
    word = max(set(range(2, VOCABULARY)).difference(*PROMPTS), key=tokens.count)
    weights = dict(sampler.weights(policy))
    broken = weights["model.embed_tokens.weight"].clone()
    broken[word] = torch.nan  # of the input alone: the engine's head is a tensor of its own
    sampler.push((weights | {"model.embed_tokens.weight": broken}).items())
    lost = 0
    for group, expected in zip(sampler.sample(PROMPTS, KEYS, 4, settings), healthy, strict=True):
        for (ids, logp), (healthy_ids, _) in zip(group, expected, strict=True):
            ended = [math.isnan(value) for value in logp]
            assert ended == [False] * (len(ids) - 1) + [ended[-1]]
            assert ended[-1] or word not in healthy_ids[:-1]
            lost += ended[-1]
    assert lost > 0
    sampler.close()


# -- weights -----------------------------------------------------------------------------------------------------------


def test_new_weights_arrive_and_old_prompts_are_forgotten(engine, policy):
    """A prompt of two blocks would be answered from the keys and values that the old weights have left."""
    long = [[2 + i % 40 for i in range(300)]]
    before = None
    for _ in range(3):
        assert sync(engine, policy) < 1e-4
        [[answer]] = engine.sample(long, [0], 1, decoding())
        expected = plain_logp(policy, long[0], answer.token_ids, 1.0)[
            torch.arange(len(answer.token_ids)), answer.token_ids
        ]
        torch.testing.assert_close(torch.tensor(answer.logp, dtype=torch.float64), expected, rtol=1e-4, atol=1e-4)
        assert list(answer.logp) != before
        before = list(answer.logp)
        change(policy)


@pytest.mark.parametrize("at_first", [True, False])
def test_a_head_that_stays_on_the_old_weights_is_caught(policy, at_first, alone):
    """What a reload of tied embeddings does on some CPUs: the head's packed copy is left as it was."""

    class Headless(VLLMSampler):
        faulty = at_first

        def push(self, weights):
            super().push((name, weight) for name, weight in weights if not (self.faulty and name == "lm_head.weight"))

    sampler = Headless(kv_cache_gb=0.1)
    if not at_first:
        assert sync(sampler, policy) < 1e-4
        sampler.faulty = True
        change(policy)
    with pytest.raises(WeightSyncError, match=r"Headless gives token .* do not arrive, .*: lm_head\.weight$"):
        sync(sampler, policy)
    sampler.close()


@pytest.mark.parametrize("tied", [True, False])
def test_half_precision_is_allowed_its_rounding(tmp_path, tied, alone):
    policy = load(write_wide(tmp_path, tie_word_embeddings=tied), "float32")
    sampler = VLLMSampler(kv_cache_gb=0.1, dtype="bfloat16")
    assert TOLERANCE < sync(sampler, policy) < 0.3
    assert sampler.half_precision
    sampler.close()


@pytest.mark.slow
def test_weights_in_shards_go_to_an_engine_on_every_rank(tmp_path):
    script = Path(__file__).parents[2] / "support" / "sharded.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(script), write_wide(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("arrived") == 2


def test_adapters_are_merged_on_the_way(engine, policy):
    inject_adapter_in_model(
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False), policy.model
    )
    assert sync(engine, policy) < 1e-4


# -- the process -------------------------------------------------------------------------------------------------------


def test_the_process_is_as_before(policy, alone):
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    before = dict(os.environ), os.sched_getaffinity(0), torch.get_num_threads(), torch.set_num_threads
    sampler = VLLMSampler(kv_cache_gb=0.1)
    sync(sampler, policy)
    sampler.sample(PROMPTS, KEYS, 2, decoding())
    assert (dict(os.environ), os.sched_getaffinity(0), torch.get_num_threads(), torch.set_num_threads) == before
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert psutil.Process().children(recursive=True) == []
    sampler.close()
    sampler.close()
    assert not dist.is_initialized()
    assert sync(sampler, policy) < 1e-4
    del sampler  # an engine goes with its sampler, and a new one can be built
    sampler = VLLMSampler(kv_cache_gb=0.1)
    assert sync(sampler, policy) < 1e-4
    sampler.close()


def test_a_group_of_the_trainer_outlives_the_engine(policy, alone):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sampler = VLLMSampler(kv_cache_gb=0.1)
        sync(sampler, policy)
        sampler.close()
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total == 1
    finally:
        dist.destroy_process_group()


class Interrupt(BaseException):
    """Not an error of the engine's: a timeout, Ctrl-C."""


def interrupt(error, *_):
    raise error


@pytest.mark.parametrize("after", [0.02, 0.2])
def test_an_interrupted_call_leaves_nothing_to_wait_for(sampler, after):
    expected = sampler.sample(PROMPTS, KEYS, 4, decoding())
    signal.signal(signal.SIGALRM, partial(interrupt, Interrupt()))
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        with pytest.raises(Interrupt):
            sampler.sample(PROMPTS, KEYS, 200, decoding(400, eos=()))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert sampler.sample(PROMPTS, KEYS, 4, decoding()) == expected


def test_an_engine_that_fails_is_ended_and_built_anew(policy, monkeypatch, alone):
    sampler = VLLMSampler(kv_cache_gb=0.1)
    sync(sampler, policy)
    expected = sampler.sample(PROMPTS, KEYS, 4, decoding())
    runner = sampler._llm.llm_engine.model_executor.driver_worker.worker.model_runner
    monkeypatch.setattr(runner, "execute_model", partial(interrupt, MemoryError("no more")))
    with pytest.raises(EngineError, match=r"vLLM failed while it sampled 20 answers: MemoryError: no more"):
        sampler.sample(PROMPTS, KEYS, 4, decoding())
    with pytest.raises(EngineError, match="call sync first"):
        sampler.sample(PROMPTS, KEYS, 4, decoding())
    sync(sampler, policy)
    assert sampler.sample(PROMPTS, KEYS, 4, decoding()) == expected
    sampler.close()


def test_a_process_has_one_engine(sampler, policy):
    with pytest.raises(EngineError, match="this process has a vLLM engine already"):
        VLLMSampler(kv_cache_gb=0.1).sync(policy)
    assert len(sampler.sample(PROMPTS, KEYS, 1, decoding())) == len(PROMPTS)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        ([[5] * 501], "a prompt of 501 tokens and 12 new ones make 513, more than the 512 .*max_model_len"),
        ([[5], [50]], "token 50 is not of the policy's vocabulary of 50 tokens"),
        ([[5, -1]], "token -1 is not"),
        ([[5], []], "prompt 1 of 2 is empty"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(sampler, prompts, match):
    with pytest.raises(ValueError, match=match):
        sampler.sample(prompts, [0] * len(prompts), 1, decoding())
    assert len(sampler.sample([[5]], [0], 1, decoding())) == 1


def test_a_model_that_vllm_does_not_know_is_refused(tmp_path, alone):
    config = OpenAIGPTConfig(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        attn_pdrop=0,
        resid_pdrop=0,
        embd_pdrop=0,
        summary_first_dropout=0,
    )
    policy = load(write_kind(tmp_path, config), "float32", attention="eager", packing=False)
    with pytest.raises(EngineError, match=r"cannot build an engine for openai-gpt \(OpenAIGPTLMHeadModel\)"):
        VLLMSampler(kv_cache_gb=0.1).sync(policy)


def test_memory_for_not_even_one_answer_is_refused(tmp_path, alone):
    policy = load(write_wide(tmp_path, max_position_embeddings=10**6), "float32")
    with pytest.raises(EngineError, match="cannot build an engine for qwen3"):
        VLLMSampler(kv_cache_gb=0.01).sync(policy)
