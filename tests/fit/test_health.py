"""Guards of a run: they speak once, stop if they should, and never change what is trained."""

import json

import pytest
import torch
import toy_runs
from toy_runs import fit, run, weights

PLAIN = ("--data.val", "null", "--checkpoint.keep", -1)
STILL = (*PLAIN, "--model.optimizer.lr", 0, "--guards.low_signal.action", "off")


def told(folder):
    file = folder / "guards.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_run_that_cannot_learn_says_so_once_also_when_it_is_resumed(tmp_path, caplog):
    folder = tmp_path / "run"
    fit(folder, *STILL, steps=9)
    (line,) = told(folder)
    assert (line["step"], line["rule"]) == (8, "still_reward")
    assert line["message"].startswith("guards.still_reward: after 8 rollouts the reward has not moved")
    assert caplog.text.count("guards.still_reward") == 1
    fit(folder, *STILL, "--ckpt_path", "last", steps=11)
    assert told(folder) == [line]
    events = toy_runs.events(folder)
    assert "health/text_summary" in events.Tags()["tensors"]


def test_it_stops_where_it_should_and_otherwise_changes_nothing(tmp_path):
    off = [f"--guards.{rule}.action=off" for rule in ("still_reward", "rising_cuts", "low_signal")]
    always = ("--guards.low_signal.threshold", 1e6)
    fit(tmp_path / "plain", *PLAIN, *off, steps=9)
    assert told(tmp_path / "plain") == []
    fit(tmp_path / "warned", *PLAIN, *always, steps=9)
    assert {line["rule"] for line in told(tmp_path / "warned")} >= {"low_signal"}
    for name, weight in weights(tmp_path / "plain", 9).items():
        assert torch.equal(weight, weights(tmp_path / "warned", 9)[name])
    fit(tmp_path / "stopped", *PLAIN, *always, "--guards.low_signal.action", "stop", steps=12)
    last = told(tmp_path / "stopped")[-1]
    assert last["step"] == 8
    assert last["message"].endswith("; the run stops")
    assert weights(tmp_path / "stopped", 8)
    assert not (tmp_path / "stopped" / "checkpoints" / "update-00000009.ckpt").exists()


def test_a_dry_run_leaves_the_records_of_a_run_alone(tmp_path):
    folder = tmp_path / "run"
    fit(folder, *STILL, steps=8)
    before = {name: (folder / name).read_text() for name in ("guards.jsonl", "signal.jsonl")}
    assert all(before.values())
    run("fit", folder, *STILL, "--trainer.fast_dev_run", "true")
    assert {name: (folder / name).read_text() for name in before} == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--guards.still_reward.threshold", 0), ["guards", "threshold", "got 0"]),
        (("--guards.still_reward.action", "shout"), ["still_reward.action", "shout"]),
        (("--guards.lucky.threshold", 1), ["guards.lucky"]),
    ],
)
def test_bad_guards_are_refused(more, words, tmp_path, capsys):
    error = toy_runs.refused(capsys, run, "fit", tmp_path / "run", *more)
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()
