"""Runs that sample with the real vLLM: what they log, how they end, and that they go on exactly."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from lightning.pytorch import Callback
from toy_runs import TOY, checkpoint, curves, fit, run, weights

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make test-vllm)"),
]

SAMPLER = "forklight.sampling.VLLMSampler"
VLLM = ("--model.sampler", SAMPLER, "--model.sampler.kv_cache_gb", 0.25)
MISMATCH = [f"mismatch/diff_max_{of}" for of in ("kept", "dropped")]


class BreakEngine(Callback):
    """From one rollout on, the engine fails after a few tokens."""

    def __init__(self, rollout: int) -> None:
        self.rollout = rollout

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch.rollout != self.rollout:
            return
        runner = pl_module.sampler._llm.llm_engine.model_executor.driver_worker.worker.model_runner
        steps = iter([runner.execute_model] * 5)  # the probe takes the first

        def execute(*arguments, **settings):
            step = next(steps, None)
            if step is None:
                raise MemoryError("out of pages")
            return step(*arguments, **settings)

        runner.execute_model = execute


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five updates: three rollouts, the last with one update to go."""
    folder = tmp_path_factory.mktemp("vllm") / "run"
    fit(folder, *VLLM, "--data.updates_per_rollout", 2, steps=5)
    return folder


def test_five_updates_with_the_probe(five):
    found = curves(five)
    assert [step for step, _ in found["rollout/weight_sync_diff"]] == [1, 3, 5]
    assert all(0 < value < 1e-4 for _, value in found["rollout/weight_sync_diff"])
    for tag in MISMATCH:
        assert len(found[tag]) == 5
        assert all(value < 1e-4 for _, value in found[tag])
    assert all(value > 0 for _, value in found["time/share_sync"])
    before, after = weights(five, 4), weights(five, 5)
    assert any(not weight.equal(after[name]) for name, weight in before.items())


def test_nothing_is_left_of_the_engine(five):
    assert not dist.is_initialized()
    assert psutil.Process().children(recursive=True) == []


def test_a_resumed_run_is_the_same_to_the_last_bit(five, tmp_path):
    folder = tmp_path / "run"
    fit(folder, *VLLM, "--data.updates_per_rollout", 2, steps=2)
    fit(folder, *VLLM, "--data.updates_per_rollout", 2, "--ckpt_path", "last", steps=5)
    expected = weights(five, 5)
    assert all(weight.equal(expected[name]) for name, weight in weights(folder, 5).items())


def test_the_other_verbs_sample_with_it_too(five):
    run("validate", five, *VLLM, "--ckpt_path", "last", "--trainer.max_steps", 5)
    assert not dist.is_initialized()


def test_an_engine_that_dies_stops_the_run_and_spares_the_checkpoint(tmp_path, capsys):
    folder = tmp_path / "run"
    breaking = ("--trainer.callbacks+", f"{__name__}.BreakEngine", "--trainer.callbacks.rollout", 2)
    with pytest.raises(SystemExit) as stop:
        fit(folder, *VLLM, *breaking, steps=4)
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("forklight: error: rollout 2: vLLM failed while it sampled ")
    assert message.endswith("MemoryError: out of pages")
    assert not dist.is_initialized()
    assert checkpoint(folder, 2)["global_step"] == 2
    fit(folder, *VLLM, "--ckpt_path", "last", steps=4)
    assert checkpoint(folder, 4)["global_step"] == 4


def test_answers_longer_than_the_engine_holds_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path / "run", *VLLM, "--model.sampler.max_model_len", 32, "--model.rollout.max_new_tokens", 30)
    assert stop.value.code == 2
    assert "more than the 32 that the engine can hold: model.sampler.max_model_len" in capsys.readouterr().err


@pytest.mark.slow
def test_every_rank_has_an_engine_and_two_learn_what_one_does(five, tmp_path):
    folder = tmp_path / "run"
    settings = [*VLLM, "--data.updates_per_rollout", 2, "--trainer.max_steps", 5, "--trainer.devices", 2]
    command = [sys.executable, "-m", "forklight", "fit", "--config", TOY, "--run_dir", folder, *settings]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]),
    }
    done = subprocess.run(
        [str(part) for part in [*command, "--trainer.strategy", "ddp"]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = curves(five), curves(folder)
    assert two["rollout/right"] == one["rollout/right"]
    assert all(value < 1e-4 for _, value in two["rollout/weight_sync_diff"])
    expected = weights(five, 5)
    assert all(weight.allclose(expected[name], rtol=1e-3, atol=1e-4) for name, weight in weights(folder, 5).items())
