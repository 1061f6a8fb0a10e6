"""A run that was killed goes on exactly: weights, optimiser, data, curves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from forklight.cli import main

TOY = Path(__file__).parent / "toy.yaml"


def fit(folder, *more):
    main(["fit", "--config", str(TOY), "--run_dir", str(folder), *more])


def killed_fit(folder, after_update, *more):
    """Runs `fit` in a process that is killed, without warning, once the checkpoint of an update is there."""
    command = [sys.executable, "-m", "forklight", "fit", "--config", str(TOY), "--run_dir", str(folder), *more]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / f"update-{after_update:08d}.ckpt").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no checkpoint of update {after_update}: {process.stderr.read().decode()[-2000:]}")
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def final(folder, update):
    return torch.load(folder / "checkpoints" / f"update-{update:08d}.ckpt", weights_only=True)


def assert_equal(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def curves(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


CASES = {
    "K = 1": ((), 4, 8),
    "K = 4, at a rollout boundary": (
        ("--data.updates_per_rollout", "4", "--trainer.accumulate_grad_batches", "2"),
        4,
        8,
    ),
    "K = 4, inside a rollout": (
        (
            "--data.updates_per_rollout",
            "4",
            "--trainer.accumulate_grad_batches",
            "2",
            "--checkpoint.every_n_updates",
            "3",
        ),
        3,
        8,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_equals_uninterrupted(case, tmp_path):
    more, stop, steps = CASES[case]
    more = (*more, "--checkpoint.keep", "-1", "--trainer.max_steps", str(steps))
    fit(tmp_path / "whole", *more)
    killed_fit(tmp_path / "parts", stop, *more)
    fit(tmp_path / "parts", *more, "--ckpt_path", "last")
    whole, parts = final(tmp_path / "whole", steps), final(tmp_path / "parts", steps)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "MathDataModule", "forklight"):
        assert_equal(whole[key], parts[key], key)
    expected, found = curves(tmp_path / "whole"), curves(tmp_path / "parts")
    assert expected.keys() == found.keys()
    for tag, points in expected.items():
        if tag.startswith("throughput/"):
            continue  # of whole rollouts only
        assert [step for step, _ in points] == [step for step, _ in found[tag]], tag
        if not tag.startswith("time/"):
            assert repr(points) == repr(found[tag]), tag
    whole_lines = (tmp_path / "whole" / "samples.jsonl").read_text()
    assert whole_lines == (tmp_path / "parts" / "samples.jsonl").read_text()
    assert whole_lines
