"""Runs with stops: they train, fewer answers are cut by the limit, and evaluations stop in the same places."""

import json

import pytest
import yaml
from toy_runs import TOY, curves, fit, run, weights

from forklight.cli import main

STOP = ["1", "[/INST]", 7]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained(folder, *more):
    fit(folder, "--model.selection.select_truncated", "false", "--model.rollout.overlong_buffer", 3, *more)
    return folder


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("free") / "run")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("stopped") / "run", "--model.rollout.stop", json.dumps(STOP))


def test_a_run_with_stops_trains_on_answers_that_ended(free, stopped):
    before, after = weights(stopped, 1), weights(stopped, 2)
    assert any(not weight.equal(after[name]) for name, weight in before.items())
    without, found = curves(free), curves(stopped)
    for (_, cut), (_, less) in zip(without["rollout/truncated"], found["rollout/truncated"], strict=True):
        assert less < cut - 0.3
    assert found["rollout/answer_tokens"][0][1] < without["rollout/answer_tokens"][0][1]
    assert all(value > 0 for _, value in found["train/tokens"])  # truncated answers are not selected


def test_an_evaluation_stops_and_says_so(free, stopped):
    assert [line["stop"] for line in lines(free / "scores.jsonl")] == [[]] * 3
    assert [line["stop"] for line in lines(stopped / "scores.jsonl")] == [STOP] * 3
    whole, cut = ([line for line in lines(run / "samples.jsonl") if line["step"] == 0] for run in (free, stopped))
    ended = 0
    for before, after in zip(whole, cut, strict=True):
        assert before["text"].startswith(after["text"].rstrip("\N{REPLACEMENT CHARACTER}"))
        assert "1" not in after["text"]
        assert after["tokens"] <= before["tokens"]
        ended += before["truncated"] and not after["truncated"]
    assert ended > len(cut) / 4


def test_a_checkpoint_can_be_scored_without_stops(stopped):
    run("validate", stopped, "--model.rollout.stop", "[]", "--ckpt_path", "last", "--trainer.max_steps", 2)
    (line,) = lines(stopped / "validate-0" / "scores.jsonl")
    assert line["stop"] == []
    assert line["scores"]["truncated"] > lines(stopped / "scores.jsonl")[-1]["scores"]["truncated"] + 0.3


def test_a_resumed_run_stops_in_the_same_places(stopped, tmp_path):
    more = ("--model.rollout.stop", json.dumps(STOP))
    trained(tmp_path / "run", *more, "--trainer.max_steps", 1)
    trained(tmp_path / "run", *more, "--ckpt_path", "last")
    expected = weights(stopped, 2)
    assert all(weight.equal(expected[name]) for name, weight in weights(tmp_path / "run", 2).items())


@pytest.mark.parametrize("option", ["--model.rollout.stop", "--model.init_args.rollout.stop"])
@pytest.mark.parametrize("joined", [True, False])
def test_strings_arrive_as_they_are_typed(option, joined, capsys):
    stop = ["\n", "\\boxed", "it's", '"q"', " b", "[/INST]", 7, "7", "{x}", ": ", "# c", "null", "\t\n\n"]
    arguments = [f"{option}={json.dumps(stop)}"] if joined else [option, json.dumps(stop)]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(TOY), *arguments, "--model.rollout.temperature", "0.5", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["rollout"]
    assert (found["stop"], found["temperature"], found["max_new_tokens"]) == (stop, 0.5, 6)


def test_the_startup_table_shows_the_stops(tmp_path, capsys):
    fit(tmp_path / "free", "--data.val", "null", steps=1)
    assert "│ stop" not in capsys.readouterr().out
    fit(tmp_path / "run", "--data.val", "null", "--model.rollout.stop", '["\\n", "[/INST]", 7]', steps=1)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│ stop"))
    assert row.strip("│ ").split("│")[1].strip() == r"at EOS, '\n', '[/INST]', 7"
