"""A run that was killed goes on exactly: weights, optimiser, data, curves."""

import shutil
import signal
import subprocess
import sys

import pytest
import torch
from toy_runs import TOY, checkpoint, curves, environment, fit

UPDATES = 8
ONE = ("--checkpoint.keep", "-1")
SEVERAL = (*ONE, "--data.updates_per_rollout", "4", "--trainer.accumulate_grad_batches", "2")
SEVERAL = (*SEVERAL, "--checkpoint.every_n_updates", "2")
FALLING = (*ONE, "--model.selection.rho", '{"from": 1.0, "to": 0.2, "over_rollouts": 6, "until_entropy": 9.0}')
KILLED_AT = {ONE: 4, SEVERAL: 7, FALLING: 4}
CASES = {
    "K = 1": (ONE, "last", 4),
    "a share that falls since the entropy was low": (FALLING, "last", 4),
    "K = 4, at a rollout boundary": (SEVERAL, "update-00000004.ckpt", 4),
    "K = 4, inside a rollout": (SEVERAL, "last", 6),
}
"""Arguments of the run, the checkpoint that it goes on from, and the update of this checkpoint."""


def killed_fit(folder, update, *more):
    """Runs `fit` in a process that is killed, without warning, after so many updates."""
    command = [sys.executable, "-m", "forklight", "fit", "--config", str(TOY), "--run_dir", str(folder), *more]
    command += ["--trainer.max_steps", str(UPDATES), "--trainer.callbacks+", "killer.KillAt"]
    command += ["--trainer.callbacks.update", str(update)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes, once for the same arguments, a whole run and one that was killed."""
    made = {}

    def make(more):
        if more not in made:
            made[more] = root = tmp_path_factory.mktemp("runs")
            fit(root / "whole", *more, steps=UPDATES)
            killed_fit(root / "killed", KILLED_AT[more], *more)
        return made[more]

    return make


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


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_equals_uninterrupted(case, folders, tmp_path):
    more, start, update = CASES[case]
    whole, parts = folders(more) / "whole", tmp_path / "parts"
    shutil.copytree(folders(more) / "killed", parts, symlinks=True)
    path = parts / "checkpoints" / ("last.ckpt" if start == "last" else start)
    assert path.resolve().name == f"update-{update:08d}.ckpt"
    fit(parts, *more, "--ckpt_path", "last" if start == "last" else path, steps=UPDATES)
    expected, found = checkpoint(whole, UPDATES), checkpoint(parts, UPDATES)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "MathDataModule", "forklight"):
        assert_equal(expected[key], found[key], key)
    expected, found = curves(whole), curves(parts)
    assert expected.keys() == found.keys()
    for tag, points in expected.items():
        if tag.startswith("time/"):  # of whole rollouts only
            assert {step for step, _ in found[tag]} <= {step for step, _ in points}, tag
        else:
            assert repr(points) == repr(found[tag]), tag
    for name in ("samples.jsonl", "signal.jsonl"):
        lines = (whole / name).read_text()
        assert lines == (parts / name).read_text()
        assert lines
