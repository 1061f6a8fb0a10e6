"""Runs of the toy config through the command line, in process, and what they leave."""

import os
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from forklight.cli import main

TOY = Path(__file__).with_name("toy.yaml")


def environment():
    """Of another process: it runs this checkout, finds the toys, and has as many threads as this one."""
    places = (TOY.parent, TOY.parents[2])
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }


def run(verb, folder, *more, config=TOY):
    main([verb, "--config", str(config), "--run_dir", str(folder), *map(str, more)])


def fit(folder, *more, steps=2):
    run("fit", folder, "--trainer.max_steps", steps, *more)


def checkpoint(folder, update):
    return torch.load(folder / "checkpoints" / f"update-{update:08d}.ckpt", weights_only=True)


def weights(folder, update):
    """The policy's weights by their name in the model."""
    state = checkpoint(folder, update)["state_dict"]
    return {name.removeprefix("policy.model."): tensor for name, tensor in state.items()}


def events(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0}).Reload()


def curves(folder):
    """Steps and values by tag."""
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def contents(folder):
    """Every file with its bytes, or where a link points."""
    return {
        path.relative_to(folder).as_posix(): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def refused(capsys, action, *arguments):
    """The message of a run that must be refused."""
    with pytest.raises(SystemExit) as stop:
        action(*arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    start = "forklight: error: "
    assert error.startswith(start), error
    assert "\n" not in error.strip()
    assert len(error) < 500
    assert "usage" not in error
    return error.removeprefix(start)
