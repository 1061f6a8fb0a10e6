"""Sampling with vLLM in the trainer's process: a separate engine that gets the policy's weights in memory."""

import logging
import math
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from forklight.algo.noise import hash_bits
from forklight.errors import EngineError
from forklight.models.policy import Policy
from forklight.models.weights import full_weights
from forklight.sampling import vllm_engine
from forklight.sampling.base import Sampled, Sampler, SamplingParams
from forklight.sampling.stops import StopCheck

log = logging.getLogger(__name__)

_OURS = {
    "model", "tokenizer", "load_format", "skip_tokenizer_init", "generation_config", "logprobs_mode", "dtype", "seed",
    "max_model_len", "max_num_seqs", "gpu_memory_utilization", "kv_cache_memory_bytes", "enforce_eager",
    "enable_sleep_mode", "distributed_executor_backend",
}  # fmt: skip
"""Arguments of the engine that the sampler sets."""


class VLLMSampler(Sampler):
    """Samples with vLLM, in process; the weights are synced before every rollout and evaluation.

    Needs vLLM: `pip install 'forklight[vllm]'` on a GPU. Every answer has its own seed, hashed from the prompt's key
    and the answer's number, so that it depends on neither batch nor rank. The noise is vLLM's, so the answers differ
    from those of `HFSampler`. Each rank of a data-parallel run has an engine on its own device.

    Args:
        max_model_len: longest sequence, prompt and answer, in tokens; null: the policy's own limit. The engine must
            have memory for at least one of these.
        max_num_seqs: answers decoded together.
        kv_cache_gb: memory for keys and values, in GiB; null: on a CPU 1, on a GPU what
            `gpu_memory_utilization` leaves.
        gpu_memory_utilization: share of the GPU's memory for the engine, its weights included.
        sleep: on a GPU, give the engine's memory back to the trainer between rollouts.
        dtype: of the engine's weights and arithmetic; `auto`: that of the trainer.
        enforce_eager: run without compilation; null: on a CPU, where compiling takes longer than a short run.
        engine_args: further arguments of `vllm.LLM`.
    """

    def __init__(
        self,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        kv_cache_gb: float | None = None,
        gpu_memory_utilization: float = 0.4,
        sleep: bool = True,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        enforce_eager: bool | None = None,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        vllm_engine.check_version()
        for name, value in {
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "kv_cache_gb": kv_cache_gb,
        }.items():
            if value is not None and not value > 0:
                raise ValueError(f"model.sampler.{name} = {value} must be positive")
        if not 0 < gpu_memory_utilization <= 1:
            raise ValueError(f"model.sampler.gpu_memory_utilization = {gpu_memory_utilization} must lie in (0, 1]")
        if ours := sorted(_OURS & set(engine_args or ())):
            raise ValueError(f"model.sampler.engine_args may not have {', '.join(ours)}: the sampler decides them")
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.kv_cache_gb = kv_cache_gb
        self.gpu_memory_utilization = gpu_memory_utilization
        self._may_sleep = sleep
        self.dtype = dtype
        self.enforce_eager = enforce_eager
        self.engine_args = engine_args or {}
        self._llm: Any = None
        self._end: weakref.finalize[..., VLLMSampler] | None = None
        self._asleep = self._sleeps = self._tied = self._half = False
        self._limit = self._vocabulary = 0

    @property
    def half_precision(self) -> bool:
        """By the engine's `dtype`."""
        return self._half

    # -- weights -------------------------------------------------------------------------------------------------------

    def sync(self, policy: Policy) -> None:
        """Builds the engine if there is none, and gives it the policy's weights; see `Sampler.sync`."""
        if self._llm is None:
            self._build(policy)
        if self._asleep:
            self._wake("weights")
        self.push(self.weights(policy))
        if self._asleep:
            self._wake("kv_cache")
            self._asleep = False

    def weights(self, policy: Policy) -> Iterator[tuple[str, Tensor]]:
        """All weights of the policy; tied embeddings give the LM head too, unless the engine also ties them."""
        return full_weights(policy.model, tied_once=self._tied)

    def push(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes over weights by name, and drops caches computed with old ones."""
        try:
            with vllm_engine.undisturbed():
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
                forgotten = self._llm.reset_prefix_cache()
        except Exception as error:
            self.close()
            raise EngineError(f"vLLM could not take the policy's weights: {vllm_engine.reason(error)}") from error
        if not forgotten:
            raise EngineError("vLLM kept the prefix cache of the old weights: it has requests that never ended")

    def _wake(self, what: str) -> None:
        with vllm_engine.undisturbed():
            self._llm.wake_up(tags=[what])

    def sleep(self) -> None:
        """Gives the engine's memory back, on a GPU with `sleep`."""
        if self._llm is not None and self._sleeps and not self._asleep:
            with vllm_engine.undisturbed():
                self._llm.sleep(level=2)  # drops the weights too: the next sync sends all of them
            self._asleep = True

    def close(self) -> None:
        """Ends the engine and frees its memory; also called when the sampler or the process ends."""
        if self._end is not None:
            self._end()
        self._llm = self._end = None
        self._asleep = False

    # -- answers -------------------------------------------------------------------------------------------------------

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: SamplingParams
    ) -> list[list[Sampled]]:
        """Samples some answers to each prompt; see `Sampler.sample`.

        Raises:
            ValueError: a prompt and its answer do not fit into `max_model_len`, or a token is not in the vocabulary.
            EngineError: the engine failed.
        """
        self._check(prompts, decoding.max_new_tokens)
        # `n` answers to one request would have neighbouring seeds, and prompts of neighbouring seeds the same noise
        seeds = hash_bits(torch.tensor(list(keys))[:, None], torch.arange(answers)) & (2**63 - 1)
        common = {
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k,
            "stop_token_ids": list(decoding.eos_ids),
            "ignore_eos": True,  # that of the model's settings; the line above has the tokens that end an answer
            "logprobs": 0,  # of the sampled token alone
        }
        outputs = self._generate(
            [prompt for prompt in prompts for _ in range(answers)],
            [common | {"seed": seed} for seed in seeds.flatten().tolist()],
            decoding.stops,
        )
        sampled = [_sampled(output.outputs[0], greedy=decoding.temperature == 0) for output in outputs]
        return [sampled[start : start + answers] for start in range(0, len(sampled), answers)]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """See `Sampler.logprobs`; for vLLM the sequences are prompts."""
        self._check(sequences, 1)
        outputs = self._generate(sequences, [{"max_tokens": 1, "prompt_logprobs": 0}] * len(sequences))
        # the first token has none; each list would also hold those of other tokens if any were asked for
        return [list(output.prompt_logprobs.logprobs) for output in outputs]

    def _generate(
        self, prompts: Sequence[Sequence[int]], settings: Sequence[dict[str, Any]], stops: StopCheck | None = None
    ) -> list[Any]:
        """Runs the engine until all requests are done."""
        try:
            outputs = vllm_engine.generate(self._llm, prompts, settings, stops)
        except Exception as error:
            self.close()
            raise EngineError(
                f"vLLM failed while it sampled {len(prompts)} answers: {vllm_engine.reason(error)}"
            ) from error
        except BaseException:
            vllm_engine.abort_requests(self._llm)
            raise
        broken = [output.outputs[0].finish_reason for output in outputs]
        broken = [reason for reason in broken if reason not in ("stop", "length")]
        if len(outputs) != len(prompts) or broken:
            self.close()
            raise EngineError(
                f"vLLM ended {len(outputs)} of {len(prompts)} answers, {len(broken)} of them by {broken[:1]}"
            )
        return outputs

    def _check(self, prompts: Sequence[Sequence[int]], new: int) -> None:
        if self._llm is None or self._asleep:
            raise EngineError("VLLMSampler: no engine is awake; call sync first")
        lengths = list(map(len, prompts))
        if min(lengths) == 0:
            raise ValueError(f"prompt {lengths.index(0)} of {len(prompts)} is empty")
        if max(lengths) + new > self._limit:
            raise ValueError(
                f"a prompt of {max(lengths)} tokens and {new} new ones make {max(lengths) + new}, more than the "
                f"{self._limit} that the engine can hold: model.sampler.max_model_len"
            )
        for token in (min(map(min, prompts)), max(map(max, prompts))):
            if not 0 <= token < self._vocabulary:
                raise ValueError(f"token {token} is not of the policy's vocabulary of {self._vocabulary} tokens")

    # -- the engine ----------------------------------------------------------------------------------------------------

    def _build(self, policy: Policy) -> None:
        vllm_engine.check_device(policy.head_weight.device)
        on_cpu = vllm_engine.on_cpu()
        # on a CPU the engine keeps a copy of the head's weight, which a reload of tied embeddings does not update
        self._tied = policy.model.config.tie_word_embeddings and not on_cpu
        config = vllm_engine.engine_config(policy.model, tied=self._tied)
        positions = getattr(config, "max_position_embeddings", None)
        self._limit = self.max_model_len or positions or 0
        self._vocabulary = len(policy.head_weight)
        if not self._limit:
            raise EngineError("model.sampler.max_model_len is needed: the policy's config does not give a maximum")
        self._sleeps = self._may_sleep and not on_cpu
        memory = self.kv_cache_gb or (1.0 if on_cpu else None)
        dtype = self.dtype if self.dtype != "auto" else _dtype(policy)
        self._half = dtype != "float32"
        arguments: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": self._limit,
            "max_num_seqs": self.max_num_seqs,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": None if memory is None else int(memory * 2**30),
            "enforce_eager": on_cpu if self.enforce_eager is None else self.enforce_eager,
            "enable_sleep_mode": self._sleeps,
        }
        if on_cpu:  # chunked prefill rewinds the noise, which CPU generators cannot do
            arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(self._limit, 8192)}
        self._llm = vllm_engine.build_engine(config, **arguments | self.engine_args)
        self._end = weakref.finalize(self, vllm_engine.shut_down, self._llm)
        log.info("vLLM engine: %s", arguments | self.engine_args)


def _sampled(output: Any, *, greedy: bool) -> Sampled:
    """An answer of the engine, up to the first token whose log-probability is not finite."""
    ids, logp = list(output.token_ids), array("f", output.logprobs.logprobs)
    if len(logp) != len(ids):
        raise EngineError(f"vLLM returned {len(logp)} log-probabilities for {len(ids)} tokens")
    broken = next((place for place, value in enumerate(logp) if not math.isfinite(value)), None)
    if greedy:
        logp = array("f", bytes(4 * len(ids)))
    if broken is not None:
        ids, logp = ids[: broken + 1], logp[: broken + 1]
        logp[broken] = math.nan
    return Sampled(ids, logp)


def _dtype(policy: Policy) -> str:
    """The trainer's type; float64, which vLLM does not support, becomes float32."""
    weight = policy.head_weight
    dtype = (
        torch.get_autocast_dtype(weight.device.type) if torch.is_autocast_enabled(weight.device.type) else weight.dtype
    )
    return str(torch.float32 if dtype == torch.float64 else dtype).removeprefix("torch.")
