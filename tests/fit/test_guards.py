"""What the guards set, what they let pass, and two ranks that do what one does."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from toy_runs import TOY, contents, curves, environment, fit, run, weights

from forklight.callbacks.guards import Guards, check_fit
from forklight.data.countdown_sets import CountdownProblems
from forklight.data.datamodule import MathDataModule
from forklight.data.sets import EvalSet
from forklight.supervised import SupervisedModule


def trainer(**settings):
    defaults = {"accelerator": "cpu", "max_steps": 8, "logger": False, "enable_checkpointing": False}
    return Trainer(**{**defaults, "enable_progress_bar": False, "callbacks": [Guards()], **settings})


def data(**settings):
    val = {"toy": EvalSet(CountdownProblems(4, "eval"), answers=2)}
    defaults = {"train": [CountdownProblems(8)], "val": val, "prompts_per_rollout": 4, "answers_per_prompt": 2}
    return MathDataModule(**{**defaults, **settings})


def test_the_evaluation_interval_is_a_number_of_rollouts():
    found = trainer(accumulate_grad_batches=2)
    check_fit(found, None, data(updates_per_rollout=4, eval_every_rollouts=3))
    assert found.val_check_interval == 3 * 4 * 2
    assert found.check_val_every_n_epoch is None


def test_an_interval_of_whole_rollouts_is_kept():
    found = trainer(accumulate_grad_batches=2, val_check_interval=16)
    check_fit(found, None, data(updates_per_rollout=4, eval_every_rollouts=3))
    assert found.val_check_interval == 16


def test_asking_twice_changes_nothing():
    found = trainer()
    for _ in range(2):
        check_fit(found, None, data(eval_every_rollouts=3))
        assert found.val_check_interval == 3


def test_without_sets_nothing_is_evaluated():
    found, sets = trainer(), data(val={})
    sets.trainer = found
    sets.setup("fit")
    assert not found.limit_val_batches


def test_callbacks_that_watch_scores_pass():
    callbacks = [ModelCheckpoint(monitor="val/toy/avg@2"), EarlyStopping("val/toy/avg@2")]
    check_fit(trainer(callbacks=callbacks, enable_checkpointing=True), None, data())


@pytest.mark.parametrize("settings", [{"limit_train_batches": 3}, {"val_check_interval": "00:10:00:00"}])
def test_other_intervals_are_whole_rollouts_too(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        check_fit(trainer(**settings), None, data(updates_per_rollout=2))


REFUSED = {
    "P and K": (
        {},
        {"updates_per_rollout": 3},
        ["data.prompts_per_rollout = 4", "data.updates_per_rollout * ranks = 3 * 1"],
    ),
    "A": ({"accumulate_grad_batches": 17}, {}, ["trainer.accumulate_grad_batches = 17", "8 sequences"]),
    "max_epochs": ({"max_epochs": 3}, {}, ["trainer.max_epochs = 3", "trainer.max_steps"]),
    "no max_steps": ({"max_steps": -1, "max_epochs": 1}, {}, ["trainer.max_steps is required"]),
    "share of an epoch": ({"limit_train_batches": 0.5}, {}, ["trainer.limit_train_batches = 0.5"]),
    "evaluation by share": ({"val_check_interval": 0.5}, {}, ["trainer.val_check_interval = 0.5"]),
    "evaluation inside a rollout": (
        {"val_check_interval": 6},
        {"updates_per_rollout": 4},
        ["trainer.val_check_interval = 6", "trainer.accumulate_grad_batches = 4 "],
    ),
    "changing accumulation": (
        {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]},
        {},
        ["GradientAccumulationScheduler", "trainer.accumulate_grad_batches"],
    ),
    "checkpoints by step": (
        {"callbacks": [ModelCheckpoint(every_n_train_steps=2)], "enable_checkpointing": True},
        {},
        ["ModelCheckpoint.every_n_train_steps = 2", "checkpoint.every_n_updates"],
    ),
    "checkpoints by time": (
        {"callbacks": [ModelCheckpoint(train_time_interval=timedelta(minutes=1))], "enable_checkpointing": True},
        {},
        ["ModelCheckpoint.train_time_interval = 0:01:00", "checkpoint.every_n_updates"],
    ),
    "another last.ckpt": (
        {"callbacks": [ModelCheckpoint(save_last=True)], "enable_checkpointing": True},
        {},
        ["ModelCheckpoint.save_last = True", "last.ckpt"],
    ),
}
"""Settings of the Trainer and of the data, and what the refusal of them says."""


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_train_something_else_is_refused(case):
    flags, sizes, words = REFUSED[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011  the words are looked for below
        check_fit(trainer(**flags), None, data(**sizes))
    assert all(word in str(error.value) for word in words), error.value


def test_the_callback_asks_where_the_command_line_did_not():
    module = SupervisedModule(examples=None)  # never reached
    with pytest.raises(ValueError, match=r"trainer\.max_steps is required"):
        trainer(max_steps=-1, max_epochs=1).fit(module)


BASE = Path(__file__).parents[2] / "configs" / "countdown" / "base.yaml"


def test_micro_batches_of_the_cold_start_may_not_change(tmp_path, capsys):
    def fit_base(*more):
        small = ("--model.batch_size", 4, "--trainer.enable_progress_bar", "false")
        small = (*small, "--model.policy.path", "tiny", "--model.policy.random_init", "true", "--trainer.max_steps")
        run("fit", tmp_path / "run", *small, *more, config=BASE)

    fit_base(2)
    with pytest.raises(SystemExit):
        fit_base(4, "--ckpt_path", "last", "--trainer.accumulate_grad_batches", 2)
    assert "trainer.accumulate_grad_batches = 2, but the checkpoint has 2 micro-batches" in capsys.readouterr().err
    fit_base(4, "--ckpt_path", "last")
    assert len(curves(tmp_path / "run")["train/loss"]) == 4


@pytest.mark.slow
def test_two_ranks_do_what_one_does(tmp_path):
    more = ["--trainer.precision", "64-true", "--model.policy.dtype", "float64", "--data.updates_per_rollout", "2"]
    more += ["--model.rollout.dynamic_sampling", "false"]
    strategy = {
        "class_path": "lightning.pytorch.strategies.DDPStrategy",
        "init_args": {"process_group_backend": "gloo"},
    }
    ranks = ["--trainer.devices", "2", "--trainer.strategy", json.dumps(strategy), "--trainer.max_steps", "4"]
    fit(tmp_path / "one", *more, steps=4)
    command = [sys.executable, "-m", "forklight", "fit", "--config", str(TOY), "--run_dir", str(tmp_path / "two")]
    one_thread = environment() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *more, *ranks], env=one_thread, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    one, two = weights(tmp_path / "one", 4), weights(tmp_path / "two", 4)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6, msg=name)
    lines = [(tmp_path / name / "samples.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert sorted(lines[0]) == sorted(lines[1])
    expected, found = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert expected.keys() == found.keys()
    for tag, points in expected.items():
        if tag in ("time/head_share", "time/packing_ratio", "time/prefix_ratio"):
            continue  # of one rank's passes, which may have nothing to train on
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        if not tag.startswith("time/"):
            assert [value for _, value in found[tag]] == pytest.approx([v for _, v in points], rel=1e-5, abs=1e-7), tag
    assert {name for name in contents(tmp_path / "two") if "tfevents" not in name} == {
        name for name in contents(tmp_path / "one") if "tfevents" not in name
    }
