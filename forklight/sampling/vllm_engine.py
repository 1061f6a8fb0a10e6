"""A vLLM engine inside the trainer's process, built and ended without side effects on the process.

vLLM assumes that it owns its process: it seeds the global generators, replaces `torch.set_num_threads`, changes the
environment, and ends the default process group with the engine. Here each of these is undone.
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

from forklight.errors import EngineError
from forklight.sampling.stops import StopCheck
from forklight.sampling.vllm_stops import ending

LOWEST, ABOVE = (0, 32), (0, 34)
"""Supported versions of vLLM: from the first up to the second, which is excluded."""

_INSTALL = "pip install 'forklight[vllm]' on a GPU, or see docs/sampling.md for a CPU"

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights can be passed in memory, and nothing outlives the process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM must not pin the trainer's threads
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables while vLLM runs. Except for the first, the user's values take precedence."""

_engines: list[Any] = []
"""The one engine of this process."""

_groups: list[Any] = []
"""The default process group that vLLM made for the engine, if there was none."""


def check_version() -> None:
    """Refuses a vLLM that is missing or untested, without importing it, which takes seconds.

    Raises:
        EngineError: says what to install.
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
    """Refuses a policy on another GPU than vLLM uses: the one whose number is the local rank.

    Raises:
        EngineError: the policy is on another one.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index != local_rank:
        raise EngineError(
            f"model.sampler: the policy is on {device} and vLLM would take cuda:{local_rank}: choose devices with "
            "CUDA_VISIBLE_DEVICES, not by their numbers in trainer.devices"
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
    if ranks > 1:  # every rank has its own engine, on its own device, in the existing group
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
    """The model's own configuration, for the engine.

    Args:
        model: of the policy; sharding may have replaced its class by a subclass.
        tied: whether input and output embeddings are one tensor.
    """
    config = copy.deepcopy(model.config)
    own = (kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    config.architectures = [next(own)]
    config.tie_word_embeddings = tied
    return config


def shut_down(llm: Any) -> None:
    """Ends an engine, but not the trainer's process group, which vLLM would end too."""
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


def generate(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[dict[str, Any]],
    stops: StopCheck | None = None,
) -> list[Any]:
    """One answer per prompt, token ids in and out.

    Args:
        llm: the engine.
        prompts: token ids.
        settings: arguments of `vllm.SamplingParams` for each.
        stops: end answers besides the settings.

    Returns:
        `vllm.RequestOutput` objects in the order of the prompts, their log-probabilities as flat lists.
    """
    vllm = _import()
    requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    with undisturbed(), ending(llm, stops):
        parameters = [vllm.SamplingParams(detokenize=False, flat_logprobs=True, **setting) for setting in settings]
        outputs: list[Any] = llm.generate(requests, parameters, use_tqdm=False)
    return outputs


def reason(error: BaseException) -> str:
    """The message on one line, cut: vLLM may list every architecture it knows and every field of its settings."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"


def abort_requests(llm: Any) -> None:
    """Aborts the requests of an interrupted call: the next call would wait for them for ever."""
    engine = llm.llm_engine
    with undisturbed():
        engine.abort_request(list(engine.output_processor.request_states), internal=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restores random states, environment and torch's functions afterwards, and hides vLLM's warnings."""
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
    """Makes vLLM's process group the default one while vLLM runs, and only then.

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
    if dist.is_available() and dist.is_initialized():  # vLLM needs both, and Lightning's launcher sets only one
        settings |= {"RANK": str(dist.get_rank()), "LOCAL_RANK": os.environ.get("LOCAL_RANK", "0")}
    return settings


def _import() -> Any:
    if "vllm.entrypoints.llm" not in sys.modules:
        # in a thread: errors caught during the import would keep the caller's frames, and policies in them, in memory
        with undisturbed(), ThreadPoolExecutor(1) as thread:
            thread.submit(importlib.import_module, "vllm.entrypoints.llm").result()
    return sys.modules["vllm"]
