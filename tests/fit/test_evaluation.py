"""What an evaluation leaves: scores with their protocol, the best checkpoint, suspicious answers, named benchmarks."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_runs import TOY, checkpoint, curves, environment, events, fit, refused, run

from forklight.metrics import pass_at_k

CONFIGS = Path(__file__).parents[2] / "configs"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(folder, "--data.val.toy.answers", 5, "--data.val.toy.seed", 11)
    return folder


def test_scores_are_those_of_the_answers(finished):
    samples, scores = lines(finished / "samples.jsonl"), lines(finished / "scores.jsonl")
    assert [line["step"] for line in scores] == [0, 1, 2]
    for line in scores:
        rights = {}
        for answer in samples:
            if answer["step"] == line["step"]:
                rights.setdefault(answer["uid"], []).append(answer["outcome"] == "right")
        counts = [sum(right) for right in rights.values()]
        assert len(counts) == line["problems"] == 6
        found = line["scores"]
        assert found["avg@5"] == pytest.approx(sum(counts) / 30)
        for k in range(2, 6):
            assert found[f"pass@{k}"] == pytest.approx(sum(pass_at_k(5, c, k) for c in counts) / 6)
        tokens = {True: [], False: []}
        for answer in samples:
            if answer["step"] == line["step"]:
                tokens[answer["outcome"] == "right"].append(answer["tokens"])
        assert found["length_right"] == pytest.approx(sum(tokens[True]) / len(tokens[True]))
        assert found["length_wrong"] == pytest.approx(sum(tokens[False]) / len(tokens[False]))


def test_scores_say_how_they_were_measured(finished):
    first, *others = lines(finished / "scores.jsonl")
    protocol = {key: value for key, value in first.items() if key not in ("step", "scores")}
    assert all(line.items() >= protocol.items() for line in others)
    assert (protocol["set"], protocol["answers"], protocol["temperature"], protocol["top_p"]) == ("toy", 5, 1.0, 1.0)
    assert (protocol["max_new_tokens"], protocol["seed"]) == (6, 11)
    assert protocol["template"] == {
        "kind": "base", "text": "{problem}:", "system": "", "few_shot": [], "prefill": "", "chat_template_kwargs": {},
    }  # fmt: skip
    assert protocol["verifier"] == "LengthParity()"
    assert protocol["versions"].keys() == {"forklight", "torch", "transformers", "math-verify"}
    assert len(protocol["problems_hash"]) == 16


def test_curves_and_tables(finished):
    found = curves(finished)
    names = {tag.removeprefix("val/toy/") for tag in found if tag.startswith("val/toy/")}
    assert names >= {"avg@5", "avg@5_se", "pass@2", "pass@4", "pass@5", "maj@2", "maj@5", "length_right", "unjudged"}
    assert "pass@3" not in names
    assert all(math.isfinite(value) for tag in found for _, value in found[tag])
    assert all(value == pytest.approx(1) for _, value in found["val/toy/rule/parity"])
    texts = events(finished).Tensors("val/scores/text_summary")
    assert [event.step for event in texts] == [0, 1, 2]
    table = texts[-1].tensor_proto.string_val[0].decode()
    assert table.startswith("| set | updates | n | avg@n |")
    assert "| toy | 0 | 5 |" in table
    assert "| toy | 2 | 5 |" in table


def test_the_draws_of_a_set_with_a_seed_do_not_depend_on_the_run(tmp_path):
    """The base policy is the same whatever `seed_everything`; so then is its score."""
    problems = {"class_path": "forklight.data.countdown_sets.CountdownProblems"}
    problems["init_args"] = {"size": 6, "split": "eval"}
    sets = {"seeded": {"source": problems, "answers": 2, "seed": 3}, "own": {"source": problems, "answers": 2}}
    for seed in (1, 2):
        more = ("--model.policy.random_init", "false", "--data.val", json.dumps(sets), "--seed_everything", seed)
        run("validate", tmp_path / "run", *more)
    first, second = (lines(tmp_path / "run" / f"validate-{i}" / "samples.jsonl") for i in (0, 1))

    def of(name, answers):
        return [answer for answer in answers if answer["set"] == name]

    assert len(of("seeded", first)) == len(of("own", first)) == 6 * 2
    assert of("seeded", first) == of("seeded", second)
    assert of("own", first) != of("own", second)


def test_a_resumed_run_repeats_no_line(tmp_path):
    fit(tmp_path / "run", "--checkpoint.keep", -1, steps=3)
    whole = {name: (tmp_path / "run" / name).read_text() for name in ("samples.jsonl", "scores.jsonl")}
    older = tmp_path / "run" / "checkpoints" / "update-00000001.ckpt"
    fit(tmp_path / "run", "--checkpoint.keep", -1, "--ckpt_path", older, steps=3)
    assert {name: (tmp_path / "run" / name).read_text() for name in whole} == whole


@pytest.mark.slow
def test_two_ranks_give_the_scores_of_one_to_the_last_digit(tmp_path):
    """Seven problems on two ranks: one is shown twice."""
    more = ["--data.val.toy.source.size", "7", "--data.val.toy.answers", "4", "--data.eval_batch_size", "2"]
    more += ["--trainer.precision", "64-true", "--model.policy.dtype", "float64"]
    run("validate", tmp_path / "one", *more)
    strategy = {
        "class_path": "lightning.pytorch.strategies.DDPStrategy",
        "init_args": {"process_group_backend": "gloo"},
    }
    command = [sys.executable, "-m", "forklight", "validate", "--config", str(TOY), "--run_dir", str(tmp_path / "two")]
    command += [*more, "--trainer.devices", "2", "--trainer.strategy", json.dumps(strategy)]
    one_thread = environment() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (tmp_path / name / "validate-0" for name in ("one", "two"))
    assert lines(two / "scores.jsonl") == lines(one / "scores.jsonl")  # floats are written with all their digits
    assert lines(one / "scores.jsonl")[0]["problems"] == 7
    assert repr(curves(two)) == repr(curves(one))
    assert sorted((two / "samples.jsonl").read_text().splitlines()) == sorted(
        (one / "samples.jsonl").read_text().splitlines()
    )


# -- the best checkpoint -----------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_kept_and_can_be_named(tmp_path):
    best = ("--checkpoint.best", "val/toy/avg@2", "--checkpoint.keep", 1)
    folder = tmp_path / "run" / "checkpoints"
    fit(tmp_path / "run", *best, steps=3)
    fit(tmp_path / "run", *best, "--ckpt_path", "last", steps=6)
    scores = {step: score for step, score in curves(tmp_path / "run")["val/toy/avg@2"] if step}
    first = min(scores, key=lambda step: (-scores[step], step))
    assert (folder / "best.ckpt").readlink() == Path(f"update-{first:08d}.ckpt")
    assert {path.name for path in folder.glob("update-*")} == {f"update-{step:08d}.ckpt" for step in {first, 6}}
    run("validate", tmp_path / "run", *best, "--ckpt_path", "best")
    assert curves(tmp_path / "run" / "validate-0")["val/toy/avg@2"] == [(first, scores[first])]


def test_an_evaluation_between_two_checkpoints_may_be_the_best(tmp_path):
    fit(tmp_path / "run", "--checkpoint.best", "val/toy/avg@2", "--checkpoint.every_n_rollouts", 100, steps=3)
    scores = {step: score for step, score in curves(tmp_path / "run")["val/toy/avg@2"] if step}
    first = min(scores, key=lambda step: (-scores[step], step))
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == first


def test_a_run_that_goes_back_forgets_a_best_that_is_ahead(tmp_path):
    best = ("--checkpoint.best", "val/toy/truncated", "--checkpoint.keep", -1)
    fit(tmp_path / "run", *best, steps=4)
    state = checkpoint(tmp_path / "run", 1)["callbacks"]["RunCheckpoint"]
    assert state["highest"][1] == 1
    folder = tmp_path / "run" / "checkpoints"
    fit(tmp_path / "run", *best, "--ckpt_path", folder / "update-00000001.ckpt", steps=1)
    assert (folder / "best.ckpt").readlink() == Path("update-00000001.ckpt")


def test_a_best_score_that_does_not_exist_is_refused_at_the_first_evaluation(tmp_path, capsys):
    error = refused(capsys, lambda: fit(tmp_path / "run", "--checkpoint.best", "val/toy/avg@9"))
    assert "checkpoint.best = val/toy/avg@9: there is no such score" in error
    assert "val/toy/avg@2" in error


# -- benchmarks by name ------------------------------------------------------------------------------------------------


def test_the_tiny_policy_is_scored_on_the_real_benchmarks(tmp_path, shared_data, monkeypatch):
    monkeypatch.setenv("FORKLIGHT_DATA", str(shared_data("math500.jsonl").parent))
    shorter = [f"--data.val.{name}.source.limit=3" for name in ("aime24", "aime25", "math500")]
    run(
        "validate",
        tmp_path / "run",
        *("--config", CONFIGS / "eval" / "aime_math500.yaml"),
        *shorter,
        config=CONFIGS / "countdown" / "grpo.yaml",
    )
    scores = {line["set"]: line for line in lines(tmp_path / "run" / "validate-0" / "scores.jsonl")}
    assert list(scores) == ["aime24", "aime25", "math500"]
    for line in scores.values():
        assert (line["answers"], line["temperature"], line["top_p"], line["seed"]) == (16, 1.0, 1.0, 0)
        assert line["scores"]["avg@16"] == 0  # it has never seen such a problem
        assert "put your final answer within \\boxed{}" in line["template"]["text"]
    assert scores["aime24"]["verifier"].startswith("IntegerVerifier(")
    assert scores["math500"]["verifier"].startswith("MathVerifier(")
    assert "extraction='box'" in scores["math500"]["verifier"]


# -- rewards and their curves ------------------------------------------------------------------------------------------

REWARDS = """
def long_enough(answer, gold):
    if "hang" in gold:
        while True: pass
    return min(len(answer) / 8, 1.0)
"""


def test_a_composed_reward_trains_and_is_watched(tmp_path, monkeypatch):
    (tmp_path / "length_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    parts = {
        "answer": {"verifier": {"class_path": "toy.LengthParity"}, "weight": 1.0},
        "length": {
            "verifier": {
                "class_path": "forklight.verify.FunctionVerifier",
                "init_args": {"function": "length_rewards.long_enough"},
            },
            "weight": 0.5,
        },
    }
    verifier = {"class_path": "forklight.verify.WeightedVerifier", "init_args": {"parts": parts}}
    fit(tmp_path / "run", "--data.verifier", json.dumps(verifier), steps=2)
    found = curves(tmp_path / "run")
    for tag in ("verify/rule/answer", "verify/rule/length", "val/toy/rule/length"):
        assert all(0 < value < 1 for _, value in found[tag]), tag
    for (_, answer), (_, length) in zip(found["verify/rule/answer"], found["verify/rule/length"], strict=True):
        assert answer + length == pytest.approx(1)
    for line in lines(tmp_path / "run" / "samples.jsonl"):
        assert line["parts"].keys() == {"answer", "length"}
        assert line["reward"] == pytest.approx(sum(line["parts"].values()))
        assert line["parts"]["answer"] == (line["outcome"] == "right")
        assert line["parts"]["length"] == pytest.approx(min(len(line["text"]) / 8, 1) / 2)
    assert all(value > 0 for _, value in found["train/grad_norm"])


def test_counts_of_verdicts_are_exact(tmp_path):
    fit(tmp_path / "run", "--model.rollout.dynamic_sampling", "false", "--data.val", "null", steps=3)
    found = curves(tmp_path / "run")
    for (step, right), (_, wrong), (_, unjudged) in zip(
        found["verify/right"], found["verify/wrong"], found["verify/unjudged"], strict=True
    ):
        assert right + wrong + unjudged == 16
        assert right == pytest.approx(16 * dict(found["rollout/right"])[step])
    assert [value for _, value in found["verify/reason/parity"]] == [16.0] * 3


def test_surplus_answers_are_counted_too(finished):
    found = curves(finished)
    drawn = dict(found["rollout/problems_drawn"])
    for (step, right), (_, wrong) in zip(found["verify/right"], found["verify/wrong"], strict=True):
        assert right + wrong == 4 * drawn[step]


def test_unusual_answers_are_written_out(tmp_path):
    """Answers of the random toy policy are of any bytes: some rewarded ones are not ASCII, or cut by the limit."""
    fit(tmp_path / "run", "--evaluation.suspicious", 2, steps=1)
    found = lines(tmp_path / "run" / "suspicious.jsonl")
    samples = {(line["step"], line["uid"], line["answer"]): line for line in lines(tmp_path / "run" / "samples.jsonl")}
    assert {line["step"] for line in found} == {0, 1}
    assert len(found) <= 4
    for line in found:
        sample = samples[line["step"], line["uid"], line["answer"]]
        assert sample["outcome"] == "right"
        assert sample["text"] == line["text"]
        assert line["why"]
        assert ("cut by the length limit" in line["why"]) == sample["truncated"]
    assert events(tmp_path / "run").Tensors("val/suspicious/text_summary")
    fit(tmp_path / "none", "--evaluation.suspicious", 0, steps=1)
    assert not (tmp_path / "none" / "suspicious.jsonl").exists()
