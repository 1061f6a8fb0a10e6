"""The four verbs in one run folder: what they write, which weights they use, and what a user's config cannot lose."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy_runs import TOY, checkpoint, contents, curves, environment, events, fit, run, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

OTHER = "lightning.pytorch.callbacks."


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two updates."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(folder, "--checkpoint.keep", "-1")
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


# -- validate, test, predict -------------------------------------------------------------------------------------------


def test_every_verb_works_in_one_run_folder(folder):
    before = contents(folder)
    for verb in ("validate", "validate", "test", "predict"):
        run(verb, folder, "--ckpt_path", "last")
    new = contents(folder)
    assert {name: new[name] for name in before} == before
    assert {name.split("/")[0] for name in new.keys() - before.keys()} == {
        "validate-0", "validate-1", "test-0", "predict-0",
    }  # fmt: skip

    last = [line for line in lines(folder / "samples.jsonl") if line["step"] == 2]
    for path in ("validate-0/samples.jsonl", "test-0/samples.jsonl", "predict-0/predictions.jsonl"):
        assert lines(folder / path) == last  # the last checkpoint's weights, not those that the run began with
    assert sorted({(line["uid"], line["answer"]) for line in last}) == sorted(
        (line["uid"], line["answer"]) for line in last
    )
    assert len(last) == 6 * 2
    assert {line["outcome"] for line in last} == {"right", "wrong"}

    trained = {tag: points[-1] for tag, points in curves(folder).items() if tag.startswith("val/")}
    validated = {tag: point for tag, (point,) in curves(folder / "validate-0").items()}
    assert repr(validated) == repr(trained)
    assert {tag.removeprefix("test/") for tag in curves(folder / "test-0")} == {
        tag.removeprefix("val/") for tag in trained
    }


def test_a_checkpoint_file_is_evaluated_and_without_one_the_base_policy(folder):
    samples = lines(folder / "samples.jsonl")
    run("validate", folder, "--ckpt_path", folder / "checkpoints" / "update-00000001.ckpt")
    assert lines(folder / "validate-0" / "samples.jsonl") == [line for line in samples if line["step"] == 1]
    run("validate", folder)
    base = [line for line in samples if line["step"] == 0]
    assert lines(folder / "validate-1" / "samples.jsonl") == base
    assert [line["text"] for line in base] != [line["text"] for line in samples if line["step"] == 2]


def test_a_verb_before_the_run_does_not_block_it(tmp_path):
    run("validate", tmp_path / "run")
    fit(tmp_path / "run", steps=1)
    first = [line for line in lines(tmp_path / "run" / "samples.jsonl") if line["step"] == 0]
    assert lines(tmp_path / "run" / "validate-0" / "samples.jsonl") == first


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_fast_dev_run_leaves_nothing(verb, tmp_path):
    run(verb, tmp_path / "run", "--trainer.fast_dev_run", "2" if verb == "fit" else "true")
    assert not (tmp_path / "run").exists()


def test_last_in_an_empty_folder_starts_and_says_so(tmp_path, capsys):
    fit(tmp_path / "run", "--ckpt_path", "last", steps=1)
    assert f"--ckpt_path last: run folder {tmp_path / 'run'} has no checkpoint" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").readlink() == Path("update-00000001.ckpt")


# -- what a run leaves -------------------------------------------------------------------------------------------------


def test_the_exported_policy_is_the_final_one(finished):
    model = AutoModelForCausalLM.from_pretrained(finished / "policy")
    expected, found = weights(finished, 2), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    tokenizer = AutoTokenizer.from_pretrained(finished / "policy")
    assert tokenizer.decode(tokenizer("3 4 5")["input_ids"]).replace(" ", "") == "345"


def test_histograms_and_texts_are_in_the_curves(finished):
    tags = events(finished).Tags()
    assert "fork/entropy" in tags["histograms"]
    assert "rollout/answers/text_summary" in tags["tensors"]
    (text,) = events(finished).Tensors("rollout/answers/text_summary")
    assert "<strong>" in text.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(
    "more", [("--trainer.callbacks", "[]"), ("--trainer.callbacks", OTHER + "LearningRateMonitor")]
)
def test_a_users_callbacks_do_not_replace_ours(more, tmp_path):
    fit(tmp_path / "run", *more, steps=1)
    files = contents(tmp_path / "run")
    assert {"checkpoints/update-00000001.ckpt", "policy/model.safetensors", "samples.jsonl"} <= files.keys()
    assert {"train/policy_loss", "val/toy/avg@2"} <= curves(tmp_path / "run").keys()


def test_a_run_without_logger(tmp_path):
    fit(tmp_path / "run", "--trainer.logger", "false", steps=1)
    files = contents(tmp_path / "run")
    assert {"checkpoints/update-00000001.ckpt", "samples.jsonl"} <= files.keys()
    assert not any("tfevents" in name for name in files)


def test_the_best_checkpoint_by_a_score(tmp_path):
    best = ("--trainer.callbacks+", OTHER + "ModelCheckpoint", "--trainer.callbacks.monitor", "val/toy/avg@2")
    best = (*best, "--trainer.callbacks.mode", "max", "--trainer.callbacks.filename", "best")
    best = (*best, "--trainer.callbacks.dirpath", tmp_path / "run" / "checkpoints")
    fit(tmp_path / "run", *best, steps=3)
    scores = dict(curves(tmp_path / "run")["val/toy/avg@2"])
    assert scores.keys() == {0, 1, 2, 3}
    highest = max(score for step, score in scores.items() if step)
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert scores[torch.load(path, weights_only=True)["global_step"]] == highest
    run("validate", tmp_path / "run", *best, "--ckpt_path", path)
    ((_, again),) = curves(tmp_path / "run" / "validate-0")["val/toy/avg@2"]
    assert again == highest


def test_early_stopping_on_a_score(tmp_path):
    fit(
        tmp_path / "run",
        *("--trainer.callbacks+", OTHER + "EarlyStopping", "--trainer.callbacks.monitor", "val/toy/avg@2"),
        *("--trainer.callbacks.mode", "max", "--trainer.callbacks.min_delta", "2", "--trainer.callbacks.patience", "2"),
        steps=8,
    )
    assert [step for step, _ in curves(tmp_path / "run")["val/toy/avg@2"]] == [0, 1, 2]
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").readlink() == Path("update-00000002.ckpt")


def test_without_evaluation_sets_checkpoints_are_still_written(tmp_path):
    fit(tmp_path / "run", "--data.val", "null", "--checkpoint.keep", "-1")
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"update-00000001.ckpt", "update-00000002.ckpt", "last.ckpt"}


def test_a_kl_term_keeps_no_reference_in_the_checkpoint(finished, tmp_path):
    base = ("--model.policy.path", finished / "policy", "--model.policy.random_init", "false")
    fit(tmp_path / "run", *base, "--model.kl.coef", "0.1")
    assert checkpoint(tmp_path / "run", 2)["state_dict"].keys() == checkpoint(finished, 2)["state_dict"].keys()
    kl = dict(curves(tmp_path / "run")["train/kl"])
    assert kl[1] == pytest.approx(0.0, abs=1e-6)
    assert kl[2] > 0


def test_mixed_precision(tmp_path):
    fit(tmp_path / "run", "--trainer.precision", "bf16-mixed", "--data.updates_per_rollout", "2")
    ratio = dict(curves(tmp_path / "run")["train/ratio"])
    assert ratio[1] == pytest.approx(1.0, abs=1e-2)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "run", 2).values())


# -- resume ------------------------------------------------------------------------------------------------------------


def same_weights(a, b, update, tolerance=0.0):
    expected, found = weights(a, update), weights(b, update)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance, msg=name)


def test_max_steps_may_be_raised(tmp_path):
    """A run that ended inside a rollout, between two evaluations, goes on as if it had been meant to be longer."""
    more = ("--data.updates_per_rollout", 2, "--trainer.accumulate_grad_batches", 2, "--data.eval_every_rollouts", 2)
    fit(tmp_path / "whole", *more, steps=8)
    fit(tmp_path / "parts", *more, steps=3)
    fit(tmp_path / "parts", *more, "--ckpt_path", "last", steps=8)
    same_weights(tmp_path / "whole", tmp_path / "parts", 8)
    whole, parts = curves(tmp_path / "whole"), curves(tmp_path / "parts")
    assert [step for step, _ in whole["val/toy/avg@2"]] == [0, 4, 8]
    for tag, points in whole.items():
        if tag.startswith("time/"):  # of whole rollouts only
            assert {step for step, _ in parts[tag]} <= {step for step, _ in points}
        else:
            assert repr(parts[tag]) == repr(points), tag
    assert sorted(path.name for path in (tmp_path / "parts").glob("config-*")) == ["config-0.yaml", "config-1.yaml"]


DOUBLE = ("--data.updates_per_rollout", 2, "--data.eval_every_rollouts", 2, "--trainer.precision", "64-true")
DOUBLE = (*DOUBLE, "--model.policy.dtype", "float64", "--trainer.accumulate_grad_batches")


@pytest.fixture(scope="module")
def one_micro_batch(tmp_path_factory):
    """A run in float64, where the number of micro-batches does not matter: rounding stays below 1e-9."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(folder, *DOUBLE, 1, steps=6)
    return folder


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_the_number_of_micro_batches_may_change_between_rollouts(before, after, one_micro_batch, tmp_path):
    fit(tmp_path / "parts", *DOUBLE, before, steps=2)
    fit(tmp_path / "parts", *DOUBLE, after, "--ckpt_path", "last", steps=6)
    same_weights(one_micro_batch, tmp_path / "parts", 6, tolerance=1e-9)
    whole, parts = curves(one_micro_batch), curves(tmp_path / "parts")
    assert [step for step, _ in parts["val/toy/avg@2"]] == [0, 4]
    assert whole.keys() == parts.keys()
    for tag, points in whole.items():
        assert [step for step, _ in parts[tag]] == [step for step, _ in points], tag
    for tag in ("train/policy_loss", "train/grad_norm", "train/lr", "fork/threshold", "rollout/reward"):
        values = [value for _, value in whole[tag]]
        assert [value for _, value in parts[tag]] == pytest.approx(values, rel=1e-6, abs=1e-9), tag


def test_the_number_of_micro_batches_may_not_change_inside_a_rollout(tmp_path, capsys):
    more = ("--data.updates_per_rollout", 2)
    fit(tmp_path / "run", *more, steps=1)
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", *more, "--trainer.accumulate_grad_batches", 2, "--ckpt_path", "last", steps=4)
    assert "trainer.accumulate_grad_batches = 2, but the checkpoint lies inside a rollout" in capsys.readouterr().err


def test_settings_in_a_checkpoint_do_not_override_the_command_line(folder, tmp_path):
    path = tmp_path / "foreign.ckpt"
    state = checkpoint(folder, 2)
    state["hyper_parameters"] = {"entropy_coef": 0.5, "_class_path": "forklight.module.ForkGRPOModule"}
    torch.save(state, path)
    fit(tmp_path / "other", "--ckpt_path", path, steps=3)
    found = curves(tmp_path / "other")
    assert "train/entropy" not in found
    assert [step for step, _ in found["train/grad_norm"]] == [3]


def test_an_older_checkpoint_may_be_gone_on_from(folder):
    """The files of the abandoned end are the oldest then: the one just written stays, and `last` leads to it."""
    path = folder / "checkpoints" / "update-00000001.ckpt"
    for name in ("update-00000008.ckpt", "update-00000009.ckpt"):
        shutil.copy(path, folder / "checkpoints" / name)
    fit(folder, "--ckpt_path", path, "--checkpoint.keep", 1, steps=2)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["last.ckpt", "update-00000002.ckpt"]
    assert checkpoint(folder, 2)["global_step"] == 2


# -- processes ---------------------------------------------------------------------------------------------------------


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "forklight", "--help"], capture_output=True, text=True, env=environment(), check=True
    )
    assert all(verb in done.stdout for verb in ("fit", "validate", "test", "predict", "compare"))


def test_sigterm_finishes_the_update_and_leaves_a_checkpoint_to_go_on_from(tmp_path):
    more = ["--data.updates_per_rollout", "4", "--trainer.accumulate_grad_batches", "2", "--data.val", "null"]
    more += ["--checkpoint.every_n_rollouts", "100", "--checkpoint.keep", "-1", "--trainer.max_steps"]
    command = [sys.executable, "-m", "forklight", "fit", "--config", str(TOY), "--run_dir", str(tmp_path / "parts")]
    process = subprocess.Popen([*command, *more, "100000"], env=environment(), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "training" in line:  # the last row of the table, which is printed before the first step
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    process.stdout.close()
    (saved,) = (tmp_path / "parts" / "checkpoints").glob("update-*.ckpt")
    stopped = int(saved.stem.removeprefix("update-"))
    assert not (tmp_path / "parts" / "policy").exists()
    fit(tmp_path / "whole", *more[:-1], steps=stopped + 2)
    fit(tmp_path / "parts", *more[:-1], "--ckpt_path", "last", steps=stopped + 2)
    same_weights(tmp_path / "whole", tmp_path / "parts", stopped + 2)
    whole, parts = (dict(curves(tmp_path / name)["train/policy_loss"]) for name in ("whole", "parts"))
    assert whole == parts
