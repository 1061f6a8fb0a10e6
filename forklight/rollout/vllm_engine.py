"""A vLLM engine inside the trainer's process, built and ended without a trace in it.

vLLM is made to own its process: it seeds the global generators, replaces `torch.set_num_threads`, changes the
environment, and ends the default process group with the engine. Here each of these is put back.
"""

import copy
import importlib.util
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PretrainedConfig, PreTrainedModel

from forklight.rollout.sampler import EngineError

LOWEST, ABOVE = (0, 32), (0, 34)
"""Versions of vLLM that are supported: from the first up to the second, which is not."""

_INSTALL = "pip install 'forklight[vllm]' on a GPU, or see README.md, Sampling with vLLM, for a CPU"

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights can be handed over in memory, and nothing outlives the process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are not vLLM's to pin
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Of the environment while vLLM is at work. Except for the first, what the user has set comes before them."""

_engines: list[Any] = []
"""The one engine of this process."""

_groups: list[Any] = []
"""The default process group that vLLM made for it, if there was none."""


def check_version() -> None:
    """Refuses a vLLM that is missing or untested, without the seconds that its import takes.

    Raises:
        EngineError: with what to install.
    """
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(f"model.sampler: VLLMSampler needs vLLM, which is not installed: {_INSTALL}")
    found = _version()
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not LOWEST <= numbers < ABOVE:
        low, high = (".".join(map(str, bound)) for bound in (LOWEST, ABOVE))
        raise EngineError(
            f"model.sampler: VLLMSampler supports vLLM >= {low}, < {high}; installed is {found}: {_INSTALL}"
        )


def _version() -> str:
    for package in ("vllm", "vllm-cpu"):  # two builds of one package
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return str(getattr(_import(), "__version__", "unknown"))


def on_cpu() -> bool:
    """True if this vLLM runs on the CPU."""
    _import()
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def check_device(device: torch.device) -> None:
    """Refuses a GPU that vLLM would not take: it counts them by the local rank.

    Raises:
        EngineError: the policy is on another one.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index != local_rank:
        raise EngineError(
            f"model.sampler: the policy is on {device} and vLLM would take cuda:{local_rank}: choose devices with "
            "CUDA_VISIBLE_DEVICES and leave numbers out of trainer.devices"
        )


def build_engine(config: PretrainedConfig, **arguments: Any) -> Any:
    """An engine with random weights for a model of this architecture.

    Args:
        config: of the model, see `engine_config`.
        arguments: of `vllm.LLM`.

    Raises:
        EngineError: vLLM does not know the model, or has no memory for it; or this process has an engine already.
    """
    if _engines:
        raise EngineError(
            "model.sampler: this process has a vLLM engine already, and vLLM keeps settings and groups for one: close "
            "the other VLLMSampler first"
        )
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks > 1:  # every rank has an engine of its own, on its own device, in the group that is there
        arguments["distributed_executor_backend"] = "external_launcher"
    with tempfile.TemporaryDirectory(prefix="forklight-vllm-") as folder, undisturbed():
        config.save_pretrained(folder)
        vllm = _import()
        try:
            llm = vllm.LLM(
                model=folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",  # no sampling default of a model card takes effect
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled
                **arguments,
            )
        except Exception as error:
            raise EngineError(
                f"model.sampler: vLLM {vllm.__version__} cannot build an engine for {config.model_type} "
                f"({', '.join(config.architectures or ())}): {reason(error)}"
            ) from error
    _engines.append(llm)
    return llm


def engine_config(model: PreTrainedModel, *, tied: bool) -> PretrainedConfig:
    """The model's own configuration as the engine is to read it.

    Args:
        model: of the policy; sharding it may have put another class in front of its own.
        tied: whether input and output embeddings are one tensor.
    """
    config = copy.deepcopy(model.config)
    own = (kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    config.architectures = [next(own)]
    config.tie_word_embeddings = tied
    return config


def shut_down(llm: Any) -> None:
    """Ends an engine, but not the trainer's process group, which vLLM would take along."""
    original, of_trainer = dist.destroy_process_group, dist.is_initialized()

    def spare(group: Any = None) -> None:
        if group is not None:
            original(group)

    if of_trainer:
        dist.destroy_process_group = spare
    try:
        with undisturbed():
            llm.llm_engine.engine_core.shutdown()
    finally:
        dist.destroy_process_group = original
        _engines.clear()


def generate(llm: Any, prompts: Sequence[Sequence[int]], settings: Sequence[dict[str, Any]]) -> list[Any]:
    """One answer per prompt, token ids in and out.

    Args:
        llm: the engine.
        prompts: token ids.
        settings: arguments of `vllm.SamplingParams` for each.

    Returns:
        `vllm.RequestOutput` objects in the order of the prompts, their log-probabilities as flat lists.
    """
    vllm = _import()
    requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    with undisturbed():
        parameters = [vllm.SamplingParams(detokenize=False, flat_logprobs=True, **setting) for setting in settings]
        outputs: list[Any] = llm.generate(requests, parameters, use_tqdm=False)
    return outputs


def reason(error: BaseException) -> str:
    """What vLLM says, on one line: it may list every architecture it knows, and every field of its settings."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"


def abort_requests(llm: Any) -> None:
    """Drops what an interrupted call has left: the next call would wait for it for ever."""
    engine = llm.llm_engine
    with undisturbed():
        engine.abort_request(list(engine.output_processor.request_states), internal=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps random states, environment and torch's functions as they are, and vLLM's warnings to itself."""
    environment, set_num_threads, threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  vLLM seeds the global one
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    os.environ.update(_settings())
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings(), _own_group():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


@contextmanager
def _own_group() -> Iterator[None]:
    """The default process group that vLLM makes is there while vLLM is at work.

    Otherwise Lightning and torchmetrics would take a run in one process for a distributed one.
    """
    if not dist.is_available() or dist.is_initialized():  # the trainer's: vLLM makes none
        yield
        return
    dist.GroupMember.WORLD = _groups.pop() if _groups else None
    try:
        yield
    finally:
        if dist.GroupMember.WORLD is not None:
            _groups.append(dist.GroupMember.WORLD)
        dist.GroupMember.WORLD = None


def _settings() -> dict[str, str]:
    settings = {name: os.environ.get(name, value) for name, value in _SETTINGS.items()}
    settings["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if dist.is_available() and dist.is_initialized():  # vLLM asks for both, and Lightning's launcher sets one
        settings |= {"RANK": str(dist.get_rank()), "LOCAL_RANK": os.environ.get("LOCAL_RANK", "0")}
    return settings


def _import() -> Any:
    if "vllm.entrypoints.llm" not in sys.modules:
        # in a thread: errors that are caught during the import keep all frames below it, and the policies in them
        with undisturbed(), ThreadPoolExecutor(1) as thread:
            thread.submit(importlib.import_module, "vllm.entrypoints.llm").result()
    return sys.modules["vllm"]
