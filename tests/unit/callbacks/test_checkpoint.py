"""Writing checkpoints so that a kill leaves the old one or the new one, and the state of the generators."""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from forklight.callbacks.checkpoint import AtomicCheckpointIO, RngState, RunCheckpoint


def test_a_checkpoint_is_read_back(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"global_step": 3, "weights": torch.arange(4)}, path)
    found = io.load_checkpoint(path, weights_only=True)
    assert found["global_step"] == 3
    assert torch.equal(found["weights"], torch.arange(4))
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"global_step": 3}, path)
    with pytest.raises((AttributeError, TypeError, OSError), match=r"pickle|lambda"):
        io.save_checkpoint({"weights": torch.zeros(10), "function": lambda: None}, path)
    assert io.load_checkpoint(path, weights_only=True) == {"global_step": 3}


WRITER = """
import sys, torch
from forklight.callbacks.checkpoint import AtomicCheckpointIO
for step in range(10**6):
    AtomicCheckpointIO().save_checkpoint({"global_step": step, "weights": torch.full((500_000,), step)}, sys.argv[1])
"""


def test_a_kill_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "a.ckpt"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(0.05)  # writes follow each other without a pause, so this falls into one
    process.kill()
    process.wait()
    found = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert (found["weights"] == found["global_step"]).all()


def draws():
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


def test_generators_go_on_where_they_were(tmp_path):
    kept = RngState()
    path = tmp_path / "a.ckpt"
    torch.save(kept.state_dict(), path)
    expected = [draws() for _ in range(3)]
    resumed = RngState()
    resumed.load_state_dict(torch.load(path, weights_only=True))
    draws()
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=1, enable_checkpointing=False)
    resumed.on_train_start(trainer, None)
    assert [draws() for _ in range(3)] == expected
    resumed.on_train_start(trainer, None)  # a second start of the same process leaves them alone
    assert [draws() for _ in range(3)] != expected


@pytest.mark.parametrize(
    "settings", [{"every_n_rollouts": 0}, {"every_n_updates": 0}, {"keep": 0}, {"keep": -2}], ids=str
)
def test_impossible_cadences_are_refused(settings):
    (key,) = settings
    with pytest.raises(ValueError, match=rf"checkpoint\.{key} = {settings[key]}"):
        RunCheckpoint(**settings)
